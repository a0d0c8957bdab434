"""One folder of numbered images per clip, as the released LAQ code wants its data. No actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.captions import Captions
from lapa.data.folders import existing_folder, files_below, listing_hash, printable
from lapa.data.images import SUFFIXES, Clip, check_steps, frames_of, number_of, outline_of, read_frames


@dataclass(frozen=True)
class Config:
    """`path` is the folder of the clips' folders, nested or not; `fps` the rate of the images, which
    images do not say; `captions` a csv or jsonl with the columns `file`, a clip's folder within `path`, and
    `instruction`, by default as for video_folder."""

    path: str
    fps: float | None = None
    captions: str | None = None

    def build(self) -> FrameFolder:
        """List the images. Raises LapaError when the folder is missing, has no image, or `fps` is not given."""
        root = existing_folder(self.path, "Frame folder")
        if not self.fps or self.fps <= 0:
            raise LapaError(f"{root}: images have no frame rate. Say it: frame_folder:{self.path},fps=12")
        return FrameFolder(root, self.fps, Captions(root, self.captions))


class FrameFolder:
    """One episode per folder that holds images, in the order of their paths; frames in the order of their numbers."""

    def __init__(self, root: Path, fps: float, captions: Captions) -> None:
        self.root, self.fps, self._captions = root, fps, captions
        self._clips: dict[str, list[Path]] = {}
        for path in files_below(root, SUFFIXES):
            self._clips.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
        if not self._clips:
            raise LapaError(f"{root}: holds no image. Looked for {', '.join(SUFFIXES)} in its subfolders.")

    def __len__(self) -> int:
        return len(self._clips)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the images and the captions."""
        images = [path for clip in self._clips.values() for path in clip]
        return listing_hash(self.root, [*images, *self._captions.files(self._clips)])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per folder, or a BadVideo in its place; and those of the captions."""
        return self._each(lambda images, names: read_frames(images, names, self.fps, size))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: the header of each folder's first image is read."""
        return enumerate(self._each(lambda images, names: outline_of(images, names, self.fps)))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        images, names = _in_order(list(self._clips.values())[number])
        return frames_of(images, names, outline_of(images, names, self.fps).size, size, start)

    def _each(self, read: Callable[[Sequence[Path], Sequence[str]], Clip]) -> Iterator[Episode | BadVideo]:
        for name, unsorted in self._clips.items():
            images, names = _in_order(unsorted)
            try:
                instruction = self._captions.of(name if name != "." else self.root.name)
                check_steps(images, printable(self.root / name))
                clip = read(images, names)
            except BadVideo as bad:
                yield bad
            else:
                yield Episode(printable(name), clip.frames, clip.fps, instruction, size=clip.size)
        yield from self._captions.problems(self._clips)


def _in_order(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Images by their numbers, and their names for messages."""
    images = sorted(images, key=number_of)
    return images, [printable(image) for image in images]
