"""`lapa study`: settings of stage 1 side by side on one dataset, several seeds each.

A cell is one `lapa quantize`. All cells hold out the same episodes, and their figures are of these episodes. Cells of
an earlier results.json are not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lapa.artefacts.folder import read_json
from lapa.contracts import LapaError
from lapa.experiments.schedule import PlanStep
from lapa.experiments.sweep import Cell, Row, as_words, cells, grid, markdown, over_seeds, run_cells, write
from lapa.plots.dots import Panel, dots
from lapa.plugins import choose

TABLETOP = "tabletop:sim,episodes=1500,seed=1"  # the dataset when none is given
FEATURES = "objectives.features_of"
GOAL = 0.9  # of |C|: the perplexity that every position should reach
COLLAPSED = 0.25  # of |C|: a run with a position below has collapsed


@dataclass(frozen=True)
class Study:
    """Rows to compare, with the number of seeds and of steps that the command can change."""

    note: str
    rows: tuple[Row, ...]
    seeds: int = 3
    steps: int = 1000


BALANCED = '{"balance":0.03,"threshold":0.4}'
QUANTIZERS = (
    Row("NSVQ, released", ("laq.quantizer=nsvq", "laq.quantizer_options={}")),
    Row("NSVQ, balanced", ("laq.quantizer=nsvq", f"laq.quantizer_options={BALANCED}")),
    Row("NSVQ, balanced, attracted", ('laq.quantizer_options={"balance":0.03,"threshold":0.4,"attract":0.05}',)),
    Row("VQ-EMA", ("laq.quantizer=vq_ema", "laq.quantizer_options={}")),
    Row("FSQ", ("laq.quantizer=fsq", "laq.quantizer_options={}")),
    Row("residual NSVQ", ("laq.quantizer=residual", f'laq.quantizer_options={{"options":{BALANCED}}}')),
)
SIZES = tuple(Row(f"|C| {size}", (f"laq.codebook_size={size}",)) for size in (8, 16))

OPTIONS = (
    Row("the preset"),
    Row("frozen features beside pixels", ("objectives.features=1",), needs=FEATURES),
    Row("frozen features alone", ("objectives.features=1", "objectives.pixels=false"), needs=FEATURES),
    Row("paper's decoder", ("laq.decoder=transformer",)),
)

STUDIES: dict[str, Study] = {
    "quantizers": Study("the quantizers, each with 8 and 16 codes", grid(QUANTIZERS, SIZES)),
    "options": Study("additions to stage 1, one at a time", OPTIONS),
    "collapse": Study("the preset itself, many seeds: how often do its codes collapse?", (Row("preset"),), 20, 200),
}


@dataclass(frozen=True)
class StudySettings:
    """What all rows of a study share. `options` are further options of `lapa quantize`, such as --preset.

    A row that needs an option which is not there is left out. With `only`, the only cells that are started are those of
    rows with one of these texts in their name.
    """

    study: str
    datasets: tuple[str, ...]
    seeds: int
    steps: int
    options: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choose(self.study, STUDIES, "study")
        names = [row.name for row in STUDIES[self.study].rows]
        for text in self.only:
            if not any(text in name for name in names):
                raise LapaError(f'No row of the study has "{text}" in its name. Rows: {"; ".join(names)}.')
        if self.seeds < 1 or self.steps < 1:
            raise LapaError(f"A study needs at least one seed and one step, got {self.seeds} and {self.steps}.")

    def rows(self) -> list[Row]:
        """The rows of the study, without those that need an option which is not given."""
        given = " ".join(self.options)
        return [row for row in STUDIES[self.study].rows if row.needs in given]

    def command(self, cell: Cell) -> tuple[str, ...]:
        """The words of a cell's `lapa` command, without --out."""
        data = (word for spec in self.datasets for word in ("--dataset", spec))
        return ("quantize", *data, *self.options, *as_words(cell.row.settings),
                "--steps", str(self.steps), "--seed", str(cell.seed), "--resume")  # fmt: skip

    def line(self, cell: Cell) -> str:
        """The command as it is kept in results.json and in the artefact, without --out."""
        return " ".join(["lapa", *self.command(cell)])


