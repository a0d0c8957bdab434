"""Something-Something V2 as it is handed out: a folder of webm files and JSON of labels. No actions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.folders import existing_folder, files_below, listing_hash
from lapa.data.video import read_video
from lapa.plugins import choose

SPLITS = ("train", "validation", "all")


@dataclass(frozen=True)
class Config:
    """`path` is the folder that holds the webm files and the JSON files, in whatever subfolders; `split` train,
    validation or all."""

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
        wanted = SPLITS[:2] if split == "all" else (split,)
        self._tables = [table for one in wanted for table in _tables(root, one)]
        rows = [row for table in self._tables for row in _read(table)]
        clips = {path.stem: path for path in files_below(root, (".webm",))}
        self._clips = [(clips[row["id"]], instruction(row)) for row in rows if row["id"] in clips]
        self._absent = [row["id"] for row in rows if row["id"] not in clips]
        if not self._clips:
            raise LapaError(f"{root}: holds none of the {len(rows)} webm files that {self._tables[0].name} lists.")

    def __len__(self) -> int:
        return len(self._clips)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the clips and of the JSON files."""
        return listing_hash(self.root, [*self._tables, *(path for path, _ in self._clips)])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per clip, or a BadVideo in its place; and one for all clips that are listed but absent."""
        for path, said in self._clips:
            try:
                clip = read_video(path, size)
            except BadVideo as bad:
                yield bad
            else:
                yield Episode(path.stem, clip.frames, clip.fps, said, size=clip.size)
        if self._absent:
            some = ", ".join(f"{name}.webm" for name in self._absent[:3])
            yield BadVideo(f"{self.root}: lacks {len(self._absent)} of the clips that the JSON lists, such as {some}.")


def instruction(row: dict[str, Any]) -> str:
    """The template with its placeholders filled: "Holding [something]" and ["a cup"] -> "Holding a cup".

    Where they do not fit each other, the label, which was filled by hand.
    """
    template, names = str(row.get("template") or ""), row.get("placeholders") or []
    if template and len(re.findall(r"\[[^]]*\]", template)) == len(names):
        rest = iter(names)
        return re.sub(r"\[[^]]*\]", lambda _: str(next(rest)), template).strip()
    return str(row.get("label") or template).strip()


def _tables(root: Path, split: str) -> list[Path]:
    """The JSON of a split: train.json today, something-something-v2-train.json before."""
    found = [path for path in files_below(root, (".json",)) if re.search(rf"(^|-){split}$", path.stem)]
    if not found:
        raise LapaError(f"{root}: holds no {split}.json (or something-something-v2-{split}.json), nor its subfolders.")
    return found[:1]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LapaError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
        raise LapaError(f"{path}: is no list of clips with an id each.")
    return [{**row, "id": str(row["id"])} for row in rows]
