"""Video files as RGB frames: decoded forward, once, never with a seek per frame, at even steps of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lapa.contracts import Array, BadVideo, LapaError
from lapa.data.folders import printable, readable
from lapa.data.images import LARGEST, Clip, blank, resized

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
# On request, what robots' datasets are kept in: far smaller, and not exact. A key frame every LEAP_BACK frames, and no
# frame that waits for a later one, so that reading from the middle is quick.
LOSSY, LOSSY_PIXELS, LEAP_BACK = "libx264", "yuv420p", 32


SLACK = 0.25  # seconds a file may end before its header says: containers round, and the last frame lasts
LEAP = 60.0  # seconds without a frame that are taken for damage
PAUSES = 1000  # steps of time for each frame, on average; more is taken for damage likewise


def check_quality(quality: int | None, height: int, width: int) -> None:
    """Raises LapaError for a quality that is none, and for pictures that cannot be kept with one."""
    if quality is not None and not 0 <= quality <= 51:
        raise LapaError(f"A quality is 0 (best) to 51, not {quality}.")
    if quality is not None and (height % 2 or width % 2):
        raise LapaError(f"Pictures of {width} x {height} pixels can be kept exactly only: a quality takes even sizes.")


class VideoFile:
    """Writes uint8 RGB frames of one size into an mp4, episode after episode: exactly, or with `quality` (H.264's crf,
    0 to 51; 18 looks the same, 23 is usual, higher is smaller) in less room. Raises LapaError where that cannot be."""

    def __init__(self, path: Path, fps: float, height: int, width: int, quality: int | None = None) -> None:
        check_quality(quality, height, width)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        self._rate = rational(fps)
        codec, pixels, options = CODEC, PIXELS, OPTIONS
        if quality is not None:
            options = {"crf": str(quality), "preset": "fast", "bf": "0", "g": str(LEAP_BACK), "forced-idr": "1"}
            codec, pixels = LOSSY, LOSSY_PIXELS
        stream = self._container.add_stream(codec, rate=self._rate, options=options)
        assert isinstance(stream, VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, pixels
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

    Frames are turned as the file's display matrix says (phones film sideways).
    Every error of ffmpeg becomes BadVideo(path and reason), and so do a damaged frame and a file that ends before its
    own header says.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = printable(path), path
        self._open()

    def _open(self) -> None:
        limit = {"max_pixels": str(LARGEST)}
        try:
            self._container = av.open(str(readable(self._file)), options=limit)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadVideo(f"{self.path}: cannot be opened as a video ({_reason(error)}).") from None
        if not self._container.streams.video:
            self._container.close()
            raise BadVideo(f"{self.path}: holds no video stream.")
        self._stream: VideoStream = self._container.streams.video[0]
        if not self._stream.codec_context:  # whatever its type says
            self._container.close()
            raise BadVideo(f"{self.path}: its pictures are in a coding that cannot be told.")
        self._stream.codec_context.options = limit

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def stated_fps(self) -> float | None:
        """Frames per second, as the file says, or None when it does not say."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else None

    @property
    def fps(self) -> float:
        """Frames per second, as the file says. Raises BadVideo when it does not say."""
        if not self.stated_fps:
            raise BadVideo(f"{self.path}: has no frame rate, so a window in seconds has no meaning.")
        return self.stated_fps

    def __iter__(self) -> Iterator[tuple[float, Array]]:
        return self.since()

    def since(self, start: float = -np.inf) -> Iterator[tuple[float, Array]]:
        """From the first frame at `start` seconds or later: one seek, to the key frame before it. What lies between
        is decoded and no more."""
        # One reformatter for the whole file: frame.to_ndarray makes a new one each time, 12 times slower.
        convert, size, end = VideoReformatter(), None, 0.0
        try:
            for count, frame in enumerate(self._decoded(start)):
                time = float(frame.time if frame.time is not None else count / self.fps)
                size = size or (frame.width, frame.height)  # a stream may change its size; frames must not
                if time < start:
                    continue
                if frame.is_corrupt:
                    raise BadVideo(f"{self.path}: the frame at {time:.2f} s is damaged.")
                rgb = convert.reformat(frame, width=size[0], height=size[1], format="rgb24", threads=1).to_ndarray()
                yield time, np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90)) if frame.rotation else rgb
                end = time + float((frame.duration or 0) * (frame.time_base or 0))
        except av.FFmpegError as error:
            raise BadVideo(f"{self.path}: breaks off while decoding ({_reason(error)}).") from None
        self._check_end(end)

    def _check_end(self, end: float) -> None:
        stated = self._stated_end()
        if stated - end > max(SLACK, 0.02 * stated):
            raise BadVideo(f"{self.path}: is cut short, it ends at {end:.2f} s of {stated:.2f} s.")

    def _decoded(self, start: float) -> Iterator[VideoFrame]:
        """Frames from a key frame on that is shown at `start` or before; from the first one where seeking fails."""
        if start > 0:
            for back in (0.0, 1.0, 5.0, 30.0):  # files with frames out of order may need an earlier key frame
                try:
                    self._container.seek(int((start - back) / float(self._stream.time_base or 1)), stream=self._stream)
                except (av.FFmpegError, OSError):
                    break
                frames = self._container.decode(self._stream)
                first = next(frames, None)
                if first is not None and first.time is not None and first.time <= start:
                    yield first
                    yield from frames
                    return
            self._container.close()
            self._open()
        yield from self._container.decode(self._stream)

    def times(self) -> Array:
        """Seconds at which each frame is shown, float64 [n]: of the packets, without decoding. Where the container
        does not say, as AVI, frames are decoded. Raises BadVideo for a file that ends before its header
        says. Reads to the end, so the reader is used up."""
        try:
            packets = [(p.pts, p.duration) for p in self._container.demux(self._stream) if p.size and not p.is_discard]
        except av.FFmpegError as error:
            raise BadVideo(f"{self.path}: breaks off while it is read ({_reason(error)}).") from None
        if any(pts is None for pts, _ in packets):
            self._container.close()
            self._open()
            return np.array([time for time, _ in self])
        packets.sort()
        base = self._stream.time_base or Fraction(1)
        stamps = np.array([pts for pts, _ in packets], np.float64) * base.numerator / base.denominator
        if len(packets):
            self._check_end(float(stamps[-1] + float((packets[-1][1] or 0) * base)))
        return stamps

    def _stated_end(self) -> float:
        """Seconds at which the pictures end by the header; 0 when it does not tell (sound may go on for longer)."""
        first = self._stream.start_time or 0
        if self._stream.duration and self._stream.time_base:
            return float((first + self._stream.duration) * self._stream.time_base)
        alone = len(self._container.streams) == 1 and self._container.duration
        return self._container.duration / av.time_base if alone else 0.0  # type: ignore[operator]


