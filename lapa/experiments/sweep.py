"""`lapa study`: settings of stage 1 side by side on one dataset, several seeds each.

A study is a table of rows in this file. A row is a name and options of `lapa quantize`; a cell is a row with a seed, a
command that anyone could type. All cells hold out the same episodes, and their figures are of those. What is done is
skipped, here or in an earlier results.json; what was killed goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lapa.artefacts.folder import read_json, replacing, write_json
from lapa.contracts import LapaError
from lapa.experiments.schedule import Step, run, seconds
from lapa.plots.dots import Panel, dots
from lapa.plugins import choose

TABLETOP = "tabletop:sim,episodes=1500,seed=1"  # the dataset when none is given
FEATURES = "objectives.features_of"
GOAL = 0.9  # of |C|: what the perplexity of every position is to reach
COLLAPSED = 0.25  # of |C|: a run with a position below has collapsed


@dataclass(frozen=True)
class Row:
    """One setting of a study: its name, what it changes (options of `lapa quantize`), and an option that the study must
    have been given for the row to make sense."""

    name: str
    options: tuple[str, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class Study:
    """Rows to compare, how many seeds each gets and for how many steps unless the command says otherwise."""

    note: str
    rows: tuple[Row, ...]
    seeds: int = 3
    steps: int = 1000


def row(name: str, *settings: str, needs: str = "") -> Row:
    """A row that changes settings of the preset, each "laq.codebook_size=32"."""
    return Row(name, tuple(word for setting in settings for word in ("--set", setting)), needs)


def grid(*axes: Sequence[Row]) -> tuple[Row, ...]:
    """Every combination of one row of each axis."""
    return tuple(
        Row(", ".join(r.name for r in chosen), tuple(word for r in chosen for word in r.options))
        for chosen in itertools.product(*axes)
    )


BALANCED = '{"balance":0.03,"threshold":0.4}'
QUANTIZERS = (
    row("NSVQ, released", "laq.quantizer=nsvq", "laq.quantizer_options={}"),
    row("NSVQ, balanced", "laq.quantizer=nsvq", f"laq.quantizer_options={BALANCED}"),
    row("NSVQ, balanced, attracted", 'laq.quantizer_options={"balance":0.03,"threshold":0.4,"attract":0.05}'),
    row("VQ-EMA", "laq.quantizer=vq_ema", "laq.quantizer_options={}"),
    row("FSQ", "laq.quantizer=fsq", "laq.quantizer_options={}"),
    row("residual NSVQ", "laq.quantizer=residual", f'laq.quantizer_options={{"options":{BALANCED}}}'),
)
SIZES = tuple(row(f"|C| {size}", f"laq.codebook_size={size}") for size in (8, 16))

OPTIONS = (
    Row("the preset"),
    row("frozen features beside pixels", "objectives.features=1", needs=FEATURES),
    row("frozen features alone", "objectives.features=1", "objectives.pixels=false", needs=FEATURES),
    row("paper's decoder", "laq.decoder=transformer"),
)

STUDIES: dict[str, Study] = {
    "quantizers": Study("the quantizers, each with 8 and 16 codes", grid(QUANTIZERS, SIZES)),
    "options": Study("additions to stage 1, one at a time", OPTIONS),
    "collapse": Study("the preset itself, many seeds: how often do its codes collapse?", (Row("preset"),), 20, 200),
}


@dataclass(frozen=True)
class Setting:
    """What all rows of a study share. `options` are further options of `lapa quantize`, such as --preset.

    Rows that need one which is not there are left out. With `only`, no cells are started but those of rows with one of
    these texts in their name.
    """

    study: str
    datasets: tuple[str, ...]
    seeds: int
    steps: int
    options: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choose(self.study, STUDIES, "study")
        names = [r.name for r in STUDIES[self.study].rows]
        for text in self.only:
            if not any(text in name for name in names):
                raise LapaError(f'No row of the study has "{text}" in its name. Rows: {"; ".join(names)}.')
        if self.seeds < 1 or self.steps < 1:
            raise LapaError(f"A study needs at least one seed and one step, got {self.seeds} and {self.steps}.")


@dataclass(frozen=True)
class Cell:
    """One run: a row with a seed. `command` is all of it but --out."""

    row: str
    seed: int
    command: tuple[str, ...]
    out: Path

    @property
    def name(self) -> str:
        """The step's name, also its folder below the study's."""
        return f"{slug(self.row)}/seed{self.seed}"

    @property
    def told(self) -> str:
        """The command as it is kept in results.json and in the artefact, but for --out."""
        return " ".join(["lapa", *self.command])


def cells(setting: Setting, folder: Path) -> list[Cell]:
    """The runs of a study, the first seed of every row first: what is there early already compares all rows."""
    data = tuple(word for spec in setting.datasets for word in ("--dataset", spec))
    given = " ".join(setting.options)
    rows = [r for r in STUDIES[setting.study].rows if r.needs in given]
    made = []
    for seed, each in itertools.product(range(setting.seeds), rows):
        command = ("quantize", *data, *setting.options, *each.options,
                   "--steps", str(setting.steps), "--seed", str(seed), "--resume")  # fmt: skip
        made.append(Cell(each.name, seed, command, folder / slug(each.name) / f"seed{seed}"))
    return made


def slug(name: str) -> str:
    """A row's name as the name of a folder: "NSVQ, |C| 8" -> "nsvq_c_8"."""
    kept = "".join(c if c.isalnum() or c in ".-" else " " for c in name.lower())
    return "_".join(kept.split())


