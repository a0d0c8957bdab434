"""A loop that sends actions to the robot at an even rate and requests the next answer at the same time.

The first action of an answer is for the step of its observation. When the answer arrives, some of its first steps are
over; their actions are dropped. If the previous answer has actions for the same steps, the two can be blended.
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

LAST = 0.8  # share of a step during which an action can still arrive


class Queue:
    """Actions by step.

    smooth  number of steps during which an old answer changes linearly into a new one; 0: at once
    binary  which numbers of an action always change at once
    """

    def __init__(self, smooth: int = 0, binary: Sequence[bool] = ()) -> None:
        self.smooth, self.binary = smooth, np.array(binary, bool)
        self.clear()

    def clear(self) -> None:
        """Forget all actions: steps are counted from 0 again."""
        self._actions: dict[int, np.ndarray] = {}
        self.dropped = 0  # number of actions that came too late

    def put(self, actions: np.ndarray, asked: int, now: int) -> None:
        """Add an answer, float32 [n, A], to a request of step `asked`, at step `now`. It replaces the previous one."""
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
        """Remove and return the action of a step; None if there is none."""
        self._actions = {at: action for at, action in self._actions.items() if at >= step}
        return self._actions.pop(step, None)

    def left(self, step: int) -> int:
        """Number of actions from `step` on, up to the first gap."""
        count = 0
        while step + count in self._actions:
            count += 1
        return count


@dataclass
class Report:
    """Statistics of a run. sent, missed: steps with and without an action; dropped: actions that came too late; ms: of
    every answer; off: the largest delay of a step in ms."""

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
    """Moves a robot by a server's answers.

    observe  returns an observation; send gets an action float32 [A]. Both are called in the thread of `run`
    hz       actions a second (None: the server's)
    execute  steps between two requests (None: the server's)
    ahead    request earlier if at most so many actions are left (None: the steps that the last answer took, plus 1)
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
        """Run until the time is over or `stop()` is true. Raises the errors of `ask`, `observe` and `send`."""
        report, asking, asked = Report(), _Asking(self.client), 0
        self.client.new_episode()
        self.queue.clear()
        asking.put(self.observe(), 0)
        asking.wait()  # the robot does not move before the first answer; then step 0 begins
        start, step = time.perf_counter(), 0
        while step < seconds * self.hz and not stop():
            self._take(asking, step, report)
            if asking.free and (step - asked >= self.execute or self.queue.left(step) <= self._ahead(report)):
                asking.put(self.observe(), step)
                asked = step
            action = self.queue.get(step)
            if action is None and not asking.free:  # it can still arrive in this step
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
        """Put the answer into the queue, if it has arrived."""
        if (found := asking.take()) is not None:
            answer, asked = found
            self.queue.put(answer.actions, asked, step)
            report.ms.append(answer.ms)

    def _ahead(self, report: Report) -> int:
        if self.ahead is not None:
            return self.ahead
        return math.ceil(report.ms[-1] / 1000 * self.hz) + 1 if report.ms else 0


class _Asking:
    """Sends one request at a time, in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._thread: threading.Thread | None = None
        self._found: Any = None

    @property
    def free(self) -> bool:
        """Is no request open?"""
        return self._thread is None

    def put(self, observation: dict[str, Any], step: int) -> None:
        """Send the observation of this step."""
        self._thread = threading.Thread(target=self._ask, args=(observation, step), daemon=True)
        self._thread.start()

    def take(self) -> Any:
        """(answer, step) if it has arrived, else None. Raises the error of the request."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread, found = None, self._found
        if isinstance(found, Exception):
            raise found
        return found

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the answer, at most so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def finish(self) -> None:
        """Wait for an open request and drop its answer. Then the connection can be used again."""
        self.wait()
        self._thread = None

    def _ask(self, observation: dict[str, Any], step: int) -> None:
        try:
            self._found = self._client.ask(observation), step
        except Exception as error:  # raised in the thread of the loop
            self._found = error
