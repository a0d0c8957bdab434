"""Video files as RGB frames: decoded forward, once, never with a seek per frame, at even steps of time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lapa.contracts import Array, BadVideo, LapaError
from lapa.data.animation import Animation, is_webp
from lapa.data.folders import printable, readable
from lapa.data.images import LARGEST, Clip, blank, resized
from lapa.data.tar import Member

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
# disk. A chroma-subsampled codec smears the colour of an object of 3 px. (libx265 is no choice: its lossless gbrp was
# not, in pictures as wide as one of its blocks.) Real pictures have been through a codec before; 61 frames of 640x480
# take 30 times the room when every pixel of them is kept.


# What PyAV opens, by the endings that cameras, recorders and converters write.
ENDINGS = """
    mp4 m4v mov qt mkv mk3d webm avi divx gif apng webp ts m2ts mts m2t mpg mpeg mpe m1v m2v mpv vob dv flv f4v 3gp 3g2
    3gpp wmv asf ogv ogm rm rmvb mxf gxf nut y4m ivf obu h264 264 avc h265 265 hevc mjpg mjpeg insv amv dav
"""
SUFFIXES = tuple(f".{name}" for name in ENDINGS.split())
RAW = ("h264", "hevc", "mjpeg", "m4v", "mpegvideo", "obu", "dirac", "vc1", "h263", "h261")  # formats without timestamps
STILL = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls")  # codecs of pictures, if need be
NO_FILM = {"attached_pic", "timed_thumbnails", "still_image"}  # flags of covers and previews
DISPLAY = Type.DISPLAYMATRIX
Source = Path | Member  # a file, or one in a tar

SLACK = 0.25  # seconds a file may end before its header says: containers round, and the last frame lasts
LEAP = 60.0  # seconds without a frame that are taken for damage
PAUSES = 1000  # steps of time for each frame, on average; more is taken for damage likewise


Quality = int | Literal["exact", "auto"] | None  # H.264's crf; None: exact
GOOD = 18  # hardly to be told from the source
SMALL = 128  # pixels a side
KEY = 32  # frames from one key frame to the next, so that reading from the middle is quick


@dataclass(frozen=True)
class Coding:
    """How pictures are kept: encoder, pixel format that it is given, its options, and what info.json of a LeRobot
    dataset says of it (`told`): LeRobot's tools code again by that what they cut."""

    encoder: str
    pixels: str
    options: dict[str, str]
    told: dict[str, Any]


def coding(quality: int | None, height: int, width: int) -> Coding:
    """How pictures of this size are kept: exactly (None), or with a `quality`, as browsers play it.

    With a quality colours are kept at half the resolution (yuv420p), which takes even sizes; in full (yuv444p) where a
    side is odd.
    """
    always: dict[str, Any] = {"codec": "h264", "g": KEY, "preset": "veryfast", "fast_decode": 0}
    always |= {"video_backend": "pyav", "extra_options": {"bf": "0"}}
    if quality is None:
        # No pix_fmt: LeRobot's tools refuse one that their H.264 encoder does not have, as gbrp. What they cut they
        # code again in the finest quality of yuv420p.
        return Coding("libx264rgb", "rgb24", {"qp": "0", "preset": "ultrafast"}, {**always, "crf": 0})
    pixels = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
    # No frame that waits for a later one, so that reading from the middle is quick.
    options = {"crf": str(quality), "preset": "veryfast", "bf": "0", "g": str(KEY), "forced-idr": "1"}
    return Coding("libx264", pixels, options, {**always, "pix_fmt": pixels, "crf": quality})


def quality_for(asked: Quality, height: int, width: int) -> int | None:
    """The quality that is meant for pictures of this size, as `coding` takes it. "auto" keeps small pictures exactly:
    they are a simulator's, and the colour of a thing of three pixels does not survive half the resolution."""
    if asked == "auto":
        return None if max(height, width) <= SMALL else GOOD
    return None if asked == "exact" else asked


def coding_in_words(quality: int | None, height: int, width: int) -> str:
    """A sentence for people."""
    how = coding(quality, height, width)
    if quality is None:
        return (
            f"Every pixel is kept (H.264 in RGB), which browsers do not play; --quality {GOOD} makes files that they "
            "do, in less room."
        )
    played = "as browsers play them" if how.pixels == "yuv420p" else "as Chrome plays them, for a side is odd"
    return (
        f"Pictures are kept in H.264 {how.pixels} at quality {quality} (crf; lower is better and larger), {played}; "
        "--quality exact keeps every pixel."
    )


