"""`lapa compare`: the methods of methods.py, each brought from the same videos and the same few labels to a score.

A plan is a list of `lapa` commands (schedule.py), so every number can be made again by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapa.methods import METHODS
from lapa.plugins import choose
from lapa.schedule import Step
from lapa.stage2_label import KINDS, WORDS
from lapa.training.checkpoint import read_json

LEARNS = {"vla": 135, "video_planner": 300}  # seconds of stage 2 on one slow core, by policy
TESTS = {"vla": 20, "video_planner": 120}  # seconds of an evaluation


@dataclass(frozen=True)
class Setting:
    """What all methods share: videos for stages 1 and 2, labelled trajectories for stage 3, the test."""

    videos: tuple[str, ...]
    labelled: tuple[str, ...]
    benchmark: str = "tabletop"
    episodes: int = 500
    seed: int = 0
    recipe_options: tuple[str, ...] = ()  # extra options of the training commands, such as --preset


def plan(
    methods: Sequence[str], setting: Setting, folder: Path, scripted: Sequence[str] = (), needs: tuple[str, ...] = ()
) -> list[Step]:
    """The steps from data to one results.json per method, longest chains first.

    `needs` are steps that make the data. Raises LapaError for a method that is unknown.
    """
    rows = [METHODS[choose(name, METHODS, "method")] for name in methods]
    videos = tuple(part for spec in setting.videos for part in ("--dataset", spec))
    labelled = tuple(part for spec in setting.labelled for part in ("--dataset", spec))
    common = ("--seed", str(setting.seed), *setting.recipe_options)
    steps: list[Step] = []

    def add(name: str, command: tuple[str, ...], marker: str, after: tuple[str, ...], seconds: float) -> str:
        out = folder / name
        if name not in {step.name for step in steps}:
            steps.append(Step(name, (*command, "--out", str(out)), out, out / marker, after, seconds))
        return name

    for row in sorted(rows, key=lambda r: ("unipi", "lapa", "vpt", "actionvla", "scratch").index(r.name)):
        start: tuple[str, ...] = ()
        last, fitted = needs, ""
        if row.source:
            if row.fits:
                data = videos if row.fits == "laq" else labelled
                owner = KINDS[row.fits]  # VPT and UniPi share the inverse dynamics
                fitted = add(f"fit/{owner}", ("quantize", "--method", owner, *data, *common, "--resume"),
                             "config.json", needs, 140 if row.fits == "laq" else 30)  # fmt: skip
                last = (fitted,)
            source = row.source if row.source in WORDS else str(folder / fitted)
            labels = add(
                f"labels/{row.name}",
                ("label", *videos, "--source", source),
                "manifest.json",
                last,
                5 if source in WORDS else 60,
            )
            learn = ("pretrain", *videos, "--labels", str(folder / labels), *common, "--resume")
            policy = add(f"latent/{row.name}", learn, "config.json", (labels,), LEARNS[row.policy])
            start, last = ("--policy", str(folder / policy)), (policy,)
            if row.policy == "video_planner":
                start = (*start, "--idm", str(folder / fitted))
        tuned = add(f"policy/{row.name}", ("finetune", *labelled, *start, *common, "--resume"), "config.json", last, 10)
        add(
            f"eval/{row.name}",
            _evaluation(setting, ("--policy", str(folder / tuned)), row.name),
            "results.json",
            (tuned,),
            TESTS[row.policy],
        )
    for name in scripted:
        add(f"eval/{name}", _evaluation(setting, ("--row", name), name), "results.json", (), 4)
    return steps


def _evaluation(setting: Setting, actor: tuple[str, ...], name: str) -> tuple[str, ...]:
    return ("evaluate", *actor, "--name", name, "--benchmark", setting.benchmark, "--episodes", str(setting.episodes),
            "--seed", str(setting.seed), "--video", "4")  # fmt: skip


def gather(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """The scores under `folder/eval`, {name: {"success", "interval", "episodes", "families"}}."""
    kept = ("success", "interval", "episodes", "families")
    read = {name: read_json(folder / "eval" / name / "results.json", f"evaluation of {name}") for name in names}
    return {name: {key: content[key] for key in kept} for name, content in read.items()}


def told(row: dict[str, Any]) -> str:
    """One result for people."""
    low, high = row["interval"]
    return f"{row['success']:6.1%}  ({low:.1%} to {high:.1%}, {row['episodes']} episodes)"


def gap_closed(results: dict[str, Any]) -> float | None:
    """LAPA's share of the way from Scratch to ActionVLA; None when it is not defined."""
    if not {"scratch", "lapa", "actionvla"} <= results.keys():
        return None
    low, high = results["scratch"]["success"], results["actionvla"]["success"]
    return (results["lapa"]["success"] - low) / (high - low) if high > low else None
