"""What the classes of a policy mean as actions: ridge regression on a few labelled frames.

Classes whose code embeddings lie near each other mean similar actions, so few labels tell what all of them mean.
"""

from __future__ import annotations

import numpy as np

from lapa.contracts import Array

TOGETHER, ALONE = 3.0, 0.3  # what classes have in common and what sets one apart, before any label, in frames


def regress(said: Array, known: Array, basis: Array) -> Array:
    """What each of C classes contributes: float64 [C, D], such that said [N, C] times it is known [N, D]; ridge
    regression on the columns of the basis [C, K]."""
    features = said @ basis
    found: Array = basis @ np.linalg.solve(features.T @ features + np.eye(basis.shape[1]), features.T @ known)
    return found


def similar_classes(embeddings: Array, positions: int) -> Array:
    """For classes with embeddings [C, k]: the basis [C, 1 + k + C] of functions that are linear in the embedding
    (TOGETHER), plus a small difference for each class (ALONE)."""
    of_position = embeddings.reshape(positions, len(embeddings) // positions, embeddings.shape[1])
    inner = (of_position - of_position.mean(1, keepdims=True)).reshape(embeddings.shape)
    inner = inner / max(np.sqrt((inner**2).sum(1).mean()), np.finfo(np.float32).tiny)
    common = np.concatenate([np.full((len(embeddings), 1), 1 / positions), inner], 1)
    return np.concatenate([np.sqrt(TOGETHER) * common, np.sqrt(ALONE) * np.eye(len(embeddings))], 1)
