"""A sweep: rows of settings side by side, several seeds each. What `lapa study` and `lapa ablate` share.

A row is a name and the settings that it changes; a cell is a row with a seed. Every cell is one or more `lapa` commands
(schedule.py). Cells that are finished are skipped, and cells that were killed go on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lapa.artefacts.folder import replacing, write_json
from lapa.experiments.schedule import PlanStep, run, seconds


@dataclass(frozen=True)
class Row:
    """One line of a sweep.

    settings      what it changes in all stages, each such as "laq.codebook_size=32"
    policy        what it changes in stages 2 and 3 alone
    share         of the videos that stages 1 and 2 watch
    method        a method of methods.py that it has in place of the sweep's; "": the sweep's
    size          width and depth of a backbone that is grounded first; None: the preset's
    needs         a setting that the row needs; if it is not given, the row is left out
    folder        where its cells are, inside the folder of the sweep; "": by its name
    group         a folder around that, "": none
    """

    name: str
    settings: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    share: float = 1.0
    method: str = ""
    size: tuple[int, int] | None = None
    needs: str = ""
    folder: str = ""
    group: str = ""


@dataclass(frozen=True)
class Cell:
    """A row with a seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """The folder of the cell, inside the folder of the sweep."""
        return f"{self.row.group}/{self.of_row}" if self.row.group else self.of_row

    @property
    def of_row(self) -> str:
        """The same in any group."""
        return f"{self.row.folder or slug(self.row.name)}/seed{self.seed}"


def cells(rows: Sequence[Row], seeds: int) -> list[Cell]:
    """All cells. The first seed of every row comes first, so that all rows can soon be compared."""
    return [Cell(row, seed) for seed, row in itertools.product(range(seeds), rows)]


def grid(*axes: Sequence[Row]) -> tuple[Row, ...]:
    """Every combination of the settings of one row of each axis."""
    return tuple(
        Row(", ".join(row.name for row in chosen), tuple(setting for row in chosen for setting in row.settings))
        for chosen in itertools.product(*axes)
    )


def slug(name: str) -> str:
    """A row's name as the name of a folder: "NSVQ, |C| 8" -> "nsvq_c_8"."""
    kept = "".join(c if c.isalnum() or c in ".-" else " " for c in name.lower())
    return "_".join(kept.split())


def as_words(settings: Sequence[str]) -> tuple[str, ...]:
    """Settings as words of the command line."""
    return tuple(word for setting in settings for word in ("--set", setting))


def run_cells(
    steps: list[PlanStep], out: Path, workers: int, keep: Callable[[Mapping[str, float]], dict[str, Any]]
) -> dict[str, Any]:
    """Run what is not done; returns what `keep` returned last.

    `keep` reads the finished cells and writes them. It is given the seconds that each step has taken. It is called
    after every step and at the end, also when a step has failed. A failed step stops only the steps that need it.
    Raises LapaError for it when all others have ended.
    """
    try:
        run(steps, out, workers, after=keep, keep_going=True)
    finally:
        results = keep(seconds(out))
    return results


def write(results: Mapping[str, Any], table: str, out: Path) -> None:
    """results.json and table.md in folder `out`."""
    write_json(out / "results.json", results)
    with replacing(out / "table.md") as temporary:
        temporary.write_text(table)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table. The first entry of a line is the name of a row, which may contain "|"."""
    rows = [[line[0].replace("|", "\\|"), *line[1:]] for line in lines]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|",
                      *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"  # fmt: skip


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds, lowest and highest."""
    return {"mean": fmean(values), "low": min(values), "high": max(values)}


def told(values: Sequence[float], form: str = "{:.2f}") -> str:
    """`over_seeds` as text: "0.91 (0.88 to 0.93)"; with one seed the figure alone; "" without any."""
    if not values:
        return ""
    mean, low, high = (form.format(value) for value in over_seeds(values).values())
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"
