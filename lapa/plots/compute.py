"""Success over the compute of pretraining (`lapa ablate compute`), with and without the time of stage 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lapa.plots.budgets import FAINT, LINES, MUTED
from lapa.plots.figure import save

Cells = Sequence[dict[str, Any]]


def compute_curves(cells: Cells, path: Path, title: str) -> None:
    """Draw the cells of an ablation ("METHOD: N steps") as a PNG. Each method is a line, each row's mean a point.

    Solid lines include the time before stage 2 (LAQ and labels), dashed lines are of stage 2 alone. "Scratch", which
    has neither, is a level.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=130)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = dict(LINES.values())
    if level := [100 * cell["success"] for cell in cells if cell["row"] == "Scratch"]:
        axes.axhline(fmean(level), color=colours["Scratch"], linewidth=1.2, label="Scratch, none of it")
    for method in dict.fromkeys(cell["row"].split(":")[0] for cell in cells if ":" in cell["row"]):
        mine = [cell for cell in cells if cell["row"].startswith(f"{method}:") and cell["seconds"]]
        rows = [[c for c in mine if c["row"] == name] for name in dict.fromkeys(c["row"] for c in mine)]
        y = [100 * fmean(c["success"] for c in row) for row in rows]
        stage2 = [fmean(c["seconds"] for c in row) for row in rows]
        whole = [fmean(c["seconds"] + c["seconds_of_stage_1"] for c in row) for row in rows]
        look: dict[str, Any] = {"color": colours[method], "marker": "o", "ms": 4}
        axes.plot(whole, y, "-", label=f"{method}, all of it", **look)
        axes.plot(stage2, y, "--", label=f"{method}, stage 2 alone", alpha=0.6, **look)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xscale("log")
    least, most = axes.get_xlim()
    ticks = [tick for power in range(6) for one in (1, 2, 5) if least < (tick := one * 10**power) < most]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("seconds of a core before stage 3", fontsize=9, color=MUTED)
    axes.set_ylabel("solved, %", fontsize=9, color=MUTED)
    axes.set_ylim(0, 102)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    save(figure, path)
