"""What messages of ROS say, with the names that ROS gives it: a picture, or numbers; and when they were sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lapa.contracts import Array, BadVideo
from lapa.data import ros
from lapa.data.arrays import guarded
from lapa.data.images import LARGEST, read_image

PIXELS = {  # sensor_msgs/Image: encoding -> channels of 8 bits, and which of them are red, green, blue
    "rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)), "8UC1": (1, (0, 0, 0)), "8UC3": (3, (2, 1, 0)), "8UC4": (4, (2, 1, 0)),
}  # fmt: skip
PACKED = {"yuv422_yuy2": "yuyv422", "yuyv": "yuyv422", "YUYV": "yuyv422"}  # two pixels in four bytes
DEEP = re.compile(r"16|32|64|compressedDepth", re.IGNORECASE)  # encodings and formats of depth maps
FILMS = ("h264", "h265", "hevc", "av1", "vp9")
CLOCKS = 60.0  # seconds that the clocks of headers and recording may differ by


def numbers_of(message: ros.Message, inside: str, where: str) -> list[tuple[str, float]]:
    """The numbers of a message, or of a field of it, with their names: joints by their own."""
    joints = message.get("name") or message.get("joint_names")
    value: Any = message
    for word in filter(None, inside.split(".")):
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, dict) or word not in value:
            raise BadVideo(f"{where}: has no field {inside}; it has {', '.join(message)}.")
        value = value[word]
    if not inside and isinstance(message.get("position"), np.ndarray):
        value = message["position"]
    if not inside and isinstance(points := message.get("points"), list):
        value = points[0].get("positions") if points and isinstance(points[0], dict) else []
    if isinstance(joints, list) and isinstance(value, np.ndarray) and len(joints) == len(value):
        return [(str(joint), float(one)) for joint, one in zip(joints, value, strict=True)]
    return list(ros.numbers_in(value))


def picture_of(message: ros.Message, where: str) -> Array:
    """A message of pictures as uint8 [H, W, 3]. Raises BadVideo."""
    data = message.get("data")
    if not isinstance(data, np.ndarray):
        raise BadVideo(f"{where}: holds no picture; it has {', '.join(message)}.")
    coding = str(message.get("format", message.get("encoding", "")))
    if "format" in message:
        if is_deep(coding):
            raise BadVideo(f"{where}: is a depth map ({coding:.40}).")
        if coding.lower() in FILMS:
            raise BadVideo(f"{where}: is a part of a film ({coding:.40}); topics of single pictures are read.")
        return read_image(data.tobytes(), where)
    height, width, step = (int(message.get(key, 0)) for key in ("height", "width", "step"))
    if not 0 < height * width <= LARGEST:
        raise BadVideo(f"{where}: says that it has {width} x {height} pixels.")
    channels, order = PIXELS.get(coding, (2, ())) if coding in PIXELS or coding in PACKED else (0, ())
    if not channels:
        what = "is a depth map" if is_deep(coding) else "has pictures in a coding that is not read"
        raise BadVideo(f"{where}: {what} ({coding:.40}). Read are {', '.join([*PIXELS, *PACKED])}.")
    if step < width * channels or len(data) < step * height:
        raise BadVideo(f"{where}: has {len(data)} bytes for {height} rows of {step}.")
    rows = data[: step * height].reshape(height, step)[:, : width * channels]
    if coding in PACKED:
        import av

        with guarded(where):
            raw = np.ascontiguousarray(rows).reshape(height, width, 2)
            return av.VideoFrame.from_ndarray(raw, format=PACKED[coding]).to_ndarray(format="rgb24")
    return np.ascontiguousarray(rows.reshape(height, width, channels)[..., list(order)])


def is_deep(coding: str) -> bool:
    """Does an encoding or a format say that pictures are depth maps?"""
    return bool(DEEP.search(coding)) and "jpeg" not in coding


class Clock:
    """When the messages of topics were sent: by their headers if all have them and they agree with the recording's
    clock, else by that."""

    def __init__(self) -> None:
        self._logged: dict[Any, list[float]] = {}
        self._stamped: dict[Any, list[float | None]] = {}

    def add(self, key: Any, logged: float, stamp: float | None) -> None:
        self._logged.setdefault(key, []).append(logged)
        self._stamped.setdefault(key, []).append(stamp)

    @property
    def _by_headers(self) -> bool:
        pairs = [(s, t) for key, own in self._stamped.items() for s, t in zip(own, self._logged[key], strict=True)]
        return all(s is not None and abs(s - t) < CLOCKS for s, t in pairs)

    @property
    def told(self) -> str:
        return "those in the messages' headers" if self._by_headers else "those of the recording (headers have none)"

    def times(self, key: Any) -> Array:
        """float64 [n], in the order of the messages."""
        chosen = self._stamped if self._by_headers else self._logged
        return np.array(chosen.get(key, []), np.float64)


class Series:
    """The numbers of a topic's messages, in columns that the first message names; in the order `usual` where these are
    the same names, for recordings list joints in any order."""

    def __init__(self, part: tuple[str, str], where: str, usual: Sequence[str]) -> None:
        self._topic, self._inside = part
        self._where, self._usual = where, usual
        self._rows: list[list[float]] = []
        self._odd = 0
        self.places = False  # are they positions of joints?
        self.names: list[str] = []

    def add(self, message: ros.Message) -> bool:
        """Take a message, or False for one of other numbers than the first, such as another part's joints."""
        named = dict(numbers_of(message, self._inside, f"{self._where}, {self._topic}"))
        if not self.names:
            self.names = list(self._usual if named.keys() == set(self._usual) else named)
        if not named or named.keys() != set(self.names):
            self._odd += 1
            return False
        self._rows.append([named[name] for name in self.names])
        self.places = not self._inside and ("position" in message or "points" in message)
        return True

    def rows(self) -> Array:
        """float64 [n, D]."""
        return np.array(self._rows, np.float64)

    def notes(self) -> list[str]:
        """What was passed over."""
        return (
            [f"not taken: {self._odd} messages of {self._topic} with other numbers than the first"] if self._odd else []
        )