def check_quality(quality: int | None) -> None:
    """Raises LapaError for a quality that is none."""
    if quality is not None and not 0 <= quality <= 51:
        raise LapaError(f"A quality is 0 (best) to 51, not {quality}.")


class VideoFile:
    """Writes uint8 RGB frames of one size into an mp4, episode after episode: exactly, or with `quality` (H.264's crf,
    0 to 51; 18 looks the same, 23 is usual, higher is smaller) in less room. Raises LapaError for another quality."""

    def __init__(self, path: Path, fps: float, height: int, width: int, quality: int | None = None) -> None:
        check_quality(quality)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        self._rate = rational(fps)
        how = coding(quality, height, width)
        stream = self._container.add_stream(how.encoder, rate=self._rate, options=how.options)
        assert isinstance(stream, VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, how.pixels
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

    Of several streams of pictures the best is read (`_best`), or number `stream` of them. Frames are turned and
    mirrored as the file's display matrix says (phones film sideways). `notes` are what had to be chosen
    (contracts.Episode). Every error of ffmpeg becomes BadVideo(path and reason), and so do a damaged frame, a file that
    ends before its own header says, and one of depth maps.
    """

    def __init__(self, path: Source, stream: int | None = None) -> None:
        self.path, self._file, self._wanted = printable(path), path, stream
        self.notes: tuple[str, ...] = ()
        self._open()

    def _open(self) -> None:
        limit = {"max_pixels": str(LARGEST)}
        try:
            file = self._file
            source = str(readable(file)) if isinstance(file, Path) else file.opened()
            self._container = av.open(source, "r", options=limit)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadVideo(f"{self.path}: cannot be opened as a video ({_reason(error)}).") from None
        try:
            self._stream = self._choose(self._container.streams.video)
        except BadVideo:
            self._container.close()
            raise
        self._stream.codec_context.options = limit
        if self._container.format.name in RAW and not self._stream.codec_context.framerate:
            rate = f"{self.stated_fps:g} fps" if self.stated_fps else "none"
            self.notes = (
                *self.notes,
                f"rate: {rate}, assumed: such a file ({self._container.format.name}) has no times",
            )

    def _choose(self, streams: Sequence[VideoStream]) -> VideoStream:
        """The stream to read. Raises BadVideo where there is none."""
        if not streams:
            raise BadVideo(f"{self.path}: holds no video stream.")
        if self._wanted is not None:
            if not 0 <= self._wanted < len(streams):
                raise BadVideo(
                    f"{self.path}: has no stream of pictures {self._wanted}; it has {len(streams)}, from 0 on."
                )
            found = [streams[self._wanted]]
        else:
            found = [stream for stream in streams if not set(_flags(stream)) & NO_FILM]
            if not found:
                raise BadVideo(f"{self.path}: holds a cover picture and no film.")
        if not (told := [stream for stream in found if stream.codec_context]):  # whatever its type says
            raise BadVideo(f"{self.path}: its pictures are in a coding that cannot be told.")
        if not (colour := [stream for stream in told if not _is_depth(stream)]):
            kind = told[0].codec_context.pix_fmt
            raise BadVideo(
                f"{self.path}: its pictures are depth maps ({kind}: one channel of more than 8 bits), not colour."
            )
        best = max(colour, key=lambda stream: _rank(stream, colour))
        if len(found) > 1:
            number = list(streams).index(best)
            self.notes = (f"stream: {number} of {len(streams)} in one file, {best.width} x {best.height}, the best "
                          "(stream=NUMBER takes another)",)  # fmt: skip
        return best

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
        convert, size, end, turn = VideoReformatter(), None, 0.0, _Turn()
        try:
            for count, frame in enumerate(self._decoded(start)):
                time = float(frame.time if frame.time is not None else count / self.fps)
                size = size or (frame.width, frame.height)  # a stream may change its size; frames must not
                if time < start:
                    continue
                if frame.is_corrupt:
                    raise BadVideo(f"{self.path}: the frame at {time:.2f} s is damaged.")
                rgb = convert.reformat(
                    frame, width=size[0], height=size[1], format="rgb24", **_one_thread()
                ).to_ndarray()
                yield time, turn.shown(rgb, frame)
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

    def times(self, whole: bool = True) -> Array:
        """Seconds at which each frame is shown, float64 [n]: of the packets, without decoding. Where the container
        does not say, as AVI, frames are decoded. Raises BadVideo for a file that ends before its header
        says; if it need not be `whole`, gives what is there. Reads to the end, so the reader is used up."""
        packets = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_discard:
                    packets.append((packet.pts, packet.duration))
        except av.FFmpegError as error:
            if whole:
                raise BadVideo(f"{self.path}: breaks off while it is read ({_reason(error)}).") from None
        if any(pts is None for pts, _ in packets):
            self._container.close()
            self._open()
            return np.array([time for time, _ in self])
        packets.sort()
        base = self._stream.time_base or Fraction(1)
        stamps = np.array([pts for pts, _ in packets], np.float64) * base.numerator / base.denominator
        if len(packets) and whole:
            self._check_end(float(stamps[-1] + float((packets[-1][1] or 0) * base)))
        return stamps

    def _stated_end(self) -> float:
        """Seconds at which the pictures end by the header; 0 when it does not tell (sound may go on for longer)."""
        first = self._stream.start_time or 0
        if self._stream.duration and self._stream.time_base:
            return float((first + self._stream.duration) * self._stream.time_base)
        alone = len(self._container.streams) == 1 and self._container.duration
        return self._container.duration / av.time_base if alone else 0.0  # type: ignore[operator]


def opened(path: Source, stream: int | None = None) -> VideoReader | Animation:
    """A reader of a video file: of an animated webp, which ffmpeg does not know, another one."""
    return Animation(path) if isinstance(path, Path) and is_webp(path) else VideoReader(path, stream)


def read_video(path: Source, size: int | None = None, stream: int | None = None) -> Clip:
    """Read a video file, with `size` as squares of so many pixels; `stream` as in VideoReader. Raises BadVideo naming
    path and reason.

    Where the rate varies, as on phones and screens, the frames are set to even steps of time by their timestamps.
    """
    times, frames, shape = [], [], (0, 0)
    with opened(path, stream) as video:
        for time, frame in video:
            shape = frame.shape[:2]
            times.append(time)
            frames.append(resized(frame, size))
        if len(frames) < 2:
            count = "one frame" if frames else "no frames"
            raise BadVideo(f"{video.path}: has {count}; a pair of frames needs two.")
        fps, shown = even(np.array(times), video.stated_fps, video.path)
        return Clip(np.stack([frames[i] for i in shown]), fps, (shape[0], shape[1]), video.notes)


@dataclass(frozen=True)
class Timing:
    """When a video's frames are shown: `times` float64 [n], in seconds; `shown` int64 [T], which of them is on show at
    each step of an even rate; `size` (H, W) as they are seen; `stream` and `notes` as in VideoReader."""

    times: Array
    shown: Array
    fps: float
    size: tuple[int, int]
    stream: int | None
    notes: tuple[str, ...]

    def clip(self) -> Clip:
        """What `read_video` gives, with a stand-in for the frames."""
        return Clip(blank(len(self.shown), self.size), self.fps, self.size, self.notes)


def timing(path: Source, stream: int | None = None) -> Timing:
    """The timing of a video file, from its packets and its first frame. Raises BadVideo naming path and reason."""
    with opened(path, stream) as video:
        first = next(iter(video), None)  # which way up it is, only a frame tells
    with opened(path, stream) as video:
        times = video.times()
        if len(times) < 2 or first is None:
            count = "one frame" if len(times) else "no frames"
            raise BadVideo(f"{video.path}: has {count}; a pair of frames needs two.")
        fps, shown = even(times, video.stated_fps, video.path)
        return Timing(times, shown, fps, first[1].shape[:2], stream, video.notes)


def video_frames(path: Source, when: Timing, size: int | None = None, start: int = 0) -> Iterator[Array]:
    """The frames that `read_video` puts into its Clip, from step `start` on. Raises BadVideo on the way."""
    step, early = start, 1e-4  # seconds: containers round
    first = int(np.searchsorted(when.times, when.times[when.shown[start]] - early))
    with opened(path, when.stream) as video:
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


def even(times: Array, stated: float | None, path: str) -> tuple[float, Array]:
    """Timestamps float [T] -> a rate, and the frame on show at each step of it, int64 [N]."""
    since, gaps = times - times[0], np.diff(times)
    if gaps.min() < 0 or since[-1] <= 0:
        raise BadVideo(f"{path}: its timestamps do not go forward.")
    if gaps.max() > LEAP:
        raise BadVideo(f"{path}: no frame for {gaps.max():.0f} s after {times[gaps.argmax()]:.1f} s.")
    steps = np.arange(len(times))
    for rate in (stated, len(gaps) / since[-1]):
        if rate and np.abs(since * rate - steps).max() <= 0.5:
            return float(rate), steps
    rate = 1 / float(np.median(gaps[gaps > 0]))
    if round(since[-1] * rate) > PAUSES * len(times):
        raise BadVideo(f"{path}: its timestamps ask for {since[-1] * rate:.0f} steps of time for {len(times)} frames.")
    middles = (np.arange(round(since[-1] * rate) + 1) + 0.5) / rate
    return rate, np.searchsorted(since, middles) - 1


class _Turn:
    """Frames as they are to be seen, by the display matrix that comes with them."""

    def __init__(self) -> None:
        self._rotation: int | None = None
        self._matrix: Array = np.eye(2)

    def shown(self, rgb: Array, frame: VideoFrame) -> Array:
        """uint8 [H, W, 3] -> the same turned by quarters and mirrored."""
        if frame.rotation != self._rotation:  # asked for once, for it costs a tenth of decoding
            found: Any = next((data for data in iter(frame.side_data) if getattr(data, "type", "") == DISPLAY), None)
            self._rotation = frame.rotation
            self._matrix = np.eye(2) if found is None else np.frombuffer(bytes(found), "<i4").reshape(3, 3)[:2, :2]
        return turned(rgb, self._matrix)


def turned(picture: Array, matrix: Array) -> Array:
    """A picture [H, W, 3] through a matrix [2, 2] of a container: a pixel at (x, y) is shown at x times its first row
    plus y times its second. Only quarter turns and mirrors are done, the nearest ones."""
    (a, b), (c, d) = np.asarray(matrix, np.float64)
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    across, down = (-1 if a < 0 else 1), (-1 if d < 0 else 1)
    return np.ascontiguousarray(picture[::down, ::across])


def _flags(stream: VideoStream) -> list[str]:
    return [flag.name for flag in Disposition if flag.name and flag in stream.disposition]


def _is_depth(stream: VideoStream) -> bool:
    """Are its pictures of one channel and more than 8 bits?"""
    if not (name := stream.codec_context.pix_fmt):
        return False
    channels = [part.bits for part in VideoFormat(name).components if not part.is_alpha]
    return len(channels) == 1 and channels[0] > 8


def _rank(stream: VideoStream, others: Sequence[VideoStream]) -> tuple[Any, ...]:
    """The best stream ranks highest: a film before a still picture (a cover without a flag), what the file calls its
    default, the larger, the longer, the first."""
    spans = {other.index: _span(other) for other in others}
    longest, mine = max((span or 0.0 for span in spans.values()), default=0.0), spans[stream.index]
    if mine is not None:
        still = mine < 0.1 * longest
    else:
        still = stream.codec_context.name in STILL and any(other.codec_context.name not in STILL for other in others)
    default = "default" in _flags(stream)
    return (not still, default, stream.width * stream.height, mine or 0.0, -stream.index)


def _span(stream: VideoStream) -> float | None:
    """Seconds, as far as the file says; Matroska says it in a tag."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", str(stream.metadata.get("DURATION", "")))
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def rational(fps: float | Fraction) -> Fraction:
    """A frame rate as the fraction that video files need: 29.97 -> 2997/100."""
    return Fraction(fps).limit_denominator(10_000)


@cache
def _one_thread() -> dict[str, int]:
    """The option of `reformat` that keeps it to one thread; PyAV 15, which LeRobot 0.6 needs, has no such option."""
    try:
        VideoReformatter().reformat(VideoFrame(2, 2, "rgb24"), threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
