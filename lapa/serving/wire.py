"""Bytes to values and back: msgpack (openpi, vla-eval) and JSON (OpenVLA), with arrays of NumPy in both.

Before a message is decoded, its depth, the number of its values and their lengths are checked. The type of an array
must be on a short list, and its shape and size must agree. Nothing is ever unpickled.

How arrays are sent:
    openpi    {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [..]}, b"__npgeneric__" for one number
    vla-eval  the same with text for keys; pictures as {"__image__": True, "format": "png", "data": bytes, "shape": ..}
    OpenVLA   {"__numpy__": base64, "dtype": "<f4", "shape": [..]}, which is what the package json-numpy writes
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping
from typing import Any, Literal

import msgpack
import numpy as np

from lapa.contracts import Array, BadVideo
from lapa.data.images import decoded, opened_image
from lapa.serving import Fault, shortened

DEEPEST, MOST_VALUES, MOST_DIMENSIONS = 8, 20_000, 8  # of a message; an observation has some thirty values
LONGEST_TEXT = 64 * 1024
MOST_JSON = 1_000_000  # of {, [ and comma: a picture as nested lists of 500 x 500 pixels
LARGEST_SIDE = 4096  # pixels; a small file of PNG may say that it is huge
TYPES = {np.dtype(name) for name in ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
                                     "float16", "float32", "float64")}  # fmt: skip
NAMES = {form: each for each in TYPES for form in (each.name, each.str[1:], each.char)}
Form = Literal["openpi", "vla-eval"]


# --- msgpack


def unpack(data: bytes) -> Any:
    """A message of msgpack as values, arrays as NumPy's. Raises Fault."""
    _look_through(data)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, object_hook=_made, max_ext_len=0)
    except Fault:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise Fault(f"This is no msgpack that can be read ({shortened(str(error))}).") from None


def pack(value: Any, form: Form = "openpi") -> bytes:
    """Values and arrays as msgpack."""

    def arrays(one: Any) -> Any:
        if isinstance(one, np.ndarray):
            keys = ("__ndarray__", "data", "dtype", "shape")
            parts = zip(keys, (True, one.tobytes(), one.dtype.str, list(one.shape)), strict=True)
            return {key.encode() if form == "openpi" else key: part for key, part in parts}
        if isinstance(one, np.generic):
            return one.item()
        raise TypeError(f"{type(one).__name__} cannot be sent")

    made: bytes = msgpack.packb(value, default=arrays)
    return made


# What follows the first byte of a value: its length in so many bytes, or so many bytes of its own.
LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I",
           0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}  # fmt: skip
FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4,
         0xD3: 8}  # fmt: skip


def _look_through(data: bytes) -> None:
    """Raise Fault unless this is one whole value of msgpack, not too deep, with not too many parts, and without types
    that an application defines. It is not decoded here: 32 MB of it can take gigabytes in memory."""
    at, values, waiting = 0, 0, [1]  # waiting: values still to come, at each depth
    while waiting:
        if not waiting[-1]:
            waiting.pop()
            continue
        waiting[-1] -= 1
        values += 1
        if values > MOST_VALUES:
            raise Fault(f"The message has more than {MOST_VALUES:,} values. Send pictures and states as arrays.", 413)
        if at >= len(data):
            raise Fault("The message ends too early: this is no whole msgpack.")
        head, inside, at = data[at], 0, at + 1
        length = 0
        if head in LENGTHS:
            size = struct.calcsize(LENGTHS[head])
            if at + size > len(data):
                raise Fault("The message ends too early: this is no whole msgpack.")
            (length,) = struct.unpack_from(LENGTHS[head], data, at)
            at += size
        if head in (0xD9, 0xDA, 0xDB) and length > LONGEST_TEXT:
            raise Fault(f"The message has a text of {length:,} bytes; {LONGEST_TEXT:,} are taken.", 413)
        if head < 0x80 or head >= 0xE0:
            pass
        elif head <= 0x8F or head in (0xDE, 0xDF):
            inside = 2 * (head & 0x0F if head <= 0x8F else length)
        elif head <= 0x9F or head in (0xDC, 0xDD):
            inside = head & 0x0F if head <= 0x9F else length
        elif head <= 0xBF:
            at += head & 0x1F
        elif head in LENGTHS:
            at += length
        elif head in FIXED:
            at += FIXED[head]
        else:
            raise Fault(f"The message has a value of the kind 0x{head:02x}, which no observation has.")
        if at > len(data):
            raise Fault("The message ends too early: this is no whole msgpack.")
        if inside:
            if len(waiting) > DEEPEST:
                raise Fault(f"The message is nested more than {DEEPEST} deep.", 413)
            waiting.append(inside)
    if at != len(data):
        raise Fault(f"{len(data) - at:,} bytes follow the message. Send one message at a time.")


