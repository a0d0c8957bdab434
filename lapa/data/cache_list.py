"""What lies in the cache, and how to clear it: `lapa cache --list`, `lapa cache --clear`."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lapa.contracts import LapaError
from lapa.data.folders import printable
from lapa.data.index import META, cache_folder

MUCH = 2e9  # bytes in the cache, from which on they are told
STARTED = re.compile(r"^\.(.+)\.(part|[^.]+)$")  # hidden folders: packs that are being made, or were killed
NAMED = re.compile(r"^\w+-(\d+|index)-[0-9a-f]{32}$")  # as data/index.py `entry_of` names folders
RECENT = 3600  # seconds: an unfinished folder that was written to since is left alone
UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: the dataset it was made from, its bytes, when it was last used (seconds since 1970).
    `what` is such as "48 pixels", "features" (data/features.py), "index" or "unfinished"."""

    path: Path
    dataset: str
    what: str
    bytes: int
    used: float


def entries(folder: Path | None = None) -> list[Entry]:
    """What is in the cache, the last used first. Folders that lapa does not make are not among it."""
    root = folder or cache_folder()
    found = [_entry(path) for path in (root.iterdir() if root.is_dir() else ()) if path.is_dir()]
    return sorted((entry for entry in found if entry), key=lambda entry: -entry.used)


def _entry(path: Path) -> Entry | None:
    started = STARTED.match(path.name)
    if not NAMED.match(started[1] if started else path.name):
        return None
    name, size, _ = (started[1] if started else path.name).rsplit("-", 2)
    try:
        meta = json.loads((path / META).read_text())
    except (OSError, ValueError):
        meta = {}
    dataset, kind = str(meta.get("dataset") or f"{name}:?"), "features" if "features" in meta else f"{size} pixels"
    what = "unfinished" if started or not (path / META).exists() else "index" if size == "index" else kind
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    # A file of a pack that is being made has its full length from the start: blocks are what it takes.
    taken = sum(stat.st_blocks * 512 if started else stat.st_size for stat in files)
    used = max((stat.st_mtime for stat in files), default=path.stat().st_mtime)
    return Entry(path, dataset, what, taken, used)


def table(found: Sequence[Entry]) -> list[str]:
    """A line an entry, and one of the total."""
    width = max((len(entry.dataset) for entry in found), default=0)
    lines = [
        f"{_size(entry.bytes):>9}  {entry.what:<11}  {entry.dataset:<{width}}  used {_ago(entry.used)}"
        for entry in found
    ]
    number = f"{len(found)} entr{'y' if len(found) == 1 else 'ies'}"
    return [*lines, f"{_size(sum(entry.bytes for entry in found)):>9}  in all, {number} in {printable(cache_folder())}"]


def clear(which: str = "", folder: Path | None = None) -> list[Entry]:
    """Remove entries: all of them, those of a dataset (NAME:PATH with or without options), or those that were not used
    for an age such as 30d, 12h or 2w. Returns what was removed.

    Packs that are being made now are left alone. Raises LapaError when `which` names nothing that is there.
    """
    found = [entry for entry in entries(folder) if _matches(entry, which)]
    if which and not found:
        raise LapaError(f'Nothing in {cache_folder()} is of "{which}". `lapa cache --list` shows what is there; an age '
                        "is such as 30d, 12h or 2w.")  # fmt: skip
    removed = []
    for entry in found:
        if entry.what == "unfinished" and time.time() - entry.used < RECENT:
            continue
        shutil.rmtree(entry.path)
        removed.append(entry)
    return removed


def _matches(entry: Entry, which: str) -> bool:
    if aged := re.fullmatch(r"(\d+)([hdw])", which):
        return time.time() - entry.used > int(aged[1]) * UNITS[aged[2]]
    return not which or entry.dataset == which or entry.dataset.startswith(f"{which},")


def tell_if_much() -> None:
    """Say on stderr how much there is in the cache, where it is more than MUCH."""
    total = sum(entry.bytes for entry in entries())
    if total > MUCH:
        print(f"The cache in {printable(cache_folder())} holds {_size(total)} now: lapa cache --list, lapa cache "
              "--clear.", file=sys.stderr)  # fmt: skip


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "just now"
