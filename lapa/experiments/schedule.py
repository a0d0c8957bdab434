"""Run a plan of `lapa` commands side by side, one thread each, and go on where the last run stopped.

A step is a command line, the steps that it needs, and a file that exists when it is done. After an interruption the
finished steps are skipped. An unfinished step is run again and starts from its own checkpoint.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from lapa.artefacts.folder import write_json
from lapa.contracts import LapaError
from lapa.runtime.alone import alone
from lapa.runtime.workers import PARENT, start, stop


@dataclass(frozen=True)
class PlanStep:
    """`command`: arguments of `lapa`; `marker`: exists once the step is done; `seconds`: guess for one slow core."""

    name: str
    command: tuple[str, ...]
    out: Path
    marker: Path
    needs: tuple[str, ...] = ()
    seconds: float = 10.0


@dataclass
class _Running:
    step: PlanStep
    process: subprocess.Popen[bytes]
    log: Path
    started: float


def run(
    steps: list[PlanStep],
    folder: Path,
    workers: int = 0,
    after: Callable[[dict[str, float]], object] | None = None,
    keep_going: bool = False,
    shown: Callable[[], RenderableType] | None = None,
) -> dict[str, float]:
    """Run what is not done yet. Returns seconds spent per step, this run and earlier ones together.

    Logs go to `folder/logs`, times to `folder/seconds.json`. workers 0: one per core. `after` is called with the times
    whenever a step is done; `shown` gives what a terminal shows above the bars. Raises LapaError with the end of the
    log when a step fails: at once, the others being stopped, or with `keep_going` after all steps that do not need it.
    KeyboardInterrupt stops all steps first. Raises LapaError, too, while another process runs steps in `folder`.
    """
    workers = at_once(workers)
    times = seconds(folder)
    waiting = [step for step in steps if not step.marker.exists()]
    running: list[_Running] = []
    skipped = len(steps) - len(waiting)
    failures: list[str] = []
    console = Console(stderr=True, emoji=False)
    if skipped:
        console.print(f"{skipped} of {len(steps)} steps are done already; going on with the rest.")
    board = _Board(steps, times)
    try:
        with (
            alone(folder),
            Live(
                console=console,
                refresh_per_second=2,
                transient=True,
                get_renderable=lambda: Group(*([shown()] if shown else []), board.draw(waiting, running, workers)),
            ),
        ):
            while waiting or running:
                open_steps = {s.name for s in waiting} | {r.step.name for r in running}
                for step in [s for s in waiting if not open_steps & set(s.needs)][: workers - len(running)]:
                    waiting.remove(step)
                    running.append(_start(step, folder))
                time.sleep(0.1)
                for done in [r for r in running if r.process.poll() is not None]:
                    running.remove(done)
                    times[done.step.name] = times.get(done.step.name, 0.0) + time.monotonic() - done.started
                    write_json(folder / "seconds.json", times)
                    if done.process.returncode or not done.step.marker.exists():
                        failures.append(_failure(done))
                        if not keep_going:
                            raise LapaError(failures[0])
                        console.print(f"  failed  {done.step.name}", markup=False)
                        waiting = _without(waiting, done.step.name)
                        continue
                    spent, left = times[done.step.name], board.left_text(waiting, running, workers)
                    console.print(f"  done  {done.step.name:<24} {spent:6.1f} s   {left}")
                    if after:
                        after(times)
    finally:
        stop(r.process for r in running)
        for stopped in running:
            times[stopped.step.name] = times.get(stopped.step.name, 0.0) + time.monotonic() - stopped.started
        if running:
            write_json(folder / "seconds.json", times)
    if failures:
        raise LapaError("\n".join(failures))
    return times


def at_once(workers: int) -> int:
    """How many steps run side by side; 0: one per core. Raises LapaError for a number below."""
    if workers < 0:
        raise LapaError(f"--workers is at least 1 (0: one per core), not {workers}.")
    return workers or max(1, os.cpu_count() or 1)


def _without(waiting: list[PlanStep], failed: str) -> list[PlanStep]:
    """The steps that need `failed` neither themselves nor through another."""
    lost = {failed}
    while more := {step.name for step in waiting if lost & set(step.needs)} - lost:
        lost |= more
    return [step for step in waiting if step.name not in lost]


def left(steps: list[PlanStep], folder: Path, workers: int = 0) -> float:
    """The seconds that the remaining steps will take: their guesses times the pace of the finished steps."""
    waiting = [step for step in steps if not step.marker.exists()]
    return _Board(steps, seconds(folder)).left(waiting, [], at_once(workers))


def show(steps: Sequence[PlanStep]) -> None:
    """Print the command of each step, and whether it is done."""
    for step in steps:
        print(f"{'done' if step.marker.exists() else 'run '}  lapa {shlex.join(step.command)}")


def seconds(folder: Path) -> dict[str, float]:
    """Seconds spent so far per step of the plan that runs in `folder`."""
    path = folder / "seconds.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _start(step: PlanStep, folder: Path) -> _Running:
    log = folder / "logs" / f"{step.name.replace('/', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    with log.open("ab") as file:
        file.write(f"$ lapa {shlex.join(step.command)}\n".encode())
        file.flush()
        process = start("lapa", *step.command, environment=environment, log=file)
    return _Running(step, process, log, time.monotonic())


def _failure(failed: _Running) -> str:
    tail = failed.log.read_text(errors="replace").splitlines()[-12:]
    return f"Step {failed.step.name} failed. Its log, {failed.log}, ends with:\n  " + "\n  ".join(tail)


class _Board:
    """Which steps are running, their progress, and the time that is left."""

    def __init__(self, steps: list[PlanStep], times: dict[str, float]) -> None:
        self.steps, self.times = steps, times

    def pace(self) -> float:
        """Measured seconds of the finished steps, divided by the guessed ones: how much slower this machine is."""
        done = [s for s in self.steps if s.marker.exists() and s.name in self.times]
        guessed = sum(s.seconds for s in done)
        return sum(self.times[s.name] for s in done) / guessed if guessed > 10 else 1.0

    def left(self, waiting: list[PlanStep], running: list[_Running], workers: int) -> float:
        """Seconds left: the plan is gone through with guessed times, multiplied by the pace so far."""
        pace, now = self.pace(), time.monotonic()
        ends: dict[str, float] = {}
        for r in running:
            spent, done = now - r.started, _progress(r.step)
            ends[r.step.name] = max(spent / done - spent if done > 0.05 else r.step.seconds * pace - spent, 1.0)
        clock, queue = 0.0, list(waiting)
        while queue or ends:
            unfinished = {s.name for s in queue} | ends.keys()
            for step in [s for s in queue if not unfinished & set(s.needs)][: max(workers - len(ends), 0)]:
                queue.remove(step)
                ends[step.name] = clock + step.seconds * pace
            first = min(ends, key=ends.__getitem__)
            clock = ends.pop(first)
        return clock

    def left_text(self, waiting: list[PlanStep], running: list[_Running], workers: int) -> str:
        """The time left as text."""
        seconds = self.left(waiting, running, workers)
        return f"about {int(seconds // 60)}:{int(seconds % 60):02d} left" if waiting or running else ""

    def draw(self, waiting: list[PlanStep], running: list[_Running], workers: int) -> Group:
        """One bar per running step."""
        table = Table.grid(padding=(0, 2))
        for r in running:
            share = _progress(r.step)
            table.add_row(
                r.step.name, ProgressBar(total=1.0, completed=share, width=36), f"{time.monotonic() - r.started:.0f} s"
            )
        done = len(self.steps) - len(waiting) - len(running)
        return Group(table, f"{done} of {len(self.steps)} steps done, {self.left_text(waiting, running, workers)}")


def _progress(step: PlanStep) -> float:
    """The share that is done, from the small file that training writes (lapa/runtime/progress.py)."""
    try:
        done, total = (step.out / "progress").read_text().split()
        return int(done) / max(int(total), 1)
    except (OSError, ValueError):  # not written yet, or being written
        return 0.0
