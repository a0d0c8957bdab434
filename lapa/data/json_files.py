"""JSON that others wrote: whatever is wrong with it is a LapaError with the place."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lapa.contracts import BadVideo, LapaError
from lapa.data.folders import printable, readable


def parsed(text: str | bytes, where: str) -> Any:
    """A JSON value. Raises BadVideo, which names `where`, for text that is none, is nested too deep to parse, or
    escapes what is no character."""
    try:
        value = json.loads(text)
        if ("\\u" if isinstance(text, str) else b"\\u") in text:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can be neither printed nor saved
        return value
    except RecursionError:
        raise BadVideo(f"{where}: is not JSON (nested without end).") from None
    except ValueError as error:
        raise BadVideo(f"{where}: is not JSON ({error}).") from None


def read_foreign_json(path: Path) -> Any:
    """The value that a file holds which others wrote (for lapa's own there is artefacts/folder.py `read_json`).
    Raises LapaError for a file that cannot be read or holds none."""
    return parsed(text_of(path), printable(path))


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadVideo]]:
    """Number and object of each line that is not blank, a BadVideo for a line that holds none. Raises LapaError for a
    file that cannot be read."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            where = f"{printable(path)}, line {number}"
            try:
                row = parsed(line, where)
            except BadVideo as bad:
                yield number, bad
            else:
                yield number, row if isinstance(row, dict) else BadVideo(f"{where}: is no JSON object.")


def text_of(path: Path) -> str:
    """The text in a file: UTF-8, or UTF-16 as Windows writes it, with or without a mark at the start. Raises LapaError
    for a file that cannot be read or is neither."""
    try:
        data = readable(path).read_bytes()
        return data.decode(_coding(data)).removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise LapaError(f"{printable(path)}: cannot be read (it is not UTF-8). Save it as UTF-8.") from None
    except OSError as error:
        raise LapaError(f"{printable(path)}: cannot be read ({error.strerror}).") from None


def _coding(data: bytes) -> str:
    """UTF-16 by its mark, or by the zeros that letters of the first line have; else UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = data[:64]
    for start, coding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(head) >= 8 and head[start::2].count(0) > len(head) // 4 and not head[1 - start :: 2].count(0):
            return coding
    return "utf-8"
