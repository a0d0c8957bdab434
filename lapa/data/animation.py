"""Animated webp pictures as videos: ffmpeg does not read them, Pillow does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from lapa.contracts import Array, BadVideo
from lapa.data.folders import printable, readable
from lapa.data.images import opened_image


class Animation:
    """A webp picture as data/video.py VideoReader gives a video. It states no rate: each frame has a duration."""

    stated_fps: float | None = None

    def __init__(self, path: Path) -> None:
        self.path, self._file = printable(path), path
        self.notes: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left open."""

    def __iter__(self) -> Iterator[tuple[float, Array]]:
        return self.since()

    def since(self, start: float = -np.inf) -> Iterator[tuple[float, Array]]:
        """From the first frame at `start` seconds or later: (seconds, uint8 [H, W, 3]). Raises BadVideo for damage."""
        time = 0.0
        with opened_image(self._file, self.path) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                frame = np.asarray(image.convert("RGB"))
                if time >= start:
                    yield time, frame
                time += float(image.info.get("duration") or 0) / 1000

    def times(self) -> Array:
        """Seconds at which each frame is shown, float64 [n]."""
        return np.array([time for time, _ in self])


def is_webp(path: Path, moving: bool = False) -> bool:
    """Does the file begin as a webp picture does, with `moving` as an animated one?"""
    if not path.is_file():
        return False
    try:
        with readable(path).open("rb") as file:
            head = file.read(21)
    except OSError as error:
        raise BadVideo(f"{printable(path)}: cannot be read ({error.strerror}).") from None
    known = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return known and (not moving or (head[12:16] == b"VP8X" and bool(head[20:] and head[20] & 2)))
