"""What the drawn figures share: their style, bars and dots with intervals, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import replacing

COLOURS = ("#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#8a94a3")
INK, MUTED, FAINT, MISS = "#1c1e22", "#686c74", "#e6e8ec", "#9aa0a8"


def figure(width: float, height: float, title: str) -> Any:
    """An empty matplotlib figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=130)
    made.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(made)
    made.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return made


def plain(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """The style of all figures: few lines, small letters."""
    axes.set_title(title, loc="left", fontsize=9.5)
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)
    axes.tick_params(labelsize=8.5, color=FAINT)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d6d9de")


def save(made: Any, path: Path) -> None:
    """As a PNG, whole or not at all. Names and instructions are shown as they are: matplotlib would take what stands
    between two dollars for a formula."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in made.findobj(Text):
        text.set_parse_math(False)
    with replacing(path) as temporary, rc_context({"text.parse_math": False}):
        made.savefig(temporary, format="png")


Value = tuple[float, Sequence[float]]  # a figure and its interval


def whiskers(axes: Any, rows: Sequence[str], series: Mapping[str, Sequence[Value]], decimals: int = 2) -> None:
    """One row for each name, from the top. Each series is a dot with its interval and the figure beside it."""
    many = len(series)
    for j, (name, values) in enumerate(series.items()):
        for y, (value, (low, high)) in enumerate(values):
            at = y + (0.62 * ((j + 0.5) / many - 0.5))
            axes.plot([low, high], [at, at], color=COLOURS[j], linewidth=1.4, solid_capstyle="butt")
            axes.plot([value], [at], "o", ms=4.5, color=COLOURS[j], label=name if not y and many > 1 else None)
            axes.annotate(f"{value:.{decimals}f}", (high, at), (4, 0), textcoords="offset points", va="center",
                          fontsize=7.5, color=INK)  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8.5)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
