"""LIBERO without its package: the names of its tasks, and how many of them are in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lapa.benchmarks import libero
from lapa.benchmarks.libero import Config, Libero, tasks_named
from lapa.contracts import LapaError


def test_a_suite_is_the_numbers_of_its_tasks() -> None:
    assert tasks_named("libero_goal") == tuple(f"libero_goal/{number}" for number in range(10))
    assert len(tasks_named("libero_90")) == 90
    assert tasks_named("libero_object_swap/3+libero_10/open_it+open_the_door") == (
        "libero_object_swap/3", "libero_10/open_it", "open_the_door",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("libero_objects", "libero_object"),
        ("libero_object/10", r"0 to 9"),
        ("libero_90/90", r"0 to 89"),
        ("libero_goal+libero_goal/0", "once"),
        ("libro_object/1", "libero_object"),
        ("libero_object+", "suite"),
        ("", "suite"),
    ],
)
def test_what_is_no_task(path: str, says: str) -> None:
    with pytest.raises(LapaError, match=says):
        tasks_named(path)


@pytest.mark.parametrize(("keep", "batch", "loads"), [(1, 1, 5), (2, 2, 6), (3, 2, 5), (10, 5, 5)])
def test_an_evaluation_has_few_tasks_in_memory(
    keep: int, batch: int, loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tasks with four scenes each. A last task that is alone in its turn is loaded twice, if two run at a time."""
    alive: list[Any] = []
    loaded: list[str] = []

    class World:
        def __init__(self, task: Any) -> None:
            self.task = task
            alive.append(self)
            loaded.append(task.name)

        def close(self) -> None:
            alive.remove(self)

    monkeypatch.setattr(libero, "_World", World)
    bench = Libero.__new__(Libero)
    bench.config, bench._idle, bench._worlds = Config(keep=keep), [], []
    bench._all = tuple(SimpleNamespace(name=name) for name in "abcde")  # type: ignore[misc]
    seeds = bench.order(range(1_000_000_000, 1_000_000_020))
    assert sorted(seeds) == list(range(1_000_000_000, 1_000_000_020))
    for start in range(0, 20, batch):
        bench._rest(bench._worlds)
        bench._worlds = []
        for seed in seeds[start : start + batch]:
            bench._worlds.append(bench._taken(seed))
            assert len(alive) <= keep
    assert len(loaded) == loads
    assert set(loaded) == set("abcde")
