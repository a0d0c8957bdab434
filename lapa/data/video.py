"""Video files as RGB frames: decoded forward, once, never with a seek per frame."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lapa.contracts import Array, BadVideo

# Measured with PyAV 18.1 on one core (single runs; decoding with VideoReader below, conversion to RGB included),
# 2,700 frames of 48x48 (96x96) with discs of 2-4 px radius:
#
#   codec                        encode fps        decode fps        bytes/frame   error max, mean
#   libx264rgb qp 0 ultrafast    39,000 (20,000)   32,000 (13,000)   343 (563)     0, 0
#   libx264rgb qp 0 veryfast     13,000 (6,300)    17,000 (16,000)   224 (338)     0, 0
#   libx264 yuv444p crf 4        16,000 (8,000)    22,000 (12,000)   223 (317)     18, 0.51
#   libx264 yuv444p crf 10       28,000 (14,000)   32,000 (15,000)   261 (338)     16, 0.49
#   libvpx-vp9 gbrp lossless     9,600 (5,400)     18,000 (6,800)    305 (390)     0, 0
#   libsvtav1 yuv420p crf 10     2,600 (2,100)     10,000 (7,400)    135 (204)     232, 3.2
#
# Lossless H.264 in RGB is the fastest to write and exact: a model trains on the same pixels before and after the
# disk. A chroma-subsampled codec smears the colour of an object of 3 px.
CODEC, PIXELS, OPTIONS = "libx264rgb", "rgb24", {"qp": "0", "preset": "ultrafast"}


class VideoFile:
    """Writes uint8 RGB frames of one size into an mp4, episode after episode."""

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        self._rate = rational(fps)
        stream = self._container.add_stream(CODEC, rate=self._rate, options=OPTIONS)
        assert isinstance(stream, VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, PIXELS
        self._stream.codec_context.thread_count = 1  # threads cost more than they bring at this size
        self.frames = 0

    def add(self, frames: Array) -> None:
        """Append uint8 [T, H, W, 3]. The first frame is a key frame, so each episode can be sought to."""
        for t, pixels in enumerate(frames):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            if t == 0:
                frame.pict_type = PictureType.I
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Flush the encoder and close the file."""
        try:
            if self.frames:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


class VideoReader:
    """Reads a video forward: `fps`, then iterate over (time in seconds, frame uint8 [H, W, 3]).

    Everything ffmpeg has to say against the file comes out as BadVideo(path and reason).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise BadVideo(f"{path}: cannot be opened as a video ({_reason(error)}).") from None
        if not self._container.streams.video:
            self._container.close()
            raise BadVideo(f"{path}: holds no video stream.")
        self._stream: VideoStream = self._container.streams.video[0]

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def fps(self) -> float:
        """Frames per second, as the file says. Raises BadVideo when it does not say."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise BadVideo(f"{self.path}: has no frame rate, so a window in seconds has no meaning.")
        return float(rate)

    def __iter__(self) -> Iterator[tuple[float, Array]]:
        # One reformatter for the whole file: frame.to_ndarray makes a new one each time, 12 times slower.
        convert, size = VideoReformatter(), None
        try:
            for count, frame in enumerate(self._container.decode(self._stream)):
                size = size or (frame.width, frame.height)  # a stream may change its size; frames must not
                rgb = convert.reformat(frame, width=size[0], height=size[1], format="rgb24", threads=1)
                time = frame.time if frame.time is not None else count / self.fps
                yield float(time), rgb.to_ndarray()
        except av.FFmpegError as error:
            raise BadVideo(f"{self.path}: breaks off while decoding ({_reason(error)}).") from None


def rational(fps: float | Fraction) -> Fraction:
    """A frame rate as the fraction that video files need: 29.97 -> 2997/100."""
    return Fraction(fps).limit_denominator(10_000)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
