"""A folder of video files, nested or not, with captions from a csv or the file names. It has no actions."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.folders import existing_folder, listing_hash
from lapa.data.video import VideoReader

SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
CAPTIONS = ("captions.csv", "clips.csv")


@dataclass(frozen=True)
class Config:
    """`path` is the folder. A csv in it (captions.csv, clips.csv or the only one) has the instructions in its
    columns `file`, relative to the folder, and `instruction`; the file name speaks for a video not listed."""

    path: str

    def build(self) -> VideoFolder:
        """List the videos. Raises LapaError when the folder is missing, has no video or an unusable csv."""
        return VideoFolder(existing_folder(self.path, "Video folder"))


class VideoFolder:
    """One episode per video file, in the order of their paths; its id is the path within the folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self._files:
            raise LapaError(f"{root}: holds no video. Looked for {', '.join(SUFFIXES)} in it and its subfolders.")
        self._csv = _captions_file(root)
        self._captions = _read_captions(self._csv) if self._csv else {}

    def __len__(self) -> int:
        return len(self._files)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the videos and the captions."""
        return listing_hash(self.root, [*self._files, *([self._csv] if self._csv else [])])

    def episodes(self) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per file, or a BadVideo naming the path and the reason in its place."""
        for file in self._files:
            try:
                episode = self._read(file)
            except BadVideo as bad:
                yield bad
            else:
                yield episode

    def _read(self, file: Path) -> Episode:
        with VideoReader(file) as video:
            frames = [frame for _, frame in video]
            if len(frames) < 2:
                count = "one frame" if frames else "no frames"
                raise BadVideo(f"{file}: has {count}; a pair of frames needs two.")
            name = file.relative_to(self.root).as_posix()
            caption = self._captions.get(name, words(file.stem))
            return Episode(id=name, frames=np.stack(frames), fps=video.fps, instruction=caption)


def words(stem: str) -> str:
    """A file name as an instruction: "pick_up-the_Cup_003" -> "pick up the Cup"."""
    return re.sub(r"(^| )\d+$", "", re.sub(r"[\W_]+", " ", stem).strip())


def _captions_file(root: Path) -> Path | None:
    tables = sorted(root.glob("*.csv"))
    named = [root / name for name in CAPTIONS if root / name in tables]
    if named:
        return named[0]
    return tables[0] if len(tables) == 1 else None


def _read_captions(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        missing = {"file", "instruction"} - set(table.fieldnames or ())
        if missing:
            raise LapaError(
                f"{path}: lacks the column {', '.join(sorted(missing))}. Captions need file and instruction."
            )
        return {Path(row["file"]).as_posix(): (row["instruction"] or "").strip() for row in table}