def run_study(setting: Setting, out: Path, workers: int = 0, earlier: Path | None = None) -> dict[str, Any]:
    """Run the cells that are neither in `out` nor in the results file `earlier`; returns what results.json holds.

    `out/results.json` and `out/table.md` are written anew after every cell, `out/study.png` at the end. Raises
    LapaError when `out` holds a cell that was made by another command.
    """
    known = _known(earlier) if earlier else {}
    wanted = cells(setting, out)
    for cell in wanted:
        if cell.told not in known:
            _same_command(cell)
    missing = [c for c in wanted if c.told not in known and any(text in c.row for text in setting.only or ("",))]
    steps = [
        Step(c.name, (*c.command, "--out", str(c.out)), c.out, c.out / "config.json", (), 0.12 * setting.steps)
        for c in missing
    ]

    def keep(times: Mapping[str, float]) -> dict[str, Any]:
        found = [known.get(cell.told) or _read(cell, times) for cell in wanted]
        named = [{**content, "row": cell.row} for cell, content in zip(wanted, found, strict=True) if content]
        return _write(setting, named, out)

    try:
        run(steps, out, workers, after=keep, keep_going=True)
    finally:  # what is there is worth seeing, whatever stopped the rest
        results = keep(seconds(out))
        if results["cells"]:
            picture(results, out / "study.png")
    return results


def _known(path: Path) -> dict[str, dict[str, Any]]:
    content = read_json(path, "results of a study")
    if not isinstance(content, dict) or "cells" not in content:
        raise LapaError(f"{path} is not the results.json of a study.")
    return {cell["command"]: cell for cell in content["cells"]}


def _same_command(cell: Cell) -> None:
    path = cell.out / "config.json"
    if not path.exists():
        return
    made = read_json(path, "finished run")["provenance"]["command"].rpartition(" --out ")[0]
    if made != cell.told:
        raise LapaError(
            f"{cell.out} was made by another command:\n  {made}\nnot by\n  {cell.told}\nChoose another --out."
        )


def _read(cell: Cell, times: Mapping[str, float]) -> dict[str, Any] | None:
    """A finished cell; None for one that is not."""
    path = cell.out / "config.json"
    if not path.exists():
        return None
    config = read_json(path, "finished run")
    return {
        "row": cell.row, "seed": cell.seed, "command": cell.told, "codebook_size": config["model"]["codebook_size"],
        "results": config["results"], "wall_seconds": round(times.get(cell.name, 0.0), 1),
    }  # fmt: skip


