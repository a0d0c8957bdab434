"""TFRecord files of tf.train.Example without TensorFlow: framing, checksums, and the little protobuf that they need.

A record is length (uint64), checksum of the length, data, checksum of the data, little-endian; the checksum is a
CRC-32C, rotated and shifted ("masked"). An Example is a map from a name to a list of bytes, float32 or int64:

    Example {1: Features {1: entry {1: name, 2: Feature {1: BytesList | 2: FloatList | 3: Int64List {1: values}}}}}
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from lapa.contracts import Array, BadVideo
from lapa.data.folders import printable, readable

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf wire types
LISTS = {1: "bytes", 2: "float", 3: "int64"}  # field of Feature -> what it lists
Value = list[bytes] | Array  # bytes, float32 [N] or int64 [N]


def records(path: Path) -> Iterator[bytes | BadVideo]:
    """The records of a file, a BadVideo for one whose data are damaged. After a damaged length or
    a missing end nothing more is yielded, because nobody knows where the next record begins."""
    return (record for _, record in records_from(path))


def records_from(path: Path, start: int = 0) -> Iterator[tuple[int, bytes | BadVideo]]:
    """The same from byte `start` on, each with the byte at which it begins."""
    at, number = start, 0
    try:
        with readable(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            while head := file.read(12):
                where = f"{printable(path)}: " + (f"the record at byte {at}" if start else f"record {number}")
                if len(head) < 12:
                    yield at, BadVideo(f"{where} breaks off; the file is cut short.")
                    return
                (length,), (checksum,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
                if masked_crc(head[:8]) != checksum:
                    yield at, BadVideo(f"{where} has a damaged length (checksum), so it and all that follows is lost.")
                    return
                if length > size - file.tell() - 4:  # asked before memory is
                    yield at, BadVideo(f"{where} breaks off; the file is cut short.")
                    return
                data, tail = file.read(length), file.read(4)
                good = masked_crc(data) == struct.unpack("<I", tail)[0]
                yield at, data if good else BadVideo(f"{where} is damaged (checksum).")
                at, number = at + 16 + length, number + 1
    except BadVideo as bad:
        yield at, bad
    except OSError as error:
        yield at, BadVideo(f"{printable(path)}: cannot be read ({error.strerror}).")


def masked_crc(data: bytes) -> int:
    """The checksum of a TFRecord, uint32."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def example(data: bytes) -> dict[str, Value]:
    """A serialised tf.train.Example -> its features. Raises ValueError for bytes that are none."""
    features: dict[str, Value] = {}
    for _, outer in _chosen(data, 1):
        for _, entry in _chosen(outer, 1):
            parts = {number: value for number, _, value in _fields(entry)}
            name, feature = bytes(parts.get(1, b"")).decode(), parts.get(2, memoryview(b""))
            for number, kind, value in _fields(feature):
                if number in LISTS and kind == BYTES:
                    features[name] = _values(LISTS[number], value)
    return features


def _values(kind: str, data: memoryview) -> Value:
    """A BytesList, FloatList or Int64List; numbers may be packed into one field or come one by one."""
    fields = [(wire, value) for number, wire, value in _fields(data) if number == 1]
    if kind == "bytes":
        return [bytes(value) for _, value in fields]
    if kind == "float":
        if any(len(value) % 4 for _, value in fields):
            raise ValueError("a list of float32 that is no multiple of four bytes")
        return np.frombuffer(b"".join(bytes(value) for _, value in fields), "<f4").astype(np.float32)
    return _varints(b"".join(bytes(value) for _, value in fields))


def _varints(data: bytes) -> Array:
    """Base-128 integers, the low seven bits first -> int64 [N]."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128)
    if not len(raw):
        return np.empty(0, np.int64)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise ValueError("an integer that does not end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 9:
        raise ValueError("an integer of more than 64 bits")
    bits = (raw & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(bits, starts).astype(np.int64)


def _chosen(data: memoryview | bytes, number: int) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields with this number."""
    for found, wire, value in _fields(data):
        if found == number and wire == BYTES:
            yield wire, value


def _fields(data: memoryview | bytes) -> Iterator[tuple[int, int, memoryview]]:
    """(field number, wire type, raw value) of a protobuf message; a varint's raw value is its own bytes."""
    view, at = memoryview(data), 0
    while at < len(view):
        tag, at = _varint(view, at)
        wire, start = tag & 7, at
        if wire == VARINT:
            _, stop = _varint(view, at)
        elif wire == BYTES:
            length, start = _varint(view, at)
            stop = start + length
        elif wire in (FIXED32, FIXED64):
            stop = at + (4 if wire == FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire}")
        if stop > len(view):
            raise ValueError("a field that reaches past the end")
        yield tag >> 3, wire, view[start:stop]
        at = stop


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """The integer at `at`, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise ValueError("an integer that does not end")
        byte = view[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
