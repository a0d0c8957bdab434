"""What every benchmark that is installed does, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from lapa import plugins
from lapa.contracts import Benchmark, LapaError, Observation, Outcome
from lapa.evaluate import Trial, open_benchmark, roll_out

SPECS = {  # where the name alone does not do, or takes long
    "gym": "gym:lapa/Tabletop-v0,max_steps=60,expert=info.expert_action",
    "aloha": "aloha,size=16,max_steps=8,batch=3",
    "so101": "so101:pick-cube,size=16,max_steps=8,batch=3",
    "libero": "libero:libero_object/1,size=16,camera=agentview,max_steps=2,wait=0",
    "language_table": "language_table:block2relative,blocks=BLOCK_4,size=16,batch=3",
    "metaworld": "metaworld:reach-v3,size=24,repeat=4,max_steps=30,batch=3",
}


def _each(name: str) -> Any:
    how = plugins.missing("benchmarks", name)
    return pytest.param(SPECS.get(name, name), marks=pytest.mark.skipif(bool(how), reason=f"{name} needs {how}"))


opened = cache(open_benchmark)  # to open one may take long

EVERY = pytest.mark.parametrize("spec", [_each(name) for name in plugins.names("benchmarks")])


class Still:
    """An actor that asks for nothing but its observations."""

    def __init__(self, benchmark: Benchmark, *shape: int) -> None:
        self.task, self.shape, self.asked = benchmark.spec, shape, 0

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> np.ndarray:
        for shown in observations:
            assert set(shown["images"]) == set(self.task.cameras)
            assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in shown["images"].values())
            assert isinstance(shown["instruction"], str)
            assert ("state" in shown) == bool(self.task.state)
            assert "state" not in shown or shown["state"].shape == (len(self.task.state),)
        assert ids is not None
        assert len(set(ids)) == len(observations)
        self.asked += len(observations)
        return np.zeros((len(observations), *self.shape), np.float32)


def row(benchmark: Benchmark, name: str, trial: Trial, record: int = 0) -> tuple[list[Outcome], list[np.ndarray]]:
    return roll_out(benchmark, benchmark.baselines()[name], trial, record)


@EVERY
def test_its_own_rows(spec: str) -> None:
    benchmark = opened(spec)
    rows = tuple(benchmark.baselines())
    assert rows
    for name in rows:
        outcomes, films = row(benchmark, name, Trial(6, seed=1), record=2)
        assert [o.seed for o in outcomes] == list(range(1_000_100_000, 1_000_100_006))
        assert all(o.family in benchmark.spec.families for o in outcomes)
        assert all(1 <= o.steps <= benchmark.spec.max_steps for o in outcomes)
        assert [len(film) - 1 for film in films] == [o.steps for o in outcomes[:2]]
        if name == "expert" and "libero" not in spec:  # it would take long: tests/worlds/test_libero.py
            assert all(o.success for o in outcomes)
        if name == "no_op":
            assert not any(o.success for o in outcomes)


@EVERY
def test_the_seed_gives_the_scene_whatever_runs_beside_it(spec: str) -> None:
    benchmark = opened(spec)
    many, few = (row(benchmark, "random", Trial(count, seed=1))[0] for count in (5, 2))
    assert many[:2] == few
    other, validation = (row(benchmark, "random", t)[0] for t in (Trial(2, 2), Trial(2, 1, validation=True)))
    assert len({tuple(o.seed for o in outcomes) for outcomes in (few, other, validation)}) == 3


@EVERY
def test_a_policy_is_asked(spec: str) -> None:
    benchmark = opened(spec)
    size = len(benchmark.spec.action)
    one, four = Still(benchmark, 1, size), Still(benchmark, 4, size)
    alike: Callable[[Still], list[Outcome]] = lambda actor: roll_out(benchmark, actor, Trial(3))[0]  # noqa: E731
    outcomes = alike(one)
    assert alike(four) == outcomes
    assert one.asked == sum(o.steps for o in outcomes)
    assert four.asked == sum(-(-o.steps // 4) for o in outcomes)
    some = min(3, benchmark.spec.batch or 3)
    with pytest.raises(LapaError, match=rf"needs actions \[{some}, chunk, {size}\].* \[{some}, 1, {size + 5}\]"):
        alike(Still(benchmark, 1, size + 5))
