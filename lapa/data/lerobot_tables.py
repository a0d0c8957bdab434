"""The tables of a LeRobot dataset, read whatever form they have: rows in another file than meta says, vectors nested
in one another, pictures as bytes, as a path or as numbers."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lapa.contracts import Array, BadVideo, LapaError
from lapa.data.folders import readable
from lapa.data.images import read_image

EPISODE = "episode_index"
HELD = 2  # files whose tables are kept at hand


def read_table(path: Path, need: Sequence[str], also: Sequence[str] | None = ()) -> pa.Table:
    """The columns `need` (LapaError if missing) and those of `also` that exist, with what lies below them; every
    column for None. A name "a.b" may be the field b of a column a: then the table has a."""
    try:
        with pq.ParquetFile(readable(path)) as file:
            present = file.schema_arrow.names
            missing = [name for name in need if name not in present]
            if missing:
                raise LapaError(f"{path}: lacks the column {', '.join(missing)}. Columns: {', '.join(present)}.")
            if also is None:
                return file.read()
            roots = [root for name in also if (root := _root(name, present)) is not None]
            return file.read(columns=list(dict.fromkeys([*need, *roots])))
    except FileNotFoundError:
        raise LapaError(f"{path}: is missing; the dataset is incomplete.") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = "".join(filter(str.isprintable, " ".join(str(error).split())))
        raise LapaError(f"{path}: cannot be read as parquet ({reason}).") from None


def schema_of(path: Path) -> pa.Schema:
    """The columns of a parquet file. Raises LapaError when it cannot be read."""
    try:
        return pq.read_schema(readable(path))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise LapaError(f"{path}: cannot be read as parquet ({error}).") from None


def _root(name: str, present: Iterable[str]) -> str | None:
    """The column that holds what is called `name`: itself, or one of whose fields it is."""
    parts = name.split(".")
    found = {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & set(present)
    return max(found, key=len, default=None)


def column(table: pa.Table, name: str) -> pa.Array | None:
    """What a table has under a name, one value a row; None for nothing."""
    root = _root(name, table.column_names)
    if root is None:
        return None
    found = table.column(table.column_names.index(root)).combine_chunks()
    found = found.chunk(0) if isinstance(found, pa.ChunkedArray) else found
    for part in name[len(root) + 1 :].split(".") if len(name) > len(root) else ():
        if not pa.types.is_struct(found.type) or found.type.get_field_index(part) < 0:
            return None
        found = found.field(part)
    return found


def leaves(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The columns of a schema by name, and in place of a column with fields its fields: "a.b"."""

    def below(name: str, kind: pa.DataType) -> dict[str, pa.DataType]:
        if not pa.types.is_struct(kind):
            return {name: kind}
        found = [below(f"{name}.{kind.field(i).name}", kind.field(i).type) for i in range(kind.num_fields)]
        return {key: value for part in found for key, value in part.items()}

    return {key: value for field in schema for key, value in below(field.name, field.type).items()}


def number_type(kind: pa.DataType) -> bool:
    """Does a column of this type hold numbers, or lists of them, however deep?"""
    while is_listed(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_listed(kind: pa.DataType) -> bool:
    """Is it a type of lists?"""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def numbers(values: pa.Array, where: str, width: int | None = None) -> Array:
    """A column of numbers, or of lists of as many numbers in every row, nested in any way: float64 [T, D].

    Raises BadVideo, which begins with `where`, for other things, for rows of different widths, and for another width
    than `width`.
    """
    if isinstance(values.type, pa.ExtensionType):
        values = values.storage
    if not number_type(values.type):
        raise BadVideo(f"{where} holds {values.type}, no numbers.")
    rows, ends = len(values), np.arange(len(values) + 1)
    while is_listed(values.type):
        if values.null_count:
            raise BadVideo(f"{where} has a row without a value.")
        if pa.types.is_fixed_size_list(values.type):
            ends, values = ends * values.type.list_size, values.flatten()
        else:
            offsets = values.offsets.to_numpy(zero_copy_only=False)
            ends, values = offsets[ends] - offsets[0], values.flatten()
    widths = sorted(set(np.diff(ends).tolist()))
    if len(widths) > 1 or (width is not None and widths not in ([width], [])):
        said = f", meta/info.json says {width}" if width is not None else ""
        raise BadVideo(f"{where} has {', '.join(map(str, widths))} numbers a row{said}.")
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())  # of which a missing one becomes NaN
    return values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(rows, widths[0] if widths else 0)


def text_of(value: Any) -> str:
    """An instruction: a text, a list of words, or a list of texts, of which the first counts."""
    if isinstance(value, list | tuple):
        texts = [text for one in value if (text := text_of(one))]
        alone = len(texts) > 1 and all(" " not in text for text in texts)
        return " ".join(texts) if alone else next(iter(texts), "")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return " ".join(value.split()) if isinstance(value, str) else ""


