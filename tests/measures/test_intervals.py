"""Wilson's interval against its formula."""

from __future__ import annotations

import pytest

from lapa.contracts import LapaError
from lapa.measures.intervals import wilson


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
