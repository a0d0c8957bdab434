"""Which pairs of frames a step of stage 1 sees: one or several windows long, chained or not, some with true actions."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from lapa.contracts import Array, FramePairs, LapaError
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex, following, summed


@dataclass(frozen=True)
class Pool:
    """Pairs to draw from: `rows` of `pairs` of `packed`."""

    packed: Packed
    pairs: PairIndex
    rows: Array


class Lessons:
    """Batches of video, and beside it every `every`th sample from `labelled`, alone in bringing its true action.

    With `chained`, samples 2i and 2i + 1 follow each other: the second pair starts with the frame that the first
    ends with. Raises LapaError when no pair is followed by another, or the labelled data have no actions.
    """

    def __init__(
        self, video: Pool, size: int, labelled: Pool | None = None, every: int = 4, chained: bool = False
    ) -> None:
        self.video, self.labelled, self.every = video, labelled, every
        self.block = 2 if chained else 1
        if size % self.block:
            raise LapaError(f"Chained pairs come in twos: the batch size must be even, not {size}.")
        self.blocks = size // self.block
        pools = [pool for pool in (video, labelled) if pool]
        self._chains = [self._chain(pool) for pool in pools]
        self._mixtures = [
            Mixture(pool.packed, pool.pairs.episode[chain[0]]) for pool, chain in zip(pools, self._chains, strict=True)
        ]

    @property
    def actions(self) -> Array | None:
        """True actions of all labelled pairs, summed over their windows: float32 [N, A]; None without labels."""
        if self.labelled is None:
            return None
        truth = self.labelled.packed.require_actions("stage 1 with --labelled")
        return summed(truth, self.labelled.pairs.now, self.labelled.pairs.offset)

    def draw(self, rng: np.random.Generator) -> Array:
        """Rows int64 [size] of a batch; labelled ones are counted on from the last pair of video."""
        drawn = self._some(rng, 0, self.blocks)
        if self.labelled:
            places = slice(self.every - 1, None, self.every)
            drawn[places] = self._some(rng, 1, len(drawn[places])) + len(self.video.pairs)
        return drawn.reshape(-1)

    def load(self, rows: Array) -> FramePairs:
        """The pairs, in that order. With labels, `actions` is NaN for the pairs of video, whatever the video has."""
        if self.labelled is None:
            return self.video.pairs.batch(self.video.packed, rows)
        first = len(self.video.pairs)
        known = rows >= first
        seen = self.video.pairs.batch(self.video.packed, rows[~known])
        told = self.labelled.pairs.batch(self.labelled.packed, rows[known] - first)
        assert told.actions is not None
        columns = {f.name: _laid(known, getattr(seen, f.name), getattr(told, f.name)) for f in fields(FramePairs)[:-1]}
        unknown = np.full((len(seen.now), told.actions.shape[1]), np.nan, np.float32)
        return FramePairs(**columns, actions=_laid(known, unknown, told.actions))

    def _chain(self, pool: Pool) -> tuple[Array, ...]:
        """Rows to draw from, and of each the row that follows."""
        if self.block == 1:
            return (pool.rows,)
        after = following(pool.pairs)[pool.rows]
        if not (after >= 0).any():
            raise LapaError(f"{pool.packed.spec}: no episode is two windows long, as chained pairs need.")
        return pool.rows[after >= 0], after[after >= 0]

    def _some(self, rng: np.random.Generator, pool: int, count: int) -> Array:
        chains = self._chains[pool]
        which = self._mixtures[pool].draw(rng, count)
        return np.stack([rows[which] for rows in chains], axis=1)


def _laid(known: Array, others: Array, some: Array) -> Array:
    """Two arrays as one: `some` where `known`, `others` elsewhere."""
    whole = np.empty((len(known), *some.shape[1:]), some.dtype)
    whole[known], whole[~known] = some, others
    return whole
