"""Pictures as the released LAPA code makes them square: bilinear, twice, without averaging over what is left out.

The released code resizes with OpenCV (albumentations 1.3.1 on opencv 4.8.1), in whole numbers. That arithmetic is here
in numpy, to the level: weights of 11 bits, columns first, then rows, of which the last four bits are cut off.
"""

from __future__ import annotations

import numpy as np

from lapa.contracts import Array

ONE = np.float32(2048)  # a weight of 1


def bilinear(frame: Array, height: int, width: int) -> Array:
    """uint8 [H, W, C] -> uint8 [height, width, C], each pixel between the four that are nearest to its middle."""
    if frame.shape[:2] == (height, width):
        return frame
    left, right, across = _taps(frame.shape[1], width, clamp=True)
    above, below, down = _taps(frame.shape[0], height, clamp=False)
    x = frame.astype(np.int32)
    rows = (x[:, left] * across[0, :, None] + x[:, right] * across[1, :, None]) >> 4
    upper, lower = (rows[at] * weight[:, None, None] >> 16 for at, weight in zip((above, below), down, strict=True))
    return ((upper + lower + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(there: int, wanted: int, clamp: bool) -> tuple[Array, Array, Array]:
    """The two pixels beside each wanted one, int64 [wanted], and their weights, int32 [2, wanted]. `clamp`: at the ends
    the outermost pixel has all the weight (columns; of rows both are the outermost one)."""
    scale = 1.0 / (wanted / there)
    place = ((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    part = place - first.astype(np.float32)
    if clamp:
        part = np.where((first < 0) | (first >= there - 1), np.float32(0), part)
    weights = np.rint(np.stack([np.float32(1) - part, part]) * ONE).astype(np.int32)
    return np.clip(first, 0, there - 1), np.clip(first + 1, 0, there - 1), weights


def released_square(frame: Array, size: int) -> Array:
    """uint8 [H, W, 3] -> uint8 [size, size, 3]: the longer side becomes `size`, then both do."""
    height, width = frame.shape[:2]
    scale = size / float(max(height, width))
    longest = frame if scale == 1 else bilinear(frame, *(max(1, round(side * scale)) for side in (height, width)))
    return bilinear(longest, size, size)


def cropped(square: Array) -> Array:
    """uint8 [size, size, 3] -> the same size: its middle 0.9 in height, at full width, as the released server cuts
    it."""
    size = len(square)
    kept = int(size * 0.9)
    top = (size - kept) // 2
    return bilinear(square[top : top + kept], size, size)
