"""`lapa ablate`: one setting turned through its values, from video to success on Tabletop (paper 4.6, Figure 5).

A row changes some settings of the preset; a cell is a row with a seed and runs the whole chain, quantize, label,
pretrain, finetune and evaluate, on test scenes. Rows that agree on the labels of stage 2 share them. Beside the success
stands what the codes tell, so that one sees which figure of stage 1 predicts it, and what stages 1 and 2 took.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import read_json, replacing, write_json
from lapa.contracts import LapaError
from lapa.experiments.compare import Guess, Plan, datasets
from lapa.experiments.paper_cells import SETTINGS
from lapa.experiments.schedule import run, seconds
from lapa.experiments.sweep import slug
from lapa.plots.compute import compute_curves
from lapa.plots.dots import Panel, dots
from lapa.plugins import choose

HOME = SETTINGS["in-domain"]
PROBES = ("action_r2", "position_r2")
FOUND = (*PROBES, "error_over_copy", "perplexity")  # of a LAQ


@dataclass(frozen=True)
class Row:
    """One value. laq: settings of stages 1 to 3; policy: of stages 2 and 3 alone; share: of the videos; true_actions:
    stage 2 predicts those (ActionVLA), not codes; size: width and depth of a backbone that is grounded first."""

    name: str
    laq: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    share: float = 1.0
    true_actions: bool = False
    size: tuple[int, int] | None = None


TRUE = Row("", true_actions=True)


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
class Asked:
    """Which ablation, on how much. options: further words of the training commands, such as --preset."""

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


def plan(asked: Asked, folder: Path) -> Plan:
    """The steps of all cells, the first seed of every row first."""
    made, guess = Plan(folder), Guess()
    for seed, row in itertools.product(range(asked.seeds), ABLATIONS[asked.name]):
        videos = datasets([HOME.video_spec(max(2, round(asked.videos * row.share)), seed)])
        labelled = datasets([HOME.label_spec(asked.labels, seed)])
        common = ("--seed", str(seed), *asked.options, *_set(row.laq))
        mine = f"{slug(row.name)}/seed{seed}"
        stage1, source, cost = _stage1(row, seed), "ground_truth", guess.no_labels
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
        learn = (*common, *_set(options), "--resume")
        latent = made.add(f"{mine}/latent", ("pretrain", *videos, "--labels", made.path(labels), *learn),
                          "config.json", start, guess.pretrain)  # fmt: skip
        policy = made.add(f"{mine}/policy", ("finetune", *labelled, "--policy", made.path(latent), *learn),
                          "config.json", (latent,), guess.finetune)  # fmt: skip
        made.add(f"{mine}/eval", ("evaluate", "--policy", made.path(policy), "--episodes", str(asked.episodes),
                                  "--seed", str(seed)), "results.json", (policy,), guess.evaluate)  # fmt: skip
    return made


def _stage1(row: Row, seed: int) -> str:
    """Where the labels of stage 2 are made: once for all rows that agree on them."""
    if row.true_actions:
        return f"truth/seed{seed}"
    return f"{slug(row.name)}/seed{seed}" if row.laq or row.share != 1 else f"laq/seed{seed}"


def run_ablation(asked: Asked, out: Path, workers: int = 0) -> dict[str, Any]:
    """Run the cells that are not in `out`; returns what `out/results.json` holds. Table and picture are written anew
    after every step. Raises LapaError when `out` holds an ablation with other settings, or a step fails."""
    started = out / "ablation.json"
    wanted = {**asdict(asked), "options": list(asked.options)}
    if started.exists() and read_json(started, "settings of the ablation") != wanted:
        raise LapaError(f"{out} holds an ablation with other settings (ablation.json). Give another --out.")
    write_json(started, wanted)
    made = plan(asked, out)
    run(list(made.steps.values()), out, workers, after=lambda times: _write(asked, out), keep_going=True)
    return _write(asked, out)


def _write(asked: Asked, out: Path) -> dict[str, Any]:
    grid = itertools.product(ABLATIONS[asked.name], range(asked.seeds))
    cells = [cell for row, seed in grid if (cell := _cell(asked, row, seed, out))]
    results = {"asked": asdict(asked), "cells": cells}
    if cells:
        write_json(out / "results.json", results)
        with replacing(out / "table.md") as temporary:
            temporary.write_text(table(cells))
        _picture(asked, cells, out / "ablation.png")
    return results


def _cell(asked: Asked, row: Row, seed: int, out: Path) -> dict[str, Any] | None:
    """One finished cell; None for another."""
    where = out / slug(row.name) / f"seed{seed}"
    if not (where / "eval/results.json").exists():
        return None
    score = read_json(where / "eval/results.json", "evaluation")
    policy = read_json(where / "latent/config.json", "policy")
    stage2 = policy["recipe"]["pretrain"]
    found: dict[str, Any] = {}
    spent, stage1 = seconds(out), _stage1(row, seed)
    if not row.true_actions:
        laq = read_json(out / stage1 / "laq/config.json", "LAQ")["results"]
        found = {name: laq[name] for name in FOUND}
    return {
        "row": row.name, "seed": seed, "success": score["success"], "interval": score["interval"],
        "families": {name: part["success"] for name, part in score["families"].items()},
        "accuracy": policy["results"].get("accuracy"), "samples": stage2["steps"] * stage2["batch_size"],
        "seconds": spent.get(f"{slug(row.name)}/seed{seed}/latent"),
        "seconds_of_stage_1": sum(spent.get(f"{stage1}/{step}", 0) for step in ("laq", "labels")), **found,
    }  # fmt: skip


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over seeds, lowest and highest in brackets; samples are those of stage 2, seconds of a core those
    of stage 2 and of what comes before it (LAQ and the labels)."""
    heads = ["", "seeds", "success", "action R²", "position R²", "error / copy", "perplexity", "samples", "seconds",
             "before"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(cell["row"] for cell in cells):
        mine = [cell for cell in cells if cell["row"] == name]
        figures = [_spread([100 * c["success"] for c in mine], "{:.1f}%")]
        codes = [c for c in mine if PROBES[0] in c]
        figures += [_spread([c[key] for c in codes], "{:.2f}") for key in FOUND[:-1]]
        figures += [", ".join(f"{sum(p) / len(p):.1f}" for p in zip(*(c["perplexity"] for c in codes), strict=True))]
        figures += [f"{mine[0]['samples']:,}"]
        figures += [_spread([c[key] for c in mine if c[key]], "{:.0f}") for key in ("seconds", "seconds_of_stage_1")]
        lines.append(" | ".join(["| " + name.replace("|", "\\|"), str(len(mine)), *figures]) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean, low, high = (form.format(v) for v in (sum(values) / len(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def _picture(asked: Asked, cells: Sequence[dict[str, Any]], path: Path) -> None:
    title = f"lapa ablate {asked.name}: {asked.videos:,} videos, {asked.labels} labelled trajectories"
    if asked.name == "compute":
        return compute_curves(cells, path, title)
    rows = list(dict.fromkeys(cell["row"] for cell in cells))

    def values(key: str) -> list[list[float]]:
        return [[float(c[key]) for c in cells if c["row"] == name and c.get(key) is not None] for name in rows]

    panels = [Panel("success on test scenes", {"": values("success")}, (0.0, 1.0))]
    if len({_stage1(row, 0) for row in ABLATIONS[asked.name]} - {_stage1(TRUE, 0)}) > 1:  # not the same codes for all
        panels += [
            Panel("what the codes tell, R²", {k.removesuffix("_r2"): values(k) for k in PROBES}, (-0.1, 1.0)),
            Panel("error / copy", {"": values("error_over_copy")}),
        ]
    dots(rows, panels, path, title)


def _set(settings: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("--set", setting))
