"""Settings side by side: a row for each setting, a dot for each seed, a tick at the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lapa.plots.figure import save

COLOURS = ("#1f6feb", "#d1570a", "#8a94a3", "#1a7f37", "#8250df", "#57606a")
INK, FAINT = "#1c1e22", "#e6e8ec"


@dataclass(frozen=True)
class Panel:
    """One axis. series: {legend: a list of values per row}; `goal` draws a line."""

    title: str
    series: Mapping[str, Sequence[Sequence[float]]]
    limits: tuple[float, float] | None = None
    goal: float | None = None


def dots(rows: Sequence[str], panels: Sequence[Panel], path: Path, title: str) -> None:
    """Draw the panels next to one another over common rows, first row on top, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    figure = Figure(figsize=(1.9 + 3.1 * len(panels), 1.6 + 0.3 * len(rows)), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.02, ha="left")
    for i, (axes, panel) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        many = len(panel.series)
        for j, (name, values) in enumerate(panel.series.items()):
            colour, shift = COLOURS[j % len(COLOURS)], 0.5 * ((j + 0.5) / many - 0.5)
            there = [y for y, seeds in enumerate(values) if seeds]
            for y in there:
                seeds = values[y]
                axes.plot(
                    seeds, [y + shift] * len(seeds), "o", ms=4.2, mfc="none" if many > 1 else colour, mec=colour,
                    mew=1.1, alpha=0.85, clip_on=False, label=name if y == there[0] else None,
                )  # fmt: skip
                axes.plot([fmean(seeds)], [y + shift], "|", ms=9, mew=1.8, color=colour, clip_on=False)
        if panel.goal is not None:
            axes.axvline(panel.goal, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        if panel.limits:
            axes.set_xlim(*panel.limits)
        axes.locator_params(axis="x", nbins=6)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set_title(panel.title, loc="left", fontsize=9)
        axes.set_yticks(range(len(rows)), list(rows) if not i else [""] * len(rows), fontsize=8.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=8, color=FAINT)
        axes.tick_params(axis="y", length=0)
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        if many > 1 and axes.lines:
            below = axes.transAxes + ScaledTranslation(0, -0.28, figure.dpi_scale_trans)  # inches: clear of the ticks
            axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", borderaxespad=0, handletextpad=0.2,
                        bbox_to_anchor=(0, 0), bbox_transform=below)  # fmt: skip
    save(figure, path)
