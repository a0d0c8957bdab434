"""How torch's threads on a CPU wait for each other.

One call of a small policy is many small sums. Shared out among threads, each waits for the others, by default in a busy
loop; on a machine that has other work too, a thread that waits in this way takes the core from the one it waits for. On
two busy cores a step of LAQ took more than 4 s with two such threads, 0.9 s with one, and 0.8 s with two that sleep
while they wait; `Policy.act` likewise (benchmarks/act_threads.py). So `import lapa` asks for threads that sleep
(OMP_WAIT_POLICY=PASSIVE). That must be said before torch is loaded; where it was loaded before, a small policy acts
with one thread. Results do not change by a bit from how threads wait.

Who sets OMP_WAIT_POLICY or OMP_NUM_THREADS, or calls torch.set_num_threads, has chosen: then nothing is changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SMALL = 20_000_000  # weights of a model that one thread serves well, one observation at a time
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # each says how threads wait

_passive = False
_said = False


def wait_passively() -> None:
    """Ask for threads that sleep while they wait, for this process and those it starts. Without effect once torch is
    loaded, and where the environment says how threads wait."""
    global _passive
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    _passive = "torch" not in sys.modules and os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"


@contextmanager
def acting(model: nn.Module) -> Iterator[None]:
    """One thread, for one observation of a small model on a CPU, where threads wait in a busy loop and nobody has
    chosen how many there are; says so once, on stderr."""
    import torch

    there = torch.get_num_threads()
    if _passive or there == 1 or there != (os.cpu_count() or 1) or "OMP_NUM_THREADS" in os.environ or _large(model):
        yield
        return
    global _said
    if not _said:
        _said = True
        print(
            f"lapa: this policy acts with one of {there} threads, for torch was loaded before lapa, with threads that "
            "wait in a busy loop. Import lapa first, or set OMP_NUM_THREADS or OMP_WAIT_POLICY.",
            file=sys.stderr,
        )
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(there)


def _large(model: nn.Module) -> bool:
    """Is it worth several threads, or not on the CPU at all?"""
    first = next(model.parameters(), None)
    on_cpu = first is None or first.device.type == "cpu"
    return not on_cpu or sum(p.numel() for p in model.parameters()) > SMALL