def read_video(path: Path, size: int | None = None) -> Clip:
    """Read a video file, with `size` as squares of so many pixels. Raises BadVideo naming path and reason.

    Where the rate varies, as on phones and screens, the frames are set to even steps of time by their timestamps.
    """
    times, frames, shape = [], [], (0, 0)
    with VideoReader(path) as video:
        for time, frame in video:
            shape = frame.shape[:2]
            times.append(time)
            frames.append(resized(frame, size))
        if len(frames) < 2:
            count = "one frame" if frames else "no frames"
            raise BadVideo(f"{video.path}: has {count}; a pair of frames needs two.")
        fps, shown = _even(np.array(times), video.stated_fps, video.path)
        return Clip(np.stack([frames[i] for i in shown]), fps, (shape[0], shape[1]))


@dataclass(frozen=True)
class Timing:
    """When a video's frames are shown: `times` float64 [n], in seconds; `shown` int64 [T], which of them is on show at
    each step of an even rate; `size` (H, W) as they are seen."""

    times: Array
    shown: Array
    fps: float
    size: tuple[int, int]

    def clip(self) -> Clip:
        """What `read_video` gives, with a stand-in for the frames."""
        return Clip(blank(len(self.shown), self.size), self.fps, self.size)


def timing(path: Path) -> Timing:
    """The timing of a video file, from its packets and its first frame. Raises BadVideo naming path and reason."""
    with VideoReader(path) as video:
        first = next(iter(video), None)  # which way up it is, only a frame tells
    with VideoReader(path) as video:
        times = video.times()
        if len(times) < 2 or first is None:
            count = "one frame" if len(times) else "no frames"
            raise BadVideo(f"{video.path}: has {count}; a pair of frames needs two.")
        fps, shown = _even(times, video.stated_fps, video.path)
        return Timing(times, shown, fps, first[1].shape[:2])


def video_frames(path: Path, when: Timing, size: int | None = None, start: int = 0) -> Iterator[Array]:
    """The frames that `read_video` puts into its Clip, from step `start` on. Raises BadVideo on the way."""
    step, early = start, 1e-4  # seconds: containers round
    first = int(np.searchsorted(when.times, when.times[when.shown[start]] - early))
    with VideoReader(path) as video:
        for number, (time, frame) in enumerate(video.since(when.times[first] - early if start else -np.inf), first):
            if number >= len(when.times) or abs(time - when.times[number]) > 2 * early:
                raise BadVideo(
                    f"{video.path}: the frame at {time:.3f} s is not where its container says. The file has changed, "
                    "or cannot be opened in the middle; read it without --stream."
                )
            if step < len(when.shown) and when.shown[step] == number:
                small = resized(frame, size)
                while step < len(when.shown) and when.shown[step] == number:
                    yield small
                    step += 1
    if step < len(when.shown):
        raise BadVideo(f"{printable(path)}: is cut short, it has {step} of {len(when.shown)} frames.")


def _even(times: Array, stated: float | None, path: str) -> tuple[float, Array]:
    """Timestamps float [T] -> a rate, and the frame on show at each step of it, int64 [N]."""
    since, gaps = times - times[0], np.diff(times)
    if gaps.min() < 0 or since[-1] <= 0:
        raise BadVideo(f"{path}: its timestamps do not go forward.")
    if gaps.max() > LEAP:
        raise BadVideo(f"{path}: no frame for {gaps.max():.0f} s after {times[gaps.argmax()]:.1f} s.")
    steps = np.arange(len(times))
    for rate in (stated, len(gaps) / since[-1]):
        if rate and np.abs(since * rate - steps).max() <= 0.5:
            return rate, steps
    rate = 1 / float(np.median(gaps[gaps > 0]))
    if round(since[-1] * rate) > PAUSES * len(times):
        raise BadVideo(f"{path}: its timestamps ask for {since[-1] * rate:.0f} steps of time for {len(times)} frames.")
    middles = (np.arange(round(since[-1] * rate) + 1) + 0.5) / rate
    return rate, np.searchsorted(since, middles) - 1


def rational(fps: float | Fraction) -> Fraction:
    """A frame rate as the fraction that video files need: 29.97 -> 2997/100."""
    return Fraction(fps).limit_denominator(10_000)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
