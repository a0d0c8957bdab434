"""Actions of robots that differ in units or speed: to one scale and back, each robot by its own statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lapa.actions.tables import Rows, as_rows
from lapa.actions.tables import checked as checked_actions
from lapa.artefacts.settings import checked
from lapa.contracts import Array, LapaError


@dataclass(frozen=True)
class Scales:
    """One range of actions per dataset: its 1st and 99th percentile in each dimension, which become -1 and 1 (as
    OpenVLA and Octo do). low, high [D][A], in the units of each of the D datasets; names [D], of their robots."""

    low: Rows
    high: Rows
    names: tuple[str, ...] = ()

    @staticmethod
    def of(actions: Array, source: Array, names: tuple[str, ...] = ()) -> Scales:
        """From float [N, A] actions of the datasets int64 [N], which count from 0 and each have some. Raises LapaError
        on non-finite or too few actions."""
        ranges = [
            np.quantile(checked_actions(actions[source == i]), (0.01, 0.99), axis=0) for i in range(source.max() + 1)
        ]
        low, high = (as_rows(np.stack(some)) for some in zip(*ranges, strict=True))
        return Scales(low, high, names or tuple(map(str, range(len(ranges)))))

    @property
    def datasets(self) -> int:
        """D."""
        return len(self.low)

    def normalise(self, actions: Array, source: Array) -> Array:
        """float [N, ..., A] in the units of the datasets int64 [N] -> float32, the same shape, mostly in -1 to 1."""
        middle, half = self._ranges(source, actions.ndim)
        return ((actions - middle) / half).astype(np.float32)

    def restore(self, actions: Array, source: Array) -> Array:
        """The inverse of `normalise`."""
        middle, half = self._ranges(source, actions.ndim)
        return (actions * half + middle).astype(np.float32)

    def _ranges(self, source: Array, axes: int) -> tuple[Array, Array]:
        """Middle and half width, float64 [N, 1, .., A]; a dimension that does not vary keeps its size."""
        low, high = np.array(self.low)[source], np.array(self.high)[source]
        shape = (len(source), *(1,) * (axes - 2), low.shape[-1])
        half = np.where(high > low, (high - low) / 2, 1.0)
        return ((low + high) / 2).reshape(shape), half.reshape(shape)


def scales_from_json(content: Any) -> Scales | None:
    """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else, naming what is wrong."""
    try:
        return None if content is None else _scales(content)
    except LapaError as error:
        raise LapaError(f"The policy's scales in config.json are not ones lapa wrote ({error}).") from None


def _scales(content: Any) -> Scales:
    made = checked(Scales, content, "scales", defaults=True)
    widths = {len(row) for row in (*made.low, *made.high)}
    if len(widths) != 1 or not len(made.low) == len(made.high) or len(made.names) not in (0, len(made.low)):
        raise LapaError("low, high and names do not have as many robots and dimensions as each other")
    return replace(made, names=made.names or tuple(map(str, range(len(made.low)))))
