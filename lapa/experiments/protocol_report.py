"""What a protocol found: results.json, report.md, success.png, credit.png. Only here letters become methods.

A pose counts when every method has met it, so that all figures are of the same poses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lapa import __version__
from lapa.artefacts.folder import replacing, write_json
from lapa.contracts import LapaError
from lapa.experiments.protocol import Session
from lapa.experiments.protocol_file import Pose
from lapa.measures.intervals import mean, wilson
from lapa.plots.codes import success_bars

Credits = Mapping[str, Mapping[int, float]]  # method -> {pose: credit}
GROUPS: dict[str, Callable[[Pose], str]] = {
    "tasks": lambda pose: pose.task,
    "types": lambda pose: pose.type,
    "cells": lambda pose: f"{pose.task}, {pose.type}",
}


@dataclass(frozen=True)
class Judged:
    """An answer with its method."""

    pose: int
    task: str
    type: str
    rollout: int
    letter: str
    method: str
    stage: int
    credit: float
    note: str
    time: str


def report(session: Session) -> dict[str, Any]:
    """Write the report of what was answered so far; returns what the JSON holds. Raises LapaError where no pose has
    been met by all methods."""
    protocol, rows = session.protocol, _rows(session)
    credits: dict[str, dict[int, float]] = {method: {} for method in protocol.methods}
    for row in rows:
        credits[row.method][row.pose] = row.credit
    done = sorted({row.pose for row in rows})
    if not done:
        raise LapaError(
            f"{session.out}: no initial pose has been met by all methods yet. Go on with the session first."
        )
    made: dict[str, Any] = {
        "lapa": __version__,
        "simulated": protocol.simulated,
        "seed": protocol.seed,
        "poses": {"done": len(done), "planned": len(protocol.poses)},
        "undone": len(session.undone),
        "methods": {m: _scored(list(credits[m].values())) | _parts(session, credits[m]) for m in protocol.methods},
        "pairs": {f"{a} - {b}": _pair(credits, a, b) for a, b in combinations(protocol.methods, 2)},
        "tasks": {task.name: dict(task.stages) for task in protocol.tasks.values()},
        "rollouts": [asdict(row) for row in rows],
    }
    success_bars({m: told | {"families": told["tasks"]} for m, told in made["methods"].items()},
                 session.out / "success.png", "Success: the last stage", "rollouts")  # fmt: skip
    bars = {m: _as_bar(told) | {"families": {name: _as_bar(part) for name, part in told["tasks"].items()}}
            for m, told in made["methods"].items()}  # fmt: skip
    success_bars(bars, session.out / "credit.png", "Partial credit", "mean credit")
    with replacing(session.out / "report.md") as temporary:
        temporary.write_text(markdown(made))
    write_json(session.out / "results.json", made)
    return made


def _rows(session: Session) -> list[Judged]:
    """Answers at poses that all methods have met."""
    found = []
    complete = len(session.answers) // len(session.protocol.methods) * len(session.protocol.methods)
    for rollout, answer in zip(session.rollouts[:complete], session.answers[:complete], strict=True):
        pose, task = session.protocol.poses[rollout.pose], session.task(rollout)
        found.append(Judged(rollout.pose + 1, pose.task, pose.type, pose.rollout, rollout.letter, rollout.method,
                         answer["stage"], task.credit(answer["stage"]), answer["note"], answer["time"]))  # fmt: skip
    return found


def _parts(session: Session, credits: Mapping[int, float]) -> dict[str, Any]:
    """The figures of each task, each type, and each task and type."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind, group in GROUPS.items():
        found[kind] = {}
        for number, credit in credits.items():
            found[kind].setdefault(group(session.protocol.poses[number - 1]), []).append(credit)
    return {kind: {name: _scored(some) for name, some in of.items()} for kind, of in found.items()}


