"""One video file: its best stream, its display matrix, its ending, its rate. Made here; each fault was reported of some
software (../shared/data/reported_faults)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made import pictures, video
from PIL import Image

from lapa.contracts import Array, BadVideo
from lapa.data.video import SUFFIXES, read_video, timing, turned, video_frames

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 220, 30)


def corners(count: int = 6, height: int = 48, width: int = 64) -> Array:
    """Red, green, blue, yellow, read from the top left."""
    frame = np.full((height, width, 3), 128, np.uint8)
    for (y, x), colour in zip(((0, 0), (0, 1), (1, 0), (1, 1)), (RED, GREEN, BLUE, YELLOW), strict=True):
        frame[y * height // 2 :, x * width // 2 :][: height // 2, : width // 2] = colour
    return np.repeat(frame[None], count, 0)


def read_off(frame: Array) -> str:
    """The colours of the corners."""
    found = ""
    for y, x in ((4, 4), (4, -5), (-5, 4), (-5, -5)):
        distance = {name: np.abs(frame[y, x].astype(int) - colour).sum() for name, colour in
                    {"R": RED, "G": GREEN, "B": BLUE, "Y": YELLOW}.items()}  # fmt: skip
        found += min(distance, key=lambda name: distance[name])
    return found


def streams(path: Path, films: Sequence[tuple[Array, float, str, str]], default: Sequence[int]) -> Path:
    """A file of several streams of pictures: frames, rate, codec and pixel format of each; which are the default."""
    with av.open(str(path), "w") as container:
        for frames, fps, codec, kind in films:
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator())
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], kind
        for number, stream in enumerate(container.streams.video):
            stream.disposition = av.stream.Disposition.default if number in default else av.stream.Disposition(0)
        for stream, (frames, *_) in zip(container.streams.video, films, strict=True):
            for picture in frames:
                form = "rgb24" if picture.dtype == np.uint8 else "gray16le"
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=form)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_the_stream_that_the_file_calls_its_default(tmp_path: Path) -> None:
    small, large = pictures(4, 24, 32), corners(20)
    path = streams(tmp_path / "dashcam.mp4", [(small, 1, "libx264", "yuv420p"), (large, 10, "libx264", "yuv420p")], [1])
    clip = read_video(path)
    assert (clip.frames.shape, clip.fps, read_off(clip.frames[0])) == ((20, 48, 64, 3), 10, "RGBY")
    assert "1 of 2" in clip.notes[0]
    assert read_video(path, stream=0).frames.shape == (4, 24, 32, 3)
    assert len(list(video_frames(path, timing(path)))) == 20
    assert len(list(video_frames(path, timing(path, 0)))) == 4
    with pytest.raises(BadVideo, match=r"dashcam\.mp4: .* 2"):
        read_video(path, stream=2)


def test_the_larger_stream_where_no_default_is_told(tmp_path: Path) -> None:
    films = [(pictures(8, 24, 32), 10, "libx264", "yuv420p"), (corners(8), 10, "libx264", "yuv420p")]
    assert read_video(streams(tmp_path / "a.mkv", films, [0, 1])).size == (48, 64)
    assert read_video(streams(tmp_path / "b.mkv", films[::-1], [])).size == (48, 64)


def test_a_cover_is_no_film(tmp_path: Path) -> None:
    cover = (pictures(1, 96, 96), 25, "mjpeg", "yuvj420p")
    path = streams(tmp_path / "cover.mkv", [cover, (corners(20), 10, "libx264", "yuv420p")], [0, 1])
    assert read_video(path).frames.shape == (20, 48, 64, 3)


def test_depth_is_no_film(tmp_path: Path) -> None:
    depth = (np.full((6, 48, 64), 900, np.uint16), 10, "ffv1", "gray16le")
    both = streams(tmp_path / "kinect.mkv", [depth, (corners(), 10, "mjpeg", "yuvj420p")], [0, 1])
    assert read_off(read_video(both).frames[0]) == "RGBY"
    with pytest.raises(BadVideo, match=r"depth\.mkv: .*gray16"):
        read_video(streams(tmp_path / "depth.mkv", [depth], [0]))


MATRICES = {  # display matrix (a, b, c, d) -> corners and size, as a player shows them
    (1, 0, 0, 1): ("RGBY", (48, 64)), (-1, 0, 0, 1): ("GRYB", (48, 64)), (1, 0, 0, -1): ("BYRG", (48, 64)),
    (-1, 0, 0, -1): ("YBGR", (48, 64)), (0, 1, -1, 0): ("BRYG", (64, 48)), (0, -1, 1, 0): ("GYRB", (64, 48)),
    (0, 1, 1, 0): ("RBGY", (64, 48)), (0, -1, -1, 0): ("YGBR", (64, 48)),
}  # fmt: skip


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_whole_display_matrix(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    data = bytearray(video(tmp_path / "x.mov", corners(), 10).read_bytes())
    unit, whole = 1 << 16, 1 << 30
    plain = struct.pack(">9i", unit, 0, 0, 0, unit, 0, 0, 0, whole)
    at = data.index(plain, data.index(b"tkhd"))
    a, b, c, d = (unit * value for value in matrix)
    data[at : at + len(plain)] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, whole)
    (tmp_path / "x.mov").write_bytes(data)
    clip, outline = read_video(tmp_path / "x.mov"), timing(tmp_path / "x.mov").clip()
    assert (read_off(clip.frames[0]), clip.size) == MATRICES[matrix]
    assert outline.frames.shape == clip.frames.shape
    assert read_off(turned(corners()[0], np.array(matrix).reshape(2, 2))) == MATRICES[matrix][0]


@pytest.mark.parametrize(
    "suffix", ["m4v", "ts", "MTS", "mpg", "flv", "3gp", "wmv", "apng", "webp", "ogv", "vob", "mxf"]
)
def test_every_ending(tmp_path: Path, suffix: str) -> None:
    codecs = {"mpg": "mpeg2video", "wmv": "wmv2", "apng": "apng", "ogv": "libvpx", "vob": "mpeg2video"}
    path, frames = tmp_path / f"x.{suffix}", corners(10, 64, 96)
    frames[:, 24:40, 40:56] = (np.arange(10) * 20)[:, None, None, None]
    if suffix == "webp":
        first, *rest = map(Image.fromarray, frames)
        first.save(path, save_all=True, append_images=rest, duration=40, lossless=True)
    else:
        codec = codecs.get(suffix, "mpeg2video" if suffix == "mxf" else "libx264")
        streams(path, [(frames, 25, codec, "rgb24" if suffix == "apng" else "yuv420p")], [0])
    assert f".{suffix.lower()}" in SUFFIXES
    clip = read_video(path)
    assert (clip.frames.shape, round(clip.fps), read_off(clip.frames[5])) == ((10, 64, 96, 3), 25, "RGBY")


def test_a_rate_that_is_assumed_is_said(tmp_path: Path) -> None:
    made = video(tmp_path / "x.mp4", pictures(8), 10)
    with av.open(str(made)) as source, av.open(str(tmp_path / "x.mjpeg"), "w") as raw:
        stream = raw.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuvj420p"
        for frame in source.decode(video=0):
            raw.mux(stream.encode(frame.reformat(format="yuvj420p")))
        raw.mux(stream.encode(None))
    clip = read_video(tmp_path / "x.mjpeg")
    assert len(clip.frames) == 8
    assert any(note.startswith("rate: 25 fps") for note in clip.notes)
    assert not read_video(made).notes
