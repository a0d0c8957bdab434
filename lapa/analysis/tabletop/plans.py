"""Plans that people can read: the way that a policy's codes mean, drawn on the present image, beside the true way.

A linear probe, fitted on other episodes, turns a code into a displacement. Two lines start where the effector is:

    plan            the policy sees the present image; after that, the frames that the decoder draws from its codes
    step by step    the policy sees every real frame of the video: what it would do at each moment

Two more lines are for comparison: the way that the codes of the video itself mean, and the true way.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from lapa.analysis.reading import Reading, angles
from lapa.analysis.tabletop.states import effector, in_picture
from lapa.contracts import Array, LapaError
from lapa.data.pixels import as_pixels
from lapa.measures.linear import LinearFit
from lapa.measures.probes import one_hot
from lapa.models.laq import LAQ
from lapa.plots.codes import Dreamer
from lapa.plots.figure import COLOURS, INK, figure, save

STEPS = 12  # windows ahead
JUDGED = 200  # plans behind the figures
SHOWN = 6
TITLES = {
    "plan": "plan, from this image alone",
    "each_frame": "policy, frame by frame",
    "codes": "codes of the video",
    "true": "what was done",
}
STYLE = {"plan": COLOURS[0], "each_frame": COLOURS[3], "codes": COLOURS[2], "true": INK}


def plans(laq: LAQ, policy: Dreamer, reading: Reading, path: Path, title: str, seed: int = 0) -> dict[str, Any]:
    """Draw SHOWN plans to `path`, judge up to JUDGED: {"plans", KIND: {"within_45", "miss"}}.

    within_45: the share of ways whose direction, over the first quarter, is within 45 degrees of the true one.
    miss: the distance between the end of a way and the true end, divided by the distance covered. Raises LapaError
    unless the state says where the effector is.
    """
    if not in_picture(reading.packed):
        raise LapaError(f"{reading.name}: plans need a state effector_x, effector_y in shares of the picture.")
    fit, test = reading.halves(seed)
    probe = LinearFit.fit(fit.features, fit.moved)
    starts = _starts(test, seed)
    if not len(starts):
        raise LapaError(f"{reading.name}: no episode is {STEPS} windows long.")
    ways, images, texts = follow(laq, policy, test, starts, probe)
    early = STEPS // 4
    true = ways["true"]
    gone = np.linalg.norm(true[:, -1] - true[:, 0], axis=1)
    results: dict[str, Any] = {"plans": len(starts), "steps": STEPS}
    for name, way in ways.items():
        if name != "true":
            off = angles(way[:, early] - way[:, 0], true[:, early] - true[:, 0])
            miss = np.linalg.norm(way[:, -1] - true[:, -1], axis=1)
            results[name] = {"within_45": float((off <= 45).mean()), "miss": float(miss.mean() / gone.mean())}
    _picture({name: way[:SHOWN] for name, way in ways.items()}, images[:SHOWN], texts[:SHOWN], path, title)
    return results


def _starts(test: Reading, seed: int) -> Array:
    """The first pair of each episode that is STEPS windows long: rows of test.pairs, int64 [<= JUDGED]."""
    pairs = test.pairs
    first = np.flatnonzero(pairs.frame == 0)
    first = first[np.isin(pairs.episode[first], test.episode) & (pairs.offset[first] > 0)]
    lengths = np.diff(test.packed.starts)[pairs.episode[first]] - 1
    long = first[lengths // pairs.offset[first] >= STEPS]
    return np.random.default_rng(seed).permutation(long)[:JUDGED]


def follow(
    laq: LAQ, policy: Dreamer, test: Reading, starts: Array, probe: LinearFit
) -> tuple[dict[str, Array], Array, list[str]]:
    """Ways float64 [B, STEPS + 1, 2] in shares of the picture, from the pairs `starts`; first images; instructions."""
    packed, pairs = test.packed, test.pairs
    frames = pairs.now[starts][:, None] + pairs.offset[starts][:, None] * np.arange(STEPS + 1)
    texts = [packed.instructions[e] for e in pairs.episode[starts]]
    size, where = laq.config.image_size, next(laq.parameters()).device
    video = [as_pixels(packed.gather(frames[:, t]), size, where) for t in range(STEPS + 1)]
    named: dict[str, list[Array]] = {"plan": [], "each_frame": [], "codes": []}
    drawn = video[0]
    for now, later in itertools.pairwise(video):
        planned = policy.predict_codes(drawn, texts)
        drawn = laq.decode(drawn, planned)
        for name, codes in (("plan", planned), ("each_frame", policy.predict_codes(now, texts)),
                            ("codes", laq.encode(now, later))):  # fmt: skip
            named[name].append(codes.cpu().numpy())
    true = effector(packed)[frames]
    ways = {}
    for name, sequence in named.items():
        steps = np.stack([probe(one_hot(codes, test.classes)) for codes in sequence], 1)
        ways[name] = np.concatenate([true[:, :1], true[:, :1] + np.cumsum(steps, 1)], 1)
    return {**ways, "true": true}, packed.gather(frames[:, 0]), texts


def _picture(ways: dict[str, Array], images: Array, texts: list[str], path: Path, title: str) -> None:
    """One row for each scene, one panel for each way, on the same image."""
    rows = len(images)
    made = figure(8.4, 0.6 + 2.25 * rows, title)
    grid = made.subplots(rows, len(ways), squeeze=False)
    for r in range(rows):
        for axes, (name, way) in zip(grid[r], ways.items(), strict=True):
            axes.imshow(images[r], extent=(0, 1, 1, 0), interpolation="nearest")
            x, y = way[r].T
            axes.plot(x, y, color="white", linewidth=4.2, solid_capstyle="round", clip_on=True)
            axes.plot(x, y, ".-", color=STYLE[name], linewidth=1.9, ms=5)
            axes.plot(x[-1:], y[-1:], "o", ms=7, mfc="white", mec=STYLE[name], mew=2)
            axes.set_xlim(0, 1)
            axes.set_ylim(1, 0)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if not r:
                axes.set_title(TITLES[name], fontsize=9, color=STYLE[name])
        grid[r][0].set_xlabel(f"“{texts[r]}”", fontsize=9, loc="left")
    save(made, path)
