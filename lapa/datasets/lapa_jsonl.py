"""The released LAPA code's jsonl: a row per frame with `image`, `instruction` and `raw_actions` or `delta`.

Rows may be shuffled. Rows whose images lie in one folder are an episode, in the order of the images' numbers. The
JSON list that its preprocessing starts from (`conversations` with `raw_actions`) is read too. `delta` are latent
actions of another LAQ: such an episode is video without actions. The `vision` tokens are not needed.
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
from lapa.data.images import Clip, check_steps, frames_of, number_of, outline_of, read_frames
from lapa.data.json_files import read_foreign_json, read_lines

ACTION = 7  # dimensions that the released code has names for: three of place, three of rotation, the gripper
LONGEST = 4096  # characters of a path
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True)
class Config:
    """`path` is the jsonl or JSON file; `fps` the rate of the images, which they do not say; `images` the folder that
    the image paths start from, by default the file's own folder or one above it."""

    path: str
    fps: float | None = None
    images: str | None = None

    def build(self) -> LapaJsonl:
        """Read the rows. Raises LapaError for a file that is missing or no such jsonl, or when `fps` is not given."""
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise LapaError(f"{path}: there is no such file. lapa_jsonl reads one jsonl or JSON file.")
        if not self.fps or self.fps <= 0:
            raise LapaError(f"{path}: images have no frame rate. Say it: lapa_jsonl:{self.path},fps=5")
        return LapaJsonl(path, self.fps, self.images)


@dataclass(frozen=True)
class Line:
    """One frame: its image as the file names it, the instruction, the action if there is one."""

    image: Path
    instruction: str
    action: tuple[float, ...] | None

    @property
    def width(self) -> int:
        """Dimensions of the action, 0 for none."""
        return len(self.action or ())


Read = Callable[[Sequence[Path], Sequence[str]], Clip]


class LapaJsonl:
    """One episode per folder of images, in the order of their paths."""

    def __init__(self, path: Path, fps: float, images: str | None) -> None:
        self.path, self.fps = path, fps
        self._clips: dict[str, list[Line]] = {}
        self._bad: list[BadVideo] = []
        for row in _read(path):
            if isinstance(row, Line):
                self._clips.setdefault(row.image.parent.as_posix(), []).append(row)
            else:
                self._bad.append(row)
        if not self._clips:
            raise LapaError(f"{path}: holds no row." if not self._bad else str(self._bad[0]))
        widths = Counter(row.width for rows in self._clips.values() for row in rows)
        self._width = widths.most_common(1)[0][0]
        self._roots = [Path(images).expanduser()] if images else [path.parent, *path.absolute().parents[1:3], Path()]

    def __len__(self) -> int:
        return len(self._clips)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the file and of the images."""
        images = [self._place(row.image) for rows in self._clips.values() for row in rows]
        return listing_hash(self.path.parent, [self.path, *filter(os.path.exists, images)])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per folder of images, or a BadVideo in its place; then the rows that cannot be used."""
        return self._each(lambda images, names: read_frames(images, names, self.fps, size))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: the header of each folder's first image is read."""
        return enumerate(self._each(lambda images, names: outline_of(images, names, self.fps)))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        images, names = self._images(_in_order(sorted(self._clips.items())[number][1]))
        return frames_of(images, names, outline_of(images, names, self.fps).size, size, start)

    def _each(self, read: Read) -> Iterator[Episode | BadVideo]:
        for name, rows in sorted(self._clips.items()):
            try:
                yield self._episode(name, _in_order(rows), read)
            except BadVideo as bad:
                yield bad
        yield from self._bad

    def _episode(self, name: str, rows: list[Line], read: Read) -> Episode:
        where = f"{self.path}: {printable(name)}"
        check_steps([row.image for row in rows], where)
        if any(row.width != self._width for row in rows):
            most = f"of length {self._width}" if self._width else "missing"
            raise BadVideo(f"{where}: raw_actions are not {most} in every row, as in most of the file.")
        clip = read(*self._images(rows))
        actions = np.array([row.action for row in rows], np.float32) if self._width else None
        names = ACTION_NAMES if actions is not None and actions.shape[1] == ACTION else ()
        said = next((row.instruction for row in rows if row.instruction), "")
        return Episode(printable(name), clip.frames, self.fps, said, actions, action_names=names, size=clip.size)

    def _images(self, rows: Sequence[Line]) -> tuple[list[Path], list[str]]:
        """Where the images of rows lie, and their names for messages."""
        images = [self._place(row.image) for row in rows]
        return images, [printable(image) for image in images]

    def _place(self, image: Path) -> Path:
        """Where an image lies: the first place that has it, else the first place where it was looked for."""
        places = [root / image for root in self._roots]
        return next(filter(os.path.exists, places), places[0])


def _in_order(rows: Sequence[Line]) -> list[Line]:
    return sorted(rows, key=lambda row: number_of(row.image))


def _read(path: Path) -> Iterator[Line | BadVideo]:
    """The rows of a jsonl, or of a JSON list, a BadVideo for one that cannot be used."""
    with path.open("rb") as file:
        listed = file.read(200).lstrip().startswith(b"[")
    rows = enumerate(read_foreign_json(path)) if listed else read_lines(path)
    for number, row in rows:
        where = f"{path}, {'row' if listed else 'line'} {number}"
        try:
            yield row if isinstance(row, BadVideo) else _row(row, where)
        except BadVideo as bad:
            yield bad


def _row(row: Any, where: str) -> Line:
    try:
        said, actions, image = row.get("instruction"), row.get("raw_actions"), row["image"]
        if "conversations" in row:
            said, actions = row["conversations"][0]["value"], row["conversations"][1].get("raw_actions")
        if actions is None and "delta" not in row:
            raise BadVideo(f"{where}: has neither raw_actions nor delta.")
        if not (isinstance(image, str) and len(image) <= LONGEST and isinstance(said, str | None)):
            raise TypeError("image and instruction are no texts")
        if not isinstance(actions, list | None):
            raise TypeError("raw_actions is no list")
        action = None if actions is None else tuple(map(float, actions))
        return Line(Path(image), plain(said or ""), action)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadVideo(f"{where}: is no row of the released LAPA code ({error!r}). It needs image, instruction and "
                       "raw_actions or delta.") from None  # fmt: skip


def plain(prompt: str) -> str:
    """The instruction within a prompt of the released code."""
    said = re.sub(r"^.*?USER:|ASSISTANT:.*$|<image>|</?s>", "", prompt, flags=re.DOTALL).strip()
    quoted = re.search(r"take to `(.*)`", said, flags=re.DOTALL)
    return (quoted[1] if quoted else said).strip()
