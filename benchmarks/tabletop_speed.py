"""Environment steps a second of Tabletop, with the expert acting and every frame rendered, on one core.

    OMP_NUM_THREADS=1 python benchmarks/tabletop_speed.py

Both sides in one run, in turn: a batch of 500 scenes against one scene at a time through Gymnasium. The last line is
the ratio of the medians with the range over the repetitions.
"""

from __future__ import annotations

import statistics
import time

import gymnasium
import numpy as np

import lapa  # noqa: F401  (registers the environment)
from lapa.tabletop.env import Table


def batched(domain: str) -> float:
    """Steps a second of 500 scenes stepped as one."""
    table = Table(np.arange(500), domain)
    begin, steps = time.perf_counter(), 40
    for _ in range(steps):
        table.step(table.expert())
        table.images()
    return 500 * steps / (time.perf_counter() - begin)


def single(domain: str) -> float:
    """Steps a second of one scene behind Gymnasium's wrappers."""
    env = gymnasium.make("lapa/Tabletop-v0", domain=domain)
    _, info = env.reset(seed=0)
    begin, steps = time.perf_counter(), 300
    for _ in range(steps):
        _, _, done, truncated, info = env.step(info["expert_action"])
        if done or truncated:
            _, info = env.reset()
    return steps / (time.perf_counter() - begin)


def main() -> None:
    """Measure and print."""
    ratios = []
    for domain in ("sim", "real", "hand"):
        pairs = [(batched(domain), single(domain)) for _ in range(5)]
        many, one = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        ratios += [a / b for a, b in pairs]
        print(f"{domain:<5} batch of 500: {many:,.0f} steps/s   one at a time: {one:,.0f} steps/s")
    print(f"batched over single {statistics.median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
