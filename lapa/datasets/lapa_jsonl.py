"""The released LAPA code's jsonl: a row per frame with `image`, `instruction` and `raw_actions` or `delta`.

Rows may be shuffled. Rows whose images lie in one folder are an episode, in the order of the images' numbers, or
several, where the names tell them apart (data/sequences.py). The JSON list that its preprocessing starts from
(`conversations` with `raw_actions`) is read too. `delta` are latent actions of another LAQ: such an episode is video
without actions. The `vision` tokens are not needed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.folders import listing_hash, printable
from lapa.data.images import Clip, frames_of, outline_of, read_frames
from lapa.data.json_files import read_foreign_json, read_lines
from lapa.data.notes import CHANGES, refuse_archive
from lapa.data.sequences import Series, series_of

ACTION = 7  # dimensions that the released code has names for: three of place, three of rotation, the gripper
LONGEST = 4096  # characters of a path
MARKS = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"  # what may stand before the first bracket: a mark of UTF-8 or UTF-16, blanks
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True)
class Config:
    """`path` is the jsonl or JSON file; `fps` the rate of the images, which they do not say; `images` the folder that
    the image paths start from, by default the file's own folder or one above it; `action` and `state` the keys of a row
    that hold them, several as a+b, by default raw_actions and none."""

    path: str
    fps: float | None = None
    images: str | None = None
    action: str | None = None
    state: str | None = None

    def build(self) -> LapaJsonl:
        """Read the rows. Raises LapaError for a file that is missing or no such jsonl, or when `fps` is not given."""
        path = Path(self.path).expanduser()
        if why := refuse_archive(path):
            raise LapaError(why)
        if not path.is_file():
            raise LapaError(f"{path}: there is no such file. lapa_jsonl reads one jsonl or JSON file.")
        if not self.fps or self.fps <= 0:
            raise LapaError(f"{path}: images have no frame rate. Say it: lapa_jsonl:{self.path},fps=5")
        return LapaJsonl(path, self.fps, self)


@dataclass(frozen=True)
class Line:
    """One frame: its image as the file names it, the instruction, the action and the state if there is one."""

    image: Path
    instruction: str
    action: tuple[float, ...] | None
    state: tuple[float, ...] | None = None

    @property
    def width(self) -> int:
        """Dimensions of the action, 0 for none."""
        return len(self.action or ())


Read = Callable[[Sequence[Path], Sequence[str]], Clip]


class LapaJsonl:
    """One episode per folder of images, or per clip in it, in the order of their paths."""

    def __init__(self, path: Path, fps: float, config: Config) -> None:
        self.path, self.fps, self._config = path, fps, config
        folders: dict[str, list[Line]] = {}
        self._bad: list[BadVideo] = []
        for row in _read(path, config):
            if isinstance(row, Line):
                folders.setdefault(row.image.parent.as_posix(), []).append(row)
            else:
                self._bad.append(row)
        self._clips: dict[str, tuple[list[Line], Series]] = {}
        for name, rows in sorted(folders.items()):
            for one in series_of([row.image for row in rows]):
                self._clips[f"{name}/{one.name}" if one.name else name] = (rows, one)
        if not self._clips:
            raise LapaError(f"{path}: holds no row." if not self._bad else str(self._bad[0]))
        widths = Counter(row.width for rows in folders.values() for row in rows)
        self._width = widths.most_common(1)[0][0]
        images = config.images
        self._roots = [Path(images).expanduser()] if images else [path.parent, *path.absolute().parents[1:3], Path()]

    def __len__(self) -> int:
        return len(self._clips)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the file and of the images."""
        images = [self._place(row.image) for clip in self._clips.values() for row in _in_order(*clip)]
        return listing_hash(self.path.parent, [self.path, *filter(os.path.exists, images)])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per folder of images, or a BadVideo in its place; then the rows that cannot be used."""
        return self._each(lambda images, names: read_frames(images, names, self.fps, size))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: the header of each folder's first image is read."""
        found = self._each(lambda images, names: outline_of(images, names, self.fps))
        return ((place if place < len(self) else -1, one) for place, one in enumerate(found))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        images, names = self._images(_in_order(*list(self._clips.values())[number]))
        return frames_of(images, names, outline_of(images, names, self.fps).size, size, start)

    def _each(self, read: Read) -> Iterator[Episode | BadVideo]:
        for name, (rows, one) in self._clips.items():
            try:
                one.check([row.image for row in rows], f"{self.path}: {printable(name)}")
                yield self._episode(name, _in_order(rows, one), one.notes, read)
            except BadVideo as bad:
                yield bad
        yield from self._bad

    def _episode(self, name: str, rows: list[Line], notes: tuple[str, ...], read: Read) -> Episode:
        where = f"{self.path}: {printable(name)}"
        if any(row.width != self._width for row in rows):
            most = f"of length {self._width}" if self._width else "missing"
            key = self._config.action or "raw_actions"
            raise BadVideo(f"{where}: {key} are not {most} in every row, as in most of the file.")
        clip = read(*self._images(rows))
        actions = np.array([row.action for row in rows], np.float32) if self._width else None
        names = ACTION_NAMES if actions is not None and actions.shape[1] == ACTION else ()
        said = list(dict.fromkeys(row.instruction for row in rows if row.instruction))
        changes = (CHANGES,) if len(said) > 1 else ()
        if len({len(row.state or ()) for row in rows}) > 1:
            raise BadVideo(f"{where}: {self._config.state} has not the same number of values in every row.")
        state = np.array([row.state for row in rows], np.float32) if rows[0].state else None
        return Episode(printable(name), clip.frames, self.fps, next(iter(said), ""), actions, state, action_names=names,
                       size=clip.size, notes=(self._taken(), *notes, *changes),
                       instruction_from="the rows" if said else "")  # fmt: skip

    def _taken(self) -> str:
        action, state = self._config.action, self._config.state
        of = f"action from {action or 'raw_actions'}" if self._width else "no action (action= names its keys)"
        return f"taken: {of}, " + (f"state from {state}" if state else "no state (state= names its keys)")

    def _images(self, rows: Sequence[Line]) -> tuple[list[Path], list[str]]:
        """Where the images of rows lie, and their names for messages."""
        images = [self._place(row.image) for row in rows]
        return images, [printable(image) for image in images]

    def _place(self, image: Path) -> Path:
        """Where an image lies: the first place that has it, else the first place where it was looked for. Of the whole
        path of another machine the end counts: at the least a folder and the name."""
        tails = [image, *(Path(*image.parts[n:]) for n in range(1, len(image.parts) - 1) if image.is_absolute())]
        places = (root / tail for tail in tails for root in self._roots)
        return next(filter(os.path.exists, places), self._roots[0] / image)


