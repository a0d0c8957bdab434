"""The results of `lapa compare --settings` as text: Markdown in the form of the paper's Table 2, with the paper's
figures beside ours, and what a terminal shows while cells are still running."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from lapa.experiments.paper_scores import OURS
from lapa.experiments.worlds import SCRIPTED, SPLITS, Setting, World, world_of

Results = Mapping[str, Any]

NAMES = {
    "no_op": "no action",
    "random": "random",
    "scratch_ungrounded": "Scratch, no grounding",
    "scratch": "Scratch",
    "unipi": "UniPi",
    "vpt": "VPT",
    "lapa": "LAPA",
    "read": "LAPA, read",
    "track": "Track",
    "track_one": "Track, one camera",
    "actionvla": "ActionVLA",
    "expert": "expert",
}

# The paper's success in per cent: Language Table, seen and unseen (Table 2; 1k, 7k and 1k labels); and SIMPLER with
# human video (100 labels; its Scratch is the same for all videos, its upper bound is of robot video: no place here).
PAPER: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "in-domain": {"scratch": (15.6, 15.2), "unipi": (22.0, 13.2), "vpt": (44.0, 32.8), "lapa": (62.0, 49.6),
                  "actionvla": (77.0, 58.8)},
    "cross-task": {"scratch": (27.2, 22.4), "unipi": (20.8, 16.0), "vpt": (72.0, 60.8), "lapa": (73.2, 54.8),
                   "actionvla": (77.0, 58.8)},
    "cross-env": {"scratch": (15.6, 15.2), "unipi": (13.6, 12.0), "vpt": (18.0, 18.4), "lapa": (33.6, 29.6),
                  "actionvla": (64.8, 54.0)},
    "cross-embodiment": {"scratch": (34.4, None), "unipi": (0.7, None), "vpt": (45.8, None), "lapa": (52.1, None)},
}  # fmt: skip
LEVELS = (25, 50, 75, 90)  # of success, per cent
GAP = {"in-domain": (76, 79), "cross-task": (92, 89), "cross-env": (37, 37)}  # LAPA's share, per cent


def markdown(results: Results) -> str:
    """The whole of table.md."""
    table, world = results["table"], _world(results)
    if not table:
        return "Nothing is done yet.\n"
    staged: Results = next((cell["stages"] for cell in results["cells"].values() if "stages" in cell), {})
    names = ", ".join(next(iter(staged.values()), {}))
    seen = ", seen" if any(SPLITS[0] in splits for splits in table.values()) else ""
    by = f"## By task{seen}: success, and in brackets how far episodes got ({names})"
    ways = _ways(results["cells"], world)
    parts = [
        f"# The paper's table on {world.title}",
        _how(results),
        "## As the paper's Table 2",
        _main(table, world),
        "## Share of the gap from Scratch to ActionVLA that is closed",
        _gaps(table, world),
        "## By label budget",
        *_budgets(table, world),
        "## Labelled trajectories needed",
        _needed(table),
        "## LAPA and the others on the same episodes",
        _paired(results["paired"]),
        by if names else "## By task family, seen",
        _families(results),
        "## How each was finetuned" if ways else "",
        ways,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main_budget(setting: Setting, budgets: Iterable[str]) -> str:
    """The budget that the table shows: the setting's main one, or if it was not run, the largest one that was."""
    there = sorted(budgets, key=int)
    return str(setting.main) if str(setting.main) in there else there[-1]


def so_far(results: Results) -> Table:
    """For a terminal: success of the trained methods at the main budgets, and the number of training seeds so far."""
    table = results.get("table", {})
    columns = _columns(table, _world(results)) if table else []
    there = _methods(table[s][split][budget] for s, split, budget in columns)
    methods = [name for name in there if name not in SCRIPTED]
    shown = Table("%, so far", *(_named(name).replace("Scratch, no ", "no\n") for name in methods), "seeds", box=None,
                  padding=(0, 1, 0, 0))  # fmt: skip
    for setting, split, budget in columns:
        here = table[setting][split][budget]
        seeds = sorted({len(cell["seeds"]) for cell in here.values()})
        line = [f"{100 * here[name]['success']:.1f}" if name in here else "" for name in methods]
        count = "-".join(map(str, dict.fromkeys([seeds[0], seeds[-1]]))) if seeds else ""
        shown.add_row(f"{setting} {split} {budget}", *line, count)
    return shown


# The parts of table.md


