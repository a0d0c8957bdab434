"""A folder of video files, nested or not, with captions from a csv or jsonl, txt files or the names. No actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.captions import Captions
from lapa.data.folders import existing_folder, files_below, listing_hash, printable
from lapa.data.images import Clip
from lapa.data.video import read_video, timing, video_frames

SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")


@dataclass(frozen=True)
class Config:
    """`path` is the folder. `captions` is a csv or jsonl with the columns `file`, relative to the folder, and
    `instruction`; by default captions.csv or the like in the folder (data/captions.py), then a txt beside the video,
    then its name."""

    path: str
    captions: str | None = None

    def build(self) -> VideoFolder:
        """List the videos. Raises LapaError when the folder is missing, has no video or unusable captions."""
        root = existing_folder(self.path, "Video folder")
        return VideoFolder(root, Captions(root, self.captions))


class VideoFolder:
    """One episode per video file, in the order of their paths; its id is the path within the folder."""

    def __init__(self, root: Path, captions: Captions) -> None:
        self.root, self._captions = root, captions
        self._timing = lru_cache(256)(timing)
        self._files = {p.relative_to(root).as_posix(): p for p in files_below(root, SUFFIXES)}
        if not self._files:
            raise LapaError(f"{root}: holds no video. Looked for {', '.join(SUFFIXES)} in it and its subfolders.")

    def __len__(self) -> int:
        return len(self._files)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the videos and the captions."""
        return listing_hash(self.root, [*self._files.values(), *self._captions.files(self._files)])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per file, or a BadVideo in its place; and those of the captions."""
        return self._each(lambda file: read_video(file, size))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: the timestamps of every file are read, and its first frame."""
        return enumerate(self._each(lambda file: self._timing(file).clip()))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        file = list(self._files.values())[number]
        return video_frames(file, self._timing(file), size, start)

    def _each(self, read: Callable[[Path], Clip]) -> Iterator[Episode | BadVideo]:
        for name, file in self._files.items():
            try:
                instruction, clip = self._captions.of(name), read(file)
            except BadVideo as bad:
                yield bad
            else:
                yield Episode(printable(name), clip.frames, clip.fps, instruction, size=clip.size)
        yield from self._captions.problems(self._files)
