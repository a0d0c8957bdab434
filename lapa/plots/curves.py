"""The curves of one or more training runs as one picture: one panel for each kind of figure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import replacing
from lapa.contracts import LapaError

Curves = Mapping[str, tuple[list[int], list[float]]]  # name -> (steps, values), as training.logbook.read_metrics
COLOURS = ("#1f6feb", "#d1603d", "#2e9e6b", "#8457c9", "#c99a1b", "#3aa5b8", "#b8437f", "#6b7280")
STYLES = ("-", "--", ":", "-.")
MUTED = "#686c74"
COLUMNS = 3


@dataclass(frozen=True)
class CurvePanel:
    """A kind of figure: what it is called, its unit, the logged names that belong to it (a pattern)."""

    title: str
    unit: str
    names: str
    log: bool = False
    reference: float | None = None
    """draw a horizontal line at this value"""
    share: bool = False
    """between 0 and 1"""
    events: bool = False
    """it happens only at some steps: draw spikes, not a line"""


PANELS = (
    CurvePanel("Loss", "loss of a batch", r"(.*_)?loss|mse", log=True),
    CurvePanel("Error / copy", "squared error / copying", r"(watched/)?error_over_copy", reference=1.0),
    CurvePanel("Perplexity", "codes in effective use", r"(watched/)?perplexity(_\d+)?"),
    CurvePanel("Utilisation", "share of the codes in use", r"(watched/)?utilisation(_\d+)?", share=True),
    CurvePanel("Codes replaced", "codes at a time", r"codes_replaced", events=True),
    CurvePanel("Probes", "held-out R²", r"watched/.*_r2.*", reference=0.0),
    CurvePanel("Accuracy", "share of a batch", r"accuracy", share=True),
    CurvePanel("Learning rate", "of the optimizer", r"lr"),
)


def curves(runs: Mapping[str, Curves], path: Path, title: str, codebook: int | None = None) -> None:
    """Draw all that the runs have logged, {name of the run: curves}. `codebook` is |C|, for the line of full use.

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
    for spare in grid[len(panels) :]:
        spare.set_visible(False)
    for axes, (panel, names) in zip(grid[: len(panels)], panels, strict=True):
        _draw(axes, panel, names, runs, codebook)
    if len(runs) > 1:
        handles = [figure.axes[0].plot([], [], color=_colour(i))[0] for i in range(len(runs))]
        figure.legend(handles, list(runs), loc="outside lower left", ncols=min(len(runs), 3), frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _panels(runs: Mapping[str, Curves]) -> list[CurvePanel]:
    """The known panels, and one panel for every other name."""
    names = dict.fromkeys(name for run in runs.values() for name in run)
    rest = [name for name in names if not any(re.fullmatch(panel.names, name) for panel in PANELS)]
    return [*PANELS, *(CurvePanel(name.replace("_", " "), "", re.escape(name)) for name in rest)]


def _series(panel: CurvePanel, runs: Mapping[str, Curves]) -> list[str]:
    names = dict.fromkeys(name for run in runs.values() for name in run if re.fullmatch(panel.names, name))
    return [name for name in names if not (name == "mse" and all(_same(run, "mse", "loss") for run in runs.values()))]


def _same(run: Curves, one: str, other: str) -> bool:
    return run.get(one) == run.get(other)


def _draw(axes: Any, panel: CurvePanel, names: list[str], runs: Mapping[str, Curves], codebook: int | None) -> None:
    """The lines of a panel. With one run each figure and position has its colour, with several each run."""
    many, told = len(runs) > 1, set[str]()
    parts = {name: _parts(name) for name in names}
    kinds = list(dict.fromkeys(kind for kind, *_ in parts.values()))
    lines = list(dict.fromkeys((kind, position) for kind, position, _ in parts.values()))
    for r, run in enumerate(runs.values()):
        for name, (kind, position, dashed) in parts.items():
            if name not in run or (many and dashed and kind.endswith("_r2")):  # no MLP of several runs: too many lines
                continue
            steps, values = run[name]
            line = lines.index((kind, position))
            style = STYLES[kinds.index(kind) % len(STYLES)] if many and len(kinds) > 1 else "--" if dashed else "-"
            colour, width = (_colour(r), 1.4) if many else (_colour(line), max(1.9 - 0.3 * line, 1.0))
            label = _label(kind, position, dashed, len(kinds) > 1, many)
            marker = "." if panel.events or len(steps) < 12 else ""
            if panel.events:
                axes.vlines(steps, 0, values, color=colour, linewidth=1.2)
                axes.yaxis.get_major_locator().set_params(integer=True)
            axes.plot(steps, values, color=colour, linestyle="" if panel.events else style, linewidth=width,
                      marker=marker, label=label if label not in told and len(names) > 1 else None)  # fmt: skip
            told.add(label)
    last = max(steps[-1] for run in runs.values() for steps, _ in run.values())
    axes.set_xlim(-0.02 * last, 1.02 * last)  # the same for all panels
    if panel.share:
        axes.set_ylim(0, 1.04)
    reference = codebook if panel.title == "Perplexity" else panel.reference
    if reference is not None:
        axes.axhline(reference, color="#9aa0a8", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    values = [v for run in runs.values() for name in names for v in run.get(name, ([], []))[1]]
    if panel.log and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.2g}")
        if max(values) < 4 * min(values):
            axes.yaxis.set_minor_formatter("{x:.2g}")
        else:
            axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
            axes.yaxis.set_minor_formatter("")
    axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel("optimizer step", fontsize=8.5, color=MUTED)
    axes.set_ylabel(panel.unit, fontsize=8.5, color=MUTED)
    axes.tick_params(which="both", labelsize=8, color="#d6d9de")
    axes.grid(color="#e6e8ec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d6d9de")
    if len(told) > 1:
        legend = axes.legend(fontsize=7.5, handlelength=1.9, framealpha=0.7, edgecolor="none")
        for handle, text in zip(legend.legend_handles, legend.texts, strict=True):
            if many or text.get_text() in ("watched", "MLP"):  # of lines of several colours
                handle.set_color(MUTED)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _parts(name: str) -> tuple[str, str, bool]:
    """Kind of figure, position of the code, whether the line is dashed (watched pairs, or an MLP).

    "watched/perplexity_0" -> ("perplexity", "0", True), "watched/action_mlp_r2" -> ("action_r2", "", True).
    """
    if name.endswith("_r2"):
        return name.removeprefix("watched/").replace("_mlp_r2", "_r2"), "", name.endswith("_mlp_r2")
    kind, position = re.fullmatch(r"(.*?)(?:_(\d+))?", name.removeprefix("watched/")).groups()  # type: ignore[union-attr]
    return kind, position or "", name.startswith("watched/")


def _label(kind: str, position: str, dashed: bool, named: bool = True, many: bool = False) -> str:
    """The entry of a line in the legend. Only one entry says what dashes mean."""
    probe = kind.endswith("_r2")
    if dashed and not (many and named):
        return "MLP" if probe else "watched"
    words = [kind.removesuffix("_r2").replace("_", " ")] if named else []
    words += [f"position {position}"] if position and not many else []
    return ", ".join(words) or "batch"