def _in_order(rows: Sequence[Line], one: Series) -> list[Line]:
    return [rows[i] for i in one.order]


def _read(path: Path, config: Config) -> Iterator[Line | BadVideo]:
    """The rows of a jsonl, or of a JSON list, a BadVideo for one that cannot be used."""
    with path.open("rb") as file:
        listed = file.read(200).lstrip(MARKS).startswith(b"[")
    rows = enumerate(read_foreign_json(path)) if listed else read_lines(path)
    for number, row in rows:
        where = f"{path}, {'row' if listed else 'line'} {number}"
        try:
            yield row if isinstance(row, BadVideo) else _row(row, where, config)
        except BadVideo as bad:
            yield bad


def _row(row: Any, where: str, config: Config) -> Line:
    try:
        said, actions, image = row.get("instruction"), row.get("raw_actions"), row["image"]
        if "conversations" in row:
            said, actions = row["conversations"][0]["value"], row["conversations"][1].get("raw_actions")
        if config.action:
            actions = _joined(row, config.action, where)
        if actions is None and "delta" not in row:
            raise BadVideo(f"{where}: has neither raw_actions nor delta.")
        if not (isinstance(image, str) and len(image) <= LONGEST and isinstance(said, str | None)):
            raise TypeError("image and instruction are no texts")
        if not isinstance(actions, list | None):
            raise TypeError("raw_actions is no list")
        action = None if actions is None else tuple(map(float, actions))
        state = tuple(map(float, _joined(row, config.state, where))) if config.state else None
        return Line(_path(image), plain(said or ""), action, state)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadVideo(f"{where}: is no row of the released LAPA code ({error!r}). It needs image, instruction and "
                       "raw_actions or delta.") from None  # fmt: skip


def _path(image: str) -> Path:
    """The path of an image, as Windows writes it or not: its drive becomes the root."""
    image = image.removeprefix("file://").replace("\\", "/")
    return Path(re.sub(r"^[A-Za-z]:/", "/", image))


def _joined(row: dict[str, Any], keys: str, where: str) -> list[Any]:
    """The numbers under several keys, "a+b", one behind another; lists in lists are laid out in their order."""
    missing = [key for key in keys.split("+") if key not in row]
    if missing:
        raise BadVideo(f"{where}: has no {', '.join(missing)}. Keys: {', '.join(map(str, row))}.")
    return [number for key in keys.split("+") for number in _flat(row[key])]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [number for part in value for number in _flat(part)] if isinstance(value, list) else [value]


def plain(prompt: str) -> str:
    """The instruction within a prompt of the released code."""
    said = re.sub(r"^.*?USER:|ASSISTANT:.*$|<image>|</?s>", "", prompt, flags=re.DOTALL).strip()
    quoted = re.search(r"take to `(.*)`", said, flags=re.DOTALL)
    return (quoted[1] if quoted else said).strip()
