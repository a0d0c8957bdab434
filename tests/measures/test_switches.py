"""A switch that is seldom thrown, read from features that are not sure."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lapa.measures.linear import LinearFit
from lapa.measures.switches import Switch, _likeliest


def drawn(seed: int, episodes: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell a switch badly, what it was, and episodes: it goes on once, at another time in each."""
    rng = np.random.default_rng(seed)
    on = np.stack([np.arange(30) >= rng.integers(8, 25) for _ in range(episodes)])
    features = np.hstack([on.reshape(-1, 1) + rng.normal(0, noise, (on.size, 1)), rng.normal(size=(on.size, 3))])
    return features, np.where(on.ravel(), 0.8, -0.2), np.arange(episodes).repeat(30)


def test_it_holds_where_a_single_frame_errs() -> None:
    switch = Switch.fit(*drawn(0, 8, 0.5))
    features, values, episode = drawn(1, 40, 0.5)
    read = switch(features, episode)
    assert set(np.unique(read)) == {-0.2, 0.8}, "its two values, nothing between them"
    single = np.where(switch.reading(features)[:, 0] > 0.5, 0.8, -0.2)
    assert (read == values).mean() > 0.95 > (single == values).mean()
    changes = [np.count_nonzero(np.diff(read[episode == e])) for e in range(40)]
    assert np.mean(changes) < 1.5


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_likeliest_of_all_ways(seed: int) -> None:
    odds, cost = np.random.default_rng(seed).normal(0, 2, 9), 1.5
    ways = [np.array(way) for way in product((0, 1), repeat=9)]
    likely = [way @ odds - cost * np.count_nonzero(np.diff(way)) for way in ways]
    np.testing.assert_array_equal(_likeliest(odds, cost), ways[int(np.argmax(likely))] == 1)


def test_a_switch_that_was_never_thrown_stays_off() -> None:
    features, _, episode = drawn(0, 4, 0.5)
    assert set(Switch.fit(features, np.full(len(features), 0.3), episode)(features, episode)) == {0.3}


def test_one_episode_is_enough() -> None:
    features, values, episode = drawn(0, 1, 0.05)
    switch = Switch.fit(features, values, episode)
    assert isinstance(switch.reading, LinearFit)
    np.testing.assert_array_equal(switch(features, episode), values)
