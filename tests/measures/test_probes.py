"""Probes against relations that are known, and the side that each episode is on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lapa.contracts import LapaError
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.measures import probes as metrics


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack(["tabletop:sim,episodes=12"], 32, cache=tmp_path_factory.mktemp("cache"), quiet=True)


@pytest.fixture(scope="module")
def pairs(packed: Packed) -> PairIndex:
    return window_pairs(packed, 0.4)


def test_linear_r2_of_a_relation_and_of_noise() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 5))
    y = x @ rng.normal(size=(5, 3)) + 7
    each = np.arange(2000)  # every row an episode of its own
    assert metrics.linear_r2(x, y, each) > 0.999
    assert abs(metrics.linear_r2(x, rng.normal(size=(2000, 3)), each)) < 0.04
    noisy = y + rng.normal(size=y.shape) * y.std()  # as much noise as signal in all: half is told
    assert metrics.linear_r2(x, noisy, each) == pytest.approx(0.5, abs=0.08)
    assert metrics.linear_r2(x, np.full((2000, 1), 3.0), each) == 0.0
    assert np.isfinite(metrics.linear_r2(rng.normal(size=(40, 500)), y[:40], each[:40]))
    with pytest.raises(LapaError, match="4 rows"):
        metrics.linear_r2(x[:3], y[:3], each[:3])


def test_mlp_r2_reads_what_only_the_combination_of_codes_tells() -> None:
    codes = np.random.default_rng(0).integers(0, 2, (2000, 2))
    either = (codes[:, :1] ^ codes[:, 1:]).astype(np.float64)
    each = np.arange(2000)
    x, before = metrics.one_hot(codes, 2), torch.get_rng_state()
    assert metrics.linear_r2(x, either, each) < 0.02
    assert metrics.mlp_r2(x, either, each) > 0.99
    assert metrics.mlp_r2(x, either, each) == metrics.mlp_r2(x, either, each)
    assert torch.equal(torch.get_rng_state(), before)  # asking does not disturb the training that it watches
    noisy = either + np.random.default_rng(1).normal(size=either.shape) * either.std()  # as much noise as signal
    assert metrics.mlp_r2(x, noisy, each) == pytest.approx(0.5, abs=0.08)
    assert metrics.mlp_r2(x, np.full((2000, 1), 3.0), each) == 0.0


def test_linear_r2_weights_targets_by_their_variance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 1))
    told, noise = x * 3, rng.normal(size=(4000, 1))
    assert metrics.linear_r2(x, np.hstack([told, noise]), np.arange(4000)) == pytest.approx(9 / 10, abs=0.02)


def test_one_hot_and_perplexity() -> None:
    codes = np.array([[0, 2], [1, 2]])
    assert metrics.one_hot(codes, 3).tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1]]
    uniform = np.stack([np.arange(800) % 8, np.zeros(800, int)], 1)
    assert metrics.perplexity(uniform, 8) == pytest.approx([8.0, 1.0])
    quarter = np.array([[0], [0], [0], [1]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.perplexity(quarter, 5) == pytest.approx([math.exp(entropy)])


def test_probe_of_codes_that_are_actions_and_of_codes_that_are_places(packed: Packed, pairs: PairIndex) -> None:
    rows = np.arange(len(pairs))
    moved = pairs.batch(packed, rows).actions
    assert moved is not None
    assert packed.state is not None
    bins = np.stack(
        [np.digitize(moved[:, i], np.quantile(moved[:, i], np.linspace(0, 1, 13)[1:-1])) for i in (0, 1)], 1
    )
    episode = pairs.episode[rows]
    test = metrics.of_each_fifth(episode)
    told = metrics.probe(bins, 12, packed, pairs, rows, episode, test)
    figures = {f"{name}{by}_r2" for name in ("action", "displacement", "position") for by in ("", "_mlp")}
    assert set(told) == figures | {"action_mean_r2"}
    assert told["action_r2"] > 0.9
    assert told["position_r2"] < 0.5
    places = np.clip((packed.state[pairs.now, :2] * 12).astype(np.int64), 0, 11)
    assert metrics.probe(places, 12, packed, pairs, rows, episode, test)["position_r2"] > 0.9
    blind = replace(packed, actions=None, state=None)
    assert metrics.probe(bins, 12, blind, pairs, rows, episode, test) == {}
    two = replace(packed, source=np.arange(packed.episodes) % 2)
    origin = two.source[pairs.episode[rows]]
    assert "dataset_r2" not in told, "one dataset"
    for codes, apart in ((bins, False), (bins + 12 * origin[:, None], True)):
        found = metrics.probe(codes, 24, two, pairs, rows, episode, test)
        assert (found["dataset_r2"] > 0.9) == (found["dataset_mlp_r2"] > 0.9) == apart
        assert found["action_r2"] == pytest.approx(told["action_r2"], abs=0.1)
    assert metrics.probe(bins[:7], 12, packed, pairs, rows[:7], episode[:7], test[:7]) == {}, (
        "one short episode stops no training"
    )


def test_features_that_tell_the_episode_alone_tell_nothing() -> None:
    """Split by rows, they would tell all: rows of one episode share their target."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(60), 30)
    target = rng.normal(size=(60, 2))[episode]
    known = np.eye(60)[episode]
    assert metrics.linear_r2(known, target, episode) < 0.05
    assert metrics.mlp_r2(known, target, episode) < 0.05
    by_rows = rng.permutation(len(episode))  # what the probes once did
    assert metrics.linear_r2(known, target, by_rows) > 0.99


def test_each_fifth_episode_judges() -> None:
    episode = np.array([7, 7, 2, 9, 30, 31, 32, 32])
    found = metrics.of_each_fifth(episode).tolist()  # 2, of 2, 7, 9, 30, 31; 32 begins the next five
    assert found == [False, False, True, False, False, False, False, False]
    turns = np.flatnonzero(metrics.of_each_fifth(np.arange(500)))
    assert (turns // 5).tolist() == list(range(100))
    assert np.bincount(turns % 5).min() >= 19, "where five tasks come in turn, all are judged"
    assert not metrics.of_each_fifth(np.zeros(9, np.int64)).any(), "one episode cannot be on both sides"


def test_effector_columns() -> None:
    assert metrics.effector_columns(("effector_x", "block0_x", "effector_y")) == [0, 2]
    assert metrics.effector_columns(()) == metrics.effector_columns(("left_elbow", "gripper")) == []
