"""Wilson's interval against its formula; intervals where nothing varies."""

from __future__ import annotations

import numpy as np
import pytest

from lapa.contracts import LapaError
from lapa.measures.intervals import difference, gap_closed, share_by_episode, wilson


def test_wilson_known_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    n, p, z = 400, 0.57, 1.96  # the roots of (share - p)^2 = z^2 p (1 - p) / n
    for bound in wilson(round(n * p), n):
        assert (p - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-12)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, episodes: int) -> None:
    with pytest.raises(LapaError, match=str(episodes)):
        wilson(successes, episodes)


def test_a_few_episodes_that_all_end_alike_are_not_certainty() -> None:
    every, none = np.ones((1, 3), bool), np.zeros((1, 3), bool)
    open_ = wilson(0, 3)[1]
    assert difference(every, none) == pytest.approx((1 - open_, 1))
    assert difference(none, every) == pytest.approx((-1, open_ - 1))
    assert gap_closed(none, every, every) == pytest.approx((1 - open_, 1 + open_))
    assert gap_closed(none, none, every) == pytest.approx((-open_, open_))
    hits, episode = np.ones(10, bool), np.arange(10) // 5
    assert share_by_episode(hits, episode)["interval"] == pytest.approx(list(wilson(2, 2)))
    assert share_by_episode(~hits, episode)["interval"] == pytest.approx(list(wilson(0, 2)))
