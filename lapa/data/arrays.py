"""Episodes kept as arrays with a row for each frame, as HDF5 and zarr files have them: which are pictures, which are
numbers, and how both are read. data/recordings.py chooses among them.

Pictures are one of
    pixels   uint8 or float [T, H, W, 3], floats from 0 to 1 or from 0 to 255; a fourth channel is left out, and
             uint8 of one channel are grey
    planes   the same with the channels first, [T, 3, H, W]
    coded    JPEG, PNG or WebP: uint8 [T, bytes], rows filled up with zeros, or a row of bytes of its own length each
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from lapa.contracts import Array, BadVideo, LapaError
from lapa.data.images import LARGEST, read_image, resized

Coding = Literal["pixels", "planes", "coded"]
Flip = Literal["none", "rows", "columns"]
Colours = Literal["rgb", "bgr"]

BLOCK = 16 << 20  # bytes that are read at once, about
CHUNK = 1 << 30  # bytes: a file that says its chunks are larger is taken for damage before memory is
STEPS = 1 << 32  # likewise for frames of an episode
SHORTEST = 64  # bytes of a coded picture
LOOKED_AT = 8  # pictures that tell whether floats are from 0 to 1
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


class Rows(Protocol):
    """An array of a file, read by rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, rows: slice) -> Array: ...


