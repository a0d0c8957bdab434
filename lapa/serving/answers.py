"""The policy's thread with its bounded queue, and what is sent of the policy's chunks.

A client has one session for each episode that it runs. A session holds the actions of a chunk that are not sent yet,
the chunks that ensembling averages, and the last action. Sessions do not influence each other.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np

from lapa.contracts import ActionSpec, Array, LapaError, Observation
from lapa.serving import Fault
from lapa.serving.limits import Limits


class Forgets(Protocol):
    """A policy that forgets running episodes by their numbers."""

    def __call__(self, ids: list[int]) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A chunk float32 [chunk, A], and the milliseconds that the policy took."""

    chunk: Array
    ms: float


class Asked:
    """Asks the policy in one thread, one observation at a time, first come, first served.

    act      (observation, number of the running episode) -> float [chunk, A]
    forget   is called with the numbers of episodes that are over
    most     maximum number of waiting requests; further ones are refused, because a robot cannot use a late answer
    trouble  is called with errors of the policy that a client must not see
    """

    def __init__(
        self,
        act: Callable[[Observation, int], Array],
        most: int,
        forget: Forgets | None = None,
        trouble: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._act, self._most, self._forget, self._trouble = act, most, forget, trouble
        self._thread = ThreadPoolExecutor(1, "lapa-policy")
        self._lock, self._waiting = Lock(), 0

    @property
    def waiting(self) -> int:
        """Number of requests that wait or are being answered."""
        return self._waiting

    def ask(self, observation: Observation, episode: int) -> Future[Answer]:
        """The future answer; it may raise Fault. Raises Fault if too many requests wait."""
        with self._lock:
            if self._waiting >= self._most:
                raise Fault(f"{self._most} requests wait already; ask again later.", 503)
            self._waiting += 1
        future = self._thread.submit(self._answer, observation, episode)
        future.add_done_callback(self._done)
        return future

    def forget(self, episodes: list[int]) -> None:
        """Tell a policy with a memory that these episodes are over."""
        if self._forget is not None and episodes:
            with suppress(RuntimeError):  # the server has been stopped
                self._thread.submit(self._forget, episodes)

    def close(self) -> None:
        """Answer the waiting requests, then end."""
        self._thread.shutdown()

    def _done(self, future: Future[Answer]) -> None:
        with self._lock:
            self._waiting -= 1

    def _answer(self, observation: Observation, episode: int) -> Answer:
        start = time.perf_counter()
        try:
            chunk = np.asarray(self._act(observation, episode), np.float32)
        except LapaError as error:
            raise Fault(str(error)) from None
        except Exception as error:  # any error: the thread goes on, and the client must not see it
            self._trouble(error)
            raise Fault("The policy failed on this observation; the server's log has the error.", 500) from None
        return Answer(chunk, 1000 * (time.perf_counter() - start))


@dataclass(frozen=True)
class Manner:
    """What is sent of a chunk.

    chunk, execute   of the policy: actions of an answer, and how many are executed before it is asked again
    shorten    send at most so many actions of an answer; None: all
    ensemble   m: send the mean of all predictions for the same moment, with weights exp(-m i) and i = 0 for the oldest,
               as ACT does (Zhao et al., 2023); None: send the newest prediction
    """

    action: ActionSpec
    limits: Limits
    chunk: int
    execute: int
    shorten: int | None = None
    ensemble: float | None = None

    @property
    def sent(self) -> int:
        """Actions in an answer."""
        if self.ensemble is not None:
            return min(self.shorten or 1, self.chunk)
        return min(self.shorten or self.chunk, self.chunk)

    @property
    def executed(self) -> int:
        """Actions that are executed before the policy is asked again, where the server counts them."""
        return self.sent if self.ensemble is not None or self.shorten else min(self.execute, self.chunk)


class Session:
    """A running episode of a client. follows: the server knows which action was executed last, so that a largest step
    can be counted from it."""

    _numbers = itertools.count()

    def __init__(
        self, manner: Manner, clipped: Callable[[str], None] = lambda sentence: None, follows: bool = True
    ) -> None:
        self.manner, self._clipped, self.follows = manner, clipped, follows
        self.number = next(Session._numbers)
        self.restart()

    def restart(self) -> None:
        """A new episode begins."""
        self._step = 0
        self._past: deque[tuple[int, Array]] = deque()
        self._queue: deque[Array] = deque()
        self._last: Array | None = None

    def require_place(self, state: Array | None) -> None:
        """Raises Fault where --max-step holds for an absolute number, and neither the client's state nor an earlier
        answer can say from where."""
        if not self.follows and (unknown := self.manner.limits.unknown(state)):
            raise Fault(f"--max-step of the server bounds {_few(unknown)}, and this observation does not say where the "
                        "robot is. Send its state; or start the server with --execute N, the number of actions that a "
                        "client of openpi carries out, or without --max-step.")  # fmt: skip

    def actions(self, answer: Answer, state: Array | None) -> Array:
        """The actions to send, float32 [n, A]: averaged, and within the limits. `state` is the client's state. Raises
        Fault for a number that is not finite."""
        chunk = self._averaged(answer.chunk) if self.manner.ensemble is not None else answer.chunk
        made, changed = self.manner.limits.apply(chunk[: self.manner.sent], state, self._last)
        for sentence in changed:
            self._clipped(sentence)
        self._last = made[min(self.manner.executed, len(made)) - 1]
        return made

    def next(self) -> Array | None:
        """The next action, float32 [A], of an earlier answer; None: ask the policy."""
        return self._queue.popleft() if self._queue else None

    def keep(self, actions: Array) -> Array:
        """Keep those actions of an answer that are to be executed, and return the first."""
        self._queue.extend(actions[: self.manner.executed])
        return self._queue.popleft()

    def _averaged(self, chunk: Array) -> Array:
        """float32 [n, A]: for each moment the mean of all predictions; for binary numbers the newest prediction."""
        assert self.manner.ensemble is not None
        self._past.append((self._step, chunk))
        while self._past[0][0] + len(self._past[0][1]) <= self._step:
            self._past.popleft()
        binary = np.array([kind == "binary" for kind in self.manner.action.kinds])
        made = []
        for moment in range(self._step, self._step + min(self.manner.sent, len(chunk))):
            said = np.stack([old[moment - start] for start, old in self._past if moment - start < len(old)])
            weights = np.exp(-self.manner.ensemble * np.arange(len(said)))
            mean = (weights[:, None] * said).sum(0) / weights.sum()
            made.append(np.where(binary, said[-1], mean))
        self._step += len(made)
        return np.stack(made).astype(np.float32)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
