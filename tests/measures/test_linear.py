"""Ridge regression: the closed form against leaving each episode out and fitting again."""

from __future__ import annotations

import numpy as np
import pytest

from lapa.contracts import LapaError
from lapa.measures import linear
from lapa.measures.linear import PENALTIES, LinearFit


@pytest.mark.parametrize("features", [8, 90], ids=["more rows than features", "more features than rows"])
def test_the_penalty_is_that_of_the_least_error_in_episodes_left_out(features: int) -> None:
    rng = np.random.default_rng(features)
    episode = np.repeat(np.arange(6), 10)
    x = rng.normal(size=(60, features)) + rng.normal(size=(6, features))[episode]
    y = np.stack([x[:, 0] + 3 * rng.normal(size=60), x[:, :4].sum(1) + 0.1 * rng.normal(size=60)], 1)
    centred = x - x.mean(0)
    unit = np.square(centred).sum() / features
    errors = np.zeros((len(PENALTIES), 2))
    for i, share in enumerate(PENALTIES):
        for e in range(6):
            kept, out = episode != e, episode == e
            centre, mean = x[kept].mean(0), y[kept].mean(0)
            gram = (x[kept] - centre).T @ (x[kept] - centre) + share * unit * np.eye(features)
            weights = np.linalg.solve(gram, (x[kept] - centre).T @ (y[kept] - mean))
            errors[i] += np.square((x[out] - centre) @ weights + mean - y[out]).sum(0)
    fitted = LinearFit.fit(x, y, episode)
    for target, best in enumerate(errors.argmin(0)):
        gram = centred.T @ centred + PENALTIES[best] * unit * np.eye(features)
        expected = np.linalg.solve(gram, centred.T @ (y[:, target] - y[:, target].mean()))
        # Two ways to solve one system in float64, whose condition is at most 1 / PENALTIES[0] times a few hundred.
        assert fitted.weights[:, target] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_both_grams_give_the_same_weights() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 30)), rng.normal(size=(30, 2))
    wide = linear._ridge(np.hstack([x, np.zeros((30, 1))]), y, 0.5)
    assert wide[:30] == pytest.approx(linear._ridge(x, y, 0.5), rel=1e-9, abs=1e-12)


def test_too_few_rows() -> None:
    with pytest.raises(LapaError, match="4 rows"):
        LinearFit.fit(np.zeros((3, 1)), np.zeros((3, 1)))
