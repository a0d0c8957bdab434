"""Robot actions as numbers, not as classes: what a head that regresses a chunk of actions learns, and the way back.

Each dimension is scaled by its own range in the data, so that all count alike. So is each step of a chunk where some
steps go farther than others, as of actions relative to the present state: the farther ahead, the farther away. A
dimension with two values, such as a gripper's, is -1 or 1, and the robot gets the value that is nearer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lapa.actions.tables import Decoding, Rows, as_chunks, as_rows, two_valued
from lapa.contracts import Array

ALIKE = 0.1  # steps that spread no more than so much more or less than all together are scaled alike
LEAST = 0.05  # of the spread of all steps


@dataclass(frozen=True)
class NumberSpace:
    """What a robot policy predicts: `chunk` actions of A numbers each.

    low, high  [A]: the values that become -1 and 1, the 1st and the 99th percentile of the data
    reach      [A][2]: the smallest and the largest value in the data, which no action exceeds
    switches   [A]: whether a dimension has two values in the data, such as a gripper's: nothing lies between them
    steps      [chunk]: how widely the actions of each step spread, over those of all steps; (): alike
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    reach: Rows
    names: tuple[str, ...] = ()
    chunk: int = 1
    switches: tuple[bool, ...] = ()
    steps: tuple[float, ...] = ()
    kind: str = "numbers"

    @staticmethod
    def fit(actions: Array, names: tuple[str, ...] = (), pad: Array | None = None) -> NumberSpace:
        """From float [N, A] or chunks [N, chunk, A] in the robot's units. pad bool [N, chunk]: actions that there are
        not, past the end of an episode. Raises LapaError on non-finite or too few actions."""
        actions = as_chunks(actions)
        each = actions[~pad] if pad is not None else actions.reshape(-1, actions.shape[-1])
        ends = np.stack([each.min(0), each.max(0)])
        switches = two_valued(each[:, None])
        low, high = np.quantile(each, (0.01, 0.99), axis=0)
        rare = switches | (high <= low)  # what hardly ever moves is measured by how far it goes at all
        low, high = np.where(rare, ends[0], low), np.where(rare, ends[1], high)
        steps = _spreads(actions[..., ~switches], np.zeros(actions.shape[:2], bool) if pad is None else pad)
        return NumberSpace(tuple(low.tolist()), tuple(high.tolist()), as_rows(ends.T), names, actions.shape[1],
                           tuple(switches.tolist()), steps)  # fmt: skip

    def with_ranges(self, which: Array, of: NumberSpace) -> NumberSpace:
        """The same with the ranges of another space in the dimensions bool [A]."""
        low, high, reach, switches = (
            tuple(theirs if new else own for own, theirs, new in zip(*both, which, strict=True))
            for both in ((self.low, of.low), (self.high, of.high), (self.reach, of.reach),
                         (self._switches.tolist(), of._switches.tolist()))
        )  # fmt: skip
        return replace(self, low=low, high=high, reach=reach, switches=switches)

    @property
    def width(self) -> Array:
        """From low to high, float64 [A]."""
        return np.array(self.high) - np.array(self.low)

    @property
    def dimensions(self) -> int:
        """A."""
        return len(self.low)

    @property
    def _middle_half(self) -> tuple[Array, Array]:
        """Middle [A] and half width [chunk, A] of each range, float64; what does not vary keeps its size."""
        low, high = np.array(self.low), np.array(self.high)
        half = np.where(high > low, (high - low) / 2, 1.0)
        wide = np.array(self.steps or [1.0] * self.chunk)[:, None]
        return (low + high) / 2, np.where(self._switches, half, half * wide)

    @property
    def _switches(self) -> Array:
        return np.array(self.switches or [False] * self.dimensions)

    def targets(self, actions: Array, pad: Array) -> Array:
        """Chunks float [N, chunk, A] in the robot's units, pad bool [N, chunk] -> float32 [N, chunk, A], scaled; NaN
        where there is no action."""
        middle, half = self._middle_half
        return np.where(pad[..., None], np.nan, (actions - middle) / half).astype(np.float32)

    def decide(self, said: Array, decoding: Decoding) -> Array:
        """Scaled numbers float [B, chunk, A] -> float32 [B, chunk, A] in the robot's units, within `reach`. There are
        no classes, so every `decoding` means the same."""
        middle, half = self._middle_half
        low, high = np.array(self.reach).T
        actions = said.astype(np.float64) * half + middle
        nearer = np.where(actions > (low + high) / 2, high, low)
        return np.where(self._switches, nearer, np.clip(actions, low, high)).astype(np.float32)


def _spreads(actions: Array, pad: Array) -> tuple[float, ...]:
    """NumberSpace.steps of chunks float [N, chunk, A], pad bool [N, chunk]: the mean of the dimensions."""
    deviation = actions[~pad].std(0)
    moves = deviation > 0
    if not moves.any():
        return ()
    each = [actions[~off, k].std(0) if (~off).any() else deviation for k, off in enumerate(pad.T)]
    found = np.array([np.maximum((one[moves] / deviation[moves]).mean(), LEAST) for one in each])
    return tuple(found.tolist()) if (np.abs(found - 1) > ALIKE).any() else ()
