"""One policy, one thread that asks it, a bounded queue before it; what becomes of its chunks in a running episode.

A client has a session for each episode that it runs. The session knows what was answered before: the actions of a chunk
that are still to come, the chunks that ensembling averages, the last action. Nothing of one session reaches another.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
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
    """The policy, asked by one thread, one observation at a time and in the order of coming.

    act      (observation, number of the running episode) -> float [chunk, A]
    forget   told the numbers of episodes that are over
    most     requests that may wait; one more is refused, for an answer that comes too late moves a robot wrong
    trouble  is given what the policy raised that is not meant for a client
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
        """Requests that are answered or wait."""
        return self._waiting

    def ask(self, observation: Observation, episode: int) -> Future[Answer]:
        """The answer to come, or a Fault in it. Raises Fault where too many wait."""
        with self._lock:
            if self._waiting >= self._most:
                raise Fault(f"{self._most} requests wait already; ask again later.", 503)
            self._waiting += 1
        future = self._thread.submit(self._answer, observation, episode)
        future.add_done_callback(self._done)
        return future

    def forget(self, episodes: list[int]) -> None:
        """Tell a policy that remembers that these are over."""
        if self._forget is not None and episodes:
            with suppress(RuntimeError):  # the server has been stopped
                self._thread.submit(self._forget, episodes)

    def close(self) -> None:
        """Answer what waits, then end."""
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
        except Exception as error:  # whatever it is, it must not end the thread, nor be told to a client
            self._trouble(error)
            raise Fault("The policy has failed on this observation; the server's log says how.", 500) from None
        return Answer(chunk, 1000 * (time.perf_counter() - start))


@dataclass(frozen=True)
class Manner:
    """How a chunk becomes what a client is sent.

    chunk, execute   of the policy: actions of an answer, and how many are carried out before it is asked again
    shorten    send no more than so many actions of an answer; None: all
    ensemble   m: average all answers that speak of the same moment with the weights exp(-m i), i = 0 the oldest, as ACT
               does (Zhao et al., 2023); None: take the newest
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
    def carried_out(self) -> int:
        """Actions that are carried out before the policy is asked again, where the server counts them."""
        return self.sent if self.ensemble is not None or self.shorten else min(self.execute, self.chunk)


class Session:
    """A running episode of a client."""

    _numbers = itertools.count()

    def __init__(self, manner: Manner, clipped: Callable[[str], None] = lambda sentence: None) -> None:
        self.manner, self._clipped = manner, clipped
        self.number = next(Session._numbers)
        self.restart()

    def restart(self) -> None:
        """A new episode begins."""
        self._step = 0
        self._past: deque[tuple[int, Array]] = deque()
        self._queue: deque[Array] = deque()
        self._last: Array | None = None

    def actions(self, answer: Answer, state: Array | None) -> Array:
        """What a client is sent of the policy's answer to its observation: float32 [n, A], averaged and within the
        limits. `state` is what the client has sent. Raises Fault for a number that is not finite."""
        chunk = self._averaged(answer.chunk) if self.manner.ensemble is not None else answer.chunk
        made, changed = self.manner.limits.apply(chunk[: self.manner.sent], state, self._last)
        for sentence in changed:
            self._clipped(sentence)
        self._last = made[min(self.manner.carried_out, len(made)) - 1]
        return made

    def next(self) -> Array | None:
        """The next action float32 [A] of those that are still to come; None: ask the policy."""
        return self._queue.popleft() if self._queue else None

    def keep(self, actions: Array) -> Array:
        """Keep the actions of an answer for later, as far as they are carried out, and give the first."""
        self._queue.extend(actions[: self.manner.carried_out])
        return self._queue.popleft()

    def _averaged(self, chunk: Array) -> Array:
        """float32 [n, A]: each moment the mean of what all answers say of it; binary numbers as the newest says."""
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
