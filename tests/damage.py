"""Ways to damage what a dataset consists of. Each is a function of a file and a random generator, changes that file
alone and returns whether a reader must say so: a byte flipped in a picture may go unseen, an empty file may not."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Random = np.random.Generator
Way = Callable[[Path, Random], bool]
DATA = (".png", ".jpg", ".mp4", ".webm", ".mkv", ".avi", ".gif", ".mov", ".parquet")

# --- bytes


def changed(told: bool, change: Callable[[bytes, Random], bytes]) -> Way:
    """A way that rewrites the bytes of a file."""

    @functools.wraps(change)
    def way(file: Path, random: Random) -> bool:
        file.write_bytes(change(file.read_bytes(), random))
        return told

    return way


def cut_off(data: bytes, random: Random) -> bytes:
    return data[: random.integers(len(data))]


def flipped(data: bytes, random: Random) -> bytes:
    out = bytearray(data)
    for place in random.integers(0, len(data), random.integers(1, 30)):
        out[place] ^= int(random.integers(1, 256))
    return bytes(out)


def taken_out(data: bytes, random: Random) -> bytes:
    place, length = (int(n) for n in random.integers(1, max(len(data) // 2, 2), 2))
    return data[:place] + data[place + length :]


def put_in(data: bytes, random: Random) -> bytes:
    place = random.integers(len(data))
    return data[:place] + random.bytes(int(random.integers(1, 200))) + data[place:]


def moved(data: bytes, random: Random) -> bytes:
    """Two blocks in each other's place."""
    a, b, c = np.sort(random.integers(0, len(data), 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def huge(data: bytes, random: Random) -> bytes:
    """A number as large as 32 or 64 bits hold, somewhere: sizes and counts in headers are such numbers."""
    number = [b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x7f" + b"\xff" * 7][random.integers(4)]
    place = int(random.integers(len(data) if random.random() < 0.5 else min(len(data), 600)))
    return data[:place] + number + data[place + len(number) :]


def empty(data: bytes, random: Random) -> bytes:
    return b""


def noise(data: bytes, random: Random) -> bytes:
    return random.bytes(len(data))


def zeros(data: bytes, random: Random) -> bytes:
    return bytes(len(data))


def web_page(data: bytes, random: Random) -> bytes:
    """What a download leaves that was refused."""
    return b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"


BYTES: tuple[Way, ...] = (
    *(changed(False, change) for change in (cut_off, flipped, taken_out, put_in, moved, huge)),
    *(changed(False, change) for change in (cut_off, flipped, huge)),  # what happens most
    *(changed(True, change) for change in (empty, noise, zeros, web_page)),
)

# --- files


def link_to_nowhere(file: Path, random: Random) -> bool:
    file.unlink()
    file.symlink_to("gone")
    return True


def link_to_itself(file: Path, random: Random) -> bool:
    file.unlink()
    file.symlink_to(file)
    return True


def pipe(file: Path, random: Random) -> bool:
    """Whoever opens it waits for ever."""
    file.unlink()
    os.mkfifo(file)
    return True


def endless(file: Path, random: Random) -> bool:
    file.unlink()
    file.symlink_to("/dev/zero")
    return True


def folder(file: Path, random: Random) -> bool:
    file.unlink()
    file.mkdir()
    return False  # a folder in a folder of videos is no video


FILES: tuple[Way, ...] = (link_to_nowhere, link_to_itself, pipe, endless, folder)

# --- films and pictures


def filmed(file: Path, frames: np.ndarray) -> bool:
    file.unlink()
    made.video(file, frames)
    return True


def one_frame(file: Path, random: Random) -> bool:
    return filmed(file, made.pictures(1))


def no_frame(file: Path, random: Random) -> bool:
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        container.start_encoding()
    return True


def audio_only(file: Path, random: Random) -> bool:
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return True


def forged_film(file: Path, random: Random) -> bool:
    """A size or a count that the file does not have: in the boxes of mp4, the frames of VP9, the screen of gif."""
    data = bytearray(file.read_bytes())
    boxes = [m.start() + 4 for m in re.finditer(b"stsz|stts|stsc|stco|ctts|mvhd|mdhd|tkhd|avc1|elst|strf|avih", data)]
    for place in boxes:
        if random.random() < 0.5:
            at = place + int(random.integers(0, 8)) * 4
            data[at : at + 4] = [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0"][random.integers(3)]
    for start in [m.end() for m in re.finditer(b"\x49\x83\x42", data)]:
        data[start : start + 5] = b"\x0f\xff\xff\xff\xff"
    if data[:3] == b"GIF":
        data[6:10] = struct.pack("<HH", *random.integers(9000, 65535, 2))
    file.write_bytes(data)
    return False


def picture_in_its_place(file: Path, random: Random) -> bool:
    file.write_bytes(made.encoded(made.pictures(1)[0]))
    return True


FILMS: tuple[Way, ...] = (one_frame, no_frame, audio_only, forged_film, forged_film, picture_in_its_place)


def another_size(file: Path, random: Random) -> bool:
    Image.new("RGB", (7, 5)).save(file)
    return True


def forged_picture(file: Path, random: Random) -> bool:
    """A PNG of 60,000 x 60,000 pixels, as its header says."""
    data = bytearray(made.encoded(made.pictures(1)[0]))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    file.write_bytes(data)
    return True


def large_picture(file: Path, random: Random) -> bool:
    """One that Pillow warns of and would open."""
    held = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(held, "PNG")
    file.write_bytes(held.getvalue())
    return True


PICTURES: tuple[Way, ...] = (another_size, forged_picture, large_picture)

# --- JSON

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, "", "x", "\ud800", "a\0b", "a" * 70_000, [], {}, [[]],
    {"a": {}}, [None], "/", "../..", "{x}", 9_999_999_999,
)  # fmt: skip


def mutated(value: Any, random: Random) -> Any:
    """A JSON value with one value in it, at any depth, replaced by an odd one, or with a key missing."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return ODD[random.integers(len(ODD))]
    out = value.copy()
    key = random.integers(len(out)) if isinstance(out, list) else list(out)[random.integers(len(out))]
    if isinstance(out, dict) and random.random() < 0.3:
        del out[key]
    else:
        out[key] = mutated(out[key], random)
    return out


def odd_value(file: Path, random: Random) -> bool:
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        place = random.integers(len(lines))
        lines[place] = json.dumps(mutated(json.loads(lines[place]), random))
        file.write_text("\n".join(lines))
    else:
        file.write_text(json.dumps(mutated(json.loads(file.read_text()), random)))
    return False


def deep(file: Path, random: Random) -> bool:
    """Brackets that exhaust the stack of a parser."""
    file.write_text("[" * 200_000)
    return True


def torn_line(file: Path, random: Random) -> bool:
    lines = file.read_text().splitlines()
    place = random.integers(len(lines))
    lines[place] = lines[place][: len(lines[place]) // 2]
    file.write_text("\n".join(lines))
    return True


def twice(file: Path, random: Random) -> bool:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[random.integers(len(lines))]]))
    return False


JSON: tuple[Way, ...] = (*[odd_value] * 6, deep)
LINES: tuple[Way, ...] = (*[odd_value] * 6, deep, torn_line, twice)

# --- parquet


def table(file: Path, random: Random) -> bool:
    """A column that is missing, of another type, ragged, with a null or a NaN; rows missing, double or none."""
    held = pq.read_table(file)
    name = held.column_names[random.integers(held.num_columns)]
    place, values = held.column_names.index(name), held[name].to_pylist()
    row, kind = int(random.integers(max(len(values), 1))), int(random.integers(9))
    if kind == 0:
        held = held.drop_columns([name])
    elif kind == 1:
        held = held.set_column(place, name, pa.array([str(v) for v in values]))
    elif kind == 2:
        held = held.set_column(place, name, pa.array([None if i == row else v for i, v in enumerate(values)]))
    elif kind == 3:
        held = held.set_column(place, name, pa.nulls(len(values)))
    elif kind == 4:
        held = held.slice(0, row)
    elif kind == 5:
        held = pa.concat_tables([held, held.slice(row, 1)])
    elif kind == 6:
        held = held.set_column(place, name, pa.array([[v] for v in values]))
    elif kind == 7 and isinstance(values[0], list) and len(values) > 1 and len(values[0]) > 1:
        ragged = [values[0][1:], [*values[1], values[0][0]], *values[2:]]  # as many values in all
        held = held.set_column(place, name, pa.array(ragged, pa.list_(pa.float32())))
        file.unlink()
        pq.write_table(held, file)
        return name == "action"
    else:
        odd = [float("nan"), -1, 1e30, 2**62][random.integers(4)]
        flat = [odd if i == row else v for i, v in enumerate(values)]
        nested = (
            [[odd] * len(v) if i == row else v for i, v in enumerate(values)] if isinstance(values[0], list) else None
        )
        try:
            held = held.set_column(place, name, pa.array(nested or flat))
        except (pa.ArrowException, OverflowError):  # text, say
            held = held.set_column(place, name, pa.array([odd] * len(values)))
    file.unlink()
    pq.write_table(held, file)
    return False


TABLES: tuple[Way, ...] = (table,) * 9

# --- TFRecord


def unpacked(data: bytes) -> list[bytes]:
    """The records of a whole TFRecord file."""
    out, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        out.append(data[at + 12 : at + 12 + length])
        at += length + 16
    return out


def wrong_checksum(file: Path, random: Random) -> bool:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return True


def forged_length(file: Path, random: Random) -> bool:
    """A record of up to 2^64 - 1 bytes whose length has the right checksum."""
    head = struct.pack("<Q", [2**64 - 1, 2**63 - 1, 2**40, 2**33][random.integers(4)])
    file.write_bytes(head + made.crc(head) + file.read_bytes()[12:])
    return True


def no_example(file: Path, random: Random) -> bool:
    some = unpacked(file.read_bytes())
    some[random.integers(len(some))] = random.bytes(100)
    made.tfrecord(file, some)
    return True


def damaged_example(file: Path, random: Random) -> bool:
    """Damage inside of a record, under a right checksum."""
    some, place = unpacked(file.read_bytes()), 0
    place = int(random.integers(len(some)))
    change = (cut_off, flipped, taken_out, moved, huge)[random.integers(5)]
    some[place] = change(some[place], random)
    made.tfrecord(file, some)
    return False


def fewer_records(file: Path, random: Random) -> bool:
    made.tfrecord(file, unpacked(file.read_bytes())[1:])
    return True


def double_record(file: Path, random: Random) -> bool:
    some = unpacked(file.read_bytes())
    made.tfrecord(file, [*some, some[0]])
    return True


def odd_features(file: Path, random: Random) -> bool:
    """A feature that is missing, empty, NaN, too short, or a list of another type."""
    from lapa.data.tfrecord import example

    some = unpacked(file.read_bytes())
    place = int(random.integers(len(some)))
    features: dict[str, Any] = dict(example(some[place]))
    name = sorted(features)[random.integers(len(features))]
    value = features[name]
    other = [np.arange(3.0), np.arange(3), [b"\xff\xfe"], [], np.full(12, np.nan), [b""] * 4][random.integers(6)]
    kind = random.integers(4)
    if kind == 0:
        del features[name]
    elif kind == 1:
        features[name] = value[:-1]
    elif kind == 2 and isinstance(value, np.ndarray) and value.dtype == np.float32:
        features[name] = np.full_like(value, np.nan)
    else:
        features[name] = other
    some[place] = made.example(features)
    made.tfrecord(file, some)
    return False


RECORDS: tuple[Way, ...] = (
    wrong_checksum, forged_length, no_example, *[damaged_example] * 4, fewer_records, double_record,
    *[odd_features] * 6,
)  # fmt: skip

# --- arrays in HDF5 files


def odd_array(file: Path, random: Random) -> bool:
    """An array that is missing, short, of other numbers or of another shape; an attribute that is missing or odd."""
    import h5py

    with h5py.File(file, "r+") as held:
        names: list[str] = []
        held.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        name, kind = names[random.integers(len(names))], int(random.integers(8))
        values = held[name][()]
        holder = held[name].parent
        if kind == 7:
            odd = [b"\xff\xfe", "x" * 1000, -1, 0, 1e300, float("nan"), json.dumps([[]])][random.integers(7)]
            for node in (holder, holder.parent, held):
                for attribute in list(node.attrs):
                    node.attrs[attribute] = odd
            return False
        del held[name]
        if kind == 1:
            held[name] = values[: random.integers(len(values))]
        elif kind == 2 and values.dtype.kind == "f":
            values.reshape(-1)[random.integers(values.size)] = [np.nan, np.inf, 1e300][random.integers(3)]
            held[name] = values
        elif kind == 3 and values.dtype.kind in "fiu":
            held[name] = values.astype([np.int64, np.float16, "S8", bool, np.complex128][random.integers(5)])
        elif kind == 4:
            held[name] = values[..., None]
        elif kind == 5:
            held[name] = np.array(["a text"], "S")
        elif kind == 6:
            held.create_group(name)
    return False


ARRAYS: tuple[Way, ...] = (odd_array,) * 9

# --- what lies beside the data, where nothing of the data may be lost


def loop_of_links(root: Path, random: Random) -> bool:
    (root / "loop").symlink_to(root)
    return False


def hidden_file(root: Path, random: Random) -> bool:
    """What a Mac leaves on other people's disks."""
    for suffix in DATA:
        (root / f"._x{suffix}").write_bytes(random.bytes(50))
    return False


def name_that_is_no_utf8(root: Path, random: Random) -> bool:
    for name in (b"/\xff.txt", b"/\xfe"):
        Path(os.fsdecode(os.fsencode(root) + name)).write_bytes(b"?")
    return False


def notes(root: Path, random: Random) -> bool:
    (root / "README.md").write_text("Filmed in March.")
    (root / "nested/deeper").mkdir(parents=True)
    return False


BESIDE: tuple[Way, ...] = (loop_of_links, hidden_file, name_that_is_no_utf8, notes)


def ways(file: Path) -> tuple[Way, ...]:
    """What can be done to a file."""
    kinds = {".json": JSON, ".jsonl": LINES, ".png": PICTURES, ".jpg": PICTURES, ".parquet": TABLES, ".csv": (twice,)}
    kinds |= {".hdf5": ARRAYS}
    if file.name in (".zarray", ".zgroup", ".zattrs", "zarr.json"):
        return (*BYTES, *FILES, *JSON)
    kinds |= dict.fromkeys((".mp4", ".webm", ".mkv", ".avi", ".gif", ".mov"), FILMS)
    return (*BYTES, *FILES, *(RECORDS if ".tfrecord" in file.name else kinds.get(file.suffix, ())))