def run_study(asked: StudySettings, out: Path, workers: int = 0, earlier: Path | None = None) -> dict[str, Any]:
    """Run the cells that are not in `out` and not in the results file `earlier`; returns what results.json holds.

    `out/results.json` and `out/table.md` are written anew after every cell, `out/study.png` at the end. Raises
    LapaError when `out` holds a cell that was made by another command.
    """
    known = _known(earlier) if earlier else {}
    wanted = cells(asked.rows(), asked.seeds)
    missing = [cell for cell in wanted if asked.line(cell) not in known]
    for cell in missing:
        _require_same_command(out / cell.name, asked.line(cell))
    steps = [
        PlanStep(cell.name, (*asked.command(cell), "--out", str(out / cell.name)), out / cell.name,
            out / cell.name / "config.json", (), 0.12 * asked.steps)
        for cell in missing if any(text in cell.row.name for text in asked.only or ("",))
    ]  # fmt: skip
    results: dict[str, Any] = {}

    def keep(times: Mapping[str, float]) -> dict[str, Any]:
        read = [(cell, known.get(asked.line(cell)) or _read(asked, cell, out, times)) for cell in wanted]
        found = [{**content, "row": cell.row.name} for cell, content in read if content]
        results.update(setting=asdict(asked), rows=summary(found), cells=found)
        write(results, table(results), out)
        return results

    try:
        return run_cells(steps, out, workers, keep)
    finally:  # also when a step has failed: show what is there
        if results.get("cells"):
            picture(results, out / "study.png")


def _known(path: Path) -> dict[str, dict[str, Any]]:
    content = read_json(path, "results of a study")
    if not isinstance(content, dict) or "cells" not in content:
        raise LapaError(f"{path} is not the results.json of a study.")
    return {cell["command"]: cell for cell in content["cells"]}


def _require_same_command(folder: Path, line: str) -> None:
    path = folder / "config.json"
    if not path.exists():
        return
    made = read_json(path, "finished run")["provenance"]["command"].rpartition(" --out ")[0]
    if made != line:
        raise LapaError(f"{folder} was made by another command:\n  {made}\nnot by\n  {line}\nChoose another --out.")


def _read(asked: StudySettings, cell: Cell, out: Path, times: Mapping[str, float]) -> dict[str, Any] | None:
    """A finished cell; None for one that is not finished."""
    path = out / cell.name / "config.json"
    if not path.exists():
        return None
    config = read_json(path, "finished run")
    return {
        "row": cell.row.name, "seed": cell.seed, "command": asked.line(cell),
        "codebook_size": config["model"]["codebook_size"], "results": config["results"],
        "wall_seconds": round(times.get(cell.name, 0.0), 1),
    }  # fmt: skip


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{row: {"seeds", "perplexity" per position (means; and of training), figure: {"mean", "low", "high"}}}.

    Figures are all numbers of the cells' results, "perplexity_share" (the lowest perplexity of all positions, divided
    by |C|) and "collapsed", the number of runs below COLLAPSED.
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
            **{key: over_seeds(values) for key, values in figures.items()},
        }
    return rows


def table(results: Mapping[str, Any]) -> str:
    """The study as Markdown: mean over seeds, lowest and highest seed in brackets."""
    rows = results["rows"]
    figures = [k for k in dict.fromkeys(k for r in rows.values() for k in r) if k not in _IN_WORDS]
    heads = ["setting", "seeds", "perplexity per position", *(_head(f) for f in figures), "collapsed"]
    lines = []
    for name, content in rows.items():
        used = ", ".join(f"{p:.1f}" for p in content["perplexity"])
        if "training_perplexity" in content:
            used += " (" + ", ".join(f"{p:.1f}" for p in content["training_perplexity"]) + " in training)"
        used += f" of {content['codebook_size']}"
        values = [_range(content[f]) if f in content else "-" for f in figures]
        lines.append([name, str(len(content["seeds"])), used, *values, str(content["collapsed"])])
    return markdown(heads, lines)


_IN_WORDS = ("seeds", "perplexity", "training_perplexity", "collapsed", "codebook_size")


def _head(figure: str) -> str:
    return {"perplexity_share": "perplexity / \\|C\\|, worst position", "error_over_copy": "error / copy"}.get(
        figure, figure.replace("_r2", " R²").replace("_", " ")
    )


def _range(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def picture(results: Mapping[str, Any], path: Path) -> None:
    """Perplexity beside what the codes tell (or, without actions, beside the error), a dot for each seed."""
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
