"""Robot actions <-> classes: equal-mass bins, each transform beside its inverse.

The edges are quantiles of the finetuning data (paper section 4.1, after RT-2 and OpenVLA), saved with the policy, so
the robot gets its own units back from the same numbers that made the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lapa.contracts import Array, LapaError


@dataclass(frozen=True)
class CodeSpace:
    """What a latent policy predicts: `codes` positions, each one of `classes` codes."""

    codes: int
    classes: int
    kind: str = "codes"

    @property
    def positions(self) -> int:
        """How many classes are predicted at once."""
        return self.codes


@dataclass(frozen=True)
class ActionSpace:
    """What a robot policy predicts: `chunk` actions of A dimensions, each dimension in bins.

    edges: for each dimension the increasing bin edges in the robot's units (number of bins + 1 of them; duplicates of
    the quantiles dropped, so a binary gripper gets two bins).
    """

    edges: tuple[tuple[float, ...], ...]
    names: tuple[str, ...] = ()
    chunk: int = 1
    kind: str = "actions"

    @staticmethod
    def fit(actions: Array, bins: int, chunk: int = 1, names: tuple[str, ...] = ()) -> ActionSpace:
        """Quantile edges of float [N, A] actions. Raises LapaError on non-finite or too few actions."""
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 2 or len(actions) < 2:
            raise LapaError(f"Action bins need at least two actions [N, A]; got shape {actions.shape}.")
        if not np.isfinite(actions).all():
            row, dimension = np.argwhere(~np.isfinite(actions))[0]
            raise LapaError(
                f"Action bins need finite actions; row {row}, dimension {dimension} is {actions[row, dimension]}."
            )
        edges = []
        for column in actions.T:
            values = np.unique(column)
            if len(values) <= 2:  # binary (a gripper) or constant: one bin around each value
                middle = [float(values.mean())] if len(values) == 2 else []
                width = float(values[-1] - values[0]) / 2 or 1e-3
                found = [float(values[0]) - width, *middle, float(values[-1]) + width]
            else:
                found = [float(e) for e in np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)))]
            edges.append(tuple(found))
        return ActionSpace(tuple(edges), names, chunk)

    @property
    def dimensions(self) -> int:
        """A."""
        return len(self.edges)

    @property
    def positions(self) -> int:
        """chunk * A."""
        return self.chunk * self.dimensions

    @property
    def classes(self) -> int:
        """The largest number of bins of any dimension."""
        return max(len(e) for e in self.edges) - 1

    def centres(self) -> Array:
        """Middle of each bin's edges, float64 [A, classes]; NaN where a dimension has fewer bins."""
        table = np.full((self.dimensions, self.classes), np.nan)
        for row, edges in zip(table, self.edges, strict=True):
            row[: len(edges) - 1] = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
        return table

    def encode(self, actions: Array) -> Array:
        """float [..., A] -> int64 [..., A]; values outside the edges go to the outermost bins."""
        columns = [
            np.clip(np.searchsorted(edges, actions[..., i], side="right") - 1, 0, len(edges) - 2)
            for i, edges in enumerate(self.edges)
        ]
        return np.stack(columns, -1).astype(np.int64)

    def decode(self, classes: Array) -> Array:
        """int64 [..., A] -> float32 [..., A], the bins' centres."""
        return self.centres()[np.arange(self.dimensions), classes].astype(np.float32)

    def expect(self, probabilities: Array) -> Array:
        """float [..., A, classes] -> float32 [..., A], the expected centre: smoother than the likeliest bin."""
        return (probabilities * np.nan_to_num(self.centres())).sum(-1).astype(np.float32)

    def expect_full_length(self, probabilities: Array) -> Array:
        """float [..., A, classes] -> float32 [..., A]: the direction of `expect`, and the length that an action is
        expected to have (root mean square, every dimension measured by its own bins), within the outermost centres.

        Where a policy wavers, the mean of the ways that it wavers between is shorter than each of them, and a robot
        that follows it comes to a halt before the obstacle.
        """
        centres = self.centres()
        unit = np.maximum(np.sqrt(np.nanmean(centres**2, axis=1)), np.finfo(np.float32).tiny)
        mean = (probabilities * np.nan_to_num(centres)).sum(-1)
        wanted = (probabilities * np.nan_to_num(centres / unit[:, None]) ** 2).sum((-1, -2))
        found = ((mean / unit) ** 2).sum(-1)
        longer = mean * np.sqrt(wanted / np.maximum(found, np.finfo(np.float32).tiny))[..., None]
        return np.clip(longer, np.nanmin(centres, 1), np.nanmax(centres, 1)).astype(np.float32)


Space = CodeSpace | ActionSpace


def space_from_json(content: dict[str, Any]) -> Space:
    """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else."""
    try:
        kind, fields = content["kind"], {k: v for k, v in content.items() if k != "kind"}
        if kind == "codes":
            return CodeSpace(**fields)
        edges = tuple(tuple(float(x) for x in e) for e in fields.pop("edges"))
        return ActionSpace(edges, tuple(fields.pop("names")), **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise LapaError(f"The policy's space in config.json is not one lapa wrote ({error}).") from None
