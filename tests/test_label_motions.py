"""What motions are read with: ridge regression and small networks, each as much as left-out episodes say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lapa.contracts import LapaError
from lapa.labels import _motions
from lapa.labels._motions import MotionFit
from lapa.measures.linear import LinearFit
from lapa.measures.probes import r2

EPISODES, ONE_TASK = np.arange(600) // 30, np.zeros(600, np.int64)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_motions, "STEPS", 400)
    monkeypatch.setattr(_motions, "NETWORKS", 2)


def noisy(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(1200, 2))
    return np.hstack([truth + rng.normal(0, 0.7, truth.shape), rng.normal(size=(1200, 8))]), truth


def test_what_is_no_straight_line_is_read_better_than_by_ridge_regression() -> None:
    rng = np.random.default_rng(1)
    features = rng.uniform(-1, 1, (1200, 4))
    motions = np.column_stack([features[:, 0] * features[:, 1], features[:, 2]])
    fit = MotionFit.fit(features[:600], motions[:600], EPISODES, ONE_TASK)
    read = fit(features[600:])
    line = LinearFit.fit(features[:600], motions[:600], EPISODES)(features[600:])
    assert r2(read[:, :1], motions[600:, :1]) > 0.4
    assert r2(line[:, :1], motions[600:, :1]) < 0.1
    assert r2(read[:, 1:], motions[600:, 1:]) > 0.95
    assert fit.r2 == pytest.approx([r2(read[:, [i]], motions[600:, [i]]) for i in range(2)], abs=0.15)
    assert fit.share[0] > 0.7
    assert fit.share[1] < 0.3, "a straight line is read by ridge regression"
    far = 3 * features[600:]
    assert r2(fit(far)[:, 1:], 3 * motions[600:, 1:]) > 0.95, "which goes on straight where no episode was"


def test_small_motions_of_a_task_count_as_much_as_large_ones_of_another() -> None:
    rng = np.random.default_rng(3)
    task = np.arange(1200) % 3
    targets = rng.normal(size=(1200, 1)) * np.array([2.0, 0.5, 0.0])[task, None]
    weights = _motions._weights(targets, task)
    large, small, still = (weights[task == each][0, 0] for each in range(3))
    assert weights.mean() == pytest.approx(1)
    assert small / large == pytest.approx(targets[task == 0].std() / targets[task == 1].std())
    assert still / large == pytest.approx(targets[task == 0].std() / _motions.SMALLEST), "noise does not count for more"


def test_what_is_read_is_as_long_as_the_motions(monkeypatch: pytest.MonkeyPatch) -> None:
    features, truth = noisy()
    lengths = {}
    for few in (600, 50):  # of all episodes, and of two, of which none is left out
        fit = MotionFit.fit(features[:few], truth[:few], EPISODES[:few], ONE_TASK[:few])
        told = fit(features[600:])
        lengths[few] = [np.polyfit(truth[600:, i], told[:, i], 1)[0] for i in range(2)]
    assert 0.85 < min(lengths[600]) <= max(lengths[600]) < 1.15, lengths
    assert max(lengths[50]) < 0.8, lengths
    assert np.isnan(fit.r2).all(), "nothing is told of two episodes"
    monkeypatch.setattr(_motions, "STEPS", 100)
    noise = MotionFit.fit(features[:600, 2:], truth[:600], EPISODES, ONE_TASK)
    assert noise.slope.tolist() == [1, 1], "what is read badly is not made longer"


def test_the_same_again_and_the_random_numbers_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_motions, "STEPS", 20)
    features, truth = noisy(2)
    torch.manual_seed(5)
    first = MotionFit.fit(features[:600], truth[:600], EPISODES, ONE_TASK)(features[600:])
    left = torch.rand(3)
    second = MotionFit.fit(features[:600], truth[:600], EPISODES, ONE_TASK)(features[600:])
    assert np.array_equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(left, torch.rand(3))


def test_too_few_rows() -> None:
    with pytest.raises(LapaError, match="4 rows"):
        MotionFit.fit(np.zeros((3, 1)), np.zeros((3, 1)), np.zeros(3), np.zeros(3))