class Rows:
    """The rows of an episode in the data files, by the number of the episode. May be asked from several threads."""

    def __init__(self, root: Path, columns: Sequence[str]) -> None:
        self._root, self._columns, self._lock = root, list(columns), threading.Lock()
        self._open: OrderedDict[Path, tuple[pa.Table, Array, Array]] = OrderedDict()
        self._elsewhere = False  # meta has been found to be wrong about the files

    def of(self, index: int, length: int, data: Path) -> tuple[pa.Table, tuple[str, ...]]:
        """The rows of an episode, in the order of the files, and what to say of them; `length` and the file `data` are
        what meta says. Raises LapaError when there are not `length` many, in whatever files."""
        if not length:
            raise BadVideo(f"{self._root}: episode {index} is empty, its length is 0 in meta.")
        with self._lock:
            first: LapaError | None = None
            if not self._elsewhere or index not in self._files:
                try:
                    table = self._in(data, index)
                    if len(table) == length:
                        return table, ()
                except LapaError as error:
                    first = error
            files = self._files.get(index, [])
            found = [self._in(file, index) for file in files]
            if sum(map(len, found)) == length:
                self._elsewhere = True
                table = pa.concat_tables(found, promote_options="default")
                return table, () if files == [data] else ("rows: in other data files than meta/episodes says",)
        if first:
            raise first
        held = ", ".join(os.path.relpath(file, self._root) for file in files) or "no data file"
        raise BadVideo(
            f"{data}: episode {index} has {sum(map(len, found))} rows, meta/episodes says {length}; they are in "
            f"{held}. Rows are missing, or the length was not changed with them."
        )

    def _in(self, path: Path, index: int) -> pa.Table:
        if path not in self._open:
            table = read_table(path, [EPISODE], self._columns)
            numbers = _episodes(table, path)
            order = np.argsort(numbers, kind="stable")
            self._open[path] = table, order, numbers[order]
            if len(self._open) > HELD:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        table, order, ordered = self._open[path]
        start, stop = np.searchsorted(ordered, [index, index + 1])
        where = order[start:stop]
        if len(where) and where[-1] - where[0] == len(where) - 1:
            return table.slice(where[0], len(where))
        return table.take(where)

    @cached_property
    def _files(self) -> dict[int, list[Path]]:
        """Number of each episode -> the data files that have rows of it. Files that cannot be read are passed over:
        whoever needs them says why."""
        found: dict[int, list[Path]] = {}
        for path in sorted((self._root / "data").rglob("*.parquet")):
            try:
                episodes = _episodes(read_table(path, [EPISODE]), path)
            except LapaError:
                continue
            for index in np.unique(episodes).tolist():
                found.setdefault(index, []).append(path)
        return found


def _episodes(table: pa.Table, path: Path) -> Array:
    listed = column(table, EPISODE)
    if listed is not None and number_type(listed.type) and not listed.null_count:
        found = numbers(listed, f"{path}: {EPISODE}", 1)[:, 0]
        if np.isfinite(found).all() and (found == found.round()).all():
            return found.astype(np.int64)
    raise LapaError(f"{path}: {EPISODE} is not a whole number in every row.")


def picture(cell: Any, shape: Sequence[int] | None, roots: Sequence[Path], where: str) -> Array:
    """A picture as a cell of a table has it, uint8 [H, W, 3]: the bytes of an image, {"bytes": .., "path": ..}, the
    path of one from one of `roots` on, or its numbers (nested lists, channels first or last, 0..255 or 0..1).

    Raises BadVideo, which begins with `where`, for anything else.
    """
    if isinstance(cell, dict):
        cell = next((cell[key] for key in ("bytes", "path") if cell.get(key)), None)
    if isinstance(cell, bytes):
        return read_image(cell, where)
    if isinstance(cell, str):
        return read_image(_inside(cell, roots, where), where)
    if isinstance(cell, list | np.ndarray) and len(cell):
        return _pixels(cell, shape, where)
    raise BadVideo(f"{where}: holds no picture.")


def _inside(path: str, roots: Sequence[Path], where: str) -> Path:
    """Where a picture that a cell names lies: as it is written from a root on, or by the end of its path."""
    parts = (PureWindowsPath(path) if "\\" in path else PurePosixPath(path)).parts
    for n in range(len(parts)):
        tail = Path(*parts[n:])
        for root in roots if not tail.is_absolute() and ".." not in tail.parts else ():
            if os.path.lexists(root / tail):
                return root / tail
    raise BadVideo(f"{where}: the picture is not in the table, which names {path}; {roots[0]} has no such file.")


def _pixels(cell: Any, shape: Sequence[int] | None, where: str) -> Array:
    try:
        values = np.array(cell)
        if values.ndim == 1 and shape is not None:
            values = values.reshape(shape)
        if values.dtype == object or values.ndim not in (2, 3):
            raise ValueError(f"numbers of the shape {list(values.shape)}")
    except ValueError as error:
        raise BadVideo(f"{where}: holds no picture ({error}).") from None
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[2] not in (1, 3, 4):
        raise BadVideo(f"{where}: holds numbers of the shape {list(values.shape)}, no picture in colour.")
    if values.dtype.kind == "f" and values.size and values.max() <= 1:
        values = values * 255
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise BadVideo(f"{where}: holds numbers from {values.min()} to {values.max()}, no picture of 0 to 255.")
    return np.ascontiguousarray(np.broadcast_to(values[..., :3].round(), (*values.shape[:2], 3)), np.uint8)
