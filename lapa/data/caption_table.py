"""A table of captions, whatever wrote it: csv, tsv, text, JSON, jsonl; and which clip a row is about."""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lapa.contracts import BadVideo, LapaError
from lapa.data.images import SUFFIXES as IMAGE_SUFFIXES
from lapa.data.json_files import parsed, read_lines, text_of
from lapa.data.video import SUFFIXES

FILE = ("file", "file_name", "filename", "video", "path", "clip", "video_path", "file_path", "filepath", "video_file",
        "video_name", "clip_name", "clip_path", "name", "video_id", "clip_id", "id", "folder", "episode", "image",
        "image_path")  # fmt: skip
TEXT = ("instruction", "caption", "text", "language_instruction", "natural_language_instruction", "task", "prompt",
        "sentence", "description", "task_description", "annotation", "narration", "lang", "language", "label",
        "title")  # fmt: skip
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
DELIMITERS = ",\t;|"
NOTHING = ("nan", "none", "null", "n/a")  # as programs write that there is no text


class NoTable(LapaError):
    """A file that is no table of captions: it has no column for the clip, or none for the instruction."""


@dataclass(frozen=True)
class Caption:
    """What a table says of one clip; `where` names file and line."""

    where: str
    file: str
    text: str


class Clips:
    """Which clip a name in a table means, of clips called by their paths within a folder.

    Names may be whole paths of another machine, have backslashes, lack the ending or have another one, and lack the
    folders above the clip; letters may be upper or lower case. What is exact goes first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._by_tail: list[dict[str, list[str]]] = [{}, {}, {}, {}]
        for name in names:
            for level, form in enumerate(_forms(name)):
                parts = form.split("/")
                for start in range(len(parts)):
                    here = self._by_tail[level].setdefault("/".join(parts[start:]), [])
                    if name not in here:
                        here.append(name)

    def find(self, written: str) -> list[str]:
        """The clips that `written` may mean: none, one, or several where it does not tell them apart."""
        whole = _forms(written)
        for level, known in enumerate(self._by_tail):
            parts = whole[level].split("/")
            for start in range(len(parts)):
                if found := known.get("/".join(parts[start:])):
                    exact = [name for name in found if _forms(name)[level] == whole[level]]
                    return exact or found
        return []


def _forms(name: str) -> tuple[str, str, str, str]:
    """A path as it is, without its ending, and both in lower case."""
    plain = unicodedata.normalize("NFC", name).strip().strip("\"'").removeprefix("file://").replace("\\", "/")
    plain = "/".join(part for part in plain.split("/") if part not in ("", ".")) or plain
    kinds = (*SUFFIXES, *IMAGE_SUFFIXES)
    bare = next(
        (plain[: -len(kind)] for kind in kinds if plain.lower().endswith(kind) and len(plain) > len(kind)), plain
    )
    return plain, bare, plain.casefold(), bare.casefold()


def read_table(path: Path, clips: Clips) -> Iterator[Caption | BadVideo]:
    """The rows of a table, a BadVideo for one that cannot be used. Raises NoTable for a file that has no columns for
    clip and instruction, LapaError for one that cannot be read.

    A csv of two columns without a header is a table if its first cell names a clip.
    """
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        yield from _objects([(f"{path}, line {number}", row) for number, row in read_lines(path)], path)
    elif kind == ".json":
        yield from _of_json(parsed(text_of(path), str(path)), path)
    else:
        yield from _of_csv(path, clips)


def _of_csv(path: Path, clips: Clips) -> Iterator[Caption | BadVideo]:
    text = text_of(path)
    if marked := re.match(r"sep=(.)\r?\n", text):  # as Excel marks it
        text = text[marked.end() :]
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = marked[1] if marked else max(DELIMITERS, key=lambda one: (_columns(first, one), -DELIMITERS.index(one)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header = [_key(cell) for cell in next(reader, [])]
        if not _has_columns(header):
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
            if len(header) != 2 or not clips.find(_cells(first, delimiter)[0]):
                raise _lacking(path, _cells(first, delimiter))
            header = [FILE[0], TEXT[0]]
        ahead = len(text[: text.find(first)].splitlines()) + bool(marked)
        named, line = max(i for i, name in enumerate(header) if name) + 1, reader.line_num
        for cells in reader:
            where, line = f"{path}, line {line + 1 + ahead}", reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if swallowed := _swallowed(cells, delimiter, clips):
                yield BadVideo(
                    f"{where}: a double quote that begins a cell does not end, so that the row of {swallowed} is a "
                    "part of it. Close it, or write it twice within a cell in quotes."
                )
            elif any(cell.strip() for cell in cells[named:]):
                yield BadVideo(
                    f"{where}: has more columns than the header. Put an instruction with a comma in double quotes."
                )
            else:
                # A row may end before the last columns, or go on with empty cells: `_row` says what is missing.
                shared = min(len(header), len(cells))
                yield _row(dict(zip(header[:shared], cells[:shared], strict=True)), where)
    except csv.Error as error:
        raise LapaError(f"{path}: the captions cannot be read ({error}).") from None


def _swallowed(cells: Sequence[str], delimiter: str, clips: Clips) -> str:
    """The first clip whose row a cell holds, as when a quote is not closed; "" for none."""
    inside = (line for cell in cells for line in cell.splitlines()[1:])
    named = (_cells(line, delimiter) for line in inside if delimiter in line)
    return next((cells[0] for cells in named if clips.find(cells[0])), "")


def _columns(line: str, delimiter: str) -> int:
    """How well a delimiter parts a header: above all whether the columns that are needed are there."""
    cells = _cells(line, delimiter)
    return len(cells) + 1000 * _has_columns([_key(cell) for cell in cells])


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [""]) or [""]
    except csv.Error:
        return [line]


def _of_json(value: Any, path: Path) -> Iterator[Caption | BadVideo]:
    """A list of objects; an object of columns; one of clip -> instruction, or of clip -> object; one that holds such a
    list."""
    if isinstance(value, list):
        yield from _objects([(f"{path}, row {number}", row) for number, row in enumerate(value)], path)
        return
    if not isinstance(value, dict):
        raise NoTable(f"{path}: is no table of captions.")
    lists = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    for rows in lists:
        if _has_columns([_key(key) for key in rows[0]]):
            yield from _of_json(rows, path)
            return
    if columns := _columns_of(value):
        numbers = dict.fromkeys(number for column in columns.values() for number in column)
        across = [(f"{path}, row {n}", {key: column.get(n) for key, column in columns.items()}) for n in numbers]
        yield from _objects(across, path)
        return
    rows = [(f'{path}, "{key}"', {FILE[0]: key, **_named(inner)}) for key, inner in value.items() if _named(inner)]
    if not rows:
        raise _lacking(path, list(value))
    yield from _objects(rows, path)


def _columns_of(value: dict[str, Any]) -> dict[str, dict[Any, Any]]:
    """Column -> row -> cell of an object of columns, each a list or, as pandas writes them, an object: {"file": {"0":
    "a.mp4"}, "instruction": {"0": "lift"}}. {} for another object."""
    some = {key: dict(enumerate(column)) if isinstance(column, list) else column for key, column in value.items()
            if _key(key) in FILE + TEXT}  # fmt: skip
    columns = {key: column for key, column in some.items()
               if isinstance(column, dict) and not any(isinstance(cell, dict) for cell in column.values())}  # fmt: skip
    return columns if _has_columns([_key(key) for key in columns]) else {}


def _named(inner: Any) -> dict[str, Any]:
    """What an object says of one clip: its text, a list of texts, or an object with one."""
    if isinstance(inner, str) or (isinstance(inner, list) and inner and all(isinstance(one, str) for one in inner)):
        return {TEXT[0]: inner}
    return {key: inner[key] for key in inner if _key(key) in TEXT} if isinstance(inner, dict) else {}


def _objects(rows: Sequence[tuple[str, Any]], path: Path) -> Iterator[Caption | BadVideo]:
    keyed = [
        (where, {_key(key): cell for key, cell in row.items()} if isinstance(row, dict) else row) for where, row in rows
    ]
    objects = [row for _, row in keyed if isinstance(row, dict)]
    if not any(_has_columns(list(row)) for row in objects):
        raise _lacking(path, list(objects[0]) if objects else [])
    for where, row in keyed:
        if isinstance(row, BadVideo):
            yield row
        else:
            yield _row(row, where) if isinstance(row, dict) else BadVideo(f"{where}: is no JSON object.")


def _row(row: dict[str, Any], where: str) -> Caption | BadVideo:
    file = next((row[key] for key in FILE if row.get(key) not in (None, "")), None)
    texts = [row[key] for key in TEXT if key in row]
    text = next((one for one in texts if one), "")
    if isinstance(text, list):  # several captions of one clip: the first
        text = next((one for one in text if one), "")
    if isinstance(file, int):
        file = str(file)
    if not (isinstance(file, str) and file.strip() and texts and isinstance(text, str)):
        return BadVideo(f"{where}: names no file and an instruction.")
    text = "" if text.strip().casefold() in NOTHING else " ".join(text.split())
    return Caption(where, PurePosixPath(file.strip()).as_posix(), text)


def _has_columns(keys: Sequence[str]) -> bool:
    """Is there a column for the clip, and another one for the instruction?"""
    return any(key in FILE for key in keys) and any(key in TEXT for key in keys)


def _key(header: Any) -> str:
    """The name of a column, in lower case, with one sign between words."""
    return re.sub(r"[\W_]+", "_", str(header).strip().strip("\ufeff\"'").casefold()).strip("_")


def _lacking(path: Path, names: Sequence[Any]) -> NoTable:
    """For a message: whatever a damaged file begins with, it stays one short line."""
    has = ", ".join(name if name.isprintable() else repr(name) for name in map(str, names))
    has = textwrap.shorten(has, 100, placeholder=" ..") or "none"
    lacks = [kinds[0] for kinds in (FILE, TEXT) if not any(_key(name) in kinds for name in names)]
    return NoTable(
        f"{path}: lacks the column {' and the column '.join(lacks) or TEXT[0]}; it has {has}. Captions need file (or "
        f"{', '.join(FILE[1:6])}, ..) and instruction (or {', '.join(TEXT[1:4])}, ..)."
    )
