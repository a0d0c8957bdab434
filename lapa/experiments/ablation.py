"""`lapa ablate`: several values of one setting, from video to success (paper 4.6, Figures 5 and 15).

It is on Tabletop or on a benchmark of others (worlds.py).

A cell runs the whole chain on test scenes: quantize, label, pretrain, finetune and evaluate. Rows with the same labels
of stage 2 share them. Each success has beside it what the codes tell of the actions, so that one sees how well this
figure of stage 1 predicts the success, and the time that stages 1 and 2 took.

In a benchmark of others the expert makes the data first, a step for each task and training seed. Several ablations may
have one folder: they share these data and the row that changes nothing. What is found is in a folder of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import LapaError
from lapa.experiments.ablation_rows import ABLATIONS, around, backbone
from lapa.experiments.compare import Chain, Guess, Plan, Start, datasets, pretrained, recipe_of
from lapa.experiments.paper_cells import common_of
from lapa.experiments.paper_table import collected
from lapa.experiments.schedule import at_once, left, show
from lapa.experiments.sweep import Cell, Row, as_words, cells, markdown, run_cells, told, write
from lapa.experiments.worlds import TABLETOP, WORLDS, Setting, World, world_of
from lapa.measures.intervals import wilson
from lapa.methods import METHODS, STAGE_1, Method
from lapa.plots.budgets import LINES
from lapa.plots.compute import compute_curves
from lapa.plots.dots import Panel, dots
from lapa.plugins import choose, suggest
from lapa.recipe import Recipe, overridden
from lapa.runtime.progress import duration
from lapa.stage1_points import LABELS
from lapa.stage3_finetune import can_replay

PROBES = {"action_r2": "action R²", "state_r2": "state R²", "position_r2": "position R²"}
FOUND = (*PROBES, "action_mean_r2", "error_over_copy", "perplexity")  # of a LAQ, as far as the data allow
WATCH = ("lapa", "read", "track", "vpt")  # methods that learn from videos without actions, in minutes
LABELS_R2 = "r2_of_true_actions"  # of labels that are actions
FEW = 100  # videos of Tabletop, at least


@dataclass(frozen=True)
class AblationSettings:
    """Which ablation, and how much data: on a benchmark of others of each task. options: more words of the training
    commands, such as --preset; method: a name of methods.METHODS, where a row has none of its own."""

    name: str
    seeds: int = 3
    videos: int = 6000
    labels: int = 20
    episodes: int = 500
    options: tuple[str, ...] = ()
    benchmark: str = "tabletop"
    method: str = "lapa"

    def __post_init__(self) -> None:
        choose(self.name, ABLATIONS, "ablation")
        if choose(self.method, METHODS, "method") not in WATCH:
            raise LapaError(f"lapa ablate --method {self.method}: it is for {', '.join(WATCH)}, which learn from "
                            "videos without actions, in minutes.")  # fmt: skip
        if self.method != "lapa" and not self.others:
            raise LapaError("lapa ablate --method is for a benchmark of others; on Tabletop it is LAPA's.")
        if min(self.seeds, self.labels, self.episodes) < 1 or self.videos < (1 if self.others else FEW):
            raise LapaError("An ablation needs at least one seed, label, test episode and video "
                            f"(on Tabletop {FEW} videos).")  # fmt: skip
        _ = self.rows  # refuses what leaves nothing to compare

    @property
    def world(self) -> World:
        """Where all this is."""
        return world_of(self.benchmark)

    @property
    def others(self) -> bool:
        """Whether the benchmark is one of others, whose data are made first."""
        return self.world is not TABLETOP

    @property
    def home(self) -> Setting:
        """Videos, labels and tests are in-domain."""
        return self.world.settings["in-domain"]

    @cached_property
    def recipe(self) -> Recipe:
        """Of the row that changes nothing."""
        return recipe_of(self.options)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """What is compared."""
        if not self.others:
            return ABLATIONS[self.name]
        return around(self.name, self.recipe, self.videos, self.method)

    @property
    def cells(self) -> list[Cell]:
        """Each row with each seed."""
        return cells(self.rows, self.seeds)

    @property
    def test(self) -> tuple[str, int]:
        """The benchmark where policies are tried, and the number of episodes of a seed."""
        return self.world.test(self.home, self.home.splits[0], self.episodes)

    @property
    def shared(self) -> dict[str, Any]:
        """What must be the same, as JSON values, for two runs to have one folder."""
        found = {**asdict(self), "options": list(self.options)}
        if self.others:  # ablations, methods and more seeds may come in
            inside = ("name", "seeds", "method")
            return {**{key: found[key] for key in found if key not in inside}, "test": self.test[0]}
        return {key: found[key] for key in found if key not in ("benchmark", "method")}

    def guess(self, row: Row) -> Guess:
        """Guessed seconds of the steps of a row on one core."""
        return self.world.guess(overridden(self.recipe, (*row.settings, *row.policy)), self.watched(row),
                                self.episodes, 0)  # fmt: skip

    def method_of(self, row: Row) -> Method:
        """The method of a row."""
        return METHODS[row.method or self.method]

    def watched(self, row: Row) -> int:
        """How many videos stages 1 and 2 watch."""
        return max(1 if self.others else 2, round(self.videos * row.share))


def settings_of(
    name: str,
    benchmark: str,
    seeds: int,
    amounts: tuple[int | None, int | None, int | None],
    preset: str | None,
    settings: Sequence[str],
    method: str = "lapa",
) -> AblationSettings:
    """What the options of the command say, and else what suits the world. amounts: videos, labels, test episodes;
    settings: NAME=VALUE each, which go over those of the world. Raises LapaError for a world without ablations, and for
    a method without them."""
    where = benchmark.partition(":")[0].partition(",")[0]
    if where not in (there := ("tabletop", *WORLDS)):
        raise LapaError(f"--benchmark {benchmark}: lapa ablate runs on {', '.join(there)}.{suggest(where, there)} It "
                        "needs an expert that makes the data, and a recipe that is known to work.")  # fmt: skip
    videos, labels, episodes = amounts
    common = common_of(benchmark, "", videos, episodes, None, preset, settings)
    few = labels if labels is not None else 20 if common.world is TABLETOP else 10
    return AblationSettings(name, seeds, common.videos, few, common.episodes, common.options, benchmark,
                            method)  # fmt: skip


# --- the steps


def plan(asked: AblationSettings, folder: Path) -> Plan:
    """The steps of all cells."""
    made = Plan(folder)
    for cell in asked.cells:
        _chain(made, asked, cell)
    return made


def _chain(made: Plan, asked: AblationSettings, cell: Cell) -> None:
    """The steps of a cell, from its data on."""
    guess, start = asked.guess(cell.row), _start(made, asked, cell)
    labelled, _ = collected(made, asked.world.labels(asked.home, asked.labels, cell.seed))
    words = (*datasets(labelled), *start.options, *_common(asked, cell), *_learn(made, cell.row), "--resume")
    policy = made.add(f"{cell.name}/policy", ("finetune", *words), "config.json", start.needs, guess.finetune)
    where, episodes = asked.test
    named = ("--benchmark", where) if asked.others else ()  # else what is meant where none is named
    made.add(f"{cell.name}/eval", ("evaluate", "--policy", made.path(policy), *named, "--episodes", str(episodes),
                                   "--seed", str(cell.seed)), "results.json", (policy,), guess.evaluate)  # fmt: skip


def _start(made: Plan, asked: AblationSettings, cell: Cell) -> Start:
    """The steps of stages 1 and 2."""
    row, seed, guess, method, world = cell.row, cell.seed, asked.guess(cell.row), asked.method_of(cell.row), asked.world
    videos, needs = collected(made, world.part(asked.watched(row), asked.videos, seed)) if method.source else ((), ())
    labelled, labels_need = collected(made, world.labels(asked.home, asked.labels, seed))
    ground = (_ground(made, row.size, guess),) if row.size else ()
    replay = can_replay(overridden(asked.recipe, (*row.settings, *row.policy))) and not world.tunes
    chain = Chain(videos, labelled, _common(asked, cell), partial(_name, cell), needs, guess, labels_need,
                  world.cameras, replay, _learn(made, row), (*_looked(made, asked, seed), *ground))  # fmt: skip
    return pretrained(made, method, chain)


def _common(asked: AblationSettings, cell: Cell) -> tuple[str, ...]:
    """Words of all commands that train."""
    return ("--seed", str(cell.seed), *asked.options, *as_words(cell.row.settings))


def _name(cell: Cell, method: str, step: str, videos: bool, few: bool) -> str:
    """The name of a step of stages 1 and 2, and of its folder (compare.Chain). What a row does not change is made once
    for all rows, and LAQ once for all methods that read it. All rows have the same labelled trajectories."""
    if step == "latent":
        return f"{cell.name}/latent"
    shared = {"lapa": "laq", "actionvla": "truth"}
    folder = f"{shared.get(method, method)}/seed{cell.seed}"
    if cell.row.settings or (cell.row.share != 1 and videos):
        folder = cell.of_row if method == "lapa" else cell.name
    return f"{folder}/{'laq' if (method, step) == ('lapa', 'fit') else step}"


def _learn(made: Plan, row: Row) -> tuple[str, ...]:
    """Words of stages 2 and 3 alone."""
    options = row.policy
    if row.size:
        width, depth = row.size
        options = backbone(width=width, depth=depth, weights=made.path(_grounded(width, depth)))
    return as_words(options)


def _grounded(width: int, depth: int) -> str:
    return f"ground/width{width}_depth{depth}"


def _ground(made: Plan, size: tuple[int, int], guess: Guess) -> str:
    """One seed of grounding for all: it stands for a pretrained model."""
    words = ("ground", "--width", str(size[0]), "--depth", str(size[1]), "--resume")
    return made.add(_grounded(*size), words, "config.json", (), guess.ground * size[0] / 128)


def _looked(made: Plan, asked: AblationSettings, seed: int) -> tuple[str, ...]:
    """Before stage 2 a frozen vision encoder looks at all frames, once for all rows that learn from all videos
    (data/features.py). So that no row pays for the others it is a step of its own: a single step of training. () on
    Tabletop, where nothing is frozen."""
    if not asked.others:
        return ()
    guess = asked.guess(Row(""))
    videos, shown = collected(made, asked.world.part(asked.videos, asked.videos, seed))
    films = datasets(videos)
    labels = made.add(f"truth/seed{seed}/labels", ("label", *films, "--source", "ground_truth"), "manifest.json",
                      shown, guess.no_labels)  # fmt: skip
    learn = ("--labels", made.path(labels), "--seed", str(seed), *asked.options, "--set", "pretrain.steps=1")
    return (made.add(f"seen/seed{seed}", ("pretrain", *films, *learn, "--resume"), "config.json", (labels,),
                     guess.labels),)  # fmt: skip


# --- the run


def run_ablation(asked: AblationSettings, out: Path, workers: int = 0, dry_run: bool = False) -> dict[str, Any] | None:
    """Run the cells that are not in `out`; returns what results.json holds. Table and picture are written anew after
    every step. With `dry_run` only say what would be run.

    Raises LapaError when `out` holds an ablation with other settings, or a step fails."""
    started, reports, steps = out / "ablation.json", reports_of(asked, out), list(plan(asked, out).steps.values())
    if started.exists():
        _refuse_other(started, asked.shared)
    _announce(asked, steps, out, workers)
    if dry_run:
        show(steps)
        return None
    asked.world.check(())
    if asked.others:
        os.environ.setdefault("LAPA_CACHE", str((out / "cache").absolute()))
    write_json(started, asked.shared)

    def keep(times: Mapping[str, float]) -> dict[str, Any]:
        read = [_read(asked, cell, out, times) for cell in asked.cells]
        found = [content for content in read if content]
        results = {"asked": asdict(asked), "cells": found}
        if found:
            write(results, table(found) + ("\n" + by_task(found) if asked.others else ""), reports)
            picture(asked, found, reports / "ablation.png")
        return results

    return run_cells(steps, out, workers, keep)


def reports_of(asked: AblationSettings, out: Path) -> Path:
    """Where results.json, table.md and ablation.png are."""
    name = asked.name if asked.method == "lapa" else f"{asked.name}_{asked.method}"
    return out / name if asked.others else out


def _refuse_other(path: Path, ours: Mapping[str, Any]) -> None:
    before = read_json(path, "settings of the ablation")
    if before != ours:
        names = [name for name in {**before, **ours} if before.get(name) != ours.get(name)]
        said = ", ".join(f"{name} {json.dumps(before.get(name))}, here {json.dumps(ours.get(name))}" for name in names)
        raise LapaError(f"{path.parent} holds an ablation with other settings (ablation.json: {said}). Give another "
                        "--out.")  # fmt: skip


def _announce(asked: AblationSettings, steps: Sequence[Any], out: Path, workers: int) -> None:
    waiting = [step for step in steps if not step.marker.exists()]
    there = sum((out / cell.name / "eval/results.json").exists() for cell in asked.cells)
    cores = at_once(workers)
    print(f"{len(asked.cells)} cells ({len(asked.rows)} rows, {asked.seeds} seed{'s' * (asked.seeds > 1)}), {there} of "
          f"them done. {len(waiting)} steps to run, {duration(sum(step.seconds for step in waiting))} of one core by "
          f"guess, about {duration(left(list(steps), out, workers))} with {cores} side by side.")  # fmt: skip
    where, episodes = asked.test
    if asked.others:
        print(f"{LINES[asked.method][0]} in {asked.world.title}: {asked.videos} videos and {asked.labels} labelled "
              f"trajectories a task; {episodes} test episodes a cell in {where}.")  # fmt: skip
    print(f"Table and picture go to {reports_of(asked, out)}. Stop and run again at any time.", flush=True)


# --- what is found


def _read(asked: AblationSettings, cell: Cell, out: Path, times: Mapping[str, float]) -> dict[str, Any] | None:
    """A finished cell; None for one that is not finished."""
    where = out / cell.name
    if not (where / "eval/results.json").exists():
        return None
    score = read_json(where / "eval/results.json", "evaluation")
    return {
        "row": cell.row.name, "seed": cell.seed, "success": score["success"], "interval": score["interval"],
        "episodes": score["episodes"], "families": {name: part["success"] for name, part in score["families"].items()},
        **(_before_stage_3(asked, cell, out, times) if asked.method_of(cell.row).source else {}),
    }  # fmt: skip


def _before_stage_3(asked: AblationSettings, cell: Cell, out: Path, times: Mapping[str, float]) -> dict[str, Any]:
    """What stages 1 and 2 of a finished cell found, and took."""
    policy, start = read_json(out / cell.name / "latent/config.json", "policy"), _start(Plan(out), asked, cell)
    stage2, method, found = policy["recipe"]["pretrain"], asked.method_of(cell.row), {}
    if method.fits == "laq":
        laq = read_json(out / start.fitted / "config.json", "LAQ")["results"]
        found = {name: laq[name] for name in FOUND if name in laq}
    if method.name != "lapa":  # its labels are actions
        folder = out / start.labels / (LABELS if method.source == STAGE_1 else "")
        manifest = read_json(folder / "manifest.json", "labels")
        found |= {name: manifest[name] for name in (LABELS_R2,) if name in manifest}
    steps = {start.fitted, start.labels, *((f"seen/seed{cell.seed}",) if cell.row.share == 1 else ())}
    return {
        "accuracy": policy["results"].get("accuracy"), "held_out_accuracy": policy["results"].get("watched/accuracy"),
        "samples": _steps(out / cell.name / "latent", stage2["steps"]) * stage2["batch_size"],
        "seconds": times.get(f"{cell.name}/latent"),
        "seconds_of_stage_1": sum(times.get(step, 0) for step in steps), **found,
    }  # fmt: skip


def _steps(latent: Path, planned: int) -> int:
    """The steps that stage 2 took; fewer than planned where it ended early (`patience`)."""
    if not (latent / "metrics.jsonl").exists():
        return planned
    *_, last = (latent / "metrics.jsonl").read_text().splitlines() or ["{}"]
    return min(int(json.loads(last).get("step", planned)), planned)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over seeds, with the lowest and highest in brackets; 95%: Wilson's interval of all test episodes
    of a row. Samples are those of stage 2. Seconds of a core are given for stage 2, and for what comes before it (LAQ
    and the labels; on a benchmark of others also the first look at all frames)."""
    probes = {key: title for key, title in PROBES.items() if any(key in cell for cell in found)}
    figures = {**probes, "error_over_copy": "error / copy"}
    if any(LABELS_R2 in cell for cell in found):
        figures = {LABELS_R2: "labels' R²", **figures}
    heads = ["", "seeds", "success", "95%", *figures.values(), "perplexity", "samples", "seconds", "before"]
    lines = []
    for name, mine in _rows(found):
        codes = [cell["perplexity"] for cell in mine if "perplexity" in cell]
        line = [name, str(len(mine)), told([100 * cell["success"] for cell in mine], "{:.1f}%"), _interval(mine)]
        line += [told([cell[key] for cell in mine if key in cell]) for key in figures]
        line += [", ".join(f"{sum(p) / len(p):.1f}" for p in zip(*codes, strict=True))]
        samples = sorted(c["samples"] for c in mine if "samples" in c)
        line += [told(samples[:1] if samples[:1] == samples[-1:] else samples, "{:,.0f}")]
        line += [told([c[key] for c in mine if c.get(key)], "{:.0f}") for key in ("seconds", "seconds_of_stage_1")]
        lines.append(line)
    return markdown(heads, lines)


