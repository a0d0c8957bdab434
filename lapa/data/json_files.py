"""JSON that others wrote: whatever is wrong with it is a LapaError with the place."""

from __future__ import annotations

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
    return parsed(_text(path), printable(path))


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadVideo]]:
    """Number and object of each line that is not blank, a BadVideo for a line that holds none. Raises LapaError for a
    file that cannot be read."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{printable(path)}, line {number}"
            try:
                row = parsed(line, where)
            except BadVideo as bad:
                yield number, bad
            else:
                yield number, row if isinstance(row, dict) else BadVideo(f"{where}: is no JSON object.")


def _text(path: Path) -> str:
    try:
        return readable(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise LapaError(f"{printable(path)}: cannot be read as JSON (it is not UTF-8).") from None
    except OSError as error:
        raise LapaError(f"{printable(path)}: cannot be read ({error.strerror}).") from None
