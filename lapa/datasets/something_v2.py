"""Something-Something V2: a folder of webm files, or of what they were converted to, and JSON of labels. No actions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.folders import existing_folder, files_below, listing_hash, printable
from lapa.data.images import Clip
from lapa.data.json_files import read_foreign_json
from lapa.data.notes import archives
from lapa.data.video import SUFFIXES, read_video, timing, video_frames
from lapa.plugins import choose

SPLITS = ("train", "validation", "all")


@dataclass(frozen=True)
class Config:
    """`path` is the folder that holds the videos (webm as distributed, or mp4 and the like) and the JSON files, in
    whatever subfolders; `split` train, validation or all."""

    path: str
    split: str = "train"

    def build(self) -> SomethingV2:
        """List the clips. Raises LapaError when the folder, the JSON of the split or all of its clips are missing."""
        choose(self.split, SPLITS, "split of Something-Something V2")
        return SomethingV2(existing_folder(self.path, "Something-Something V2"), self.split)


class SomethingV2:
    """One episode per clip that the JSON lists, in its order; the id is the clip's number."""

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        self._timing = lru_cache(256)(timing)
        wanted = SPLITS[:2] if split == "all" else (split,)
        self._tables = [table for one in wanted for table in _tables(root, one)]
        self._bad: list[BadVideo] = []
        clips: dict[str, Path] = {}
        files = files_below(root, ("",))
        for path in sorted((p for p in files if p.name.lower().endswith(SUFFIXES)), key=lambda p: p.suffix != ".webm"):
            first = clips.setdefault(path.stem, path)
            if first != path and first.suffix == path.suffix:
                self._bad.append(BadVideo(f"{printable(path)}: there is another of this name, {first}."))
        rows = [row for table in self._tables for row in self._read(table)]
        self._clips = [(clips[name], said) for name, said in rows if name in clips]
        self._absent = [name for name, _ in rows if name not in clips]
        if not self._clips:
            why = f" {self._bad[0]}" if self._bad else ""
            packed = archives(files) or [path for path in files if re.search(r"-v2-\d\d$", path.name)]
            why = f" Join and unpack {printable(packed[0])} and the like first." if packed else why
            raise LapaError(f"{root}: holds none of the {len(rows)} clips that {self._tables[0].name} lists.{why}")
        used = Counter(path.suffix for path, _ in self._clips)
        kinds = ", ".join(f"{count} {kind}" for kind, count in used.most_common())
        self.notes = () if set(used) == {".webm"} else (f"videos: {kinds}, not webm as they were distributed",)

    def __len__(self) -> int:
        return len(self._clips)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the clips and of the JSON files."""
        return listing_hash(self.root, [*self._tables, *(path for path, _ in self._clips)])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per clip, or a BadVideo in its place; then what is wrong with the lists."""
        return self._each(lambda path: read_video(path, size))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: the timestamps of every clip are read, and its first frame."""
        found = self._each(lambda path: self._timing(path).clip())
        return ((place if place < len(self) else -1, one) for place, one in enumerate(found))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        path, _ = self._clips[number]
        return video_frames(path, self._timing(path), size, start)

    def _each(self, read: Callable[[Path], Clip]) -> Iterator[Episode | BadVideo]:
        for path, said in self._clips:
            try:
                clip = read(path)
            except BadVideo as bad:
                yield bad
            else:
                yield Episode(path.stem, clip.frames, clip.fps, said, size=clip.size, notes=clip.notes,
                              instruction_from="the JSON of labels" if said else "")  # fmt: skip
        yield from self._bad
        if self._absent:
            some = ", ".join(f"{name}{self._clips[0][0].suffix}" for name in self._absent[:3])
            yield BadVideo(f"{self.root}: lacks {len(self._absent)} of the clips that the JSON lists, such as {some}.")

    def _read(self, path: Path) -> Iterator[tuple[str, str]]:
        """Id and instruction of each row; rows that lack them become `_bad`."""
        rows = read_foreign_json(path)
        if not isinstance(rows, list):
            raise LapaError(f"{path}: is no list of clips with an id each.")
        for number, row in enumerate(rows):
            try:
                yield str(row["id"]), instruction(row)
            except (LookupError, TypeError, AttributeError):
                self._bad.append(BadVideo(f"{path}: row {number} is no clip with an id and a label."))


def instruction(row: dict[str, Any]) -> str:
    """The template with its placeholders filled: "Holding [something]" and ["a cup"] -> "Holding a cup".

    Where they do not fit, the label, which was filled in by hand.
    """
    template, label, names = row.get("template") or "", row.get("label") or "", row.get("placeholders") or []
    if not (isinstance(template, str) and isinstance(label, str) and isinstance(names, list)):
        raise TypeError("a text that is none")
    if template and len(re.findall(r"\[[^]]*\]", template)) == len(names):
        rest = iter(names)
        return re.sub(r"\[[^]]*\]", lambda _: str(next(rest)), template).strip()
    return (label or template).strip()


def _tables(root: Path, split: str) -> list[Path]:
    """The JSON of a split: train.json today, something-something-v2-train.json before."""
    found = [path for path in files_below(root, (".json",)) if re.search(rf"(^|-){split}$", path.stem)]
    if not found:
        raise LapaError(f"{root}: holds no {split}.json (or something-something-v2-{split}.json), nor its subfolders.")
    return found[:1]
