"""The headline of stage 1 for videos without actions: how much do the codes tell of the coarse optical flow?

The flow is a library's (OpenCV's DIS, pip install "lapa[flow]"), averaged over a grid of cells: where in the picture
something moved, and which way. It needs no labels. It is no truth either: it does not see what has no texture, nor what
moves farther than it looks. How well it ranks LAQs by what they tell of the true motion is in docs/latents.md.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from lapa.contracts import Array
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex
from lapa.measures.motion import Motion

ROWS, COLUMNS = 6, 8  # cells of the grid
BATCH = 256


def installed() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec("cv2") is not None


def flow_motion(packed: Packed, pairs: PairIndex, rows: Array) -> Motion:
    """The coarse flow of the pairs `rows` as a Motion. Needs `installed()`."""
    names = tuple(f"{axis} of row {i}, column {j}" for axis in "xy" for i in range(ROWS) for j in range(COLUMNS))
    values = coarse_flow(packed, pairs, rows).reshape(len(rows), -1).astype(np.float64)
    return Motion(values, names, f"optical flow on {ROWS} x {COLUMNS} cells")


def coarse_flow(packed: Packed, pairs: PairIndex, rows: Array) -> Array:
    """float32 [N, 2, ROWS, COLUMNS]: how far things moved (x right, y down), in sides of the picture, from the first to
    the later frame of the pairs `rows`. Needs `installed()`."""
    made = np.empty((len(rows), 2, ROWS, COLUMNS), np.float32)
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        made[start : start + BATCH] = flows(packed.gather(pairs.now[some]), packed.gather(pairs.later[some]))
    return made


def flows(now: Array, later: Array) -> Array:
    """uint8 [N, H, W, 3] each -> float32 [N, 2, ROWS, COLUMNS], as `coarse_flow`."""
    return np.stack([flow_between(a, b) for a, b in zip(now, later, strict=True)])


def main_motion(flow: Array) -> Array:
    """float [N, 2, ROWS, COLUMNS] -> [N, 2]: the mean over the cells, each counted by how much it moves."""
    speed = np.linalg.norm(flow, axis=1, keepdims=True)
    made: Array = (flow * speed).sum((2, 3)) / (speed.sum((2, 3)) + 1e-9)
    return made


def flow_between(now: Array, later: Array, rows: int = ROWS, columns: int = COLUMNS) -> Array:
    """uint8 [H, W, 3] each -> float32 [2, rows, columns], in sides of the picture."""
    import cv2

    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (now, later)]
    found = finder.calc(grey[0], grey[1], None)  # [H, W, 2] in pixels
    cells = cv2.resize(found, (columns, rows), interpolation=cv2.INTER_AREA)
    return (cells / np.array(now.shape[1::-1], np.float32)).transpose(2, 0, 1)
