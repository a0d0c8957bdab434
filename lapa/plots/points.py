"""Where keypoints are: frames of each camera with a ring at each keypoint, to see what `lapa track` follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lapa.contracts import Array
from lapa.plots.figure import COLOURS, figure, save


def keypoints(frames: Sequence[Array], points: Sequence[Array], cameras: Sequence[str], title: str, path: Path) -> None:
    """A PNG at `path`: a row for each camera, a column for each of n frames.

    frames  of each camera uint8 [n, H, W, 3]
    points  of each camera float [n, K, 2], x and y from -1 to 1; the same keypoint has the same colour in all columns
    """
    rows, columns = len(frames), len(frames[0])
    made = figure(1.6 * columns, 1.6 * rows + 0.5, title)
    for row, (pictures, places, camera) in enumerate(zip(frames, points, cameras, strict=True)):
        for column, (picture, found) in enumerate(zip(pictures, places, strict=True)):
            axes = made.add_subplot(rows, columns, row * columns + column + 1)
            height, width = picture.shape[:2]
            axes.imshow(picture)
            for number, (x, y) in enumerate((found + 1) / 2 * (width, height) - 0.5):
                axes.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgewidth=1.8,
                          markeredgecolor=COLOURS[number % len(COLOURS)])  # fmt: skip
            axes.axis("off")
            if not column:
                axes.set_title(camera, loc="left", fontsize=9)
    save(made, path)
