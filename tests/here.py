"""Plans of commands in this process, one step after another: a process of its own imports torch anew for every step.

Steps as processes are tested in tests/experiments/test_schedule.py and tests/runtime/test_workers.py. Where only their
order and their ends matter, `light` starts processes that do not import torch.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from lapa import cli
from lapa.artefacts.folder import write_json
from lapa.experiments import demo, paper_table, schedule, sweep
from lapa.experiments.schedule import PlanStep, seconds


@dataclass
class Here:
    """Stands in for `schedule.run`. started: names of the steps that were run; asked: what else the last plan said."""

    started: list[str] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        steps: list[PlanStep],
        folder: Path,
        workers: int = 0,
        after: Callable[[dict[str, float]], object] = lambda times: None,
        **asked: Any,
    ) -> dict[str, float]:
        """As `schedule.run`, but a step that fails ends the test."""
        self.asked = {"workers": workers, **asked}
        times = seconds(folder)
        waiting = [step for step in steps if not step.marker.exists()]
        while waiting:
            still = {step.name for step in waiting}
            step = next(step for step in waiting if not still & set(step.needs))
            waiting.remove(step)
            self.started.append(step.name)
            began = time.monotonic()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.argv", ["lapa", *step.command])
                cli.main(list(step.command))
            assert step.marker.exists(), step.name
            times[step.name] = times.get(step.name, 0.0) + time.monotonic() - began
            write_json(folder / "seconds.json", times)
            after(times)
        return times


def here(patch: pytest.MonkeyPatch) -> Here:
    """Whoever runs a plan from now on runs it here."""
    found = Here()
    for module in (schedule, demo, paper_table, sweep):
        patch.setattr(module, "run", found.run)
    return found


LIGHT = """
import sys
from pathlib import Path
command, *options = sys.argv[1:]
if any(":nosuch" in option for option in options):
    sys.exit("there is no such domain")
if command == "collect":
    marker = Path(options[options.index("--out") + 1]) / "meta/info.json"
    marker.parent.mkdir(parents=True)
    marker.touch()
    print("Wrote 2 episodes")
"""


def light(patch: pytest.MonkeyPatch) -> None:
    """The steps of a plan are processes that look like `lapa collect`: they write a line and their result. Those of
    `:nosuch` fail, and other commands do nothing."""

    def start(module: str, *command: str, environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        assert module == "lapa"
        words = [sys.executable, "-S", "-c", LIGHT, *command]
        return subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)

    patch.setattr(schedule, "start", start)
