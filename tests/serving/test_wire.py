"""Bytes to values: what is taken, and what is refused before anything is made of it."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_made import packed, unpacked

from lapa.serving import Fault
from lapa.serving.wire import DEEPEST, MOST_VALUES, array_of, pack, pack_json, unpack, unpack_json

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3), np.linspace(0, 1, 6, dtype=np.float32), np.array([True, False]),
    np.array(3.5), np.arange(4, dtype=">i2"), np.zeros((0, 3), np.float16), np.arange(3, dtype=np.int64),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
@pytest.mark.parametrize("text", [False, True])
def test_arrays_of_both_clients_arrive(array: Any, text: bool) -> None:
    found = unpack(packed({"a": array, "n": np.float32(0.5), "s": "word", "l": [1, 2.5, None]}, text))
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].dtype == array.dtype
    assert found["a"].flags.writeable
    assert (found["n"], found["s"], found["l"]) == (0.5, "word", [1, 2.5, None])


@pytest.mark.parametrize("form", ["openpi", "vla-eval"])
def test_what_is_sent_is_read_by_a_client(form: Any) -> None:
    found = unpacked(pack({"actions": np.float32([[1, 2]]), "t": {"ms": np.float64(3)}}, form))
    np.testing.assert_array_equal(found["actions"], [[1, 2]])
    assert found["t"] == {"ms": 3.0}


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_arrays_in_json(array: Any) -> None:
    written = {"__numpy__": base64.b64encode(array.tobytes()).decode(), "dtype": array.dtype.str,
               "shape": list(array.shape)}  # fmt: skip
    found = unpack_json(json.dumps({"a": written}))["a"]
    np.testing.assert_array_equal(found, array)
    again = unpack_json(pack_json([array, {"b": array}]))
    np.testing.assert_array_equal(again[1]["b"], array)


@pytest.mark.parametrize("kind", ["png", "jpeg", "raw"])
def test_pictures_of_vla_eval(kind: str) -> None:
    picture = np.full((6, 4, 3), 100, np.uint8)
    told: dict[str, Any] = {"__image__": True, "format": kind, "shape": [6, 4, 3], "dtype": "|u1"}
    held = io.BytesIO()
    if kind != "raw":
        Image.fromarray(picture).save(held, kind)
    found = unpack(msgpack.packb(told | {"data": held.getvalue() or picture.tobytes()}))
    assert found.shape == (6, 4, 3)
    assert abs(int(found.mean()) - 100) <= 1
    for wrong in ({"data": b"nothing"}, {"format": "tiff"}, {"shape": [6, 5, 3]}, {"data": "text"}):
        with pytest.raises(Fault):
            unpack(msgpack.packb(told | {"data": held.getvalue() or picture.tobytes()} | wrong))


def test_a_picture_of_a_file_is_that_of_the_training_data() -> None:
    """Turned as its EXIF tag says, and no depth map, which would be white (data/images.py)."""
    held, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.fromarray(np.full((6, 4, 3), 100, np.uint8)).save(held, "jpeg", exif=exif)
    told = {"__image__": True, "format": "jpeg", "data": held.getvalue(), "shape": [4, 6, 3]}
    assert unpack(msgpack.packb(told)).shape == (4, 6, 3)
    held = io.BytesIO()
    Image.fromarray(np.full((6, 4), 3000, np.uint16)).save(held, "png")
    with pytest.raises(Fault, match="depth map"):
        unpack(msgpack.packb({"__image__": True, "format": "png", "data": held.getvalue()}))


def test_a_small_file_that_says_it_is_huge_is_not_decoded() -> None:
    held = io.BytesIO()
    Image.new("1", (8000, 8000)).save(held, "PNG")
    with pytest.raises(Fault, match="8000"):
        unpack(msgpack.packb({"__image__": True, "format": "png", "data": held.getvalue()}))


def array(dtype: Any = "<f4", shape: Any = (2,), data: Any = b"\0" * 8) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0)


def nested(levels: int) -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


REFUSED = {
    "objects": msgpack.packb(array("|O", (1,))),
    "void": msgpack.packb(array("|V8", (1,))),
    "complex": msgpack.packb(array("<c8", (1,))),
    "text arrays": msgpack.packb(array("<U2", (1,))),
    "dates": msgpack.packb(array("<M8[s]", (1,))),
    "a structure": msgpack.packb(array([["a", "<f4"]], (2,))),
    "many fields": msgpack.packb(array("f4,f4", (1,))),
    "no type": msgpack.packb(array(None)),
    "a long type": msgpack.packb(array("<f4" * 1000)),
    "too few bytes": msgpack.packb(array(shape=(3,))),
    "too many bytes": msgpack.packb(array(shape=(1,))),
    "a negative shape": msgpack.packb(array(shape=(-2, -1))),
    "an overflowing shape": msgpack.packb(array(shape=(2**31 - 1,) * 8)),
    "a zero beside a huge side": msgpack.packb(array(shape=(0, 2**40), data=b"")),
    "a shape of floats": msgpack.packb(array(shape=(2.0,))),
    "a shape of bools": msgpack.packb(array(shape=(True, 2))),
    "a shape of many axes": msgpack.packb(array(shape=(1,) * 40, data=b"\0" * 4)),
    "no shape": msgpack.packb(array(shape=None)),
    "data as text": msgpack.packb(array(data="x" * 8)),
    "data as a list": msgpack.packb(array(data=[0] * 8)),
    "a number that is none": msgpack.packb({b"__npgeneric__": True, b"data": "3", b"dtype": "<f4"}),
    "a number of objects": msgpack.packb({b"__npgeneric__": True, b"data": 3, b"dtype": "|O"}),
    "nothing": b"",
    "half": packed(array())[:-3],
    "two messages": msgpack.packb(1) * 2,
    "the byte that is never used": b"\xc1",
    "a type of an application": msgpack.packb(msgpack.ExtType(5, b"abc")),
    "a date of msgpack": b"\xd6\xff\x00\x00\x00\x00",
    "a map that says it is long": b"\xdf\xff\xff\xff\xff",
    "a list that says it is long": b"\xdd\xff\xff\xff\xff\x01",
    "bytes that say they are long": b"\xc6\xff\xff\xff\xff\x00",
    "a long text": msgpack.packb({"prompt": "x" * 100_000}),
    "deep": msgpack.packb(nested(DEEPEST + 2)),
    "very deep": b"\x91" * 500_000,
    "many values": msgpack.packb([None] * (MOST_VALUES + 1)),
    "many empty maps": b"\xdc\xff\xff" + b"\x80" * 65535,
    "a key that cannot be one": b"\x81\x90\x01",
    "text that is no UTF-8": b"\xa2\xff\xfe",
    "a pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Fault):
            unpack(REFUSED[name])
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        unpack(data)
    except Fault:
        return
    msgpack.unpackb(data, strict_map_key=False)  # what is taken is msgpack


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_what_msgpack_writes_is_read(value: Any) -> None:
    try:
        found = unpack(msgpack.packb(value))
    except Fault:
        assert depth(value) > DEEPEST - 1
    else:
        assert found == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 200_000, '{"a": ' * 100_000, "[{}," * 600_000, "nothing", '{"__numpy__": 3}', '{"a": 1}}',
     b"\xff\xfe",
     '{"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}', '{"__numpy__": "AAAA", "dtype": "|u1", "shape": [4]}',
     '{"__numpy__": "!AAA", "dtype": "|u1", "shape": [3]}',
     '{"__numpy__": "AAAA", "dtype": [["a", "|u1"]], "shape": [3]}',
     '{"__numpy__": "AAAA", "dtype": "|u1", "shape": [-3]}', '{"__numpy__": "AAAA", "dtype": "|u1"}'],
)  # fmt: skip
def test_json_that_is_refused(text: Any) -> None:
    with pytest.raises(Fault):
        unpack_json(text)


def test_types_by_name() -> None:
    assert array_of(b"\1\2\3", "uint8", [3]).tolist() == [1, 2, 3]
    assert array_of(b"\0\0\x80\x3f", "float32", (1,)).tolist() == [1.0]
