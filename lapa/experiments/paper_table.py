"""`lapa compare --settings`: the paper's table, on Tabletop or on a benchmark of others (worlds.py). Every method,
setting and budget of labels, over several seeds.

The cells (paper_cells.py) become steps (schedule.py), each a `lapa` command. A result that several cells use is made
once. LAQ, its labels and the latent policy are used for all budgets, both in-domain and cross-task. Scratch uses no
videos, so it is the same in all settings. What VPT learns depends on the labels. Steps that are finished, here or in
an earlier results.json, are skipped. Steps that were killed go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import read_json, replacing, write_json
from lapa.contracts import LapaError
from lapa.experiments.compare import Chain, Guess, Plan, datasets, pretrained, recipe_of
from lapa.experiments.paper_cells import Asked, Common, TableCell, cells
from lapa.experiments.paper_markdown import markdown, so_far
from lapa.experiments.paper_scores import build
from lapa.experiments.schedule import PlanStep, at_once, left, run, seconds, show
from lapa.experiments.worlds import Source
from lapa.plots.budgets import budget_curves
from lapa.recipe import Recipe
from lapa.runtime.progress import duration
from lapa.stage3_finetune import can_replay

RESULTS, ASKED = "results.json", "asked.json"
PARTS = ("common", "cells", "sources", "seconds")  # objects of results.json that an earlier table must have


# From cells to steps


def steps_of(asked: Asked, out: Path, known: Mapping[str, Any]) -> list[PlanStep]:
    """The steps that the cells need, without those of `known` cells. Each is there once, in the order of the cells."""
    plan, recipe = Plan(out), recipe_of(asked.common.options)
    goals = []
    for cell in cells(asked):
        missing = [split for split in cell.setting.splits if cell.score(split) not in known]
        if cell.row.method and missing:
            _train(plan, cell, asked.common, recipe)
        for split in missing:
            goals.append(_evaluate(plan, cell, split, asked.common))
    wanted, queue = set(), list(goals)
    while queue:  # a finished cell needs no steps, even if the steps before it were removed
        step = plan.steps[queue.pop()]
        if step.name not in wanted and not step.marker.exists():
            wanted.add(step.name)
            queue += step.needs
    return [step for step in plan.steps.values() if step.name in wanted or step.marker.exists()]


def _train(plan: Plan, cell: TableCell, common: Common, recipe: Recipe) -> None:
    """The data, where a step makes them, and stages 1 to 3. Where its world `tunes`, `lapa tune` chooses for each cell
    the way to finetune, on validation scenes."""
    assert cell.row.method
    world = common.world
    options = (*common.options, *(() if cell.row.grounded else ("--set", ungrounded(recipe))))
    labelled, labels_need = collected(plan, world.labels(cell.setting, cell.budget, cell.seed))
    shown = world.videos(cell.setting, common.videos, cell.seed) if cell.row.method.source else ()
    videos, needs = collected(plan, shown)
    cameras = world.cameras[:1] if cell.row.alone else world.cameras
    chain = Chain(videos, labelled, ("--seed", str(cell.seed), *options), cell.name, needs, guesses(recipe, common),
                  labels_need, cameras, can_replay(recipe) and not world.tunes)  # fmt: skip
    start = pretrained(plan, cell.row.method, chain)
    words = (*datasets(labelled), *start.options, *chain.common, "--resume")
    if not world.tunes:
        cost = chain.guess.tune_films if _films(cell) else chain.guess.finetune
        plan.add(cell.tuned, ("finetune", *words), "config.json", start.needs, cost)
        return
    cost = chain.guess.tune_films if _films(cell) else chain.guess.tune
    if cell.row.method.name in ("vpt", "actionvla"):
        cost *= 2.3  # they predict actions: more ways to try
    search = ("--episodes", str(common.validation))
    plan.add(cell.tuned, ("tune", *words, *search), "config.json", start.needs, cost)


def collected(plan: Plan, sources: Sequence[Source]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Specs of the datasets, and the steps that make them."""
    made = [plan.add(s.step, s.command, "meta/info.json", (), s.seconds) if s.step else "" for s in sources]
    specs = (f"lerobot:{plan.path(step)}{s.spec}" if step else s.spec for step, s in zip(made, sources, strict=True))
    return tuple(specs), tuple(step for step in made if step)


