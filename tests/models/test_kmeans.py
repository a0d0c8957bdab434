"""Codebooks by k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lapa.contracts import Array, LapaError
from lapa.measures.probes import perplexity
from lapa.models.kmeans import KMeans


def _fitted(x: Array, **how: int) -> KMeans:
    quantizer = KMeans(x.shape[1], **how)  # type: ignore[arg-type]
    quantizer.fit(x, 0)
    return quantizer


def _codes(quantizer: KMeans, x: Array) -> Array:
    return quantizer(torch.from_numpy(x.astype(np.float32))[:, None]).codes.numpy()


def test_groups_that_lie_apart_have_codes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(6, size=600)
    x = 10 * np.eye(6)[group] + rng.normal(size=(600, 6))
    quantizer = _fitted(x, size=6, positions=1)
    codes = _codes(quantizer, x)[:, 0]
    assert len({(a, b) for a, b in zip(group, codes, strict=True)}) == 6
    found = quantizer.codebooks[0].numpy()[codes]
    means = np.stack([x[group == g].mean(0) for g in range(6)])[group]
    assert np.allclose(found, means, atol=1e-3)


def test_the_second_codebook_takes_what_the_first_leaves() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 4))

    def error(positions: int) -> float:
        quantizer = _fitted(x, size=8, positions=positions)
        answer = quantizer(torch.from_numpy(x.astype(np.float32))[:, None])
        return float(np.square(answer.embedding.numpy()[:, 0] - x).mean())

    assert error(2) < 0.7 * error(1)


def test_root_length_gives_small_motions_codes_too() -> None:
    """Most pairs move little, few far: lengths of six orders. Perplexity is of other pairs than were fitted."""
    rng = np.random.default_rng(0)

    def drawn(count: int) -> Array:
        return rng.normal(size=(count, 6)) * np.exp(rng.normal(scale=1.5, size=(count, 1)))

    x, other = drawn(2000), drawn(1000)
    plain, root = (_fitted(x, size=16, positions=1, root_length=how) for how in (False, True))
    assert perplexity(_codes(root, other), 16)[0] > 1.3 * perplexity(_codes(plain, other), 16)[0]


def test_a_pair_in_which_nothing_moves_has_a_code() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    x[:50] = 0
    quantizer = _fitted(x, size=8, positions=2, root_length=True)
    assert torch.isfinite(quantizer.codebooks).all()
    assert len(np.unique(_codes(quantizer, x[:50]), axis=0)) == 1


def test_equal_pairs_and_too_few() -> None:
    same = np.ones((20, 3))
    quantizer = _fitted(same, size=4, positions=1)
    assert np.allclose(quantizer.lookup(torch.from_numpy(_codes(quantizer, same))), 1)
    with pytest.raises(LapaError, match="codebook_size=5"):
        KMeans(3, size=30, positions=1).fit(same, 0)
