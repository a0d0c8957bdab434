"""How sure is a figure of the table? Bootstrap over training seeds and, within each, over test episodes.

All methods meet the same episodes, so outcomes are resampled together: whatever made an episode hard for one method
made it hard for the other, and a difference is known better than either of its parts. Two levels, because two things
vary: a method trained again gives another policy, and a policy meets other scenes. With one seed only the second shows.
"""

from __future__ import annotations

import numpy as np

from lapa.contracts import Array
from lapa.training.metrics import wilson

DRAWS = 4000
Interval = tuple[float, float]


def resampled(wins: Array, draws: int = DRAWS) -> Array:
    """Success of M methods in worlds that might as well have been: bool [M, S seeds, E episodes] -> float [draws, M].

    A draw takes S seeds with replacement, and for each of them E episodes with replacement; the same for all methods.
    The same input gives the same draws.
    """
    methods, seeds, episodes = wins.shape
    # An episode's outcomes of all methods together are one of 2^M patterns: counting those is all there is to drawing.
    patterns = np.tensordot(2 ** np.arange(methods), wins, 1)  # [S, E]
    shares = np.stack([np.bincount(row, minlength=2**methods) / episodes for row in patterns])
    rng = np.random.default_rng(0)
    taken = rng.integers(seeds, size=(draws, seeds))
    counts = rng.multinomial(episodes, shares[taken]).sum(1)  # [draws, 2^M]
    won = (np.arange(2**methods)[:, None] >> np.arange(methods)) & 1  # [2^M, M]
    return counts @ won / (seeds * episodes)


def success(wins: Array) -> Interval:
    """95% interval of the success of bool [S, E]; Wilson's where all episodes end alike: nothing to resample."""
    if wins.all() or not wins.any():
        return wilson(int(wins.sum()), wins.size)
    return _middle(resampled(wins[None])[:, 0])


def difference(one: Array, other: Array) -> Interval:
    """95% interval of the success of `one` less that of `other`, bool [S, E] on the same episodes.

    Where both solve the very same episodes there is nothing to resample: Wilson's interval of none, either way.
    """
    if (one == other).all():
        most = wilson(0, one.size)[1]
        return -most, most
    first, second = resampled(np.stack([one, other])).T
    return _middle(first - second)


def gap_closed(low: Array, method: Array, high: Array) -> Interval | None:
    """95% interval of the share of the gap from `low` to `high` that `method` closes, bool [S, E] on the same episodes.

    None where the gap may well be none at all: more than one draw in forty has no gap.
    """
    drawn = resampled(np.stack([low, method, high]))
    gap = drawn[:, 2] - drawn[:, 0]
    if (gap <= 0).mean() > 0.025:
        return None
    return _middle(((drawn[:, 1] - drawn[:, 0])[gap > 0]) / gap[gap > 0])


def _middle(values: Array) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
