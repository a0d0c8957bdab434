"""WebDataset: tar files of clips, each a video or pictures, with what is said and done in them.

Files of one sample have one name up to the first point behind the last slash, and another ending each:

    key.mp4, key.txt           a clip and its instruction; or key.json with instruction, fps, actions and state
    key.top.mp4, key.wrist.mp4 two cameras
    key.actions.npy            float [T, A]; key.state.npy likewise
    key/000.jpg, ..; key.json  a clip of pictures, in a folder of its own
    a.jpg + a.json, ..         a picture a sample; the JSON says which clip and which frame of it

A tar is not unpacked; one that is packed (.tar.gz) is refused, for nothing in it can be found without reading it all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.arrays import guarded
from lapa.data.cameras import best, camera, fault_by_name
from lapa.data.folders import existing_folder, files_below, listing_hash, no_files, printable
from lapa.data.images import SUFFIXES as PICTURES
from lapa.data.images import frames_of, number_of, outline_of
from lapa.data.json_files import parsed
from lapa.data.notes import CHANGES, not_read
from lapa.data.tar import Member, members
from lapa.data.video import SUFFIXES as VIDEOS
from lapa.data.video import Timing, timing, video_frames
from lapa.data.words import words
from lapa.plugins import choose

TEXTS = ("txt", "text", "caption", "instruction", "prompt", "lang", "transcript")  # endings of texts
SAID = ("instruction", "language_instruction", "caption", "text", "prompt", "task", "description", "lang")
RATES = ("fps", "frame_rate", "framerate", "hz")
CLIP = ("episode", "episode_index", "episode_id", "clip", "clip_id", "video", "video_id", "trajectory", "traj")
FRAME = ("frame", "frame_index", "frame_id", "step", "step_index", "index", "t", "timestep")
VECTORS = {"actions": ("actions", "action"), "state": ("state", "states", "proprio")}
CLIPS = 1 << 24  # more than there are in a tar
MAIN = "main"  # a camera that has no name


@dataclass(frozen=True)
class Config:
    """`path` is a tar, or a folder of them; `camera` the word before a video's or picture's ending (key.top.mp4: top);
    `fps` the rate of pictures, where the JSON does not say it; `instruction` another key of the JSON, or another ending
    of a text."""

    path: str
    camera: str | None = None
    fps: float | None = None
    instruction: str | None = None

    def build(self) -> WebDataset:
        """List the tars. Raises LapaError when there are none, or none with a clip."""
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise LapaError(f"webdataset:{self.path}: fps is above 0, not {self.fps:g}.")
        root = Path(self.path).expanduser()
        if root.is_file():
            return WebDataset(root.parent, [_plain(root)], self)
        every = files_below(existing_folder(root, "WebDataset"), ("",))
        packed = [file for file in every if file.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))]
        tars = sorted((file for file in every if file.suffix.lower() == ".tar"), key=_by_folder)
        if packed:
            _plain(packed[0])
        if not tars:
            raise LapaError(f"{root}: holds no .tar file.")
        return WebDataset(root, tars, self, not_read(file for file in every if file not in tars))


@dataclass
class Clip:
    """A sample: its files by ending, and the pictures of each camera in their order."""

    key: str
    files: dict[str, Member] = field(default_factory=dict)
    pictures: dict[str, list[tuple[Any, Member]]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)  # what the JSON of each picture says
    problem: BadVideo | None = None

    def cameras(self) -> dict[str, str]:
        """Name of each camera -> the ending of its video, "" for pictures."""
        found = {name: "" for name in self.pictures}
        for ending in self.files:
            if f".{ending.rpartition('.')[2]}" in VIDEOS:
                found[ending.rpartition(".")[0] or MAIN] = ending
        return found


class WebDataset:
    """Tar after tar, the clips of each in the order in which they begin."""

    def __init__(self, root: Path, tars: list[Path], config: Config, notes: tuple[str, ...] = ()) -> None:
        self.root, self._tars, self._config, self._beside = root, tars, config, notes
        self._clips = lru_cache(4)(_clips)
        self._timing = lru_cache(256)(timing)
        self._choose()

    def signature(self) -> str:
        """A hash of the names, sizes and times of the tars."""
        return listing_hash(self.root, self._tars) + self.camera

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield every clip, or a BadVideo in its place."""
        for number, episode in self.index():
            if isinstance(episode, BadVideo):
                yield episode
                continue
            try:
                frames = np.stack(list(self.frames(number, size)))
                if len(frames) != len(episode.frames):
                    raise BadVideo(f"{self._where(number)}: has {len(frames)} of {len(episode.frames)} frames.")
            except BadVideo as bad:
                yield bad
            else:
                yield replace(episode, frames=frames)

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable. A clip's number is that of its tar and its own in it."""
        for nth, tar in enumerate(self._tars):
            try:
                clips, bad = self._clips(tar)
            except BadVideo as error:
                yield nth * CLIPS, error
                continue
            for number, clip in enumerate(clips):
                try:
                    yield nth * CLIPS + number, self._episode(tar, clip)
                except BadVideo as error:
                    yield nth * CLIPS + number, error
            if bad:
                yield -1, bad
        if Path(self._config.path).expanduser().is_dir():
            yield from ((-1, bad) for bad in no_files(self.root, (".tar",)))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        tar = self._tars[number // CLIPS]
        clip = self._clips(tar)[0][number % CLIPS]
        ending = self._ending(tar, clip)
        if ending:
            film = clip.files[ending]
            yield from video_frames(film, self._timing(film), size, start)
            return
        sources, wheres = self._sources(clip)
        shape = outline_of(sources[:2], wheres[:2], 1.0).size
        some = ((file.read(), where) for file, where in zip(self._members(clip)[start:], wheres[start:], strict=True))
        for data, where in some:
            yield from frames_of([data], [where], shape, size)

    # --- clips

    def _episode(self, tar: Path, clip: Clip) -> Episode:
        if clip.problem:
            raise clip.problem
        where = f"{printable(tar)}, {clip.key}"
        ending = self._ending(tar, clip)
        about = _about(clip, where)
        if ending:
            shown: Timing = self._timing(clip.files[ending])
            outline = shown.clip()
        else:
            fps = self._config.fps or next((r for key in RATES if (r := _rate(about.get(key)))), None)
            if not fps:
                raise BadVideo(f"{where}: pictures have no rate. Say it: fps in its JSON, or webdataset:PATH,fps=10")
            sources, wheres = self._sources(clip)
            outline = outline_of(sources, wheres, fps)
        texts, origin = self._instruction(clip, about, where)
        length = len(outline.frames)
        actions, state = (_vector(clip, about, keys, length, where) for keys in VECTORS.values())
        return Episode(
            id=self._id(tar, clip),
            frames=outline.frames,
            fps=outline.fps,
            instruction=texts[0],
            actions=actions,
            state=state,
            size=outline.size,
            camera=self.camera,
            notes=(
                *self._notes,
                *outline.notes,
                *self._beside,
                *([CHANGES] if len(texts) > 1 else []),
                *self._unread(clip),
            ),
            instruction_from=origin if texts[0] else "",
        )

    def _id(self, tar: Path, clip: Clip) -> str:
        """A clip's key, after its tar's path within the folder where there may be several tars."""
        if Path(self._config.path).expanduser().is_file():
            return clip.key
        return f"{printable(tar.relative_to(self.root).with_suffix(''))}/{clip.key}"

    def _where(self, number: int) -> str:
        tar = self._tars[number // CLIPS]
        return f"{printable(tar)}, {self._clips(tar)[0][number % CLIPS].key}"

    def _members(self, clip: Clip) -> list[Member]:
        return [member for _, member in clip.pictures[self.camera]]

    def _sources(self, clip: Clip) -> tuple[list[bytes], list[str]]:
        """The first picture of a clip, as often as there are pictures, and what to call each in messages."""
        files = self._members(clip)
        return [files[0].read()] * len(files), [printable(file) for file in files]

    def _ending(self, tar: Path, clip: Clip) -> str:
        cameras = clip.cameras()
        if self.camera not in cameras:
            has = ", ".join(sorted(clip.files)) or "none"
            raise BadVideo(f"{printable(tar)}, {clip.key}: has no film of the camera {self.camera}; its files: {has}.")
        return cameras[self.camera]

    def _choose(self) -> None:
        """The camera, by the first clip that has one. Raises LapaError where there is none."""
        problem: BadVideo | None = None
        for tar in self._tars:
            try:
                clips, bad = self._clips(tar)
            except BadVideo as error:
                problem = problem or error
                continue
            problem = problem or bad
            for clip in clips:
                if names := list(clip.cameras()):
                    self.cameras = tuple(names) if names != [MAIN] else ()
                    self.colour_cameras = tuple(name for name in self.cameras if not fault_by_name(name))
                    where = f"{printable(tar)}, {clip.key}"
                    if self._config.camera:
                        self.camera, why = choose(self._config.camera, names, "camera", f" in {where}"), "as asked for"
                    else:
                        self.camera, why = best([camera(name) for name in names], where)
                    self._notes = (f"camera: {self.camera}, {why}",) if why else ()
                    return
        raise LapaError(str(problem) if problem else f"{self.root}: the tars hold no video and no picture.")

    def _instruction(self, clip: Clip, about: Mapping[str, Any], where: str) -> tuple[list[str], str]:
        """The instructions of a clip, each once, and where they are from."""
        wanted = self._config.instruction
        endings = [wanted] if wanted else [*TEXTS, *(f"{self.camera}.{text}" for text in TEXTS)]
        for ending in endings:
            if ending in clip.files:
                with guarded(printable(clip.files[ending])):
                    said = clip.files[ending].read().decode("utf-8-sig")
                return [" ".join(said.split())], f"texts (.{ending})"
        for key in [wanted] if wanted else SAID:
            rows = [*(row.get(key) for _, row in clip.rows), about.get(key)]
            if texts := list(dict.fromkeys(text for row in rows if (text := _text(row)))):
                return texts, f"JSON ({key})"
        if wanted:
            raise BadVideo(f"{where}: has no text {wanted}, neither as a file nor in its JSON.")
        return [words(clip.key.rpartition("/")[2])], "names of files"

    def _unread(self, clip: Clip) -> tuple[str, ...]:
        """A note on files of a sample that nobody reads, such as key.cls and key.actions.npz."""
        arrays = [f"{key}.npy" for keys in VECTORS.values() for key in keys]
        whole = ("json", self._config.instruction, *arrays)
        known = (*(ending[1:] for ending in (*VIDEOS, *PICTURES)), *TEXTS)
        rest = [name for name in clip.files if name not in whole and name.rpartition(".")[2] not in known]
        return (f"not read: .{', .'.join(sorted(rest))}",) if rest else ()


def _clips(tar: Path) -> tuple[list[Clip], BadVideo | None]:
    """The clips of a tar, and what stopped the reading of it. Raises BadVideo for what is no tar."""
    samples: dict[str, Clip] = {}
    bad: BadVideo | None = None
    clip: Clip | None = None
    for member in members(tar):
        if isinstance(member, BadVideo):
            bad = member
            if clip is not None:  # of which there may be more
                clip.problem = bad
            break
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        stem, _, ending = name.partition(".")
        if not stem or not ending or name.startswith("__"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        clip = samples.setdefault(key, Clip(key))
        ending = ending.lower()
        if ending in clip.files and clip.problem is None:
            clip.problem = BadVideo(f"{printable(tar)}: there are two files {key}.{ending}.")
        clip.files[ending] = member
    if not samples and bad is None:
        bad = BadVideo(f"{printable(tar)}: holds no file.")
    return _joined(samples, tar), bad


def _joined(samples: dict[str, Clip], tar: Path) -> list[Clip]:
    """Samples with videos as they are; samples of pictures put together to clips."""
    found: dict[str, Clip] = {}
    for key, sample in samples.items():
        pictures = [ending for ending in sample.files if f".{ending.rpartition('.')[2]}" in PICTURES]
        if not pictures:
            if sample.cameras():
                found[key] = sample
            continue
        try:
            about = _about(sample, f"{printable(tar)}, {key}")
        except BadVideo as bad:
            found[key] = Clip(key, sample.files, {MAIN: []}, problem=bad)
            continue
        clip_said, frame_said = _first(about, CLIP), _first(about, FRAME)
        folder, _, name = key.rpartition("/")
        told = clip_said is not None and frame_said is not None
        place = _place(frame_said) if told else number_of(name)
        its = str(clip_said) if told else folder or key
        clip = found.setdefault(its, Clip(its, dict(samples[its].files) if its in samples else {}))
        clip.problem = clip.problem or sample.problem or (samples[its].problem if its in samples else None)
        if told or its != key:  # a picture a sample
            clip.about = {**about, **clip.about}
            if "json" in sample.files:
                clip.rows.append((place, about))
        for ending in pictures:
            before, order = ending.rpartition(".")[0], place
            if its == key and not told and before.isdecimal():  # key.0.jpg, key.1.jpg
                before, order = "", int(before)
            clip.pictures.setdefault(before or MAIN, []).append((order, sample.files[ending]))
    for clip in found.values():
        clip.problem = clip.problem or _disorder(clip, tar)
    return list(found.values())


def _disorder(clip: Clip, tar: Path) -> BadVideo | None:
    """Put pictures in the order of their numbers. What is wrong with them, if anything: numbers of some only, double
    ones, and gaps, which would be taken for time."""
    for name, pictures in clip.pictures.items():
        where = f"{printable(tar)}, {clip.key}: the pictures of {name}"
        try:
            pictures.sort(key=_order)
            clip.rows.sort(key=_order)
        except TypeError:
            return BadVideo(f"{where} have numbers of different kinds.")
        if _uneven([order for order, _ in pictures]):
            return BadVideo(f"{where} are not numbered in even steps; some are missing or double.")
    return None


def _place(said: Any) -> Any:
    """What a JSON says of a frame -> a sort key: a number, also one written as text, else the numbers in a text."""
    ways: tuple[Callable[[str], Any], ...] = (int, float, number_of)
    for way in ways if isinstance(said, str) else ():
        with suppress(ValueError):  # also for thousands of digits
            return way(said)
    return said


def _order(one: tuple[Any, Any]) -> Any:
    return one[0]


def _uneven(orders: Sequence[Any]) -> bool:
    """Does none of the whole numbers in sort keys go on in even steps? False where a key has none."""
    keys = [order if isinstance(order, tuple) else (order,) for order in orders]
    rows = [[part for part in key if isinstance(part, int)] for key in keys]
    if not all(rows):
        return False
    same = len({len(row) for row in rows}) == 1
    columns = zip(*rows, strict=True) if same else [[row[-1] for row in rows]]
    steps = [{b - a for a, b in pairwise(column)} for column in columns]
    return all(len(found) > 1 or 0 in found for found in steps)


def _about(clip: Clip, where: str) -> dict[str, Any]:
    """What the JSON of a sample says, {} where there is none."""
    file = clip.files.get("json")
    if file is None:
        return clip.about
    with guarded(printable(file)):
        found = parsed(file.read(), printable(file))
    if not isinstance(found, dict):
        raise BadVideo(f"{printable(file)}: is no JSON object.")
    return {**clip.about, **found}


def _vector(clip: Clip, about: Mapping[str, Any], keys: Sequence[str], length: int, where: str) -> Array | None:
    """Actions or states of a clip, float32 [T, D], from key.npy or the JSON; None for none."""
    for key in keys:
        if f"{key}.npy" in clip.files:
            member = clip.files[f"{key}.npy"]
            with guarded(printable(member)):
                found = _array(member.read())
        elif len(clip.rows) == length and all(key in row for _, row in clip.rows):
            with guarded(f"{where}, {key}"):
                found = np.array([row[key] for _, row in clip.rows], np.float32)
        elif isinstance(about.get(key), list) and not clip.rows:
            with guarded(f"{where}, {key}"):
                found = np.array(about[key], np.float32)
        else:
            continue
        if not found.ndim or len(found) != length:
            raise BadVideo(f"{where}: has {key} of the shape {list(found.shape)}, and {length} frames.")
        return found.reshape(length, -1).astype(np.float32)
    return None


def _array(data: bytes) -> Array:
    """A .npy of numbers. Raises ValueError for one whose header says more than there is."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = header(file)
    if kind.hasobject or kind.kind not in "fiub" or math.prod(shape) * kind.itemsize > len(data):
        raise ValueError(f"an array of {kind} {list(shape)}")
    return np.load(io.BytesIO(data), allow_pickle=False)


def _first(about: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((about[key] for key in keys if isinstance(about.get(key), int | float | str)), None)


def _text(value: Any) -> str:
    """A text, or the first of several that say the same in other words; "" for none."""
    texts = value if isinstance(value, list) else [value]
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), "")


def _rate(value: Any) -> float | None:
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    return float(value) if fits else None


def _plain(tar: Path) -> Path:
    if tar.name.lower().endswith((".gz", ".tgz", ".zst", ".xz", ".bz2")):
        raise LapaError(f"{tar}: is packed. Unpack it to a plain tar first (gunzip, unzstd or unxz {tar.name}).")
    return tar


def _by_folder(file: Path) -> tuple[Path, tuple[int | str, ...]]:
    return file.parent, number_of(file)
