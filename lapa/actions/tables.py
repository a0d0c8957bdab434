"""What all action classes share: checks, sizes of dimensions, and the right length of actions."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lapa.actions.spec import two_levels
from lapa.contracts import Array, LapaError

STILL = 1e-6  # of the largest size: a dimension that is smaller is rounding, and counts for little beside the others
COMMON = 0.05  # share of the values above which a level is not an outlier
Decoding = Literal["expectation", "norm_preserving", "centre"]


Rows = tuple[tuple[float, ...], ...]


def norm_preserving(mean: Array, squared: Array, unit: Array) -> Array:
    """The direction of the mean [..., A] at the length that an action is expected to have, the root of `squared` [...],
    every dimension measured by its unit [A]. A dimension with an infinite unit does not count and stays as it is.

    Where a policy is undecided between several ways, their mean is shorter than each of them, and a robot that
    follows the mean stops in front of the obstacle.
    """
    tiny = np.finfo(np.float32).tiny
    found = ((mean / unit) ** 2).sum(-1)
    longer = mean * np.sqrt(np.maximum(squared, 0.0) / np.maximum(found, tiny))[..., None]
    return np.where(np.isinf(unit), mean, longer)


def two_valued(actions: Array) -> Array:
    """[N, chunk, A] -> bool [A]: which have two values; or two levels that are both common, a few values in between
    aside, as of a gripper that was seen on its way (actions/spec.py)."""
    return np.array([_two_valued(column) for column in actions.reshape(-1, actions.shape[-1]).T])


def _two_valued(column: Array) -> bool:
    if len(np.unique(column)) == 2:
        return True
    above = float((column > (column.min() + column.max()) / 2).mean())
    return two_levels(column) and COMMON < above < 1 - COMMON


def squared_lengths(actions: Array, unit: Array, switches: Array) -> Array:
    """[N, chunk, A] -> squared lengths [N, chunk] in units, but for the switches."""
    squares: Array = ((actions / np.where(switches, np.inf, unit)) ** 2).sum(-1)
    return squares


def typical_sizes(values: Array) -> Array:
    """[A, N] -> float64 [A], the root mean square of what is there; at least STILL of the largest, never quite 0."""
    lengths: Array = np.sqrt(np.nanmean(values**2, axis=1))
    return np.maximum(lengths, max(STILL * float(lengths.max()), float(np.finfo(np.float32).tiny)))


def as_rows(table: Array) -> Rows:
    return tuple(tuple(row) for row in table.tolist())


def checked(actions: Array) -> Array:
    """Finite float64 [N, A], at least two."""
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or len(actions) < 2:
        raise LapaError(f"Action classes need at least two actions [N, A]; got shape {actions.shape}.")
    if not np.isfinite(actions).all():
        row, dimension = np.argwhere(~np.isfinite(actions))[0]
        raise LapaError(
            f"Action classes need finite actions; row {row}, dimension {dimension} is {actions[row, dimension]}."
        )
    return actions


def as_chunks(actions: Array) -> Array:
    """[N, A] or [N, chunk, A] -> finite float64 [N, chunk, A]."""
    actions = np.asarray(actions, dtype=np.float64)
    actions = actions[:, None] if actions.ndim == 2 else actions
    checked(actions.reshape(len(actions), -1))
    return actions
