"""Success over the number of labelled trajectories: one column of panels per setting, in it one for each split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa.plots.figure import save

INK, FAINT, MUTED = "#1c1e22", "#e6e8ec", "#686c74"
LINES = {  # method -> name, colour
    "lapa": ("LAPA", "#1f6feb"),
    "actionvla": ("ActionVLA", "#1c1e22"),
    "read": ("LAPA, read", "#0aa2c0"),
    "track": ("Track", "#1a7f37"),
    "track_one": ("Track, one camera", "#7cc48f"),
    "vpt": ("VPT", "#d1570a"),
    "unipi": ("UniPi", "#8250df"),
    "scratch": ("Scratch", "#8a94a3"),
    "scratch_ungrounded": ("Scratch, no grounding", "#c3c9d1"),
}
LEVELS = {"expert": "expert", "random": "random"}  # rows without labels: a horizontal line


def budget_curves(table: Mapping[str, Any], path: Path, counted: str = "labelled trajectories") -> None:
    """Draw {setting: {split: {budget: {method: {"success", "interval"}}}}} as a PNG; the bars are the intervals.
    counted: what a budget counts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(map(len, table.values()))
    figure = Figure(figsize=(1.0 + 3.3 * max(len(table), 2), 1.3 + 2.8 * rows), dpi=130)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(table), squeeze=False, sharey=True)
    drawn: dict[str, Any] = {}
    for column, (setting, of) in enumerate(table.items()):
        for axes in grid[len(of) :, column]:
            axes.set_visible(False)
        for row, (split, budgets) in enumerate(of.items()):
            axes = grid[row][column]
            drawn |= _panel(axes, budgets)
            axes.set_title(f"{setting}, {split}", loc="left", fontsize=10, fontweight="bold")
            if row == len(of) - 1:
                axes.set_xlabel(counted, fontsize=9, color=MUTED)
            if not column:
                axes.set_ylabel("solved, %", fontsize=9, color=MUTED)
    names = [name for name in LINES if name in drawn]
    figure.legend([drawn[n] for n in names], [LINES[n][0] for n in names], loc="outside lower left", ncols=6,
                  frameon=False, fontsize=9)  # fmt: skip
    save(figure, path)


def _panel(axes: Any, budgets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One setting and split. Returns the entry of the legend for each method."""
    there, drawn = sorted(map(int, budgets)), {}
    methods = [name for name in LINES if any(name in budgets[str(b)] for b in there)]
    for number, name in enumerate(methods):
        mine = [b for b in there if name in budgets[str(b)]]
        cells = [budgets[str(b)][name] for b in mine]
        # Side by side, so that no interval hides another.
        x = [b * 1.035 ** (number - (len(methods) - 1) / 2) for b in mine]
        y = [100 * c["success"] for c in cells]
        ends = [[max(0.0, sign * (100 * c["interval"][end] - v)) for v, c in zip(y, cells, strict=True)]
                for end, sign in ((0, -1), (1, 1))]  # fmt: skip
        width, front = (2.0, 4) if name == "lapa" else (1.4, 3)
        drawn[name] = axes.errorbar(x, y, ends, color=LINES[name][1], marker="o", ms=4, linewidth=width, elinewidth=1.0,
                                    zorder=front)  # fmt: skip
    for name, told in LEVELS.items():
        levels = [100 * budgets[str(b)][name]["success"] for b in there if name in budgets[str(b)]]
        if levels:
            axes.axhline(levels[0], color="#9aa0a8", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            under = name == "random"  # above it are the methods that are no better
            axes.annotate(told, (1, levels[0]), xycoords=("axes fraction", "data"), xytext=(-2, -2 if under else 2),
                          ha="right", va="top" if under else "bottom", textcoords="offset points", fontsize=7.5,
                          color=MUTED)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(there, [str(b) for b in there])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(there, default=1) / 1.35, max(there, default=1) * 1.35)
    axes.set_ylim(-6, 105)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#d6d9de")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d6d9de")
    return drawn
