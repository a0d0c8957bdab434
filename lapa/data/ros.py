"""Messages of ROS 1 and ROS 2 as their definitions describe them, both serializations (ROS 1's own, and CDR).

The decoders that MCAP's libraries offer for ROS 1 make Python code of the definition in the file and run it. Here
definitions are data, and no count in a message is believed beyond the bytes that are there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lapa.contracts import Array

CODES = {
    "bool": "?", "byte": "u1", "char": "u1", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4",
    "uint32": "u4", "int64": "i8", "uint64": "u8", "float32": "f4", "float64": "f8",
}  # fmt: skip
BUILT_IN = {  # often left out of what a file describes
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec",
    "builtin_interfaces/Duration": "int32 sec\nuint32 nanosec",
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id",
}
LINE = re.compile(
    r"(?P<type>[A-Za-z]\w*(?:/[A-Za-z]\w*)*)(?:<=\d+)?(?P<many>\[(?P<count>\d*|<=\d+)\])?\s+(?P<name>[A-Za-z]\w*)\s*(?P<rest>.*)"
)
DEEP = 16  # messages within messages; more is taken for damage
PADDED = 1 << 16  # messages in a list

Message = dict[str, Any]  # field -> number, text, array of numbers, message, or list of texts or messages


@dataclass(frozen=True)
class Field:
    """A field of a message. count: None for one value, -1 for a list that says its length, else how many."""

    name: str
    type: str
    count: int | None


Types = Mapping[str, tuple[Field, ...]]


def definitions(name: str, text: str) -> dict[str, tuple[Field, ...]]:
    """A definition and those it uses, as files have them behind one another, by short name ("sensor_msgs/Image").
    Raises ValueError for what is none."""
    found = {known: _fields(lines, known) for known, lines in BUILT_IN.items()}
    parts = re.split(r"^=+\s*$", text, flags=re.MULTILINE)
    for number, part in enumerate(parts):
        its = name
        if number:
            head, _, part = part.strip().partition("\n")
            its = head.removeprefix("MSG:").strip()
        found[short(its)] = _fields(part, short(its))
    return found


def short(name: str) -> str:
    """ "sensor_msgs/msg/Image" -> "sensor_msgs/Image", as ROS 1 calls it."""
    return name.replace("/msg/", "/")


def _fields(text: str, owner: str) -> tuple[Field, ...]:
    found = []
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        named = LINE.fullmatch(line)
        if not named:
            raise ValueError(f"the definition of {owner:.60} has a line {line!r:.60}")
        if named["rest"].startswith("="):  # a constant
            continue
        count = None if named["many"] is None else int(named["count"]) if named["count"].isdecimal() else -1
        kind = short(named["type"])
        if kind == "Header":
            kind = "std_msgs/Header"
        elif "/" not in kind and kind not in (*CODES, "string", "wstring", "time", "duration"):
            kind = f"{owner.rpartition('/')[0]}/{kind}"
        found.append(Field(named["name"], kind, count))
    return tuple(found)


def decoded(types: Types, name: str, data: bytes, cdr: bool) -> Message:
    """A message: of ROS 2 as CDR, of ROS 1 as it writes them. Raises ValueError for bytes that are none."""
    try:
        return _Bytes(types, data, cdr).message(short(name), 0)
    except struct.error:
        raise ValueError(f"a message of {name} ends early") from None


class _Bytes:
    """Reads the bytes of a message from front to back."""

    def __init__(self, types: Types, data: bytes, cdr: bool) -> None:
        self._types, self._data, self._cdr = types, data, cdr
        self._at, self._order = 0, "<"
        if cdr:
            if len(data) < 4 or data[1] > 1:
                raise ValueError("a message is not in plain CDR")
            self._at, self._order = 4, "<" if data[1] else ">"

    def message(self, name: str, deep: int) -> Message:
        if name not in self._types:
            raise ValueError(f"there is no definition of {name:.60}")
        if deep > DEEP:
            raise ValueError(f"{name:.60} holds itself")
        fields = self._types[name]
        if not fields and self._cdr:
            self._at += 1  # what is empty is written as a byte
        return {field.name: self._value(field, deep) for field in fields}

    def _value(self, field: Field, deep: int) -> Any:
        if field.count is None:
            return self._one(field.type, deep)
        count = self._number("u4") if field.count < 0 else field.count
        if field.type in CODES:
            return self._numbers(CODES[field.type], count)
        if count > min(len(self._data) - self._at, PADDED):
            raise ValueError(f"{field.name} says that it has {count} entries")
        return [self._one(field.type, deep) for _ in range(count)]

    def _one(self, kind: str, deep: int) -> Any:
        if kind in CODES:
            return self._number(CODES[kind])
        if kind == "string":
            return self._text()
        if kind in ("time", "duration"):
            return {"sec": self._number("u4" if kind == "time" else "i4"), "nanosec": self._number("u4")}
        if kind == "wstring":
            raise ValueError("texts of wide characters are not read")
        return self.message(kind, deep + 1)

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0].item()

    def _numbers(self, code: str, count: int) -> Array:
        kind = np.dtype(code if code == "?" else self._order + code)
        if self._cdr and count:
            self._at += (4 - self._at) % kind.itemsize if kind.itemsize > 1 else 0  # counted from behind the header
        if count * kind.itemsize > len(self._data) - self._at:
            raise ValueError(f"a message says that it has {count} numbers and ends before")
        found = np.frombuffer(self._data, kind, count, self._at)
        self._at += count * kind.itemsize
        return found

    def _text(self) -> str:
        raw = self._numbers("u1", self._number("u4")).tobytes()
        return (raw.rstrip(b"\0") if self._cdr else raw).decode("utf-8", "replace")


def stamp_of(message: Message) -> float | None:
    """Seconds of the clock of whoever sent it, None where it does not say (or says 0)."""
    header = message.get("header")
    stamp = header.get("stamp") if isinstance(header, dict) else message.get("timestamp")
    if not isinstance(stamp, dict):
        return None
    seconds = float(stamp.get("sec") or 0) + 1e-9 * float(stamp.get("nanosec") or 0)
    return seconds if seconds > 0 else None


def numbers_in(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a message with its name, such as pose.position.x; not those of headers, layouts and
    covariances."""
    if isinstance(value, dict):
        for name, inside in value.items():
            if name not in ("header", "layout", "covariance", "timestamp", "stamp", "time_from_start"):
                yield from numbers_in(inside, f"{path}.{name}" if path else name)
    elif isinstance(value, np.ndarray):
        yield from ((f"{path}_{i}", float(one)) for i, one in enumerate(value[:PADDED]))
    elif isinstance(value, list):
        for i, inside in enumerate(value):
            yield from numbers_in(inside, f"{path}_{i}")
    elif isinstance(value, bool | int | float):
        yield path, float(value)
