"""Ridge regression: what the probes read features with. The penalty is fixed, or chosen on episodes left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapa.contracts import Array, LapaError

RIDGE = 1e-4  # of the mean variance of the features: enough for the collinear columns of one-hot codes
PENALTIES = np.logspace(-4, 3, 15)  # in the same unit; one of them is chosen for each target


@dataclass(frozen=True)
class LinearFit:
    """A linear function of features: (features - centre) @ weights + mean."""

    weights: Array
    centre: Array
    mean: Array

    @staticmethod
    def fit(features: Array, targets: Array, episode: Array | None = None) -> LinearFit:
        """float [N, F], [N, D]. With `episode` int64 [N] each target's penalty is that which predicts it best in
        episodes that are left out of the fit, one at a time; else it is RIDGE. Raises LapaError for fewer than four
        rows or two lengths."""
        x, y = rows_of(features, targets)
        centre, mean = x.mean(0), y.mean(0)
        x, y = x - centre, y - mean
        unit = np.square(x).sum() / x.shape[1] + 1e-12
        if episode is None or len(np.unique(episode)) < 2:
            return LinearFit(_ridge(x, y, RIDGE * unit), centre, mean)
        return LinearFit(_chosen(x, y, np.asarray(episode), unit), centre, mean)

    def __call__(self, features: Array) -> Array:
        """float [M, F] -> float64 [M, D]."""
        told: Array = (features - self.centre) @ self.weights + self.mean
        return told


def rows_of(features: Array, targets: Array) -> tuple[Array, Array]:
    """Both as float64. Raises LapaError for fewer than four rows or two lengths."""
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if len(x) != len(y) or len(x) < 4:
        raise LapaError(f"A probe needs at least 4 rows of features and as many targets; got {len(x)} and {len(y)}.")
    return x, y


def _ridge(x: Array, y: Array, penalty: float) -> Array:
    """Weights [F, D] of centred features [M, F] and targets [M, D], through the smaller of the two Gram matrices."""
    if x.shape[1] <= len(x):
        return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)


def _chosen(x: Array, y: Array, episode: Array, unit: float) -> Array:
    """Weights [F, D] with the penalty of each target that has the least error in episodes left out one at a time.

    In closed form: leaving rows g out of a ridge regression with hat matrix H makes the error (I - H_gg)^-1 r_g of the
    residuals r_g. The mean, which is not penalised, is part of H.
    """
    primal = x.shape[1] <= len(x)
    values, vectors = np.linalg.eigh(x.T @ x if primal else x @ x.T)
    values = np.maximum(values, 0)
    z = x @ vectors if primal else vectors * np.sqrt(values)  # x, turned onto the axes of its spread
    zy = z.T @ y
    groups = [np.flatnonzero(episode == e) for e in np.unique(episode)]
    errors = np.zeros((len(PENALTIES), y.shape[1]))
    for i, share in enumerate(PENALTIES):
        shrunk = 1 / (values + share * unit)
        left = y - z @ (shrunk[:, None] * zy)
        for rows in groups:
            own = (z[rows] * shrunk) @ z[rows].T + 1 / len(x)
            # An episode that alone fixes some direction makes the matrix singular; a hair keeps it solvable.
            out = np.linalg.solve((1 + 1e-9) * np.eye(len(rows)) - own, left[rows])
            errors[i] += np.square(out).sum(0)
    best = PENALTIES[errors.argmin(0)] * unit  # [D]
    turned = zy / (values[:, None] + best)  # [R, D]
    if primal:
        return vectors @ turned
    return x.T @ (vectors @ (turned / np.maximum(np.sqrt(values), 1e-12)[:, None]))