def _how(results: Results) -> str:
    common = results["common"]
    return (
        f"Success in per cent, its 95% interval in brackets (bootstrap over training seeds and test episodes, what "
        f"seeds differ by widened for how few they are; over episodes alone where there is one seed: such an interval "
        f"does not know how much another training would differ). {_world(results).amount(common)} "
        f"Options: `{' '.join(common['options'])}`. Cells with fewer seeds or episodes than the others say so."
    )


def _world(results: Results) -> World:
    """The world that a table is of; before there were several it was Tabletop."""
    common = results["common"]
    return world_of(common.get("benchmark", "tabletop"), common.get("other", ""))


def _columns(table: Results, world: World) -> list[tuple[str, str, str]]:
    return [
        (s, split, main_budget(world.settings[s], table[s][split]))
        for s in table
        for split in world.settings[s].splits
        if table[s].get(split)
    ]


def _papers(world: World, setting: str, split: str, name: str) -> float | None:
    """The paper's success, where it has such a column."""
    found = PAPER.get(setting, {}).get(name) if setting in world.papers else None
    return found[SPLITS.index(split)] if found and split in SPLITS else None


def _main(table: Results, world: World) -> str:
    columns = _columns(table, world)
    seeds, _ = _most(table[s][split][b] for s, split, b in columns)
    most = {(s, split, b): (seeds, _most([table[s][split][b]])[1]) for s, split, b in columns}  # tests differ in size
    heads = [f"{s}, {split}, {b} {world.unit}" for s, split, b in columns]
    rows = []
    for name in _methods(table[s][split][b] for s, split, b in columns):
        line = []
        for column in columns:
            setting, split, budget = column
            cell = table[setting][split][budget].get(name)
            paper = _papers(world, setting, split, name)
            beside = "" if paper is None else f"<br>paper {paper:.1f}"
            if name in world.settings[setting].without:
                beside = f"not possible: {world.settings[setting].without[name]}"
            line.append((_cell(cell, most[column]).replace(" (", "<br>(") if cell else "") + beside)
        rows.append([_named(name), *line])
    return _grid(["", *heads], rows)


def _gaps(table: Results, world: World) -> str:
    rows = []
    columns = list(dict.fromkeys(split for setting in world.settings.values() for split in setting.splits))
    for setting, splits in table.items():
        budgets = sorted({b for split in splits.values() for b in split}, key=int)
        for budget, name in itertools.product(budgets, OURS):
            line = []
            for split in columns:
                cell = splits.get(split, {}).get(budget, {}).get(name, {})
                told = ""
                if "gap_closed" in cell:
                    between = cell["gap_interval"]
                    told = f"{100 * cell['gap_closed']:.0f}% " + (
                        f"({100 * between[0]:.0f} to {100 * between[1]:.0f})" if between else "(gap may be none)"
                    )
                paper = name == "lapa" and setting in GAP and setting in world.papers and split in SPLITS
                shown = told and paper and budget == main_budget(world.settings[setting], splits[split])
                line.append(told + (f"; paper {GAP[setting][SPLITS.index(split)]}%" if shown else ""))
            if any(line):
                rows.append([setting, budget, _named(name), *line])
    return _grid(["setting", "labels", "method", *columns], rows) if rows else "Needs Scratch, LAPA and ActionVLA."


def _budgets(table: Results, world: World) -> list[str]:
    parts = []
    for setting, splits in table.items():
        for split, budgets in splits.items():
            most, columns = _most(budgets.values()), sorted(budgets, key=int)
            rows = [
                [_named(name), *(_cell(budgets[b][name], most) if name in budgets[b] else "" for b in columns)]
                for name in _methods(budgets.values())
            ]
            parts += [f"### {setting}, {split}", _grid(["", *(f"{b} {world.unit}" for b in columns)], rows)]
    return parts


def _needed(table: Results) -> str:
    """The smallest budget whose mean success reaches a level, where several budgets were tried."""
    rows = []
    for setting, splits in table.items():
        for split, budgets in splits.items():
            for name in _methods(budgets.values()):
                tried = [(int(b), budgets[b][name]["success"]) for b in sorted(budgets, key=int) if name in budgets[b]]
                if len(tried) > 1 and name not in SCRIPTED:
                    reached = [[str(b) for b, success in tried if success >= level / 100] for level in LEVELS]
                    told = ", ".join(str(b) for b, _ in tried)
                    rows.append([setting, split, _named(name), *(r[0] if r else "more" for r in reached), told])
    heads = ["setting", "split", "method", *(f"for {level}%" for level in LEVELS), "tried"]
    return _grid(heads, rows) if rows else "Needs several budgets."


