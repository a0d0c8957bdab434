"""The released code's `params` files, read without holding one in memory, and written.

The file is a stream of msgpack objects (key, bytes): the key a list of strings, the bytes what flax makes of an array,
msgpack again. That is an extension of type 1 with (shape, dtype, bytes), or for an array of more than 2^30 bytes a map
of such pieces. Only the headers are read first; the numbers stay in the file until they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lapa.contracts import Array, LapaError

KINDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # flax's name: safetensors' name
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
CHUNKED = "__msgpack_chunked_array__"
CHUNK = 2**30  # bytes of an array that are kept in one piece
PIECE = 1 << 24  # bytes that are read at once
PARTS = 64  # or this part of an array
ARRAY = 1  # flax's extension type
DEEPEST = 8
LONGEST = 4096  # bytes of a name

Spans = tuple[tuple[int, int], ...]  # (offset, length) in a file


@dataclass(frozen=True)
class Stored:
    """An array in a file: where its bytes are. `dtype` as numpy calls it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    spans: Spans

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * BYTES[self.dtype]

    def part(self, index: int) -> Stored:
        """Entry `index` of its first axis."""
        size = self.size // self.shape[0]
        return Stored(self.path, self.dtype, self.shape[1:], tuple(_cut(self.spans, index * size, size)))

    def bits(self) -> Array:
        """Its numbers, as unsigned integers of the same size: numpy knows no bfloat16."""
        whole = np.empty(prod(self.shape), f"<u{BYTES[self.dtype]}")
        view, at = whole.view(np.uint8), 0
        with self.path.open("rb") as file:
            for offset, length in self.spans:
                file.seek(offset)
                if file.readinto(view[at : at + length].data) != length:
                    raise LapaError(f"{self.path} has become shorter while it was read.")
                at += length
        return whole.reshape(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """Its bytes in order, few at a time."""
        with self.path.open("rb") as file:
            for offset, length in self.spans:
                file.seek(offset)
                while length:
                    piece = file.read(min(PIECE, length, max(self.size // PARTS // 8 * 8, 4096)))
                    if not piece:
                        raise LapaError(f"{self.path} has become shorter while it was read.")
                    length -= len(piece)
                    yield piece


def _cut(spans: Spans, start: int, size: int) -> Iterator[tuple[int, int]]:
    for offset, length in spans:
        if start < length and size:
            taken = min(length - start, size)
            yield offset + start, taken
            size -= taken
        start = max(start - length, 0)


def transposed(stored: Stored) -> Iterator[bytes]:
    """The bytes of a matrix [in, out] as [out, in], few at a time; the matrix itself is in memory meanwhile."""
    bits = stored.bits()
    rows = max(1, bits.shape[1] // PARTS)
    for start in range(0, bits.shape[1], rows):
        yield np.ascontiguousarray(bits[:, start : start + rows].T).tobytes()


# --- reading


def read_index(path: Path) -> dict[str, Stored]:
    """What a `params` file holds: key, joined by "/", -> where the array is. What stands before "transformer/" or a
    head in all keys, such as "params/", is left out.

    Raises LapaError for a file that is missing, no such stream, or ends too early.
    """
    if not path.is_file():
        raise LapaError(
            f"{path} {'is no file' if path.exists() else 'does not exist'}. Give the released `params` file."
        )
    found: dict[str, Stored] = {}
    with path.open("rb") as file:
        reader = Headers(file, path)
        if reader.peek() == b"version https:":
            raise LapaError(f"{path} is a pointer of Git LFS. Fetch the file itself: git lfs pull.")
        while not reader.done():
            reader.within = f"after {list(found)[-1]}" if found else "at its first key"
            if reader.header() != ("array", 2):
                raise reader.wrong("a pair of key and bytes was expected")
            name = "/".join(reader.key())
            reader.within = f"in {name}"
            if name in found:
                raise reader.wrong("the key is there twice")
            found[name] = reader.stored()
    if not found:
        raise LapaError(f"{path} is empty; the released `params` file has 13.6 GB. Fetch it again.")
    return _bare(found)


def _bare(found: dict[str, Stored]) -> dict[str, Stored]:
    while all(name.startswith("params/") for name in found):
        found = {name.removeprefix("params/"): stored for name, stored in found.items()}
    return found


class Headers:
    """Reads msgpack in a file, but steps over the bytes of arrays."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.size, self.within = file, path, path.stat().st_size, ""

    def done(self) -> bool:
        """Is this the end of the file?"""
        return self.file.tell() >= self.size

    def peek(self) -> bytes:
        """The first bytes of the file."""
        start = self.file.read(14)
        self.file.seek(0)
        return start

    def wrong(self, what: str) -> LapaError:
        """An error that names the file, the key and the byte."""
        return LapaError(
            f"{self.path} is no `params` file of the released code, or it is damaged, {self.within}, at byte "
            f"{self.file.tell():,} of {self.size:,}: {what}. Fetch it again."
        )

    def take(self, count: int) -> bytes:
        """The next bytes."""
        found = self.file.read(count)
        if len(found) < count:
            raise self.wrong("the file ends here, it is cut short")
        return found

    def skip(self, count: int) -> tuple[int, int]:
        """Step over bytes: where they are."""
        start = self.file.tell()
        if start + count > self.size:
            self.file.seek(self.size)
            raise self.wrong(f"{start + count - self.size:,} bytes are missing, the file is cut short")
        self.file.seek(start + count)
        return start, count

    def header(self) -> tuple[str, Any]:
        """The next object: ("array" | "map" | "str" | "bin" | "ext", its length) or ("value", a number, bool or None).
        What is in it follows; that of "ext" begins with its type, a byte."""
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return "value", code if code < 0x80 else code - 256
        for least, kind, bits in ((0xA0, "str", 31), (0x90, "array", 15), (0x80, "map", 15)):
            if least <= code < 0xC0:
                return kind, code & bits
        if 0xD4 <= code <= 0xD8:
            return "ext", 1 << (code - 0xD4)
        if code in LENGTHS:
            kind, form = LENGTHS[code]
            return kind, struct.unpack(form, self.take(struct.calcsize(form)))[0]
        if code in CONSTANTS:
            return "value", CONSTANTS[code]
        raise self.wrong("this is no msgpack")

    def text(self) -> str:
        """A short string. Raises LapaError for anything else."""
        kind, length = self.header()
        if kind not in ("str", "bin") or length > LONGEST:
            raise self.wrong(f"a name was expected, and there is a {kind}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.wrong("a name is no text") from None

    def whole(self, what: str, kind: str) -> int:
        """The length of the array, map or run of bytes that is here. Raises LapaError for anything else."""
        found, length = self.header()
        if found != kind:
            raise self.wrong(f"{what} was expected, and there is a {found}")
        return int(length)

    def number(self) -> int:
        """A whole number, at least 0."""
        kind, value = self.header()
        if kind != "value" or not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(f"a size was expected, and there is {value!r}")
        return value

    def key(self) -> list[str]:
        """A list of names."""
        count = self.whole("a key", "array")
        if not 0 < count <= DEEPEST * 2:
            raise self.wrong(f"a key has {count} parts")
        return [self.text() for _ in range(count)]

    def stored(self) -> Stored:
        """An array as flax packs it, in bytes."""
        length = self.whole("an array", "bin")
        start = self.file.tell()
        if start + length > self.size:
            self.skip(length)
        found = self._packed()
        if self.file.tell() != start + length:
            raise self.wrong("an array does not fill its bytes")
        if prod(found.shape) * BYTES[found.dtype] != sum(size for _, size in found.spans):
            raise self.wrong(f"an array of {list(found.shape)} {found.dtype} has another number of bytes")
        return found

    def _packed(self) -> Stored:
        kind, length = self.header()
        if kind == "ext":
            return self._array()
        if kind != "map":
            raise self.wrong(f"an array was expected, and there is a {kind}")
        shape: dict[int, int] = {}
        pieces: dict[int, Stored] = {}
        chunked = False
        for _ in range(length):
            name = self.text()
            if name == CHUNKED:
                chunked = self.header() == ("value", True)
            elif name == "shape":
                shape = {self._place(): self.number() for _ in range(self.whole("a shape", "map"))}
            elif name == "chunks":
                count = self.whole("pieces", "map")
                for _ in range(count):
                    place = self._place()
                    if self.header()[0] != "ext":
                        raise self.wrong("a piece is no array")
                    pieces[place] = self._array()
            else:
                raise self.wrong(f"{name} is no part of an array in pieces")
        dtypes = {piece.dtype for piece in pieces.values()}
        if not chunked or len(dtypes) != 1 or set(pieces) != set(range(len(pieces))):
            raise self.wrong("pieces of an array are missing")
        if set(shape) != set(range(len(shape))):
            raise self.wrong("a shape is not whole")
        spans = tuple(span for place in sorted(pieces) for span in pieces[place].spans)
        return Stored(self.path, dtypes.pop(), tuple(shape[axis] for axis in sorted(shape)), spans)

    def _place(self) -> int:
        text = self.text()
        if not text.isascii() or not text.isdecimal():
            raise self.wrong(f"{text} is no number of a piece")
        return int(text)

    def _array(self) -> Stored:
        kind = self.take(1)[0]
        if kind != ARRAY:
            raise self.wrong(f"an array was expected, and there is an extension of type {kind}")
        if self.whole("shape, dtype and bytes", "array") != 3:
            raise self.wrong("an array has other parts than shape, dtype and bytes")
        shape = tuple(self.number() for _ in range(self.whole("a shape", "array")))
        dtype = self.text()
        if dtype not in KINDS:
            raise self.wrong(f"it has {dtype}; {', '.join(KINDS)} can be read")
        return Stored(self.path, dtype, shape, (self.skip(self.whole("bytes", "bin")),))


LENGTHS = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"), 0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"),
    0xC9: ("ext", ">I"), 0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"), 0xDC: ("array", ">H"),
    0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"), 0xCC: ("value", ">B"), 0xCD: ("value", ">H"),
    0xCE: ("value", ">I"), 0xCF: ("value", ">Q"), 0xD0: ("value", ">b"), 0xD1: ("value", ">h"), 0xD2: ("value", ">i"),
    0xD3: ("value", ">q"), 0xCA: ("value", ">f"), 0xCB: ("value", ">d"),
}  # fmt: skip
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


# --- writing


def write_array(file: BinaryIO, name: str, dtype: str, shape: Sequence[int], pieces: Iterator[bytes],
                chunk: int = CHUNK) -> None:  # fmt: skip
    """Append an array to a `params` file. `pieces` are its bytes in order; arrays of more than `chunk` bytes are
    written in several parts, as flax does."""
    size, width = prod(shape) * BYTES[dtype], BYTES[dtype]
    each = max(1, chunk // width) * width
    sizes = [size] if size <= chunk else [min(each, size - start) for start in range(0, size, each)]
    heads = [_array_head(dtype, [*shape] if size <= chunk else [part // width], part) for part in sizes]
    if size <= chunk:
        before = [heads[0]]
    else:
        whole = _head("map", 3) + _text(CHUNKED) + b"\xc3" + _text("shape") + _head("map", len(shape))
        whole += b"".join(_text(str(axis)) + _number(length) for axis, length in enumerate(shape))
        whole += _text("chunks") + _head("map", len(sizes))
        before = [(whole if i == 0 else b"") + _text(str(i)) + head for i, head in enumerate(heads)]
    file.write(_head("array", 2) + _head("array", name.count("/") + 1) + b"".join(map(_text, name.split("/"))))
    file.write(_head("bin", sum(map(len, before)) + size))
    left = memoryview(b"")
    for head, part in zip(before, sizes, strict=True):
        file.write(head)
        while part:
            left = left if len(left) else memoryview(next(pieces))
            written = file.write(left[:part])
            left, part = left[written:], part - written


def _array_head(dtype: str, shape: Sequence[int], size: int) -> bytes:
    inside = _head("array", 3) + _head("array", len(shape)) + b"".join(map(_number, shape)) + _text(dtype)
    inside += _head("bin", size)
    return _head("ext", len(inside) + size) + bytes([ARRAY]) + inside


def _head(kind: str, length: int) -> bytes:
    """The first bytes of an object, in the shortest form, as msgpack writes them."""
    short = {"array": (0x90, 16), "map": (0x80, 16), "str": (0xA0, 32)}
    if kind in short and length < short[kind][1]:
        return bytes([short[kind][0] | length])
    if kind == "ext" and length in (1, 2, 4, 8, 16):
        return bytes([0xD4 + length.bit_length() - 1])
    for code, (its, form) in LENGTHS.items():
        if its == kind and length < 1 << (8 * struct.calcsize(form)):
            return bytes([code]) + struct.pack(form, length)
    raise LapaError(f"An array of {length:,} bytes is too large for the released format, which takes 4 GiB.")


def _text(text: str) -> bytes:
    return _head("str", len(text.encode())) + text.encode()


def _number(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    code, form = next((c, f) for c, f in ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
                      if value < 1 << (8 * struct.calcsize(f)))  # fmt: skip
    return bytes([code]) + struct.pack(form, value)