def _scored(credits: Sequence[float]) -> dict[str, Any]:
    """Mean partial credit with a bootstrap interval, strict success (credit 1) with Wilson's."""
    wins = sum(credit == 1 for credit in credits)
    return {
        "credit": float(np.mean(credits)),
        "credit_interval": list(mean(np.array(credits))),
        "success": wins / len(credits),
        "interval": list(wilson(wins, len(credits))),
        "successes": wins,
        "episodes": len(credits),
    }


def _pair(credits: Credits, one: str, other: str) -> dict[str, Any]:
    """On the same poses: how often the first has more credit, as much, less; and the mean difference."""
    poses = list(credits[one])
    left, right = (np.array([credits[method][pose] for pose in poses]) for method in (one, other))
    told: dict[str, Any] = {"difference": float((left - right).mean()), "interval": list(mean(left - right, -1.0))}
    for name, a, b in (("credit", left, right), ("success", left == 1, right == 1)):
        won, lost = int((a > b).sum()), int((a < b).sum())
        told[name] = {"win": won, "tie": len(poses) - won - lost, "lose": lost}
    return told


def _as_bar(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"success": told["credit"], "interval": told["credit_interval"]}


def markdown(made: Mapping[str, Any]) -> str:
    """The report as a page."""
    poses = made["poses"]
    short = poses["done"] < poses["planned"]
    lines = [
        "# Robot protocol",
        "",
        f"{poses['done']} of {poses['planned']} initial poses, each met by every method, in a blind order (seed "
        f"{made['seed']}); {made['undone']} answers were taken back."
        + (" Judged by a simulator." if made["simulated"] else " Judged by a person.")
        + (" **The session is not finished.** A decision to stop must not depend on these figures." if short else ""),
        "",
        "Credit: the mean partial credit, with a bootstrap interval over poses. Success: the last stage was reached, "
        "with Wilson's interval. All intervals are at 95%.",
        "",
        "| method | rollouts | credit | success |",
        "|---|---|---|---|",
        *(f"| {_cell(name)} | {told['episodes']} | {_with(told['credit'], told['credit_interval'])} | "
          f"{_with(told['success'], told['interval'])} |" for name, told in made["methods"].items()),
    ]  # fmt: skip
    for kind, title in (("tasks", "Tasks"), ("types", "Types"), ("cells", "Tasks and types")):
        names = list(next(iter(made["methods"].values()))[kind])
        lines += ["", f"## {title}", "", "Credit / success.", "", f"| method | {' | '.join(map(_cell, names))} |",
                  f"|---|{'---|' * len(names)}"]  # fmt: skip
        for method, told in made["methods"].items():
            parts = [f"{told[kind][name]['credit']:.1%} / {told[kind][name]['success']:.1%}" for name in names]
            lines.append(f"| {_cell(method)} | {' | '.join(parts)} |")
    if made["pairs"]:
        lines += ["", "## Pairs", "", "At the same initial pose: how often the first has more, as much, less.", "",
                  "| pair | credit: win / tie / lose | success: win / tie / lose | difference of credit |",
                  "|---|---|---|---|"]  # fmt: skip
        for name, pair in made["pairs"].items():
            counts = (
                " / ".join(str(pair[key][word]) for word in ("win", "tie", "lose")) for key in ("credit", "success")
            )
            lines.append(f"| {_cell(name)} | {' | '.join(counts)} | {_with(pair['difference'], pair['interval'])} |")
    noted = [row for row in made["rollouts"] if row["note"]]
    if noted and not made["simulated"]:
        lines += ["", "## Notes", "", "| pose | task | type | method | credit | note |", "|---|---|---|---|---|---|"]
        lines += [f"| {row['pose']} | {_cell(row['task'])} | {_cell(row['type'])} | {_cell(row['method'])} | "
                  f"{row['credit']:g} | {_cell(row['note'])} |" for row in noted]  # fmt: skip
    lines += ["", "![Partial credit](credit.png)", "", "![Success](success.png)", ""]
    return "\n".join(lines)


def _with(value: float, interval: Sequence[float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
