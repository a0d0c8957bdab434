"""Video files, nested or not, with captions from tables, text files or the names. No actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.animation import is_webp
from lapa.data.cameras import fault_by_name
from lapa.data.captions import Captions
from lapa.data.folders import existing_folder, files_below, listing_hash, printable
from lapa.data.images import Clip
from lapa.data.notes import archives, kind_of, not_read, refuse_archive
from lapa.data.video import SUFFIXES, read_video, timing, video_frames
from lapa.data.words import words


@dataclass(frozen=True)
class Config:
    """`path` is a folder, or one video file. `captions` is a table with a column for the file, within the folder, and
    one for the instruction; by default captions.csv or the like in the folder, then texts beside the videos, then their
    names (data/captions.py). `stream` is the number, from 0 on, of the stream of pictures to read where files have
    several; by default the best."""

    path: str
    captions: str | None = None
    stream: int | None = None

    def build(self) -> VideoFolder:
        """List the videos. Raises LapaError when the folder is missing, has no video or unusable captions, and for a
        folder that another reader is for."""
        path = Path(self.path).expanduser()
        if path.is_file():
            if why := refuse_archive(path):
                raise LapaError(why)
            beside = [other for other in path.parent.iterdir() if other.is_file() and not other.name.startswith(".")]
            return VideoFolder(path.parent, [path], beside, self, alone=True)
        root = existing_folder(path, "Video folder")
        if (other := kind_of(root)) == "lerobot":
            raise LapaError(f"{root}: is a LeRobot dataset, whose files need its tables. Write {other}:{self.path}.")
        every = files_below(root, ("",))
        return VideoFolder(root, [file for file in every if _is_video(file)], every, self)


class VideoFolder:
    """One episode per video file, in the order of their paths; its id is the path within the folder."""

    def __init__(
        self, root: Path, videos: Sequence[Path], files: Sequence[Path], config: Config, alone: bool = False
    ) -> None:
        """`files` are all there are in the folder; `alone`: one of its videos is asked for."""
        self.root, self._stream = root, config.stream
        self._timing = lru_cache(256)(partial(timing, stream=config.stream))
        depth = {file for file in videos if not words(file.stem) and fault_by_name(file.stem)}
        if len(depth) == len(videos):
            depth = set()  # a name is no proof; pixels are looked at when they are read
        self._files = {p.relative_to(root).as_posix(): p for p in videos if p not in depth}
        others = [file for file in files if file not in set(videos)]
        if not self._files:
            raise LapaError(f"{root}: holds no video. {_instead(root, others)}")
        self._captions = Captions(root, list(self._files), others, config.captions, whole=not alone)
        told = () if alone else not_read([file for file in others if file not in set(self._captions.files())])
        passed = (f"camera: {len(depth)} files are passed over, no colour films by their names, such as "
                  f"{printable(min(depth).name)}",) if depth else ()  # fmt: skip
        self.notes = (*passed, *self._captions.notes, *told)

    def __len__(self) -> int:
        return len(self._files)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the videos and the captions."""
        return listing_hash(self.root, [*self._files.values(), *self._captions.files()])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per file, or a BadVideo in its place; and those of the captions."""
        return self._each(lambda file: read_video(file, size, self._stream))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: the timestamps of every file are read, and its first frame."""
        found = self._each(lambda file: self._timing(file).clip())
        return ((place if place < len(self) else -1, one) for place, one in enumerate(found))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        file = list(self._files.values())[number]
        return video_frames(file, self._timing(file), size, start)

    def _each(self, read: Callable[[Path], Clip]) -> Iterator[Episode | BadVideo]:
        for name, file in self._files.items():
            try:
                said, clip = self._captions.of(name), read(file)
            except BadVideo as bad:
                yield bad
            else:
                yield Episode(printable(name), clip.frames, clip.fps, said.text, size=clip.size,
                              notes=(*clip.notes, *said.notes), instruction_from=said.origin)  # fmt: skip
        yield from self._captions.problems()


def _is_video(file: Path) -> bool:
    """By its ending; of those that other files have too, by its first bytes: a still webp, TypeScript."""
    kind = file.suffix.lower()
    if kind == ".webp":
        return is_webp(file, moving=True)
    if kind == ".ts" and file.is_file():
        with file.open("rb") as opened:
            head = opened.read(5)
        return not head or head[0] == 0x47 or head[4:5] == b"\x47"
    return kind in SUFFIXES


def _instead(root: Path, others: Sequence[Path]) -> str:
    """What to do about a folder without a video."""
    if packed := archives(others):
        return f"It holds {len(packed)} archives, such as {printable(packed[0])}: unpack them."
    if kind := kind_of(root):
        return f"Did you mean {kind}:{root}?"
    return f"Looked for {', '.join(SUFFIXES)} in it and its subfolders."
