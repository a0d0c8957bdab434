"""A loop that sends the robot an action at an even rate while the next answer is asked for.

An answer belongs to the moment when its picture was taken. By the time it is here, the first of its actions are of the
past, and are dropped. Where an old answer still has actions for the same moments, the two may pass into each other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lapa_client.client import Client

LAST = 0.8  # of a step: until then an action is waited for


class Queue:
    """Actions by the step in which they are to be sent.

    smooth  steps over which an old answer passes into a new one; 0: the new one holds at once
    binary  which numbers of an action change at once all the same
    """

    def __init__(self, smooth: int = 0, binary: Sequence[bool] = ()) -> None:
        self.smooth, self.binary = smooth, np.array(binary, bool)
        self._actions: dict[int, np.ndarray] = {}
        self.dropped = 0  # actions whose time had passed when they came

    def put(self, actions: np.ndarray, asked: int, now: int) -> None:
        """An answer float32 [n, A] to a question of step `asked`, at step `now`: from here on it holds."""
        late = min(now - asked, len(actions))
        self.dropped += late
        old, self._actions = self._actions, {}
        for i, action in enumerate(actions[late:]):
            step = asked + late + i
            share = 1.0 if i >= self.smooth else (i + 1) / (self.smooth + 1)
            if share < 1 and step in old:
                mixed = share * action + (1 - share) * old[step]
                action = np.where(self.binary, action, mixed) if len(self.binary) else mixed
            self._actions[step] = np.asarray(action, np.float32)

    def get(self, step: int) -> np.ndarray | None:
        """The action of a step, once; None where there is none."""
        self._actions = {at: action for at, action in self._actions.items() if at >= step}
        return self._actions.pop(step, None)

    def left(self, step: int) -> int:
        """Actions from `step` on without a gap."""
        count = 0
        while step + count in self._actions:
            count += 1
        return count


@dataclass
class Report:
    """What a run was like. sent, missed: steps with and without an action; dropped: actions that came too late; ms: of
    every answer; off: the longest time in ms by which a step came late."""

    sent: int = 0
    missed: int = 0
    dropped: int = 0
    off: float = 0.0
    ms: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        half, most = np.percentile(self.ms, (50, 99)) if self.ms else (math.nan, math.nan)
        return (f"{self.sent} actions sent, {self.missed} steps without one, {self.dropped} actions too late. "
                f"{len(self.ms)} answers in {half:.1f} ms (p99 {most:.1f}). Steps were at most {self.off:.1f} ms late."
                )  # fmt: skip


class Loop:
    """Ask a server, move a robot.

    observe  gives an observation; send is given an action float32 [A]. Both are called in the thread of `run`
    hz       actions a second (None: as the server says)
    execute  steps after which it asks again (None: as the server says)
    ahead    it asks earlier where no more than so many actions are left (None: the steps of the last answer, and one)
    smooth   see Queue
    """

    def __init__(
        self,
        client: Client,
        observe: Callable[[], dict[str, Any]],
        send: Callable[[np.ndarray], None],
        hz: float | None = None,
        execute: int | None = None,
        ahead: int | None = None,
        smooth: int = 0,
    ) -> None:
        told = client.about.get("action") or {}
        self.client, self.observe, self.send = client, observe, send
        self.hz = float(hz or told.get("hz") or 0)
        if self.hz <= 0:
            raise ValueError("The server does not say how many actions a second the robot takes. Give hz=.")
        self.execute = int(execute or client.about.get("execute") or 1)
        self.ahead = ahead
        self.queue = Queue(smooth, [kind == "binary" for kind in told.get("kinds", ())])

    def run(self, seconds: float = math.inf, stop: Callable[[], bool] = lambda: False) -> Report:
        """Run until the time is over or `stop()` says so. Raises what `ask`, `observe` or `send` raise."""
        report, asking, asked = Report(), _Asking(self.client), 0
        self.client.new_episode()
        asking.put(self.observe(), 0)
        asking.wait()  # the first answer: until it is here the robot stands still, and step 0 is now
        start, step = time.perf_counter(), 0
        while step < seconds * self.hz and not stop():
            self._take(asking, step, report)
            if asking.free and (step - asked >= self.execute or self.queue.left(step) <= self._ahead(report)):
                asking.put(self.observe(), step)
                asked = step
            action = self.queue.get(step)
            if action is None and not asking.free:  # it may still come within this step
                asking.wait(max(0.0, start + (step + LAST) / self.hz - time.perf_counter()))
                self._take(asking, step, report)
                action = self.queue.get(step)
            if action is None:
                report.missed += 1
            else:
                self.send(action)
                report.sent += 1
            step += 1
            report.off = max(report.off, 1000 * (time.perf_counter() - start - step / self.hz))
            time.sleep(max(0.0, start + step / self.hz - time.perf_counter()))
        asking.finish()
        report.dropped = self.queue.dropped
        return report

    def _take(self, asking: _Asking, step: int, report: Report) -> None:
        """Put the answer into the queue, if there is one."""
        if (found := asking.take()) is not None:
            answer, asked = found
            self.queue.put(answer.actions, asked, step)
            report.ms.append(answer.ms)

    def _ahead(self, report: Report) -> int:
        if self.ahead is not None:
            return self.ahead
        return math.ceil(report.ms[-1] / 1000 * self.hz) + 1 if report.ms else 0


class _Asking:
    """A thread that asks one question at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._thread: threading.Thread | None = None
        self._found: Any = None

    @property
    def free(self) -> bool:
        """Is no question open?"""
        return self._thread is None

    def put(self, observation: dict[str, Any], step: int) -> None:
        """Ask about an observation of this step."""
        self._thread = threading.Thread(target=self._ask, args=(observation, step), daemon=True)
        self._thread.start()

    def take(self) -> Any:
        """(answer, step) if it is here, else None. Raises what went wrong."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread, found = None, self._found
        if isinstance(found, Exception):
            raise found
        return found

    def wait(self, seconds: float | None = None) -> None:
        """Until the answer is here, or so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def finish(self) -> None:
        """Wait for an open question and forget its answer, so that the connection can be used again."""
        self.wait()
        self._thread = None

    def _ask(self, observation: dict[str, Any], step: int) -> None:
        try:
            self._found = self._client.ask(observation), step
        except Exception as error:  # it is raised in the loop's own thread
            self._found = error
