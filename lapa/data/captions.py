"""Instructions of clips: one table beside them (csv or jsonl), a txt of the same name, or the clip's own name."""

from __future__ import annotations

import csv
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lapa.contracts import BadVideo, LapaError
from lapa.data.folders import printable, readable
from lapa.data.json_files import read_lines

TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl", "clips.csv")  # the first there is
FILE = ("file", "file_name", "video", "path")  # names of the column, the first there is
TEXT = ("instruction", "caption", "text")
UNNAMED = re.compile(r"(img|vid|mvi|mov|dsc[fn]?|pxl|gopr|g[hx]|video|clip|movie)?( ?(wa)?\d+)*", re.IGNORECASE)


class Captions:
    """The instructions of the clips in the folder `root`; a clip is named by its path within the folder.

    `table` is a csv or jsonl with a column for the clip (FILE) and one for the instruction (TEXT); by default one of
    TABLES in the folder, or its only csv or jsonl, if any. Raises LapaError for a table that cannot be used at all.
    """

    def __init__(self, root: Path, table: str | None = None) -> None:
        self.root = root
        self.table = _given(root, table) if table else _found(root)
        self._rows: dict[str, str | BadVideo] = {}
        self._bad: list[BadVideo] = []  # of rows that tell of no clip
        if self.table:
            self._read(self.table)

    def of(self, name: str) -> str:
        """The instruction of a clip: of the table, else of a txt beside it, else its name as words.

        Raises BadVideo for a txt that cannot be read and for rows that contradict each other.
        """
        said = self._rows.get(name)
        if isinstance(said, BadVideo):
            raise said
        if said is not None:
            return said
        beside = (self.root / name).with_suffix(".txt")
        if not beside.is_file():
            return words(Path(name).stem)
        try:
            return " ".join(beside.read_text("utf-8-sig").split())
        except (OSError, UnicodeDecodeError) as error:
            raise BadVideo(f"{printable(beside)}: the instruction cannot be read ({_reason(error)}).") from None

    def files(self, names: Iterable[str]) -> list[Path]:
        """The table and the txt files of the clips `names`: what a signature has to watch."""
        beside = [(self.root / name).with_suffix(".txt") for name in names]
        return [*([self.table] if self.table else []), *(path for path in beside if path.is_file())]

    def problems(self, names: Iterable[str]) -> list[BadVideo]:
        """What to say of rows that cannot be used, and of those about clips that are not among `names`."""
        missing = sorted(set(self._rows) - set(names))
        if not missing:
            return self._bad
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        absent = BadVideo(f"{self.table}: has an instruction for {shown}, which {self.root} does not hold.")
        return [*self._bad, absent]

    def _read(self, path: Path) -> None:
        try:
            for line, row in _rows(path):
                if isinstance(row, BadVideo):
                    self._bad.append(row)
                    continue
                file, text = (row[_column(row, kinds, path)] for kinds in (FILE, TEXT))
                if not (isinstance(file, str) and file and isinstance(text, str | None)):
                    self._bad.append(BadVideo(f"{path}, line {line}: names no file and an instruction."))
                    continue
                name, said = Path(file).as_posix(), " ".join((text or "").split())
                before = self._rows.setdefault(name, said)
                if before != said and isinstance(before, str):
                    self._rows[name] = BadVideo(f'{path}, line {line}: a second instruction for {name}. Keep one of '
                                                f'"{said}" and "{before}".')  # fmt: skip
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise LapaError(f"{path}: the captions cannot be read ({_reason(error)}).") from None


def words(stem: str) -> str:
    """A file name as an instruction: "pick_up-the_Cup_003" -> "pick up the Cup"; nothing for a camera's "IMG_0042"."""
    said = re.sub(r"[\W_]+", " ", printable(stem)).strip()
    return "" if UNNAMED.fullmatch(said) else re.sub(r" \d+$", "", said)


def _given(root: Path, table: str) -> Path:
    for path in (root / table, Path(table).expanduser()):
        if path.is_file():
            return path
    raise LapaError(f"{table}: there is no such table of captions, neither in {root} nor here.")


def _found(root: Path) -> Path | None:
    tables = sorted(path for suffix in ("*.csv", "*.jsonl") for path in root.glob(suffix))
    named = [root / name for name in TABLES if root / name in tables]
    if named:
        return named[0]
    return tables[0] if len(tables) == 1 else None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadVideo]]:
    """Line numbers and rows of a csv with a header, or of a file with a JSON object per line."""
    if path.suffix != ".csv":
        yield from read_lines(path)
        return
    with readable(path).open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        _column(dict.fromkeys(table.fieldnames or ()), FILE, path)
        for row in table:
            extra = row.pop(None, None)  # where csv puts what has no column
            if extra and any(extra):
                yield table.line_num, BadVideo(f"{path}, line {table.line_num}: has more columns than the header. Put "
                                               "an instruction with a comma in double quotes.")  # fmt: skip
            else:
                yield table.line_num, row


def _header(row: dict[str, Any]) -> str:
    """For a message: whatever a damaged file begins with, it stays one short line."""
    names = ", ".join(name if name.isprintable() else repr(name) for name in map(str, row))
    return textwrap.shorten(names, 100, placeholder=" ..") or "none"


def _column(row: dict[str, Any], kinds: tuple[str, ...], path: Path) -> str:
    found = next((kind for kind in kinds if kind in row), None)
    if found is None:
        raise LapaError(
            f"{path}: lacks the column {kinds[0]} (or {', '.join(kinds[1:])}); it has {_header(row)}. "
            "Captions need file and instruction."
        )
    return found


def _reason(error: Exception) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", "") or str(error)
