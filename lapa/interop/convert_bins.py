"""The released code's csv of action bins: a header, then the edges of one dimension a row, padded with blanks."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path

from lapa.actions.spaces import ActionSpace
from lapa.contracts import LapaError

PLACE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")  # of the released robot policies
OUTSIDE = 1.0  # what the released code makes of a class without a bin


def read_bins(path: Path, classes: int) -> ActionSpace:
    """A csv of the released code: a header, then the edges of one dimension a row, shorter rows padded with blanks.
    Raises LapaError for another file, and unless it is as wide as the action head, `classes`."""
    if not path.is_file():
        raise LapaError(f"{path} {'is no file' if path.exists() else 'does not exist'}. Give the csv of action bins.")
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LapaError(f"{path} is no csv of action bins ({error}).") from None
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise LapaError(f"{path} has {len(rows)} rows; a csv of action bins has a header and a row a dimension.")
    edges = tuple(_edges(path, number, row) for number, row in enumerate(rows[1:], 2))
    if len(rows[0]) not in (classes, classes + 1):  # one more than the head: every class has a bin
        raise LapaError(f"{path} has {len(rows[0])} columns, and the action head {classes} classes: they do not go "
                        "together.")  # fmt: skip
    names = PLACE if len(edges) == len(PLACE) else tuple(f"action_{i}" for i in range(len(edges)))
    return ActionSpace(edges, names, width=classes, outside=OUTSIDE)


def _edges(path: Path, number: int, row: list[str]) -> tuple[float, ...]:
    cells = [cell.strip() for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    try:
        found = [float(cell) for cell in cells]
    except ValueError:
        wrong = next(cell for cell in cells if not _is_number(cell))
        raise LapaError(f'{path}, row {number}: "{wrong[:30]}" is no edge of a bin, a number.') from None
    if len(found) < 2 or not all(map(math.isfinite, found)) or not all(a < b for a, b in pairwise(found)):
        raise LapaError(f"{path}, row {number}: the edges of bins are two finite numbers or more, each larger than the "
                        "one before.")  # fmt: skip
    return tuple(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def written_bins(space: ActionSpace) -> str:
    """Bins as the released code's csv has them."""
    width = max(space.classes, max(map(len, space.edges)))
    rows = [[repr(edge) for edge in edges] + [""] * (width - len(edges)) for edges in space.edges]
    return "\n".join(",".join(row) for row in [[str(i) for i in range(width)], *rows]) + "\n"