@dataclass(frozen=True)
class Recording:
    """One episode of an open file. `arrays` are by their path within the episode, and its frames are the rows
    first : first + length of each (length None: all). `about` are the attributes, the episode's own before the
    file's. `where` names it in messages; `notes` say what was passed over."""

    id: str
    where: str
    arrays: Mapping[str, Rows]
    first: int = 0
    length: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """How pictures are brought upright: turned clockwise by `rotate` degrees, then mirrored; and their colours."""

    rotate: int = 0
    flip: Flip = "none"
    colours: Colours = "rgb"

    def __post_init__(self) -> None:
        if self.rotate % 90 or not 0 <= self.rotate < 360:
            raise LapaError(f"rotate is 0, 90, 180 or 270 degrees clockwise, not {self.rotate}.")

    def __call__(self, picture: Array) -> Array:
        """uint8 [H, W, 3] -> uint8, upright."""
        if self.rotate:
            picture = np.rot90(picture, -self.rotate // 90)
        if self.flip != "none":
            picture = picture[::-1] if self.flip == "rows" else picture[:, ::-1]
        if self.colours == "bgr":
            picture = picture[..., ::-1]
        return np.ascontiguousarray(picture)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """That of the picture when it is upright."""
        return (width, height) if self.rotate % 180 else (height, width)

    def __str__(self) -> str:
        """For people: "turned by 180 degrees", or nothing."""
        said = [f"turned by {self.rotate} degrees"] if self.rotate else []
        said += [] if self.flip == "none" else [f"mirrored, {self.flip} in the other order"]
        return " and ".join(said)


# --- what an array is


def coding(array: Rows) -> Coding | None:
    """How an array's pictures are kept, None for an array of something else. Raises BadVideo as `guarded` does."""
    shape, kind = array.shape, array.dtype
    if len(shape) == 4 and kind.kind in "uf" and (kind.kind == "f" or kind.itemsize == 1) and min(shape[1:]) > 0:
        known = (1, 3, 4) if kind.kind == "u" else (3, 4)
        if shape[3] in known and shape[1] > 4:
            return "pixels"
        return "planes" if shape[1] in known and shape[3] > 4 else None
    if len(shape) not in (1, 2) or not shape[0]:
        return None
    rows_of_bytes = len(shape) == 2 and kind == np.uint8 and shape[1] >= SHORTEST
    if rows_of_bytes or (len(shape) == 1 and kind.kind in "OVS"):
        return "coded" if bytes_of(array[0:1][0]).startswith(MAGIC) else None
    return None


def channels(array: Rows) -> int | None:
    """Of pictures, None where only decoding tells."""
    kind = coding(array)
    return None if kind in ("coded", None) else array.shape[3 if kind == "pixels" else 1]


def is_numbers(array: Rows) -> bool:
    """Is an array one of numbers: an action, a state, a time?"""
    return array.dtype.kind in "fiub" and 1 <= len(array.shape) <= 3


def bytes_of(row: Any) -> bytes:
    """A row of a coded picture as bytes, whatever type the file keeps it in; b"" for what is none."""
    if isinstance(row, bytes):
        return row
    if isinstance(row, np.void):
        return row.tobytes()
    return row.tobytes() if isinstance(row, np.ndarray) and row.dtype in (np.uint8, np.int8) else b""


# --- reading


@contextmanager
def guarded(where: str, doing: str = "cannot be read") -> Iterator[None]:
    """Whatever the libraries raise for damaged files, which has no common class, becomes a BadVideo naming `where`."""
    try:
        yield
    except LapaError:
        raise
    except Exception as error:
        reason = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
        raise BadVideo(f"{where}: {doing} ({reason[:300] or type(error).__name__}).") from None


def length_of(recording: Recording, names: Sequence[str]) -> int:
    """The frames of an episode, of which the arrays `names` (the camera first) have one row each; a last picture
    without an action is left out. Raises BadVideo where they have not."""
    lengths = {name: int(recording.arrays[name].shape[0]) for name in names}
    if recording.length is not None:
        short = [name for name, rows in lengths.items() if rows < recording.first + recording.length]
        if short:
            raise BadVideo(f"{recording.where}: {short[0]} has {lengths[short[0]]} rows, and the episode ends at row "
                           f"{recording.first + recording.length}.")  # fmt: skip
        length = recording.length
    else:
        length = min(lengths.values())
        if lengths[names[0]] - length > 1 or any(rows > lengths[names[0]] for rows in lengths.values()):
            listed = ", ".join(f"{name} {rows}" for name, rows in lengths.items())
            raise BadVideo(f"{recording.where}: its arrays do not have one row for each frame: {listed}.")
    if not 2 <= length < STEPS:
        raise BadVideo(f"{recording.where}: has {length} frames; a pair of frames needs two.")
    return length


@dataclass(frozen=True)
class Part:
    """An array of numbers, or some columns of it: those first : last, as in state[0:2]."""

    name: str
    first: int = 0
    last: int | None = None

    def width(self, arrays: Mapping[str, Rows]) -> int:
        """How many numbers a frame has of it."""
        return len(range(math.prod(arrays[self.name].shape[1:]))[self.first : self.last])

    def __str__(self) -> str:
        whole = self.first == 0 and self.last is None
        return self.name if whole else f"{self.name}[{self.first}:{'' if self.last is None else self.last}]"


def numbers_of(recording: Recording, parts: Sequence[Part], length: int) -> Array | None:
    """Arrays beside one another, float32 [length, D]; None for none."""
    found = []
    for part in parts:
        array = recording.arrays[part.name]
        width = math.prod(array.shape[1:])
        if not is_numbers(array) or not 0 < width * length < CHUNK // 8 or not part.width(recording.arrays):
            raise BadVideo(f"{recording.where}: {part} of {array.dtype} {list(array.shape)} are no numbers of frames.")
        with guarded(f"{recording.where}, {part.name}"):
            rows = np.asarray(array[recording.first : recording.first + length]).reshape(length, width)
            found.append(rows[:, part.first : part.last].astype(np.float32))
    return np.concatenate(found, 1) if found else None


def picture_size(recording: Recording, camera: str, turn: Turn) -> tuple[int, int]:
    """(H, W) of an episode's pictures, upright. Raises BadVideo for an array that has no pictures."""
    where = f"{recording.where}, {camera}"
    array = recording.arrays[camera]
    with guarded(where):
        kind = coding(array)
        if kind is None:
            raise BadVideo(f"{where}: {array.dtype} {list(array.shape)} are no pictures.")
        if kind == "coded":
            row = bytes_of(array[recording.first : recording.first + 1][0])
            return turn.size(*read_image(row, f"{where}, frame 0").shape[:2])
    height, width = array.shape[1:3] if kind == "pixels" else array.shape[2:]
    if height * width > LARGEST:
        raise BadVideo(f"{where}: says that it has {width} x {height} pixels.")
    return turn.size(height, width)


def pictures_of(
    recording: Recording, camera: str, length: int, turn: Turn, size: int | None, start: int = 0
) -> Iterator[Array]:
    """The pictures start : length of an episode, upright, uint8 [H, W, 3] or [size, size, 3] each. Raises BadVideo on
    the way."""
    where, array, first = f"{recording.where}, {camera}", recording.arrays[camera], recording.first
    shape = picture_size(recording, camera, turn)
    kind = coding(array)
    unit = array.dtype.kind == "f" and kind != "coded" and _is_unit(array, first, length, where)
    row = array.dtype.itemsize * math.prod(array.shape[1:]) if kind != "coded" else shape[0] * shape[1]
    step = max(1, min(64, BLOCK // max(row, 1)))
    for at in range(start, length, step):
        count = min(step, length - at)
        with guarded(f"{where}, frames {at} to {at + count - 1}"):
            block = array[first + at : first + at + count]
        if len(block) != count:
            raise BadVideo(f"{where}: has no frame {at + len(block)} of {length}.")
        for t, picture in enumerate(block, at):
            if kind == "coded":
                frame = turn(read_image(bytes_of(picture), f"{where}, frame {t}"))
            else:
                frame = turn(_eight_bits(picture if kind == "pixels" else np.moveaxis(picture, 0, 2), unit, where, t))
            if frame.shape[:2] != shape:
                raise BadVideo(f"{where}: frame {t} is {frame.shape[1]} x {frame.shape[0]}, the first {shape[1]} x "
                               f"{shape[0]}.")  # fmt: skip
            yield resized(frame, size)


def _is_unit(array: Rows, first: int, length: int, where: str) -> bool:
    """Are floats from 0 to 1, by some pictures of the episode? One alone may be black."""
    for frame in np.unique(np.linspace(0, length - 1, LOOKED_AT).astype(int)).tolist():
        with guarded(f"{where}, frame {frame}"):
            if float(np.max(array[first + frame : first + frame + 1], initial=0.0)) > 1.0:
                return False
    return True


def _eight_bits(picture: Array, unit: bool, where: str, t: int) -> Array:
    """[H, W, 1, 3 or 4] of any type -> uint8 [H, W, 3]. Raises BadVideo for floats that are no brightness."""
    picture = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture[..., :3]
    if picture.dtype == np.uint8:
        return picture
    scaled = picture.astype(np.float32) * (255.0 if unit else 1.0)
    if not (np.isfinite(scaled).all() and scaled.min() >= 0.0 and scaled.max() <= 255.5):
        raise BadVideo(f"{where}: frame {t} has values from {picture.min():g} to {picture.max():g}; floats are 0 to 1 "
                       "or 0 to 255.")  # fmt: skip
    return np.round(scaled).astype(np.uint8)


def spans_of(ends: Array, where: str) -> list[tuple[int, int] | BadVideo]:
    """Where episodes end, int [E], as Diffusion Policy's meta/episode_ends -> (first row, rows) of each; a BadVideo for
    one that ends where it begins, or before. Raises BadVideo for what is no list of ends."""
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends):
        raise BadVideo(f"{where}: is {ends.dtype} {list(ends.shape)}, no list of where episodes end.")
    found: list[tuple[int, int] | BadVideo] = []
    first = 0
    for number, end in enumerate(ends.tolist()):
        if not first < end < STEPS:
            found.append(BadVideo(f"{where}: episode {number} begins at row {first} and ends at {end}."))
            continue
        found.append((first, end - first))
        first = end
    return found