def _evaluate(plan: Plan, cell: TableCell, split: str, common: Common) -> str:
    scripted = cell.row.method is None
    actor = ("--row", cell.row.name) if scripted else ("--policy", plan.path(cell.tuned))
    if scripted and "://" in cell.row.name:
        actor = ("--policy", cell.row.name)
    benchmark, episodes = common.world.test(cell.setting, split, common.episodes)
    guess = guesses(Recipe(), common)
    cost = guess.scripted if scripted else guess.evaluate_films if _films(cell) else guess.evaluate
    return plan.add(
        cell.score(split),
        ("evaluate", *actor, "--name", cell.row.name, "--benchmark", benchmark, "--episodes", str(episodes), "--seed",
         str(cell.seed)),
        "results.json", () if scripted else (cell.tuned,), cost,
    )  # fmt: skip


def _films(cell: TableCell) -> bool:
    return cell.row.method is not None and cell.row.method.read_by == "policy"


def ungrounded(recipe: Recipe) -> str:
    """The setting that starts the backbone from random weights and keeps its other options."""
    told = json.dumps({**recipe.policy.backbone_options, "grounded": False}, separators=(",", ":"))
    return f"policy.backbone_options={told}"


def guesses(recipe: Recipe, common: Common) -> Guess:
    """Guessed seconds of each step on one core."""
    return common.world.guess(recipe, common.videos, common.episodes, common.validation)


# The run


def run_paper(
    asked: Asked, out: Path, workers: int = 0, earlier: Path | None = None, dry_run: bool = False
) -> dict[str, Any] | None:
    """Run the missing cells; returns what `out/results.json` holds. With `dry_run` only say what would be run.

    results.json and table.md are written anew after every step, curves.png at the end. Raises LapaError when `out` or
    `earlier` holds a table with other settings (Common), and, after all that can be run has run, for steps that failed.
    """
    known: dict[str, Any] = {}
    sources: dict[str, Any] = {}
    before: dict[str, float] = {}
    common = described(asked.common)
    if (out / ASKED).exists():
        _refuse_other(out / ASKED, read_json(out / ASKED, "settings of the table"), common)
    for path in (earlier, out / RESULTS if (out / RESULTS).exists() else None):
        if path:
            there = read_results(path, common)
            known, sources, before = known | there["cells"], sources | there["sources"], before | there["seconds"]
    wanted = {cell.score(split): (cell, split) for cell in cells(asked) for split in cell.setting.splits}
    steps = steps_of(asked, out, known)
    _announce(asked, steps, wanted, known, out, workers)
    if dry_run:
        show(steps)
        return None
    asked.common.world.check(asked.settings)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ASKED, common)
    os.environ.setdefault("LAPA_CACHE", str((out / "cache").absolute()))
    results: dict[str, Any] = {}

    def keep(times: Mapping[str, float]) -> None:
        for name, (cell, split) in wanted.items():
            if name not in known and (out / name / "results.json").exists():
                known[name] = _read(cell, split, out)
        for step in steps:
            if step.name not in sources and (told := _source(step)):
                sources[step.name] = told
        spent = {step: round(each, 1) for step, each in (before | dict(times)).items()}
        results.update(common=common, **build(known, asked), sources=sources, cells=known, seconds=spent)
        write_json(out / RESULTS, results)
        with replacing(out / "table.md") as temporary:
            temporary.write_text(markdown(results))

    keep(seconds(out))
    try:
        run(steps, out, workers, after=keep, keep_going=True, shown=lambda: so_far(results))
    finally:  # also when a step has failed: show what is there
        keep(seconds(out))
        if results["table"]:
            budget_curves(results["table"], out / "curves.png", asked.common.world.counted)
    return results


