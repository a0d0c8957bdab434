"""All intervals of the package, at 95%.

    wilson      a share of independent episodes
    success, difference, gap_closed    of a table: bootstrap over training seeds and, within each, over test episodes
    mean        of one number for each independent episode, such as partial credit: bootstrap over the episodes
    by_episode, share_by_episode    of rows, many to an episode: bootstrap over the episodes

All methods meet the same episodes, so outcomes are resampled together: an episode that is hard for one method is often
hard for the other, and a difference is known better than its two parts. There are two levels, because two things vary:
a method that is trained again gives another policy, and a policy meets other scenes. One seed shows only the second.

Three seeds drawn from three lie closer together than three new ones would, and an interval from them alone would hold
the truth in three cases of four, not in 95% (benchmarks/interval_coverage.py). So what seeds differ by, beyond what
their episodes explain, is widened by Student's factor for that many seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from lapa.contracts import Array, LapaError

DRAWS = 4000
EPISODE_DRAWS = 1000  # for statistics of rows, which take longer
LEVEL = 0.975  # each side of a 95% interval
Interval = tuple[float, float]


def wilson(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share (95% for z = 1.96): low and high, in [0, 1].

    Raises LapaError unless 0 <= successes <= episodes and there is an episode.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise LapaError(f"Success is counted over at least one episode; got {successes} of {episodes}.")
    share, spread = successes / episodes, z * z / episodes
    centre = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return max(low, 0.0), min(high, 1.0)


def mean(values: Array, least: float = 0.0, most: float = 1.0) -> Interval:
    """95% interval of the mean of float [N], each from `least` to `most`.

    Where all are equal there is nothing to resample: what Wilson's interval of none in N leaves open, either way.
    """
    if not len(values):
        raise LapaError("There is no episode to take a mean of.")
    if (values == values[0]).all():
        wide = wilson(0, len(values))[1]
        low, high = float(values[0]) - wide, float(values[0]) + wide
    else:
        draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
        low, high = _middle(values[draws].mean(1))
    return max(low, least), min(high, most)


def resampled(wins: Array, contrasts: Array, draws: int = DRAWS) -> Array:
    """Sums of the success of M methods in resampled worlds.

    wins bool [M, S seeds, E episodes], contrasts float [C, M] (a row of 1 and -1 is a difference) -> float [draws, C].
    A draw takes S seeds with replacement, and for each of them E episodes with replacement; the same for all methods.
    The same input gives the same draws.
    """
    methods, seeds, episodes = wins.shape
    # An episode's outcomes of all methods together are one of 2^M patterns: counting those is all there is to drawing.
    patterns = np.tensordot(2 ** np.arange(methods), wins, 1)  # [S, E]
    shares = np.stack([np.bincount(row, minlength=2**methods) / episodes for row in patterns])
    values = ((np.arange(2**methods)[:, None] >> np.arange(methods)) & 1) @ contrasts.T  # [2^M, C]
    rng = np.random.default_rng(0)
    taken = rng.integers(seeds, size=(draws, seeds))
    counts = rng.multinomial(episodes, shares[taken]).sum(1)  # [draws, 2^M]
    of_seeds = shares @ values  # [S, C]
    by_seeds = of_seeds[taken].mean(1) - of_seeds.mean(0)  # what the draw of seeds alone did
    noise = (shares @ values**2 - of_seeds**2).mean(0) / episodes
    return counts @ values / (seeds * episodes) + (_widening(of_seeds, noise) - 1) * by_seeds


def _widening(of_seeds: Array, noise: Array) -> Array:
    """How many times farther apart the means of new seeds may lie than those of seeds drawn from these, float [C].

    of_seeds float [S, C]; noise float [C]: the variance that a seed's episodes explain. 0: they explain it all.
    """
    seeds = len(of_seeds)
    if seeds == 1:
        return np.zeros(len(noise))
    found = of_seeds.var(0, ddof=1)
    own = np.sqrt(np.clip(1 - noise / np.maximum(found, 1e-12), 0, None))
    return own * stdtrit(seeds - 1, LEVEL) / ndtri(LEVEL) * np.sqrt(seeds / (seeds - 1))


def success(wins: Array) -> Interval:
    """95% interval of the success of bool [S, E]; Wilson's where all episodes end alike: nothing to resample."""
    if wins.all() or not wins.any():
        return wilson(int(wins.sum()), wins.size)
    low, high = _middle(resampled(wins[None], np.eye(1))[:, 0])
    return max(low, 0.0), min(high, 1.0)


def difference(one: Array, other: Array) -> Interval:
    """95% interval of the success of `one` less that of `other`, bool [S, E] on the same episodes.

    Where they differ in every episode alike, or in none, there is nothing to resample: Wilson's interval of none,
    either way.
    """
    apart = one.astype(int) - other
    if (apart == apart.flat[0]).all():
        most, found = wilson(0, one.size)[1], float(apart.flat[0])
        return max(found - most, -1.0), min(found + most, 1.0)
    low, high = _middle(resampled(np.stack([one, other]), np.array([[1.0, -1.0]]))[:, 0])
    return max(low, -1.0), min(high, 1.0)


def gap_closed(low: Array, method: Array, high: Array) -> Interval | None:
    """95% interval of the share of the gap from `low` to `high` that `method` closes, bool [S, E] on the same episodes.

    None where the gap may well be none at all: more than one draw in forty has no gap. Where all draws are alike there
    is nothing to resample: Wilson's interval of none, either way.
    """
    closed, gap = resampled(np.stack([low, method, high]), np.array([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])).T
    if (gap <= 0).mean() > 0.025:
        return None
    shares = closed[gap > 0] / gap[gap > 0]
    if np.ptp(shares) < 1e-9:
        most, found = wilson(0, low.size)[1], float(shares[0])
        return found - most, found + most
    return _middle(shares)


def _middle(values: Array) -> Interval:
    low, high = np.quantile(values, (1 - LEVEL, LEVEL))
    return float(low), float(high)


def by_episode(
    episode: Array, statistic: Callable[[Array], float], seed: int = 0, draws: int = EPISODE_DRAWS
) -> list[float]:
    """95% of what `statistic` gives when episodes are drawn anew: [low, high].

    episode int64 [N]; the statistic takes the weight of each row, float [N]: how often its episode was drawn.
    """
    kinds, row = np.unique(episode, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)))[row]) for _ in range(draws)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [float(low), float(high)]


def share_by_episode(hits: Array, episode: Array, seed: int = 0) -> dict[str, Any]:
    """{"share", "interval", "of"} of a mask bool [N]; the interval is over episodes, Wilson's where all rows are alike:
    nothing to resample."""
    if not len(hits):
        raise LapaError("There is nothing to take a share of: no pair moves far enough.")
    if hits.all() or not hits.any():
        kinds = len(np.unique(episode))
        return {"share": float(hits[0]), "interval": list(wilson(kinds * int(hits[0]), kinds)), "of": len(hits)}
    low, high = by_episode(episode, lambda weight: float((hits * weight).sum() / max(weight.sum(), 1)), seed)
    return {"share": float(hits.mean()), "interval": [low, high], "of": len(hits)}
