"""Threads that sleep while they wait, unless the user has chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = "; import os; print(os.environ.get('OMP_WAIT_POLICY'))"


def shown(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "environment", "policy"),
    [
        ("import lapa", {}, "PASSIVE"),
        ("import lapa", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ("import lapa", {"GOMP_SPINCOUNT": "100"}, "None"),
        ("import torch, lapa", {}, "None"),
    ],
)
def test_how_threads_wait(code: str, environment: dict[str, str], policy: str) -> None:
    assert shown(code + SHOW, **environment) == policy


ACT = """
import torch, lapa
from lapa.runtime import threads
model = torch.nn.Linear(2, 2)
torch.set_num_threads({0})
threads.os.cpu_count = lambda: {1}
with threads.acting(model):
    print(torch.get_num_threads())
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("threads", "cores", "environment", "inside"),
    [(4, 4, {}, "1"), (2, 4, {}, "2"), (4, 4, {"OMP_NUM_THREADS": "4"}, "4")],
)
def test_a_policy_acts_with_one_thread_where_torch_came_first(
    threads: int, cores: int, environment: dict[str, str], inside: str
) -> None:
    """With as many threads as cores nobody has chosen; otherwise someone has. Afterwards all is as before."""
    assert shown(ACT.format(threads, cores), **environment).split() == [inside, str(threads)]