def _paired(paired: Results) -> str:
    rows = []
    for setting, splits in paired.items():
        for split, budgets in splits.items():
            for budget in sorted(budgets, key=int):
                for pair, found in budgets[budget].items():
                    one, other = pair.split(" - ")
                    low, high = found["interval"]
                    rows.append([setting, split, budget, f"{_named(one)} - {_named(other)}",
                                 f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                                 "yes" if low > 0 or high < 0 else "no", f"{len(found['seeds'])}",
                                 f"{found['episodes']}"])  # fmt: skip
    heads = ["setting", "split", "labels", "difference", "points", "zero outside", "seeds", "episodes"]
    return _grid(heads, rows) if rows else "Needs LAPA and another method."


def _families(results: Results) -> str:
    table, cells, world, parts = results["table"], results["cells"], _world(results), []
    for setting, split, budget in _columns(table, world):
        where = world.settings[setting]
        if split != where.splits[0]:
            continue
        rows = []
        for name in _methods([table[setting][split][budget]]):
            mine = [c for c in cells.values() if _is(c, name, where, split, budget)]
            shares = {f: _mean([m["families"][f] for m in mine]) + _far(mine, f) for f in mine[0]["families"]}
            rows.append([_named(name), *shares.values()])
        parts.append(_grid([f"{setting}, {budget} {world.unit}", *shares], rows))
    return "\n\n".join(parts)


def _mean(shares: Sequence[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.0f}"


def _far(mine: Sequence[Results], family: str) -> str:
    """How far a family's episodes got, " (85, 80, 60)"; "" where nothing is told."""
    told = [cell["stages"][family] for cell in mine if family in cell.get("stages", {})]
    return f" ({', '.join(_mean([each[name] for each in told]) for name in told[0])})" if told else ""


def _ways(cells: Results, world: World) -> str:
    """The ways to finetune that were chosen, seed by seed, and the mean validation success of every way."""
    rows: dict[tuple[Any, ...], list[Results]] = {}
    first = {setting.splits[0] for setting in world.settings.values()}
    for cell in cells.values():
        if cell["split"] in first and "way" in cell:
            row = (cell.get("videos", ""), cell["budget"], cell["family"], list(NAMES).index(cell["method"]))
            rows.setdefault(row, []).append(cell)
    lines = []
    for (videos, budget, family, _), found in sorted(rows.items()):
        found = sorted(found, key=lambda cell: cell["seed"])
        scores = [cell["validation"] for cell in found if "validation" in cell]
        ways = scores[0] if scores else ()
        told = ", ".join(f"{way} {100 * sum(s.get(way, 0) for s in scores) / len(scores):.1f}" for way in ways)
        chosen = ", ".join(cell["way"] for cell in found)
        lines.append([NAMES[found[0]["method"]], videos or "none", f"{budget} {family}".strip(), chosen, told])
    heads = ["method", "videos", "labels", "chosen, seed by seed", "validation success of each, mean over seeds"]
    return _grid(heads, lines) if lines else ""


# The pieces


def _is(cell: Results, method: str, where: Setting, split: str, budget: str) -> bool:
    """Whether the cell belongs to this place of the table. One without videos or labels belongs to several places."""
    wanted = {"method": method, "split": split, "videos": where.videos, "family": where.family, "budget": int(budget)}
    return all(cell.get(key, value) == value for key, value in wanted.items())


def _methods(places: Iterable[Results]) -> list[str]:
    there = {name for place in places for name in place}
    return [*(name for name in NAMES if name in there), *sorted(there - NAMES.keys())]


def _named(method: str) -> str:
    """What the table calls a row; a policy server by its address."""
    return NAMES.get(method, method)


def _most(places: Iterable[Results]) -> tuple[int, int]:
    """The number of seeds and episodes of a complete cell."""
    cells = [cell for place in places for cell in place.values()]
    return max((len(c["seeds"]) for c in cells), default=0), max((c["episodes"] for c in cells), default=0)


def _cell(cell: Results, most: tuple[int, int]) -> str:
    low, high = (100 * edge for edge in cell["interval"])
    spread = ""
    if len(cell["seeds"]) > 1:
        spread = "; seeds " + ", ".join(f"{100 * each:.0f}" for each in cell["per_seed"])
    seeds, episodes = most
    fewer = f"; {_count(len(cell['seeds']), 'seed')}" if len(cell["seeds"]) < seeds else ""
    fewer += f"; {cell['episodes']} episodes" if cell["episodes"] < episodes else ""
    return f"{100 * cell['success']:.1f} ({low:.1f} to {high:.1f}{spread}{fewer})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    line: Callable[[Sequence[str]], str] = lambda parts: "| " + " | ".join(parts) + " |"  # noqa: E731
    return "\n".join([line(heads), "|---" * len(heads) + "|", *map(line, rows)])
