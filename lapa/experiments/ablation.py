"""`lapa ablate`: several values of one setting, from video to success on Tabletop (paper 4.6, Figure 5).

A cell runs the whole chain on test scenes: quantize, label, pretrain, finetune and evaluate. Rows with the same labels
of stage 2 share them. Each success has beside it what the codes tell of the actions, so that one sees how well this
figure of stage 1 predicts the success, and the time that stages 1 and 2 took.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import LapaError
from lapa.experiments.compare import Guess, Plan, datasets
from lapa.experiments.sweep import Cell, Row, as_words, cells, markdown, run_cells, told, write
from lapa.experiments.worlds import TABLETOP
from lapa.plots.compute import compute_curves
from lapa.plots.dots import Panel, dots
from lapa.plugins import choose

HOME = TABLETOP.settings["in-domain"]
PROBES = ("action_r2", "position_r2")
FOUND = (*PROBES, "error_over_copy", "perplexity")  # of a LAQ


def _backbone(**options: Any) -> tuple[str, ...]:
    return (f"policy.backbone_options={json.dumps(options, separators=(',', ':'))}",)


ABLATIONS: dict[str, tuple[Row, ...]] = {
    "codes": tuple(Row(f"|C| {n}", (f"laq.codebook_size={n}",)) for n in (4, 8, 16, 32, 64)),
    "positions": tuple(Row(f"s {n}", (f"laq.codes={n}",)) for n in (1, 2, 4)),
    "window": tuple(Row(f"{n:g} s", (f"window={n:g}",)) for n in (0.2, 0.4, 0.6, 1.0)),
    "videos": tuple(Row(f"{n}% of the videos", share=n / 100) for n in (1, 3, 10, 30, 100)),
    "policy": (
        *(Row(f"width {w}, depth {d}", size=(w, d)) for w, d in ((32, 2), (64, 2))),
        Row("width 128, depth 3"),  # the preset's, whose weights ship
        Row("width 256, depth 4", size=(256, 4)),
        Row("width 128, depth 3, not grounded", policy=_backbone(grounded=False)),
    ),
    "compute": tuple(
        Row(f"{name}, {n:,} steps", policy=(f"pretrain.steps={n}",), true_actions=name == "ActionVLA")
        for name in ("LAPA", "ActionVLA")
        for n in (125, 250, 500, 1000, 2000)
    ),
}


@dataclass(frozen=True)
class AblationSettings:
    """Which ablation, and how much data. options: more words of the training commands, such as --preset."""

    name: str
    seeds: int = 3
    videos: int = 6000
    labels: int = 20
    episodes: int = 500
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choose(self.name, ABLATIONS, "ablation")
        if min(self.seeds, self.labels, self.episodes) < 1 or self.videos < 100:
            raise LapaError("An ablation needs at least one seed, label and episode, and 100 videos.")


def plan(asked: AblationSettings, folder: Path) -> Plan:
    """The steps of all cells."""
    made, guess = Plan(folder), Guess()
    for cell in cells(ABLATIONS[asked.name], asked.seeds):
        row, seed = cell.row, cell.seed
        some = max(2, round(asked.videos * row.share))
        videos = datasets([source.spec for source in TABLETOP.videos(HOME, some, seed)])
        labelled = datasets([source.spec for source in TABLETOP.labels(HOME, asked.labels, seed)])
        common = ("--seed", str(seed), *asked.options, *as_words(row.settings))
        stage1, source, cost = _stage1(cell), "ground_truth", guess.no_labels
        needs: tuple[str, ...] = ()
        if not row.true_actions:
            needs = (
                made.add(f"{stage1}/laq", ("quantize", *videos, *common, "--resume"), "config.json", (), guess.laq),
            )
            source, cost = made.path(needs[0]), guess.labels * row.share
        labels = made.add(f"{stage1}/labels", ("label", *videos, "--source", source), "manifest.json", needs, cost)
        options = row.policy
        start: tuple[str, ...] = (labels,)
        if row.size:  # one seed of grounding for all: it stands for a pretrained model
            width, depth = row.size
            ground = made.add(f"ground/width{width}_depth{depth}",
                              ("ground", "--width", str(width), "--depth", str(depth), "--resume"), "config.json", (),
                              guess.ground * width / 128)  # fmt: skip
            options, start = _backbone(width=width, depth=depth, weights=made.path(ground)), (labels, ground)
        learn = (*common, *as_words(options), "--resume")
        latent = made.add(f"{cell.name}/latent", ("pretrain", *videos, "--labels", made.path(labels), *learn),
                          "config.json", start, guess.pretrain)  # fmt: skip
        policy = made.add(f"{cell.name}/policy", ("finetune", *labelled, "--policy", made.path(latent), *learn),
                          "config.json", (latent,), guess.finetune)  # fmt: skip
        made.add(f"{cell.name}/eval", ("evaluate", "--policy", made.path(policy), "--episodes", str(asked.episodes),
                                       "--seed", str(seed)), "results.json", (policy,), guess.evaluate)  # fmt: skip
    return made


def _stage1(cell: Cell) -> str:
    """The folder where the labels of stage 2 are made: once for all rows with the same labels."""
    if cell.row.true_actions:
        return f"truth/seed{cell.seed}"
    return cell.name if cell.row.settings or cell.row.share != 1 else f"laq/seed{cell.seed}"


def run_ablation(asked: AblationSettings, out: Path, workers: int = 0) -> dict[str, Any]:
    """Run the cells that are not in `out`; returns what `out/results.json` holds. Table and picture are written anew
    after every step. Raises LapaError when `out` holds an ablation with other settings, or a step fails."""
    started = out / "ablation.json"
    wanted = {**asdict(asked), "options": list(asked.options)}
    if started.exists() and read_json(started, "settings of the ablation") != wanted:
        raise LapaError(f"{out} holds an ablation with other settings (ablation.json). Give another --out.")
    write_json(started, wanted)

    def keep(times: Mapping[str, float]) -> dict[str, Any]:
        read = [_read(cell, out, times) for cell in cells(ABLATIONS[asked.name], asked.seeds)]
        found = [content for content in read if content]
        results = {"asked": asdict(asked), "cells": found}
        if found:
            write(results, table(found), out)
            picture(asked, found, out / "ablation.png")
        return results

    return run_cells(list(plan(asked, out).steps.values()), out, workers, keep)


def _read(cell: Cell, out: Path, times: Mapping[str, float]) -> dict[str, Any] | None:
    """A finished cell; None for one that is not finished."""
    where, row = out / cell.name, cell.row
    if not (where / "eval/results.json").exists():
        return None
    score = read_json(where / "eval/results.json", "evaluation")
    policy = read_json(where / "latent/config.json", "policy")
    stage2 = policy["recipe"]["pretrain"]
    found: dict[str, Any] = {}
    stage1 = _stage1(cell)
    if not row.true_actions:
        laq = read_json(out / stage1 / "laq/config.json", "LAQ")["results"]
        found = {name: laq[name] for name in FOUND}
    return {
        "row": row.name, "seed": cell.seed, "success": score["success"], "interval": score["interval"],
        "families": {name: part["success"] for name, part in score["families"].items()},
        "accuracy": policy["results"].get("accuracy"), "samples": stage2["steps"] * stage2["batch_size"],
        "seconds": times.get(f"{cell.name}/latent"),
        "seconds_of_stage_1": sum(times.get(f"{stage1}/{step}", 0) for step in ("laq", "labels")), **found,
    }  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over seeds, with the lowest and highest in brackets. Samples are those of stage 2. Seconds of a
    core are given for stage 2, and for what comes before it (LAQ and the labels)."""
    heads = ["", "seeds", "success", "action R²", "position R²", "error / copy", "perplexity", "samples", "seconds",
             "before"]  # fmt: skip
    lines = []
    for name in dict.fromkeys(cell["row"] for cell in found):
        mine = [cell for cell in found if cell["row"] == name]
        codes = [cell for cell in mine if PROBES[0] in cell]
        used = [f"{sum(p) / len(p):.1f}" for p in zip(*(cell["perplexity"] for cell in codes), strict=True)]
        figures = [told([100 * cell["success"] for cell in mine], "{:.1f}%")]
        figures += [told([cell[key] for cell in codes]) for key in FOUND[:-1]]
        figures += [", ".join(used), f"{mine[0]['samples']:,}"]
        figures += [told([c[key] for c in mine if c[key]], "{:.0f}") for key in ("seconds", "seconds_of_stage_1")]
        lines.append([name, str(len(mine)), *figures])
    return markdown(heads, lines)


def picture(asked: AblationSettings, found: Sequence[dict[str, Any]], path: Path) -> None:
    """Success, a dot for each seed; where rows differ in their codes also what these tell. "compute": curves."""
    title = f"lapa ablate {asked.name}: {asked.videos:,} videos, {asked.labels} labelled trajectories"
    if asked.name == "compute":
        return compute_curves(found, path, title)
    rows = list(dict.fromkeys(cell["row"] for cell in found))

    def values(key: str) -> list[list[float]]:
        return [[float(c[key]) for c in found if c["row"] == name and c.get(key) is not None] for name in rows]

    panels = [Panel("success on test scenes", {"": values("success")}, (0.0, 1.0))]
    with_codes = [row for row in ABLATIONS[asked.name] if not row.true_actions]
    if len({_stage1(Cell(row, 0)) for row in with_codes}) > 1:  # not the same codes for all
        panels += [
            Panel("what the codes tell, R²", {k.removesuffix("_r2"): values(k) for k in PROBES}, (-0.1, 1.0)),
            Panel("error / copy", {"": values("error_over_copy")}),
        ]
    dots(rows, panels, path, title)
