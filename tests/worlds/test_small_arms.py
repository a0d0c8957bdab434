"""SO-101 and ALOHA as benchmarks: what they show, the same scene again, and what their rows do."""

from __future__ import annotations

import numpy as np
import pytest

from lapa import plugins
from lapa.contracts import LapaError
from lapa.evaluate import Trial, open_benchmark, roll_out

HOW = {name: plugins.missing("benchmarks", name) for name in ("so101", "aloha")}
SO101 = pytest.mark.skipif(bool(HOW["so101"]), reason=f"so101 is not installed: {HOW['so101']}")
ALOHA = pytest.mark.skipif(bool(HOW["aloha"]), reason=f"aloha is not installed: {HOW['aloha']}")


@pytest.mark.parametrize(
    ("spec", "actions", "state"),
    [
        pytest.param("so101:pick-place,size=32", 4, 14, marks=SO101),
        pytest.param("so101:pick-cube,size=32", 4, 14, marks=SO101),
        pytest.param("aloha:transfer-cube,size=32,camera=top+left_wrist", 14, 14, marks=ALOHA),
        pytest.param("aloha:insertion,size=32", 14, 14, marks=ALOHA),
    ],
)
def test_a_seed_gives_a_scene_that_is_seen(spec: str, actions: int, state: int) -> None:
    bench = open_benchmark(spec)
    assert len(bench.spec.action) == actions
    first, other = bench.reset([1_000_000_001, 1_000_000_002])
    bench.step(np.zeros((2, actions)))
    _, again = bench.reset([7, 1_000_000_001])
    for camera in bench.spec.cameras:
        assert first["images"][camera].shape == (32, 32, 3)
        assert first["images"][camera].std() > 5
        np.testing.assert_array_equal(first["images"][camera], again["images"][camera])
    assert not np.array_equal(first["images"][bench.spec.cameras[0]], other["images"][bench.spec.cameras[0]])
    assert first["state"].shape == (state,)
    assert first["instruction"]


@SO101
def test_the_expert_of_so101_places_the_block() -> None:
    bench = open_benchmark("so101:pick-place,size=16")
    outcomes, _ = roll_out(bench, bench.baselines()["expert"], Trial(2))
    assert all(o.success for o in outcomes)
    assert "expert" not in open_benchmark("so101:pick-cube,size=16").baselines()


@ALOHA
def test_the_arms_of_aloha_hold_still() -> None:
    bench = open_benchmark("aloha:transfer-cube,size=16")
    shown = bench.reset([3])
    (step,) = bench.step(bench.baselines()["no_op"].act_batch(shown)[:, 0])
    np.testing.assert_allclose(step.observation["state"], shown[0]["state"], atol=0.01)
    assert bench.spec.action.names == bench.spec.state


@pytest.mark.parametrize("spec", [pytest.param("so101:pick-place,max_steps=0", marks=SO101),
                                  pytest.param("aloha:insertion,max_steps=0", marks=ALOHA)])  # fmt: skip
def test_an_episode_has_a_step(spec: str) -> None:
    with pytest.raises(LapaError, match=f"^{spec.partition(',')[0]}: max_steps is at least 1, not 0"):
        open_benchmark(spec)


@pytest.mark.parametrize("size", [0, -3, 100_000])
@pytest.mark.parametrize("name", [pytest.param("so101", marks=SO101), pytest.param("aloha", marks=ALOHA), "tabletop"])
def test_a_picture_has_a_size(name: str, size: int) -> None:
    with pytest.raises(LapaError, match=f"{name}: size is 1 to 4096, not {size}"):
        open_benchmark(f"{name},size={size}")


@pytest.mark.parametrize("spec", ["so101:lift", "aloha:fold", "aloha,camera=side", "aloha,camera=top+top"])
def test_unknown_names_are_refused(spec: str) -> None:
    with pytest.raises(LapaError, match=spec.rpartition("=")[2].rpartition(":")[2].partition("+")[0]):
        open_benchmark(spec)