def by_task(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: success of each task, in percent, as in `table`."""
    tasks = list(dict.fromkeys(task for cell in found for task in cell["families"]))
    lines = [[name, *(told([100 * c["families"][task] for c in mine if task in c["families"]], "{:.0f}")
                      for task in tasks)] for name, mine in _rows(found)]  # fmt: skip
    return markdown(["success, %", *tasks], lines)


def _rows(found: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name in dict.fromkeys(cell["row"] for cell in found):
        yield name, [cell for cell in found if cell["row"] == name]


def _interval(mine: Sequence[dict[str, Any]]) -> str:
    episodes = sum(cell["episodes"] for cell in mine)
    low, high = wilson(round(sum(cell["success"] * cell["episodes"] for cell in mine)), episodes)
    return f"{100 * low:.0f} to {100 * high:.0f}"


def picture(asked: AblationSettings, found: Sequence[dict[str, Any]], path: Path) -> None:
    """Success, a dot for each seed; where rows differ in their codes also what these tell. "compute": curves."""
    title = f"lapa ablate {asked.name}: {asked.videos:,} videos, {asked.labels} labelled trajectories"
    if asked.others:
        of = LINES[asked.method][0]
        title = f"{of}, {asked.name}, {asked.world.title}: {asked.videos} videos, {asked.labels} labels a task"
    if asked.name == "compute":
        return compute_curves(found, path, title)
    rows = list(dict.fromkeys(cell["row"] for cell in found))

    def values(key: str) -> list[list[float]]:
        return [[float(c[key]) for c in found if c["row"] == name and c.get(key) is not None] for name in rows]

    panels = [Panel("success on test scenes", {"": values("success")}, (0.0, 1.0))]
    if len({(row.settings, row.share) for row in asked.rows}) > 1:  # not the same codes for all
        known = {key: values(key) for key in PROBES if any(values(key))}
        if known:
            what = "what the codes tell, R²" if len(known) > 1 else f"{PROBES[min(known)]} of the codes"
            panels.append(Panel(what, {k.removesuffix("_r2"): known[k] for k in known}, (-0.1, 1.0)))
        for key, what in ((LABELS_R2, "R² of the labels"), ("error_over_copy", "error / copy")):
            if any(values(key)):
                panels.append(Panel(what, {"": values(key)}))
    dots(rows, panels, path, title)
