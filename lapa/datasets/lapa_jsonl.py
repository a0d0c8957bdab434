"""The released LAPA code's jsonl: a row per frame with `image`, `instruction` and `raw_actions` or `delta`.

Rows may be shuffled; those whose images lie in one folder are an episode, in the order of the images' numbers. The
JSON list that its preprocessing starts from (`conversations` with `raw_actions`) is read too. `delta` are latent
actions of somebody else's LAQ: such an episode is video without actions. The `vision` tokens are not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.folders import listing_hash, printable
from lapa.data.images import number_of, read_frames

ACTION = 7  # dimensions that the released code has names for: three of place, three of rotation, the gripper
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True)
class Config:
    """`path` is the jsonl or JSON file; `fps` the rate of the images, for they do not tell; `images` the folder that
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
class Row:
    """One frame: its image as the file names it, the instruction, the action if there is one."""

    image: Path
    instruction: str
    action: tuple[float, ...] | None


class LapaJsonl:
    """One episode per folder of images, in the order of their paths."""

    def __init__(self, path: Path, fps: float, images: str | None) -> None:
        self.path, self.fps = path, fps
        self._clips: dict[str, list[Row]] = {}
        for row in _read(path):
            self._clips.setdefault(row.image.parent.as_posix(), []).append(row)
        if not self._clips:
            raise LapaError(f"{path}: holds no row.")
        self._roots = [Path(images).expanduser()] if images else [path.parent, *path.absolute().parents[1:3], Path()]

    def __len__(self) -> int:
        return len(self._clips)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the file and of the images."""
        images = [self._place(row.image) for rows in self._clips.values() for row in rows]
        return listing_hash(self.path.parent, [self.path, *(image for image in images if image.exists())])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per folder of images, or a BadVideo in its place."""
        for name, rows in sorted(self._clips.items()):
            try:
                yield self._episode(name, sorted(rows, key=lambda row: number_of(row.image)), size)
            except BadVideo as bad:
                yield bad

    def _episode(self, name: str, rows: list[Row], size: int | None) -> Episode:
        where = f"{self.path}: {printable(name)}"
        _check_steps([row.image for row in rows], where)
        images = [self._place(row.image) for row in rows]
        clip = read_frames(images, [printable(image) for image in images], self.fps, size)
        actions = _actions([row.action for row in rows], where)
        names = ACTION_NAMES if actions is not None and actions.shape[1] == ACTION else ()
        said = next((row.instruction for row in rows if row.instruction), "")
        return Episode(printable(name), clip.frames, self.fps, said, actions, action_names=names, size=clip.size)

    def _place(self, image: Path) -> Path:
        """Where an image lies: the first place there is one, else where it was first looked for."""
        places = [root / image for root in self._roots]
        return next((place for place in places if place.exists()), places[0])


def _check_steps(images: list[Path], where: str) -> None:
    """Refuse images that are not evenly numbered: the time between them would not be what fps says."""
    numbers = [[int(n) for n in re.findall(r"\d+", image.stem)[-1:]] for image in images]
    if not all(numbers):
        return
    steps = np.diff(np.ravel(numbers))
    if len(steps) and (steps[0] < 1 or (steps != steps[0]).any()):
        odd = int(np.flatnonzero(steps != steps[0])[0]) if steps[0] >= 1 else 0
        raise BadVideo(
            f"{where}: {images[odd].name} is followed by {images[odd + 1].name}; rows are missing or double."
        )


def _actions(rows: list[tuple[float, ...] | None], where: str) -> Array | None:
    """float32 [T, A], or None when no row has an action."""
    widths = {None if row is None else len(row) for row in rows}
    if widths == {None}:
        return None
    if len(widths) > 1:
        raise BadVideo(f"{where}: some rows have raw_actions of other lengths than others, or none.")
    return np.array(rows, np.float32)


def _read(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text("utf-8")
        if text.lstrip().startswith("["):
            rows = [(f"{path}, row {number}", row) for number, row in enumerate(json.loads(text))]
        else:
            lines = ((f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), 1))
            rows = [(where, _json(line, where)) for where, line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise LapaError(f"{path}: cannot be read as JSON ({error}).") from None
    for where, row in rows:
        yield _row(row, where)


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise LapaError(f"{where}: is not JSON ({error}).") from None


def _row(row: Any, where: str) -> Row:
    try:
        said, actions = row.get("instruction"), row.get("raw_actions")
        if "conversations" in row:
            said, actions = row["conversations"][0]["value"], row["conversations"][1].get("raw_actions")
        if actions is None and "delta" not in row:
            raise LapaError(f"{where}: has neither raw_actions nor delta.")
        action = None if actions is None else tuple(map(float, actions))
        return Row(Path(row["image"]), plain(str(said or "")), action)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise LapaError(f"{where}: is no row of the released LAPA code ({error!r}). It needs image, instruction and "
                        "raw_actions or delta.") from None  # fmt: skip


def plain(prompt: str) -> str:
    """The instruction within a prompt of the released code."""
    said = re.sub(r"^.*?USER:|ASSISTANT:.*$|<image>|</?s>", "", prompt, flags=re.DOTALL).strip()
    quoted = re.search(r"take to `(.*)`", said, flags=re.DOTALL)
    return (quoted[1] if quoted else said).strip()
