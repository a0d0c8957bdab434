"""Pictures in a folder: which of them are one clip, and in which order, told by the numbers in their names.

The frame number may stand anywhere: img_12, 0001_left, rgb_0001_640x480, frame_000001_of_000100. Names that are times
(1305031102.966667, 1403636579763555584, 2024-01-05_10-11-12-345) say when each picture was taken. Several clips in one
folder (ep0_step_3), and several cameras (0001.color, 0001.depth), are told apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lapa.contracts import Array, BadVideo
from lapa.data.cameras import camera, fault_by_name
from lapa.data.folders import printable
from lapa.data.images import deep, number_of, opened_image
from lapa.data.words import SAYS_NOTHING

# The word before a number that tells clips, or cameras, apart.
CLIP = re.compile(r"(?<![^\W\d_])(ep|eps|episode|traj|trajectory|demo|clip|video|vid|seq|sequence|scene|take|run)"
                  r"[\W_]*(?=\d|$)", re.IGNORECASE)  # fmt: skip
FRAME = re.compile(r"(?<![^\W\d_])(frame|step|img|image|t)[\W_]*(?=\d|$)", re.IGNORECASE)
VIEW = re.compile(r"(?<![^\W\d_])(cam|camera|view)[\W_]*(?=\d|$)", re.IGNORECASE)
UNITS = {13: 1e3, 16: 1e6, 19: 1e9}  # digits of a Unix time -> of it in a second
EPOCH = (5e8, 4e9)  # seconds that are taken for a Unix time: 1985 to 2096


@dataclass(frozen=True)
class Series:
    """One clip: `order` int64 [T] are its pictures among those that were given. `name` tells it from the others in the
    folder, "" where there are none; `numbers` float64 [T] are its frame numbers and `times` float64 [T] its seconds, as
    far as the names have them; `notes` as in contracts.Episode."""

    name: str
    order: tuple[int, ...]
    numbers: Array | None = None
    times: Array | None = None
    notes: tuple[str, ...] = ()

    def check(self, images: Sequence[Path], where: str) -> None:
        """Raises BadVideo for pictures of which some are missing or double: the time between them would not be what
        fps says. Numbers may go up by any step, and by uneven ones within a half, as times do. `images` as given."""
        if self.times is not None or self.numbers is None or len(self.numbers) < 3:
            return
        if len(odd := _odd(self.numbers)):
            first, second = (printable(images[self.order[i]].name) for i in (odd[0], odd[0] + 1))
            raise BadVideo(f"{where}: {first} is followed by {second}; images are missing or double.")


def series_of(images: Sequence[Path]) -> list[Series]:
    """The clips among the pictures of one folder, in the order of their names."""
    found = [part for group in _alike(images).values() for part in _parted(images, group)]
    large = [one for one in found if len(one.order) > 1]
    if not large:  # names without numbers, or a picture alone
        return [Series("", tuple(sorted(range(len(images)), key=lambda i: number_of(images[i]))))]
    if len(large) == 1:
        return [_noted(large[0], "", _passed(images, large, found))]
    views = _cameras(large, images)
    if views is not None:
        return [_noted(views, "", (*views.notes, *_passed(images, large, found)))]
    first, *rest = sorted(large, key=lambda one: number_of(one.name))
    return [_noted(first, first.name, (*first.notes, *_passed(images, large, found))), *rest]


def _alike(images: Sequence[Path]) -> dict[str, list[int]]:
    """Pictures whose names differ in numbers only; of 1.jpg and 1.png each ending is one sort."""
    stems = [image.stem for image in images]
    twice = len(set(stems)) < len({image.name for image in images})
    groups: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        ending = f"{image.suffix.lower()}" if twice else ""
        groups.setdefault(re.sub(r"\d+", "#", image.stem) + ending, []).append(i)
    return groups


def _parted(images: Sequence[Path], group: list[int]) -> list[Series]:
    """The clips among pictures whose names differ in numbers only."""
    stems = [images[i].stem for i in group]
    name = re.sub(r"\d+", "", stems[0]).strip(" _-.()")
    name += images[group[0]].suffix.lower() if len(group) < len(images) and not name else ""
    texts = [re.findall(r"\d+", stem) for stem in stems]
    table = np.array([[float(text) for text in row] for row in texts])
    varying = [p for p in range(table.shape[1]) if len(np.unique(table[:, p])) > 1]
    times = _times(stems, texts, varying)
    if times is not None:
        order = np.argsort(times, kind="stable")
        return [Series(name, tuple(group[i] for i in order), None, times[order])]
    if splits := _splits(stems[0], table, varying):
        found = []
        for key in np.unique(table[:, splits], axis=0):
            rows = np.flatnonzero((table[:, splits] == key).all(1))
            (part,) = _parted_once(images, [group[i] for i in rows], table[rows], stems[rows[0]], splits[-1])
            found.append(part)
        return found
    return _parted_once(images, group, table, name, -1)


def _parted_once(images: Sequence[Path], group: list[int], table: Array, name: str, after: int) -> list[Series]:
    """One clip, in the order of its frame numbers; `name` is cut behind number `after` of it."""
    if after >= 0:
        name = name[: [m.end() for m in re.finditer(r"\d+", name)][after]]
    order = sorted(range(len(group)), key=lambda i: number_of(images[group[i]]))
    columns = [p for p in range(table.shape[1]) if len(np.unique(table[:, p])) > 1]
    unique = [p for p in columns if len(np.unique(table[:, p])) == len(table)]
    number = next((p for p in unique if not len(_odd(np.sort(table[:, p])))), (unique or columns or [-1])[-1])
    if number in unique:
        order = np.argsort(table[:, number], kind="stable").tolist()
    sure = number in unique or (table.shape[1] > 0 and len(np.unique(table, axis=0)) < len(table))  # or one is double
    numbers = table[order, number] if sure else None
    return [Series(name, tuple(group[i] for i in order), numbers)]


def _splits(stem: str, table: Array, varying: Sequence[int]) -> list[int]:
    """Which numbers of a name tell clips apart: those behind a word such as "episode" or "cam", else all but the one
    behind "frame" or the like, else all before the last, if the last begins anew for each of them."""
    before = [stem[start:end] for start, end in _gaps(stem)]
    named = [p for p in varying if CLIP.search(before[p]) or VIEW.search(before[p])]
    some = [p for p in named if any(other not in named for other in varying)]
    least = min if not some else max  # behind such a word a picture may be the only one of its clip
    if not some:
        values = {p: len(np.unique(table[:, p])) for p in varying}
        if len(varying) < 2 or len(table) in values.values():
            return []
        frames = [p for p in varying if FRAME.search(before[p]) and values[p] == max(values.values())]
        some = [p for p in varying if p != (frames or varying)[-1]]
        least = max if frames else min
        starts = [table[(table[:, some] == key).all(1), varying[-1]].min() for key in np.unique(table[:, some], axis=0)]
        if not frames and (max(starts) > 1 or len(set(starts)) > 1):
            return []
    sizes = [int((table[:, some] == key).all(1).sum()) for key in np.unique(table[:, some], axis=0)]
    return some if least(sizes) > 1 else []


def _gaps(stem: str) -> list[tuple[int, int]]:
    """Where the text before each number of a name begins and ends."""
    spans = [match.span() for match in re.finditer(r"\d+", stem)]
    ends = [0, *(end for _, end in spans)]
    return [(ends[i], start) for i, (start, _) in enumerate(spans)]


def _times(stems: Sequence[str], texts: Sequence[list[str]], varying: Sequence[int]) -> Array | None:
    """Seconds, where the names are times that all differ: with decimals, as whole numbers since 1970, as dates."""
    if not varying:
        return None
    first, last = varying[0], varying[-1]
    gaps = [stems[0][start:end] for start, end in _gaps(stems[0])]
    found = _dates(texts)
    if not found and last and gaps[last] == "." and varying in ([last], [last - 1, last]):
        found = _decimals([row[last - 1] for row in texts], [row[last] for row in texts])
    elif not found and first == last:
        found = _since_1970([row[first] for row in texts])
    return np.array(found) if found and len(set(found)) == len(found) > 1 else None


def _decimals(whole: Sequence[str], parts: Sequence[str]) -> list[float] | None:
    """Seconds of the numbers before and behind a point, None where they are a clip and its frame, or the like. Of
    decimals of one digit (3.1.jpg) they have to go on evenly from one second to the next."""
    base = int(whole[0])  # whole seconds apart, so that decimals are kept exactly
    found = [int(a) - base + float(f"0.{b}") for a, b in zip(whole, parts, strict=True)]
    several = len(set(whole)) > 1
    if min(map(len, parts)) > 1:
        return found if several or len(whole[0]) > 8 else None
    return found if several and not len(_odd(np.sort(found))) else None


def _since_1970(texts: Sequence[str]) -> list[float] | None:
    """Seconds of Unix times in milli-, micro- or nanoseconds, None for other numbers."""
    base, unit = int(texts[0]), UNITS.get(len(texts[0]), math.inf)
    if len({len(text) for text in texts}) > 1 or not EPOCH[0] < base / unit < EPOCH[1]:
        return None
    return [(int(text) - base) / unit for text in texts]


def _dates(texts: Sequence[list[str]]) -> list[float] | None:
    """Seconds of dates such as 20240105_101112_345; None where the numbers are none. Dates without parts of a second
    count where they are even and the numbers alone are not, as when a minute passes: a counter may look like them."""
    rows = ["".join(row) for row in texts]
    found = []
    for row in rows:
        digits = re.fullmatch(r"((?:19|20)\d{6})(\d{6})(\d{0,9})", row)
        if not digits:
            return None
        try:
            when = datetime.strptime(digits[1] + digits[2], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            return None
        found.append(when.timestamp() + float(f"0.{digits[3]}"))
    if min(map(len, rows)) == len("YYYYMMDDHHMMSS"):
        even, counted = (not len(_odd(np.sort(np.array(some, np.float64)))) for some in (found, rows))
        return found if even and not counted else None
    return found


def _cameras(series: Sequence[Series], images: Sequence[Path]) -> Series | None:
    """The best of several series that are the same clip seen by several cameras, None where they are several clips.

    They are one clip where their names say nothing of a task and the frame numbers are mostly the same."""
    words = {word for one in series for word in re.findall(r"[^\W\d_]+", one.name.casefold())}
    told = words - SAYS_NOTHING - ENDINGS - {"t"}  # "t" as in t=0_1
    no_film = {word for word in words if fault_by_name(word)}  # of masks and the like
    if not words or any(CLIP.search(one.name) for one in series) or told - no_film:
        return None
    seen = [set(one.numbers.tolist()) if one.numbers is not None else set() for one in series]
    if any(len(seen[0] & other) < 0.5 * max(len(seen[0]), len(other)) for other in seen[1:]):
        return None
    kinds = [camera(one.name) for one in series]
    deep = [is_deep(images[one.order[0]]) for one in series]
    best = series[min(range(len(series)), key=lambda i: (deep[i], kinds[i].rank, i))]
    others = ", ".join(_called(one) for one in series if one is not best)
    return _noted(best, best.name, (f"camera: {_called(best)}, of those in one folder, not {others}",))


def _called(one: Series) -> str:
    return one.name or "the one without a name"


ENDINGS = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"])


def is_deep(path: Path) -> bool:
    """Is the picture a depth map by its pixels? Not where it cannot be read: whoever reads it says so."""
    try:
        with opened_image(path, printable(path)) as image:
            return deep(image)
    except BadVideo:
        return False


def _passed(images: Sequence[Path], large: Sequence[Series], found: Sequence[Series]) -> tuple[str, ...]:
    """A note on single pictures that belong to no clip, such as cover.jpg."""
    single = [printable(images[one.order[0]].name) for one in found if one not in large]
    if not single:
        return ()
    return (f"pictures: {len(single)} in its folder are no frames by their names, such as {single[0]}",)


def _noted(one: Series, name: str, notes: tuple[str, ...]) -> Series:
    return Series(name, one.order, one.numbers, one.times, notes)


def _odd(numbers: Array) -> Array:
    """Where frame numbers in order go on by less or more than the usual step."""
    steps = np.diff(numbers)
    if not len(steps):
        return np.zeros(0, np.int64)
    usual = float(np.median(steps))
    return np.flatnonzero((steps <= 0.5 * usual) | (steps >= 1.5 * usual))
