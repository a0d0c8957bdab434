"""Numbered images in folders, a folder per clip as the released LAQ code wants its data, or several. No actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.cameras import fault_by_name
from lapa.data.captions import Captions
from lapa.data.folders import existing_folder, files_below, listing_hash, printable
from lapa.data.images import SUFFIXES, Clip, frames_of, outline_of, read_frames
from lapa.data.notes import archives, kind_of, not_read, refuse_archive
from lapa.data.sequences import Series, is_deep, series_of
from lapa.data.video import even


@dataclass(frozen=True)
class Config:
    """`path` is the folder of the clips' folders, nested or not; `fps` the rate of the images, which images do not say
    unless their names are times; `captions` a table with a column for a clip's folder within `path` and one for the
    instruction, by default as for video_folder, then lang.txt or the like in the clip's folder or above it."""

    path: str
    fps: float | None = None
    captions: str | None = None

    def build(self) -> FrameFolder:
        """List the images. Raises LapaError when the folder is missing, has no image, or `fps` is not given, and for a
        folder that another reader is for."""
        if why := refuse_archive(Path(self.path)):
            raise LapaError(why)
        root = existing_folder(self.path, "Frame folder")
        if (other := kind_of(root)) == "lerobot":
            raise LapaError(f"{root}: is a LeRobot dataset, whose files need its tables. Write {other}:{self.path}.")
        return FrameFolder(root, self)


@dataclass(frozen=True)
class Frames:
    """A clip: its images in order, at an even rate."""

    name: str
    images: tuple[Path, ...]
    fps: float
    series: Series
    listed: tuple[Path, ...]  # as they are counted in series.order

    @property
    def where(self) -> list[str]:
        """The images for messages."""
        return [printable(image) for image in self.images]


class FrameFolder:
    """One episode per folder that holds images, or per clip in it, in the order of their paths."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        files = files_below(root, ("",))
        folders: dict[PurePosixPath, list[Path]] = {}
        for path in files:
            if path.name.lower().endswith(SUFFIXES):
                folders.setdefault(PurePosixPath(path.parent.relative_to(root)), []).append(path)
        depth = [folder for folder in folders if fault_by_name(folder.name)]
        if len(depth) == len(folders):
            depth = []  # a name is no proof; pixels are looked at when they are read
        found = [(folder, images, one) for folder, images in sorted(folders.items()) if folder not in depth
                 for one in series_of(images)]  # fmt: skip
        if not config.fps and not (found and all(one.times is not None for *_, one in found)):
            raise LapaError(f"{root}: images have no frame rate. Say it: frame_folder:{config.path},fps=12")
        if config.fps is not None and config.fps <= 0:
            raise LapaError(f"{root}: fps={config.fps:g} is no frame rate. Say it: frame_folder:{config.path},fps=12")
        others = [file for file in files if not file.name.lower().endswith(SUFFIXES)]
        if not found:
            packed = archives(others)
            hint = f"It holds archives, such as {printable(packed[0])}: unpack them." if packed else (
                f"Looked for {', '.join(SUFFIXES)} in it and its subfolders.")  # fmt: skip
            raise LapaError(f"{root}: holds no image. {hint}")
        self._clips: list[Frames] = []
        self._bad: dict[str, BadVideo] = {}
        for folder, images, one in found:
            self._enter(_name(folder, one, root), images, one, config.fps)
        self._captions = Captions(root, [clip.name for clip in self._clips], others, config.captions, folders=True)
        self._deep: dict[str, None] = {}
        passed = (f"camera: {len(depth)} folders are passed over, no colour films by their names, such as "
                  f"{printable(str(depth[0]))}",) if depth else ()  # fmt: skip
        left = not_read([file for file in others if file not in set(self._captions.files())])
        self._notes = (*passed, *self._captions.notes, *left)

    def _enter(self, name: str, images: Sequence[Path], one: Series, fps: float | None) -> None:
        order = [images[i] for i in one.order]
        rate = fps or 1.0
        try:
            if one.times is not None and len(order) > 1:
                rate, shown = even(one.times, fps, printable(self.root / name))
                order = [order[i] for i in shown]
        except BadVideo as bad:
            self._bad[name] = bad
        self._clips.append(Frames(name, tuple(order), rate, one, tuple(images)))

    @property
    def notes(self) -> tuple[str, ...]:
        """See contracts.Dataset."""
        if not self._deep:
            return self._notes
        first = next(iter(self._deep))
        deep = f"camera: {len(self._deep)} folders of depth maps (one channel, over 8 bits) are passed over: {first}"
        return (*self._notes, deep + (", .." if len(self._deep) > 1 else ""))

    def __len__(self) -> int:
        return len(self._clips)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the images and the captions."""
        images = [path for clip in self._clips for path in clip.listed]
        return listing_hash(self.root, [*dict.fromkeys(images), *self._captions.files()])

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per clip, or a BadVideo in its place; and those of the captions. Depth maps are no clips."""
        return (episode for _, episode in self._each(size, outline=False))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: the header of each clip's first image is read."""
        return self._each(None, outline=True)

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        clip = self._clips[number]
        return frames_of(clip.images, clip.where, outline_of(clip.images, clip.where, clip.fps).size, size, start)

    def _each(self, size: int | None, outline: bool) -> Iterator[tuple[int, Episode | BadVideo]]:
        for number, clip in enumerate(self._clips):
            if is_deep(clip.images[0]):
                self._deep[printable(clip.name)] = None
                continue
            try:
                yield number, self._episode(clip, size, outline)
            except BadVideo as bad:
                yield number, bad
        if len(self._deep) == len(self._clips):
            yield (
                -1,
                BadVideo(f"{self.root}: holds depth maps only (one channel, over 8 bits)."),
            )
        for fault in self._captions.problems():
            yield -1, fault

    def _episode(self, clip: Frames, size: int | None, outline: bool) -> Episode:
        if clip.name in self._bad:
            raise self._bad[clip.name]
        said = self._captions.of(clip.name)
        clip.series.check(clip.listed, printable(self.root / clip.name))
        read: Clip = (outline_of(clip.images, clip.where, clip.fps) if outline
                      else read_frames(clip.images, clip.where, clip.fps, size))  # fmt: skip
        times = (f"rate: {clip.fps:.4g} fps, by the names of the images, which are times",)
        notes = (*clip.series.notes, *(times if clip.series.times is not None else ()), *said.notes)
        return Episode(printable(clip.name), read.frames, read.fps, said.text, size=read.size, notes=notes,
                       instruction_from=said.origin)  # fmt: skip


def _name(folder: PurePosixPath, one: Series, root: Path) -> str:
    """What a clip is called: its folder within `root`, and what tells it from the others there."""
    place = folder if folder.name else PurePosixPath(root.name)
    return (place / one.name).as_posix() if one.name else place.as_posix()
