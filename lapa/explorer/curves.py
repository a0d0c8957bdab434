"""The curves of one or more training runs as one picture: one panel a kind of figure, one line a run and series."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapa.contracts import LapaError
from lapa.training.checkpoint import replacing

Curves = Mapping[str, tuple[list[int], list[float]]]  # name -> (steps, values), as training.logbook.read_metrics
COLOURS = ("#1f6feb", "#d1603d", "#2e9e6b", "#8457c9", "#c99a1b", "#3aa5b8", "#b8437f", "#6b7280")
STYLES = ("-", "--", ":", "-.")
COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """A kind of figure: what it is called, its unit, the logged names that belong to it (a pattern)."""

    title: str
    unit: str
    names: str
    log: bool = False
    reference: float | None = None
    """a value worth a line across the panel"""
    events: bool = False
    """something that happens now and then: spikes in place of a line"""


PANELS = (
    Panel("Loss", "loss of a batch", r"(.*_)?loss|mse", log=True),
    Panel("Error / copy", "squared error / copying", r"(watched/)?error_over_copy", reference=1.0),
    Panel("Perplexity", "codes in effective use", r"(watched/)?perplexity(_\d+)?"),
    Panel("Utilisation", "share of the codes in use", r"(watched/)?utili[sz]ation(_\d+)?", reference=1.0),
    Panel("Codes replaced", "codes at a time", r"codes_replaced", events=True),
    Panel("Probes", "held-out R²", r"watched/.*_r2.*", reference=0.0),
    Panel("Accuracy", "share of a batch", r"accuracy", reference=1.0),
    Panel("Learning rate", "of the optimizer", r"lr"),
)


def curves(runs: Mapping[str, Curves], path: Path, title: str, codebook: int | None = None) -> None:
    """Draw all that the runs, by name, have logged. `codebook` is |C|, for the line of full use.

    Raises LapaError when there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(panel, drawn) for panel in _panels(runs) if (drawn := _series(panel, runs))]
    if not panels:
        raise LapaError(f"Nothing has been logged yet in {', '.join(runs)}; the first line comes within 1% of the run.")
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.3 * columns, 2.9 * rows + 0.5), dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_visible(False)
    for axes, (panel, names) in zip(grid, panels, strict=False):
        axes.set_visible(True)
        _draw(axes, panel, names, runs, codebook)
    if len(runs) > 1:
        handles = [figure.axes[0].plot([], [], color=_colour(i))[0] for i in range(len(runs))]
        figure.legend(handles, list(runs), loc="outside lower left", ncols=min(len(runs), 3), frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _panels(runs: Mapping[str, Curves]) -> list[Panel]:
    """The known panels, and one for every name that belongs to none of them."""
    names = dict.fromkeys(name for run in runs.values() for name in run)
    rest = [name for name in names if not any(re.fullmatch(panel.names, name) for panel in PANELS)]
    return [*PANELS, *(Panel(_words(name), "", re.escape(name)) for name in rest)]


def _series(panel: Panel, runs: Mapping[str, Curves]) -> list[str]:
    names = dict.fromkeys(name for run in runs.values() for name in run if re.fullmatch(panel.names, name))
    return [name for name in names if not (name == "mse" and all(_same(run, "mse", "loss") for run in runs.values()))]


def _same(run: Curves, one: str, other: str) -> bool:
    return run.get(one) == run.get(other)


def _draw(axes: Any, panel: Panel, names: list[str], runs: Mapping[str, Curves], codebook: int | None) -> None:
    many = len(runs) > 1
    for r, run in enumerate(runs.values()):
        before = list(runs.values())[:r]
        for n, name in enumerate(names):
            if name not in run:
                continue
            steps, values = run[name]
            colour, style = (_colour(r), STYLES[n % len(STYLES)]) if many else (_colour(n), "-")
            width = 1.4 if many else max(1.9 - 0.3 * n, 1.0)  # two lines that agree both stay in sight
            label = _words(name) if len(names) > 1 and not any(name in other for other in before) else None
            if panel.events:
                axes.vlines(steps, 0, values, color=colour, linewidth=1.2)
            marker = "." if panel.events or len(steps) < 12 else ""
            style = "" if panel.events else style
            axes.plot(steps, values, color=colour, linestyle=style, linewidth=width, marker=marker, label=label)
    last = max(steps[-1] for run in runs.values() for steps, _ in run.values())
    axes.set_xlim(-0.02 * last, 1.02 * last)  # the same for all panels
    reference = codebook if panel.title == "Perplexity" else panel.reference
    if reference is not None:
        axes.axhline(reference, color="#9aa0a8", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    if panel.log and all(v > 0 for run in runs.values() for name in names for v in run.get(name, ([], []))[1]):
        axes.set_yscale("log")
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis("{x:.2g}")
    axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel("optimizer step", fontsize=8.5, color="#686c74")
    axes.set_ylabel(panel.unit, fontsize=8.5, color="#686c74")
    axes.tick_params(which="both", labelsize=8, color="#d6d9de")
    axes.grid(color="#e6e8ec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d6d9de")
    if len(names) > 1:
        axes.legend(fontsize=7.5, frameon=False, handlelength=1.6)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _words(name: str) -> str:
    """ "watched/perplexity_0" -> "perplexity of position 0, watched pairs"."""
    watched, name = name.startswith("watched/"), name.removeprefix("watched/")
    words = re.sub(r"_(\d+)$", r" of position \1", name)
    words = words.replace("_mlp_r2", " R², MLP").replace("_r2", " R²").replace("_", " ")
    return f"{words}, watched pairs" if watched and "R²" not in words else words
