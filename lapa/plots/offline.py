"""A picture of the offline error of a policy, beside rows that need no policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa.plots.figure import COLOURS, MISS, figure, plain, save, whiskers


def offline_error(result: Mapping[str, Any], path: Path, title: str) -> None:
    """`result` is that of measures/offline.py: the error of each row with its interval, along the chunk, and by
    dimension."""
    rows, names = result["rows"], result["names"]
    made = figure(10.4, max(3.4, 1.2 + 0.16 * len(names)), title)
    bars, steps, each = made.subplots(1, 3, width_ratios=(1.1, 1, 1.2))
    plain(bars, "Error, with 95% over episodes", "1 is as far off as the mean action")
    whiskers(bars, list(rows), {"": [(row["error"], row["interval"]) for row in rows.values()]})
    plain(steps, "Along the chunk", "step of the chunk")
    for i, (name, row) in enumerate(rows.items()):
        steps.plot(range(1, 1 + len(row["by_step"])), row["by_step"], ".-", color=COLOURS[i % len(COLOURS)], label=name)
    steps.legend(fontsize=8, frameon=False)
    plain(each, "The policy, by dimension", "1 is as far off as the mean action")
    known = [(name, v) for name, v in zip(names, next(iter(rows.values()))["by_dimension"], strict=True)
             if v is not None]  # fmt: skip
    each.barh([name for name, _ in known], [value for _, value in known], color=COLOURS[0], height=0.7)
    each.invert_yaxis()
    each.tick_params(axis="y", labelsize=7)
    for axes in (bars, each):
        axes.set_xlim(left=0)
        axes.axvline(1, color=MISS, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    save(made, path)
