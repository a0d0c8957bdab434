"""A map of the codes: where each lies in the codebook, and how things move in the pairs that have it.

Codes that lie near each other mean similar motions. LAQ learns this without being told, and stage 3 uses it
(docs/experiments.md, "Codes lie in a plane").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lapa.contracts import Array
from lapa.models.laq import FLAT, LAQ
from lapa.plots.codes import code_name
from lapa.plots.dots import COLOURS, FAINT, INK
from lapa.plots.figure import save

TINY = float(np.finfo(np.float32).tiny)
ARROW = 0.16  # of the map's width: the longest


def code_map(
    laq: LAQ,
    codes: Array,
    path: Path,
    title: str,
    motion: Array | None = None,
    first: Array | None = None,
    domains: Sequence[str] = (),
) -> int:
    """Draw codes int64 [K, s] where they lie in the codebook, along its first two principal directions, as a PNG.

    motion float [K, domains, 2], to the right and down: the mean motion of each code in each dataset of `domains`, NaN
    where no pair has the code. If a pair has several codes (s > 1), all |C| codes of the first position are drawn, with
    their motion `first`, [|C|, domains, 2]. Returns the number of directions.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = laq.code_embeddings()[: laq.config.codebook_size]
    if codes.shape[1] > 1:
        codes, motion = np.arange(len(entries))[:, None], first
    left, spread, _ = np.linalg.svd(entries, full_matrices=False)
    places = (left * spread)[codes[:, 0]][:, spread > FLAT * spread.max(initial=0.0)]
    where = np.pad(places, ((0, 0), (0, max(0, 2 - places.shape[1]))))[:, :2]
    figure = Figure(figsize=(5.6, 6.0), dpi=130)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.02, ha="left")
    reach = 1.45 * max(float(np.abs(where).max()), TINY)
    if motion is not None:
        longest = max(float(np.nanmax(np.linalg.norm(motion, axis=-1), initial=0.0)), TINY)
        for domain in range(motion.shape[1]):
            there = np.isfinite(motion[:, domain]).all(-1)
            along = motion[there, domain] * [1, -1] / longest * ARROW * 2 * reach
            axes.quiver(*where[there].T, *along.T, angles="xy", scale_units="xy", scale=1, width=0.006, zorder=3,
                        color=COLOURS[domain % len(COLOURS)], label=domains[domain] if domains else None)  # fmt: skip
        if len(domains) > 1:
            axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.plot(*where.T, "o", ms=13, mfc="white", mec=INK, mew=0.8, zorder=4)
    for name, at in zip(map(code_name, codes), where, strict=True):
        axes.annotate(name, at, ha="center", va="center", fontsize=7.5, color=INK, zorder=5)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=FAINT)
    told = "; arrows: mean motion in the picture" if motion is not None else ""
    axes.set_xlabel(f"first two of {places.shape[1]} principal directions of the codebook{told}", fontsize=8)
    for side in axes.spines.values():
        side.set_color(FAINT)
    save(figure, path)
    return places.shape[1]
