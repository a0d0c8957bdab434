"""The frames of a long video file by their times: many episodes lie in one, and each wants some of its frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from lapa.contracts import Array, BadVideo
from lapa.data.images import resized
from lapa.data.video import VideoReader

EARLY = 1e-4  # seconds: containers round
AHEAD = 5.0  # seconds: what is further ahead is sought, what is nearer is decoded through


def film_times(path: Path) -> tuple[Array, bool]:
    """Seconds at which the frames of a film are shown, float64 [n] ascending, and whether the file is whole: of one
    that breaks off, the frames that are there. Raises BadVideo for a file that is no video."""
    try:
        with VideoReader(path) as video:
            return video.times(), True
    except BadVideo:
        with VideoReader(path) as video:
            return video.times(whole=False), False


class Film:
    """Reads frames of one file after another, forward where it can. A context manager: leaving it closes the file."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._video: VideoReader | None = None
        self._frames: Iterator[tuple[float, Array]] = iter(())
        self._reached = -np.inf  # seconds: the last frame that was given

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def at(self, path: Path, times: Array, size: int | None = None) -> Iterator[Array]:
        """The frames of `path` that are shown at `times`, float64 [n] ascending, uint8 [H, W, 3] each or size x size.
        Raises BadVideo on the way, where one is damaged or missing."""
        for time in times.tolist():
            try:
                yield resized(self._one(path, time), size)
            except BadVideo:
                self._close()  # the next episode begins anew
                raise

    def _one(self, path: Path, wanted: float) -> Array:
        if path != self._path or not self._reached < wanted - EARLY < self._reached + AHEAD:
            self._close()
            self._path, self._video = path, VideoReader(path)
            self._frames = self._video.since(wanted - EARLY)
        for time, frame in self._frames:
            self._reached = time
            if time > wanted + EARLY:
                break
            if time >= wanted - EARLY:
                return frame
        raise BadVideo(f"{path}: has no frame at {wanted:.3f} s, where its container says that there is one. The file "
                       "has changed, or is damaged; copy it again.")  # fmt: skip

    def _close(self) -> None:
        if self._video is not None:
            self._video.__exit__(None, None, None)
        self._path, self._video, self._reached = None, None, -np.inf
