"""What comes after a frame: the next K frames, read off the video when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapa.contracts import Array
from lapa.data.pack import Packed


@dataclass(frozen=True)
class Futures:
    """Row i is the frames index[i] of `packed`, int64 [N, K]."""

    packed: Packed
    index: Array

    def __getitem__(self, rows: Array) -> Array:
        """int64 [B] -> uint8 [B, K, size, size, 3]."""
        index = self.index[rows]
        frames = self.packed.gather(index.reshape(-1))
        return frames.reshape(*index.shape, *frames.shape[1:])


def futures(packed: Packed, frames: Array, after: Array, count: int) -> Futures:
    """The `count` frames after each of `frames`, where after[i] follows frames[i], int64 [N] over the whole pack.

    A frame that nothing follows, the last of its episode, is followed by itself.
    """
    following = np.arange(len(packed))
    following[frames] = after
    index = [following[frames]]
    for _ in range(count - 1):
        index.append(following[index[-1]])
    return Futures(packed, np.stack(index, 1))
