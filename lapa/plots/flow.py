"""Optical flow as arrows, one for each cell of a coarse grid."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from lapa.contracts import Array

INK, FAINT, PAPER = (28, 30, 34), (214, 217, 222), (255, 255, 255)
FINE = 4  # drawn so many times as large, then reduced: smooth edges
STILL = 0.08  # of the longest: shorter arrows are dots


def flow_tiles(flow: Array, size: int) -> list[Array]:
    """Flow float [K, 2, rows, columns] (x right, y down), all on one scale -> K tiles uint8 [size, size, 3].

    A dot is no motion; a tile whose flow is not known (NaN) is blank."""
    speed = np.linalg.norm(flow, axis=1)
    longest = max(float(np.nanmax(speed, initial=0.0)), 1e-9)
    return [_tile(one / longest, size) for one in np.asarray(flow, np.float64)]


def _tile(flow: Array, size: int) -> Array:
    fine = FINE * size
    image = Image.new("RGB", (fine, fine), PAPER)
    if np.isfinite(flow).all():
        pen = ImageDraw.Draw(image)
        rows, columns = flow.shape[1:]
        reach = 1.6 * fine / max(rows, columns)
        for i in range(rows):
            for j in range(columns):
                middle = np.array([(j + 0.5) / columns, (i + 0.5) / rows]) * fine
                _arrow(pen, middle, flow[:, i, j] * reach, reach)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _arrow(pen: ImageDraw.ImageDraw, middle: Array, along: Array, reach: float) -> None:
    length = float(np.hypot(*along))
    if length < STILL * reach:
        pen.ellipse([*(middle - FINE), *(middle + FINE)], fill=FAINT)
        return
    forward = along / length
    side, tip = np.array([-forward[1], forward[0]]), middle + along / 2
    neck = tip - 0.45 * length * forward
    pen.line([*(middle - along / 2), *neck], fill=INK, width=max(FINE, round(0.1 * length)))
    pen.polygon([tuple(p) for p in (tip, neck + 0.28 * length * side, neck - 0.28 * length * side)], fill=INK)