def _announce(
    asked: Asked,
    steps: Sequence[PlanStep],
    wanted: Mapping[str, Any],
    known: Mapping[str, Any],
    out: Path,
    workers: int,
) -> None:
    waiting = [step for step in steps if not step.marker.exists()]
    cores = at_once(workers)
    there = sum(name in known or (out / name / "results.json").exists() for name in wanted)
    print(f"{len(cells(asked))} cells, {len(wanted)} evaluations, {there} of them done. {len(waiting)} steps to run, "
          f"{duration(sum(step.seconds for step in waiting))} of one core by guess, about "
          f"{duration(left(list(steps), out, workers))} with {cores} side by side.")  # fmt: skip
    world = asked.common.world
    aside = ",".join(row for row in world.rows if row in world.costly)
    if aside and set(asked.rows) == set(world.rows) - set(world.costly):
        print(f"Left out: {aside} (--methods all,{aside} has them; unipi takes hours without a GPU).")
    print(f"Everything goes to {out}: {RESULTS}, table.md, curves.png, a folder and a log a step. Stop and run again "
          "at any time.", flush=True)  # fmt: skip


def described(common: Common) -> dict[str, Any]:
    """What a table is made with, as JSON values: Common, and all settings of its recipe."""
    return {**asdict(common), "options": list(common.options), "recipe": recipe_of(common.options).to_json()}


def read_results(path: Path, common: Mapping[str, Any]) -> dict[str, Any]:
    """The results.json of an earlier table. Raises LapaError if it is not one, or was made with another `described`."""
    content = read_json(path, "results of a table")
    told = content if isinstance(content, dict) else {}
    cells_of = told["cells"].values() if isinstance(told.get("cells"), dict) else ()
    if not all(isinstance(part, dict) for part in (*map(told.get, PARTS), *cells_of)):
        raise LapaError(f"{path} is not the {RESULTS} of lapa compare --settings.")
    _refuse_other(path, content["common"], common)
    return content


def _refuse_other(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises LapaError for different settings. Those that only one of them has (another version) do not count."""
    before = {"benchmark": "tabletop", "other": "", **dict(_leaves(theirs))}  # of before there were others
    for name, value in sorted(_leaves(ours), key=lambda leaf: leaf[0] != "benchmark"):  # what says most
        if name in before and before[name] != value:
            raise LapaError(f"{path} is a table with other settings ({name} {before[name]}, here {value}). Give the "
                            "same, or start another table: another --out, no --results.")  # fmt: skip


def _leaves(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def _read(cell: TableCell, split: str, out: Path) -> dict[str, Any]:
    """A finished evaluation, with how the policy was finetuned."""
    found = read_json(out / cell.score(split) / "results.json", "evaluation")
    read: dict[str, Any] = {
        "method": cell.row.name, "seed": cell.seed, "split": split, "success": found["success"],
        "families": {family: part["success"] for family, part in found["families"].items()},
        **_stages(found),
        "mean_steps": found["mean_steps"], "episodes": found["episodes"],
        "outcomes": "".join("01"[o["success"]] for o in found["outcomes"]),
    }  # fmt: skip
    if cell.row.method:
        read |= {"budget": cell.budget, "family": cell.setting.family}
        if cell.row.method.source:
            read["videos"] = cell.setting.videos
        tuning = read_json(out / cell.tuned / "config.json", "finetuned policy").get("tuning")
        if tuning:
            read["way"] = tuning["chosen"]
        if tuning and tuning["validation"]:
            read["validation"] = {way: score["success"] for way, score in tuning["validation"].items()}
    return read


def _stages(found: Mapping[str, Any]) -> dict[str, Any]:
    """How far the episodes of each family got, {"stages": {family: {stage: share}}}; {} where nothing is told."""
    told = {family: part["stages"] for family, part in found["families"].items() if "stages" in part}
    return {"stages": told} if told else {}


def _source(step: PlanStep) -> dict[str, Any] | None:
    """What a finished step says of the labels of stage 2: probes of a LAQ, R^2 of VPT's actions."""
    if not step.marker.exists():
        return None
    if step.name.endswith("/fit"):
        config = read_json(step.marker, "label source")
        found = {key: value for key, value in config["results"].items() if isinstance(value, int | float | list)}
        return found | {key: value for key, value in config.items() if key == "starts"}
    if step.name.endswith("/labels"):
        manifest = read_json(step.marker, "labels")
        return {key: manifest[key] for key in ("pairs", "r2_of_true_actions") if key in manifest}
    return None
