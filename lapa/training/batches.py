"""Batches, loaded ahead of time in the background, and dealt out to ranks and micro-batches.

The batch of a step is a function of (seed, step): loading ahead changes nothing, and a resumed run starts with the
right one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lapa.contracts import Array
from lapa.runtime.distributed import Share

AHEAD = 2  # steps loaded before they are needed


@dataclass(frozen=True)
class Sampler:
    """Where batches come from, in two steps, so that a batch can be split and loaded ahead of time.

    draw(rng) -> rows [B]  everything random about the global batch: an array with one entry a sample, such as indices
    load(rows) -> batch    what model.loss takes, of some of those rows; nothing random
    begin(step)            makes ready what the step is drawn from, where that moves on with the steps

    All are called in another thread, step after step.
    """

    draw: Callable[[np.random.Generator], Array]
    load: Callable[[Array], Any]
    begin: Callable[[int], None] = lambda step: None


def sequence(seed: int, step: int) -> np.random.SeedSequence:
    """What everything random of a step is seeded with."""
    return np.random.SeedSequence([seed, step])


def batches(
    sampler: Sampler, shares: Sequence[Share], seed: int, steps: range
) -> Generator[list[tuple[Share, Any]], None, None]:
    """For each step the micro-batches of this rank, each with the rows of the global batch that it is.

    Errors of the sampler are raised when the step is reached whose batch failed. Close the iterator to stop loading.
    """

    def load(step: int) -> list[tuple[Share, Any]]:
        sampler.begin(step)
        rows = sampler.draw(np.random.default_rng(sequence(seed, step)))
        return [(share, sampler.load(rows[share.start : share.start + share.count])) for share in shares]

    pool = ThreadPoolExecutor(1, "batches")
    waiting: deque[Future[list[tuple[Share, Any]]]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(load, step))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