def _write(setting: Setting, found: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    results = {"setting": asdict(setting), "rows": summary(found), "cells": found}
    write_json(out / "results.json", results)
    with replacing(out / "table.md") as temporary:
        temporary.write_text(table(results))
    return results


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{row: {"seeds", "perplexity" per position (means; and of training), figure: {"mean", "low", "high"}}}.

    Figures are all numbers of the cells' results, "perplexity_share" (perplexity of the position with the least of
    it, over |C|) and "collapsed", the number of runs below COLLAPSED.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(cell["row"] for cell in found):
        mine = [cell for cell in found if cell["row"] == name]
        shares = [min(c["results"]["perplexity"]) / c["codebook_size"] for c in mine]
        figures = {"perplexity_share": shares}
        for key in (k for k, v in mine[0]["results"].items() if isinstance(v, int | float)):
            figures[key] = [float(c["results"][key]) for c in mine]
        rows[name] = {
            "seeds": [c["seed"] for c in mine],
            "codebook_size": mine[0]["codebook_size"],
            **{
                kind: [fmean(p) for p in zip(*(c["results"][kind] for c in mine), strict=True)]
                for kind in ("perplexity", "training_perplexity")
                if all(kind in c["results"] for c in mine)
            },
            "collapsed": sum(share < COLLAPSED for share in shares),
            **{k: {"mean": fmean(v), "low": min(v), "high": max(v)} for k, v in figures.items()},
        }
    return rows


def table(results: Mapping[str, Any]) -> str:
    """The study as Markdown: mean over seeds, lowest and highest seed in brackets."""
    rows = results["rows"]
    figures = [k for k in dict.fromkeys(k for r in rows.values() for k in r) if k not in _IN_WORDS]
    heads = ["setting", "seeds", "perplexity per position", *(_head(f) for f in figures), "collapsed"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, content in rows.items():
        told = ", ".join(f"{p:.1f}" for p in content["perplexity"])
        if "training_perplexity" in content:
            told += " (" + ", ".join(f"{p:.1f}" for p in content["training_perplexity"]) + " in training)"
        told += f" of {content['codebook_size']}"
        values = [_spread(content[f]) if f in content else "-" for f in figures]
        line = [name.replace("|", "\\|"), str(len(content["seeds"])), told, *values, str(content["collapsed"])]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


_IN_WORDS = ("seeds", "perplexity", "training_perplexity", "collapsed", "codebook_size")


def _head(figure: str) -> str:
    return {"perplexity_share": "perplexity / \\|C\\|, worst position", "error_over_copy": "error / copy"}.get(
        figure, figure.replace("_r2", " R²").replace("_", " ")
    )


def _spread(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def picture(results: Mapping[str, Any], path: Path) -> None:
    """Perplexity beside what the codes tell (or, without actions, beside the error), a dot a seed."""
    rows = list(results["rows"])
    of = {name: [c for c in results["cells"] if c["row"] == name] for name in rows}

    def values(figure: str) -> list[list[float]]:
        return [[c["results"][figure] for c in of[name]] for name in rows]

    used = {
        told: [[min(c["results"][kind]) / c["codebook_size"] for c in of[name]] for name in rows]
        for kind, told in (("perplexity", "held out"), ("training_perplexity", "in training"))
        if all(kind in c["results"] for c in results["cells"])
    }
    panels = [Panel("perplexity / |C|, worst position", used, (0.0, 1.0), GOAL)]
    first = results["cells"][0]["results"]
    if "action_r2" in first:
        of_what = [k for k in first if k.endswith("_r2") and k.startswith(("action", "position"))]
        told = {k.removesuffix("_r2").replace("_", ", "): values(k) for k in of_what}
        panels.append(Panel("what the codes tell, R²", told, (0.0, 1.0)))
    panels.append(Panel("error / copy", {"": values("error_over_copy")}))
    setting = results["setting"]
    title = f"lapa study {setting['study']}: {' '.join(setting['datasets'])}, {setting['steps']} steps"
    dots(rows, panels, path, title)
