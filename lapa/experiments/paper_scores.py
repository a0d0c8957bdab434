"""From the outcomes of finished cells to the figures of the paper's table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np

from lapa.contracts import Array
from lapa.experiments.paper_cells import ROWS, Asked, TableCell, TableRow
from lapa.experiments.worlds import Setting
from lapa.measures import intervals

Runs = tuple[tuple[int, str], ...]
OURS = ("lapa", "read", "track")
AGAINST = ("vpt", "scratch", "actionvla", "unipi")  # what those are compared with on the same episodes


def build(known: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Figures of the finished cells, {evaluation: what paper_table.py read of it}: of the settings that were asked for,
    and of others whose cells have videos.

    table   {setting: {split: {budget: {method: {"success", "interval", "episodes", "seeds", "per_seed", and for OURS
            "gap_closed", "gap_interval"}}}}}
    paired  {setting: {split: {budget: {"lapa - vpt": {"difference", "interval", "episodes", "seeds"}}}}}
    """
    table: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    servers = {cell["method"] for cell in known.values()} - ROWS.keys()
    rows = ROWS | {name: TableRow(name, None) for name in sorted(servers)}
    places = ((setting, split) for setting in asked.common.world.settings.values() for split in setting.splits)
    for setting, split in places:
        for budget in _budgets(setting, known.values(), setting.name in asked.settings):
            found = {name: _outcomes(setting, split, budget, row, known) for name, row in rows.items()}
            here, differences = _place(tuple((name, runs) for name, runs in found.items() if runs))
            table.setdefault(setting.name, {}).setdefault(split, {})[str(budget)] = here
            if differences:
                paired.setdefault(setting.name, {}).setdefault(split, {})[str(budget)] = differences
    return {"table": table, "paired": paired}


@cache  # the table is written anew after every step, and most of it has not changed
def _place(found: tuple[tuple[str, Runs], ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of every method, and the differences between OURS and the others, at one place of the table."""
    wins = {name: {seed: np.array([c == "1" for c in outcomes]) for seed, outcomes in runs} for name, runs in found}
    here = {name: _figures(of_method) for name, of_method in wins.items()}
    for ours in (name for name in OURS if name in wins):
        here[ours] |= _gap(wins, ours)
    pairs = [(ours, other) for ours in OURS for other in (*OURS[: OURS.index(ours)], *AGAINST)]
    return here, {f"{ours} - {other}": _difference(wins[ours], wins[other]) for ours, other in pairs
                  if wins.get(ours, {}).keys() & wins.get(other, {}).keys()}  # fmt: skip


def _budgets(setting: Setting, found: Iterable[Mapping[str, Any]], asked: bool) -> list[int]:
    """Budgets with a cell in this setting. Cells without videos belong to all settings that have their labels."""
    mine = [c for c in found if c.get("family") == setting.family and c.get("videos", setting.videos) == setting.videos]
    if not asked and not any("videos" in cell for cell in mine):
        return []
    return sorted({cell["budget"] for cell in mine})


def _outcomes(setting: Setting, split: str, budget: int, row: TableRow, known: Mapping[str, Any]) -> Runs:
    """(training seed, outcomes) of a row."""
    cells = [TableCell(setting, budget, row, seed) for seed in sorted({c["seed"] for c in known.values()})]
    return tuple((c.seed, known[c.score(split)]["outcomes"]) for c in cells if c.score(split) in known)


def _figures(wins: Mapping[int, Array]) -> dict[str, Any]:
    (all_wins,) = _aligned(wins)
    return {"success": float(all_wins.mean()), "interval": list(intervals.success(all_wins)), "episodes": all_wins.size,
            "seeds": list(wins), "per_seed": [float(w.mean()) for w in all_wins]}  # fmt: skip


def _gap(wins: Mapping[str, Mapping[int, Array]], ours: str) -> dict[str, Any]:
    """How much of the gap from Scratch to ActionVLA a method closes, as a share; {} where this is not defined."""
    if not {"scratch", "actionvla"} <= wins.keys():
        return {}
    low, method, high = _aligned(wins["scratch"], wins[ours], wins["actionvla"])
    if not low.size or high.mean() <= low.mean():
        return {}
    closed = (method.mean() - low.mean()) / (high.mean() - low.mean())
    interval = intervals.gap_closed(low, method, high)
    return {"gap_closed": float(closed), "gap_interval": list(interval) if interval else None}


def _difference(one: Mapping[int, Array], other: Mapping[int, Array]) -> dict[str, Any]:
    first, second = _aligned(one, other)
    return {"difference": float(first.mean() - second.mean()), "interval": list(intervals.difference(first, second)),
            "episodes": first.size, "seeds": sorted(one.keys() & other.keys())}  # fmt: skip


def _aligned(*wins: Mapping[int, Array]) -> list[Array]:
    """The same seeds and the same episodes of every method, bool [S, E] each."""
    seeds = sorted(set.intersection(*(set(w) for w in wins)))
    episodes = min((len(w[s]) for w in wins for s in seeds), default=0)
    return [np.array([w[s][:episodes] for s in seeds], dtype=bool).reshape(len(seeds), episodes) for w in wins]
