"""A switch that is seldom thrown, such as a gripper, read from features of frames: ridge regression tells how likely
each frame is on, and of all ways through an episode the likeliest is taken (a hidden Markov model, Viterbi)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapa.contracts import Array
from lapa.measures.linear import LinearFit

ON = 0.5  # what is read of a frame lies around 0 where the switch is off, and around 1 where it is on
LEAST = 1e-3  # variance of the error of that


@dataclass(frozen=True)
class Switch:
    """off, on: its two values; reading: of features, see ON; variance: of its error; cost: of a change between two
    frames, as a logarithm of odds."""

    off: float
    on: float
    reading: LinearFit
    variance: float
    cost: float

    @staticmethod
    def fit(features: Array, values: Array, episode: Array) -> Switch:
        """features float [N, F] and what the switch was float [N], frame after frame of episodes int [N]. A value is on
        above the middle of all. The error of the reading is that of one half of the episodes in the other."""
        on, same = values > (values.min() + values.max()) / 2, np.diff(episode) == 0
        target = on[:, None].astype(np.float64)
        changes = (np.count_nonzero((on[1:] != on[:-1]) & same) + 1) / (np.count_nonzero(same) + 2)
        half = np.unique(episode, return_inverse=True)[1] % 2 == 1
        wrong = [
            target[test] - LinearFit.fit(features[~test], target[~test], episode[~test])(features[test])
            for test in (half, ~half)
            if test.any() and np.count_nonzero(~test) >= 4
        ]
        variance = np.square(np.concatenate(wrong)).mean() if wrong else ON**2
        return Switch(
            float(np.median(values[~on])), float(np.median(values[on])) if on.any() else float(values.max()),
            LinearFit.fit(features, target, episode), max(float(variance), LEAST),
            max(float(np.log((1 - changes) / changes)), 0.0),
        )  # fmt: skip

    def __call__(self, features: Array, episode: Array) -> Array:
        """Features float [N, F], frame after frame of episodes int [N] -> what the switch is, float [N]."""
        odds = (self.reading(features)[:, 0] - ON) / self.variance
        each = np.split(np.arange(len(odds)), np.flatnonzero(np.diff(episode)) + 1)
        on = np.concatenate([_likeliest(odds[frames], self.cost) for frames in each])
        return np.where(on, self.on, self.off)


def _likeliest(odds: Array, cost: float) -> Array:
    """Logarithms of the odds that the switch is on [T] -> bool [T], the likeliest way through them."""
    ahead, before = np.array([0.0, odds[0]]), np.zeros((len(odds), 2), np.int64)
    for t in range(1, len(odds)):
        changed = ahead[::-1] - cost > ahead
        before[t] = np.where(changed, [1, 0], [0, 1])
        ahead = np.where(changed, ahead[::-1] - cost, ahead) + np.array([0.0, odds[t]])
    way = np.empty(len(odds), np.int64)
    way[-1] = ahead[1] > ahead[0]
    for t in range(len(odds) - 1, 0, -1):
        way[t - 1] = before[t, way[t]]
    return way == 1
