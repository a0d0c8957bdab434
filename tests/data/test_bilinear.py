"""Pictures resized as the released LAPA code does: equal to what it made, and to a second way of computing it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lapa.contracts import Array
from lapa.data.bilinear import bilinear, cropped, released_square
from lapa.data.images import resized

SET = Path(__file__).parents[3] / "shared/fixtures/lapa7b/tiny_a"
real = pytest.mark.skipif(not SET.exists(), reason="../shared is not here")


def pixel_by_pixel(frame: Array, height: int, width: int) -> Array:
    """The same in float64, one pixel after another."""
    there = frame.shape[:2]
    found = np.empty((height, width, frame.shape[2]))
    for y in range(height):
        for x in range(width):
            at = [(place + 0.5) * n / m - 0.5 for place, n, m in zip((y, x), there, (height, width), strict=True)]
            low = [int(np.floor(a)) for a in at]
            part = [a - b for a, b in zip(at, low, strict=True)]
            (t, b), (left, r) = ([min(max(k, 0), n - 1) for k in (i, i + 1)] for i, n in zip(low, there, strict=True))
            upper, lower = (frame[row, left] * (1 - part[1]) + frame[row, r] * part[1] for row in (t, b))
            found[y, x] = upper * (1 - part[0]) + lower * part[0]
    return found


@pytest.mark.parametrize("size", [(9, 14), (5, 31), (40, 6), (17, 23)])
def test_it_is_bilinear_to_a_level(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    found = bilinear(frame, *size)
    assert np.abs(found - pixel_by_pixel(frame, *size)).max() <= 1


def test_half_a_level_goes_where_opencv_lets_it() -> None:
    """Twice as small: the mean of four, half rounded up."""
    frame = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    four = frame.reshape(16, 2, 16, 2, 3).astype(int).sum((1, 3))
    np.testing.assert_array_equal(bilinear(frame, 16, 16), (four + 2) >> 2)


@pytest.mark.parametrize("shape", [(240, 320), (1, 300), (300, 2), (31, 31), (256, 256), (1080, 1920)])
def test_any_picture_becomes_a_square(shape: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), 77, np.uint8)
    assert (released_square(frame, 64) == 77).all()
    assert resized(frame, 64, "released").shape == cropped(released_square(frame, 64)).shape == (64, 64, 3)


@real
def test_pixels_are_those_of_the_released_code() -> None:
    images, plain = np.load(SET / "inputs.npz"), np.load(SET / "vision_plain.npz")["pixels_uint8"]
    for i, wanted in enumerate(plain):
        np.testing.assert_array_equal(released_square(images[f"image_{i}"], 256), wanted)
    for i, wanted in enumerate(np.load(SET / "vision_crop.npz")["pixels_uint8"]):
        np.testing.assert_array_equal(cropped(released_square(images[f"image_{i}"], 256)), wanted)