def _made(found: dict[Any, Any]) -> Any:
    """A dictionary of msgpack, or the array, number or picture that it describes."""
    told = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in found.items()}
    if "__ndarray__" in told:
        return array_of(told.get("data"), told.get("dtype"), told.get("shape"))
    if "__npgeneric__" in told:
        return _number(told.get("data"), told.get("dtype"))
    if "__image__" in told:
        return _picture(told)
    return told


# --- JSON


def unpack_json(text: bytes | str) -> Any:
    """JSON as values, the arrays of json-numpy as NumPy's. Raises Fault."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        if sum(raw.count(mark) for mark in b"{[,") > MOST_JSON:
            raise Fault(f"The JSON has more than {MOST_JSON:,} values. Send pictures as json-numpy does.", 413)
        return json.loads(raw, object_hook=_made_of_json)
    except Fault:
        raise
    except (ValueError, RecursionError) as error:
        raise Fault(f"This is no JSON that can be read ({shortened(str(error))}).") from None


def pack_json(value: Any) -> str:
    """Values and arrays as JSON, as json-numpy writes it."""

    def arrays(one: Any) -> Any:
        if isinstance(one, np.ndarray):
            data = base64.b64encode(one.tobytes()).decode()
            return {"__numpy__": data, "dtype": one.dtype.str, "shape": list(one.shape)}
        raise TypeError(f"{type(one).__name__} cannot be sent")

    return json.dumps(value, default=arrays)


def _made_of_json(found: dict[str, Any]) -> Any:
    if "__numpy__" not in found:
        return found
    kind, shape = _type(found.get("dtype")), _shape(found.get("shape"))
    text, wanted = found["__numpy__"], kind.itemsize * math.prod(shape)
    if not isinstance(text, str) or len(text) != (wanted + 2) // 3 * 4:
        raise Fault(f"An array of shape {list(shape)} and type {kind} is not {len(str(text)):,} characters of base64.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Fault("An array is not written in base64.") from None
    return array_of(data, kind.str, shape)


# --- arrays


def array_of(data: Any, dtype: Any, shape: Any) -> Array:
    """An array from bytes. Raises Fault unless type, shape and size are given and agree."""
    kind, sides = _type(dtype), _shape(shape)
    wanted = kind.itemsize * math.prod(sides)
    if not isinstance(data, bytes) or len(data) != wanted:
        got = f"{len(data):,} bytes" if isinstance(data, bytes) else type(data).__name__
        raise Fault(f"An array of shape {list(sides)} and type {kind} has {wanted:,} bytes; got {got}.")
    return np.frombuffer(data, kind).reshape(sides).copy()


def _type(told: Any) -> np.dtype[Any]:
    """One of TYPES from "<f4", "|u1", "float32". Others, such as objects, are refused before NumPy sees them."""
    if isinstance(told, bytes):
        told = told.decode("ascii", "replace")
    order, rest = (told[0], told[1:]) if isinstance(told, str) and told[:1] in "<>|=" else ("", told)
    if not isinstance(rest, str) or rest not in NAMES:
        raise Fault(f"An array's type is {shortened(told, 40)}; taken are whole numbers, floats and bool of NumPy.")
    return NAMES[rest].newbyteorder(">") if order == ">" else NAMES[rest]


def _shape(told: Any) -> tuple[int, ...]:
    good = isinstance(told, list | tuple) and len(told) <= MOST_DIMENSIONS
    if not good or any(type(side) is not int or not 0 <= side < 2**31 for side in told):
        raise Fault(f"An array's shape is {shortened(told, 60)}; a shape is at most {MOST_DIMENSIONS} whole numbers.")
    return tuple(told)


def _number(data: Any, dtype: Any) -> float | int | bool:
    _type(dtype)
    if not isinstance(data, int | float):
        raise Fault(f"A number of NumPy holds {type(data).__name__}.")
    return data


def _picture(told: Mapping[str, Any]) -> Array:
    """A picture of vla-eval: raw, or a file of PNG or JPEG whose size is read before it is decoded."""
    data, kind = told.get("data"), told.get("format")
    if kind == "raw":
        return array_of(data, told.get("dtype"), told.get("shape"))
    if kind not in ("png", "jpeg") or not isinstance(data, bytes):
        raise Fault(f"A picture's format is {shortened(kind, 40)}; taken are raw, png and jpeg.")
    made, seen = None, (0, 0)
    try:
        with opened_image(data, "The picture") as image:
            seen, file = (image.height, image.width), image.format
            if file in ("PNG", "JPEG") and max(seen) <= LARGEST_SIDE:
                made = decoded(image, "The picture")
                seen = made.shape[:2]
    except BadVideo as error:
        raise Fault(str(error)) from None
    if made is None:
        raise Fault(f"A picture is {file}, {seen[0]} x {seen[1]} pixels; taken are PNG and JPEG up to {LARGEST_SIDE} "
                    "pixels a side.", 413)  # fmt: skip
    if told.get("shape") is not None and _shape(told["shape"])[:2] != seen:
        raise Fault(f"A picture of {seen[0]} x {seen[1]} pixels says that its shape is {shortened(told['shape'], 60)}.")
    return made
