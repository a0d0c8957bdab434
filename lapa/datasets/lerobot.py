"""LeRobot datasets v3.x and v2.x, in a folder or on the hub: this project's own (collect) and anyone's.

The versions differ in where things are. v3 keeps many episodes in one parquet and one video file, and tables say where;
v2 has one file of each per episode. Both become a list of `Place`s. Everything after that is the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lapa.artefacts import hub
from lapa.contracts import ActionKind, Array, BadVideo, Episode, LapaError
from lapa.data.cameras import Camera, best, camera
from lapa.data.folders import existing_folder, listing_hash, readable
from lapa.data.images import blank, read_image, resized
from lapa.data.json_files import read_foreign_json, read_lines
from lapa.data.lerobot_format import INFO, TASKS
from lapa.data.video import VideoReader
from lapa.plugins import choose

TASKS_V2, EPISODES_V2 = "meta/tasks.jsonl", "meta/episodes.jsonl"


@dataclass(frozen=True)
class Config:
    """`path` is the folder that holds meta/info.json, or user/name on the hub (at `revision`, by default the newest);
    `camera` a feature such as observation.images.main, or its last word, by default the first that films the scene in
    colour (data/cameras.py); `split` one of info.json's, such as train, by default all episodes."""

    path: str
    camera: str | None = None
    revision: str | None = None
    split: str | None = None

    def build(self) -> LeRobotDataset:
        """Read the metadata; from the hub, fetch what one camera needs. Raises LapaError for anything that is no
        LeRobot dataset v2.x or v3.x."""
        if Path(self.path).expanduser().exists() or not hub.is_repo(self.path):
            return LeRobotDataset(existing_folder(self.path, "LeRobot dataset"), self.camera, self.split)
        root = hub.fetch(self.path, ["meta/**"], self.revision)
        files = ["meta/**", "data/**", f"videos/*{LeRobotDataset(root, self.camera).camera}/*"]
        return LeRobotDataset(hub.fetch(self.path, files, self.revision), self.camera, self.split)


@dataclass(frozen=True)
class Place:
    """Where an episode is: its rows in `data`, its frames in `video` from `start` seconds on."""

    index: int
    length: int
    data: Path
    video: Path | None
    start: float


class LeRobotDataset:
    """Yields the episodes of one camera, file after file. A file is decoded forward, once."""

    def __init__(self, root: Path, wanted: str | None = None, split: str | None = None) -> None:
        self.root = root
        self._info = _read_info(root)
        self._old = _major(self._info) == "2"
        features: dict[str, Any] = self._info["features"]
        self._features = _cameras(features, root)
        self.cameras = tuple(self._features)
        self.camera, self._why = _camera(self._features, features, wanted, root)
        self._short = next(short for short, feature in self._features.items() if feature == self.camera)
        self.fps = _rate(self._info["fps"], root)
        self._bad: list[BadVideo] = []  # what the metadata say of no episode
        self._is_video = features[self.camera]["dtype"] == "video"
        shapes = {key: _shape(features.get(key)) for key in ("action", "observation.state")}
        self._widths = {key: math.prod(shape) for key, shape in shapes.items() if shape}
        self._names = {key: _names(features.get(key), self._widths.get(key)) for key in ("action", "observation.state")}
        self._kinds = _kinds(features.get("action"), self._names["action"])
        self._robot = self._info.get("robot_type")
        self._tasks = _read_tasks_v2(root / TASKS_V2) if self._old else _read_tasks(root / TASKS)
        self._places = self._places_v2() if self._old else self._places_v3()
        told, held = self._info.get("total_episodes"), len(self._places)
        if isinstance(told, int) and told > held and not self._bad:
            self._bad.append(BadVideo(f"{root / INFO}: tells of {told} episodes, meta/episodes of {held}."))
        if not self._places:
            raise LapaError(str(self._bad[0]) if self._bad else f"{root}: the dataset has no episode.")
        if split is not None:
            inside = _split(self._info.get("splits"), split, root)
            self._places = [place for place in self._places if any(place.index in span for span in inside)]
            if not self._places:
                raise LapaError(f"{root}: none of its episodes is in the split {split}.")
        self.episode_indices = tuple(place.index for place in self._places)

    def __len__(self) -> int:
        return len(self._places)

    def signature(self) -> str:
        """A hash of the names, sizes and times of all files, and of the camera."""
        listing = listing_hash(self.root, (p for p in self.root.rglob("*") if p.is_file()))
        return f"{listing}-{self.camera}"

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield every episode, ordered as the frames are on disk; a BadVideo for missing, short or damaged files."""
        yield from self._bad
        rows = _Rows(["task_index", *self._names])
        for place, pixels in self._video_frames(size) if self._is_video else self._image_frames(size):
            try:
                if isinstance(pixels, BadVideo):
                    raise pixels
                yield self._episode(place, np.stack(pixels), rows.of(place))
            except LapaError as error:
                yield BadVideo(str(error))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: of the tables alone."""
        yield from ((-1, bad) for bad in self._bad)
        rows = _Rows(["task_index", *self._names])
        for number, place in enumerate(self._places):
            try:
                yield number, self._episode(place, blank(place.length, self._size() or (0, 0)), rows.of(place))
            except LapaError as error:
                yield number, BadVideo(str(error))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        place = self._places[number]
        if place.video:
            with VideoReader(place.video) as video:
                since = place.start + (start - 0.5) / self.fps if place.start + start else -np.inf
                yield from span(video.since(since), place.video, place.start, start, place.length, self.fps, size)
        else:
            yield from self._images(place, _Rows([self.camera]), size, start)

    def _size(self) -> tuple[int, int] | None:
        return _height_width(_shape(self._info["features"][self.camera]))

    def _episode(self, place: Place, frames: Array, columns: pa.Table) -> Episode:
        return Episode(
            id=f"episode_{place.index:06d}",
            frames=frames,
            fps=self.fps,
            instruction=self._instruction(columns, place),
            actions=self._matrix(columns, "action", place),
            state=self._matrix(columns, "observation.state", place),
            state_names=self._names["observation.state"],
            action_names=self._names["action"],
            size=self._size(),
            camera=self._short,
            action_kinds=self._kinds,
            embodiment=self._robot if isinstance(self._robot, str) else "",
            notes=(f"camera: {self._short}, {self._why}",) if self._why else (),
        )

    def _instruction(self, columns: pa.Table, place: Place) -> str:
        if "task_index" not in columns.column_names:
            return ""
        task = columns["task_index"][0].as_py()
        if not isinstance(task, int) or task not in self._tasks:
            tasks = TASKS_V2 if self._old else TASKS
            raise BadVideo(f"{place.data}: episode {place.index} has task {task}, which {self.root / tasks} lacks.")
        return self._tasks[task]

    def _matrix(self, columns: pa.Table, key: str, place: Place) -> Array | None:
        """A feature as float32 [T, D], or None when the dataset has none. Raises BadVideo for rows that info.json does
        not tell of: missing, of other widths, no numbers."""
        where, width = f"{place.data}: {key} of episode {place.index}", self._widths.get(key)
        if key not in columns.column_names:
            if width is not None:
                raise BadVideo(f"{where} is missing, {INFO} lists it.")
            return None
        column = columns[key].combine_chunks()
        kind = column.type
        nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        numbers = kind.value_type if nested else kind
        if not (pa.types.is_integer(numbers) or pa.types.is_floating(numbers) or pa.types.is_boolean(numbers)):
            raise BadVideo(f"{where} holds {kind}, no numbers.")
        widths = set(pc.list_value_length(column).to_pylist()) if nested else {1}
        if len(widths) > 1 or (width and widths != {width}):
            raise BadVideo(f"{where} has {sorted(map(str, widths))} numbers a row, {INFO} says {width}.")
        flat = column.flatten() if nested else column
        return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(place.length, -1)

    def _places_v3(self) -> list[Place]:
        """From the episode tables, sorted by where the frames are."""
        files = sorted((self.root / "meta/episodes").rglob("*.parquet"))
        if not files:
            raise LapaError(f"{self.root}: meta/episodes holds no parquet file; the dataset is incomplete.")
        parts = ("chunk_index", "file_index")
        wanted = ["episode_index", "length", *(f"data/{key}" for key in parts)]
        if self._is_video:
            wanted += [f"videos/{self.camera}/{key}" for key in (*parts, "from_timestamp")]
        places = []
        for file in files:
            try:
                rows = _read_table(file, wanted).to_pylist()
            except LapaError as error:
                self._bad.append(BadVideo(str(error)))
                continue
            for row in rows:
                try:
                    index, length, *at = (_whole(row, name, file) for name in wanted if "timestamp" not in name)
                    data, video = dict(zip(parts, at[:2], strict=True)), {}
                    if self._is_video:
                        video = dict(zip(parts, at[2:], strict=True))
                    film = self._path("video_path", video_key=self.camera, **video) if video else None
                    start = _seconds(row[wanted[-1]], file) if self._is_video else 0.0
                    places.append(Place(index, length, self._path("data_path", **data), film, start))
                except BadVideo as bad:
                    self._bad.append(bad)
        return sorted(places, key=lambda place: (place.video or place.data, place.start, place.index))

    def _places_v2(self) -> list[Place]:
        """From meta/episodes.jsonl; the chunk follows from the number of the episode."""
        chunk = _whole({"chunks_size": 1000} | self._info, "chunks_size", self.root / INFO)
        places = []
        table = self.root / EPISODES_V2
        if not table.exists():
            raise LapaError(f"{table}: is missing; the dataset is incomplete.")
        for number, row in read_lines(table):
            where = f"{table}, line {number}"
            try:
                if isinstance(row, BadVideo):
                    raise row
                index, length = (_whole(row, key, where) for key in ("episode_index", "length"))
                at = {"episode_chunk": index // max(chunk, 1), "episode_index": index}
                video = self._path("video_path", video_key=self.camera, **at) if self._is_video else None
                places.append(Place(index, length, self._path("data_path", **at), video, 0.0))
            except BadVideo as bad:
                self._bad.append(bad)
        return sorted(places, key=lambda place: place.index)

    def _path(self, template: str, **at: Any) -> Path:
        try:
            return self.root / str(self._info[template]).format(**at)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise LapaError(f"{self.root / INFO}: {template} cannot be followed ({error!r}).") from None

    def _video_frames(self, size: int | None) -> Iterator[tuple[Place, list[Array] | BadVideo]]:
        for path, group in groupby(self._places, key=lambda place: place.video):
            places = list(group)
            assert path is not None
            spans = [(place.start, place.length) for place in places]
            yield from zip(places, cut(path, spans, self.fps, size), strict=True)

    def _image_frames(self, size: int | None) -> Iterator[tuple[Place, list[Array] | BadVideo]]:
        images = _Rows([self.camera])
        for place in self._places:
            try:
                yield place, list(self._images(place, images, size))
            except LapaError as error:
                yield place, BadVideo(str(error))

    def _images(self, place: Place, rows: _Rows, size: int | None, start: int = 0) -> Iterator[Array]:
        """The images of an episode that stores them in its rows, from `start` on."""
        where = f"{place.data}: {self.camera} of episode {place.index}, frame "
        try:
            stored = [cell["bytes"] for cell in rows.of(place)[self.camera].to_pylist()]
        except (KeyError, TypeError) as error:
            raise BadVideo(f"{where}0: is no image inside the file ({error!r}).") from None
        for t, data in enumerate(stored[start:], start):
            yield resized(read_image(data, f"{where}{t}"), size)


def span(
    frames: Iterator[tuple[float, Array]], path: Path, begin: float, first: int, length: int, fps: float,
    size: int | None,
) -> Iterator[Array]:  # fmt: skip
    """Of frames with their times, those at the steps first : length of a span from `begin` seconds on, uint8
    [H, W, 3] each. A frame belongs to the nearest time step. Raises BadVideo when one is missing."""
    step = first
    while step < length:
        time, frame = next(frames, (np.inf, None))
        place = (time - begin) * fps
        if frame is None or place > step + 0.5:
            raise BadVideo(
                f"{path}: has no frame at {begin + step / fps:.3f} s, step {step} of {length} of an episode. "
                "The file is cut short or belongs elsewhere; copy it again."
            )
        if place > step - 0.5:  # else it lies before the span
            yield resized(frame, size)
            step += 1


def cut(
    path: Path, spans: Sequence[tuple[float, int]], fps: float, size: int | None = None
) -> Iterator[list[Array] | BadVideo]:
    """Decode a video once, forward, and yield `length` frames uint8 [H, W, 3] from `start` seconds on per span.

    `spans` are (start, length) and ascend. A frame belongs to the nearest time step. For every span that the file does
    not hold completely a BadVideo is yielded.
    """
    done = 0
    try:
        with VideoReader(path) as video:
            frames = iter(video)
            for start, length in spans:
                yield list(span(frames, path, start, 0, length, fps, size))
                done += 1
    except BadVideo as bad:
        yield from [bad] * (len(spans) - done)


class _Rows:
    """The rows of an episode in the data files, keeping the file in use open as a table."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._path: Path | None = None

    def of(self, place: Place) -> pa.Table:
        """The rows of an episode in frame order. Raises LapaError when they are not `length` many."""
        if place.data != self._path:
            self._path = None
            self._table = _read_table(place.data, ["episode_index"], also=self._columns)
            column = self._table["episode_index"]
            if not pa.types.is_integer(column.type) or column.null_count:
                raise LapaError(f"{place.data}: episode_index is not a whole number in every row.")
            index = column.to_numpy()
            self._order = np.argsort(index, kind="stable")
            self._sorted, self._path = index[self._order], place.data
        start, stop = np.searchsorted(self._sorted, place.index + np.arange(2))
        if stop - start != place.length or not place.length:
            raise LapaError(
                f"{place.data}: episode {place.index} has {stop - start} rows, meta/episodes says {place.length}."
            )
        where = self._order[start:stop]
        if where[-1] - where[0] == len(where) - 1:
            return self._table.slice(where[0], len(where))
        return self._table.take(where)


def _read_info(root: Path) -> dict[str, Any]:
    path = root / INFO
    if not path.exists():
        raise LapaError(f"{root}: is no LeRobot dataset, {INFO} is missing. Check the path.")
    info = read_foreign_json(path)
    features = info.get("features", {}) if isinstance(info, dict) else None
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise LapaError(f"{path}: is no description of a dataset.")
    if _major(info) not in ("2", "3"):
        raise LapaError(
            f"{root}: is LeRobot {info.get('codebase_version', 'of unknown version')}; lapa reads v2.x and v3.x. "
            "Convert it with lerobot (python -m lerobot.datasets.v21.convert_dataset_v20_to_v21 and the like)."
        )
    missing = [key for key in ("fps", "features", "data_path") if not info.get(key)]
    if missing:
        raise LapaError(f"{path}: lacks {', '.join(missing)}.")
    return info


def _major(info: dict[str, Any]) -> str:
    return str(info.get("codebase_version", "")).lstrip("v").split(".")[0]


def _cameras(features: dict[str, Any], root: Path) -> dict[str, str]:
    """Name of each camera -> its feature. The name is the feature's last word, where that tells them apart."""
    cameras = [name for name, f in features.items() if f.get("dtype") in ("video", "image")]
    if not cameras:
        raise LapaError(f"{root}: none of its features is a video or an image. Features: {', '.join(features)}.")
    short = [name.rpartition(".")[2] for name in cameras]
    return dict(zip(short if len(set(short)) == len(short) else cameras, cameras, strict=True))


def _camera(cameras: dict[str, str], features: dict[str, Any], wanted: str | None, root: Path) -> tuple[str, str]:
    """The feature named `wanted`, whole or by its last word, or the best one (data/cameras.py); and why."""
    if wanted:
        known = cameras.values() if "." in wanted else cameras
        chosen = choose(wanted, known, "camera", f" in {root}")
        return cameras.get(chosen, chosen), "as asked for"
    about = [replace(_about(name, features[name]), name=short) for short, name in cameras.items()]
    name, why = best(about, str(root))
    return cameras[name], why


def _about(name: str, feature: dict[str, Any]) -> Camera:
    """What info.json says of a camera: its own flags, those of "info", and in older versions of "video_info"."""
    flags = {key: value for key, value in feature.items() if not isinstance(value, dict | list)}
    for part in (feature.get("video_info"), feature.get("info")):
        flags |= part if isinstance(part, dict) else {}
    return camera(name, flags=flags, channels=_channels(feature))


def _channels(feature: dict[str, Any]) -> int | None:
    """Of a picture: the axis that "names" calls so, else the first or the last, whichever is no side of a picture."""
    shape, names = _shape(feature), feature.get("names")
    if shape is None:
        return None
    if len(shape) == 2:
        return 1
    axis = {str(name).rstrip("s"): at for at, name in enumerate(names)} if isinstance(names, list) else {}
    if "channel" in axis and axis["channel"] < len(shape):
        return shape[axis["channel"]]
    return next((shape[at] for at in (-1, 0) if shape[at] <= 4), None)


def _split(splits: Any, wanted: str, root: Path) -> list[range]:
    """The episodes of a split: info.json says "0:80", or "0:40, 50:90"."""
    where = f"{root / INFO}: splits"
    if not isinstance(splits, dict) or not splits:
        raise LapaError(f"{where} are not there, so split={wanted} names nothing. Say which with episodes=0-9.")
    text = str(splits[choose(wanted, splits, "split", f" in {root}")])
    found = [re.fullmatch(r"(\d+):(\d+)", part.strip()) for part in text.split(",")]
    if not all(found):
        raise LapaError(f'{where}: {wanted} is "{text:.40}", not such as "0:80". Say which with episodes=0-9.')
    return [range(int(span[1]), int(span[2])) for span in found if span]


def _kinds(feature: dict[str, Any] | None, names: tuple[str, ...]) -> tuple[ActionKind, ...]:
    """What the dataset says its actions are, by its info ("kinds", as lapa writes it) or by names such as delta_x and
    shoulder_pan.pos; () where that does not tell of each."""
    info = (feature or {}).get("info")
    said = info.get("kinds") if isinstance(info, dict) else None
    if isinstance(said, list) and len(said) == len(names) and set(said) <= set(get_args(ActionKind)):
        return tuple(said)
    delta: ActionKind = "delta"
    absolute: ActionKind = "absolute"
    if names and all("delta" in name for name in names):
        return (delta,) * len(names)
    if names and all(name.endswith(".pos") for name in names):
        return (absolute,) * len(names)
    return ()


def _shape(feature: dict[str, Any] | None) -> tuple[int, ...] | None:
    """A feature's shape, or None where there is none that makes sense."""
    shape = (feature or {}).get("shape")
    fits = isinstance(shape, list) and all(isinstance(d, int) and 0 < d < 2**31 for d in shape)
    return tuple(shape) if fits and shape else None


def _rate(fps: Any, root: Path) -> float:
    if not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise LapaError(f"{root / INFO}: fps is {fps!r:.40}, no number above 0.")
    return float(fps)


def _whole(row: dict[str, Any], key: str, where: Path | str) -> int:
    """A count or an index. Raises BadVideo for anything else."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise BadVideo(f"{where}: {key} is {value!r:.40}, no whole number from 0 on.")
    return value


def _seconds(value: Any, where: Path) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadVideo(f"{where}: from_timestamp is {value!r:.40}, no number of seconds.")
    return float(value)


def _height_width(shape: Sequence[int] | None) -> tuple[int, int] | None:
    """A feature's shape as (H, W): [H, W, 3], or [3, H, W] as some write it."""
    if not shape or len(shape) != 3:
        return None
    height, width = (shape[1], shape[2]) if shape[0] in (1, 3) else (shape[0], shape[1])
    return int(height), int(width)


def _read_tasks(path: Path) -> dict[int, str]:
    """task_index -> instruction. The instruction is the one text column, under whatever name it was saved."""
    if not path.exists():
        return {}
    table = _read_table(path, ["task_index"], also=None)
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if not texts:
        raise LapaError(f"{path}: has no text column. Columns: {', '.join(table.column_names)}.")
    text = next((name for name in ("task", "__index_level_0__") if name in texts), texts[0])
    rows = zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)
    return {index: said for index, said in rows if isinstance(index, int) and isinstance(said, str)}


def _read_tasks_v2(path: Path) -> dict[int, str]:
    tasks = {}
    for number, row in read_lines(path) if path.exists() else []:
        if isinstance(row, BadVideo):
            raise row
        if not isinstance(row.get("task"), str):
            raise LapaError(f"{path}, line {number}: task is no text.")
        tasks[_whole(row, "task_index", f"{path}, line {number}")] = row["task"]
    return tasks


def _read_table(path: Path, need: list[str], also: Sequence[str] | None = ()) -> pa.Table:
    """The columns `need` (LapaError if missing) and those of `also` that exist; every column for None."""
    try:
        with pq.ParquetFile(readable(path)) as file:
            present = file.schema_arrow.names
            missing = [name for name in need if name not in present]
            if missing:
                raise LapaError(f"{path}: lacks the column {', '.join(missing)}. Columns: {', '.join(present)}.")
            columns = None if also is None else [*need, *(name for name in also if name in present)]
            return file.read(columns=columns)
    except FileNotFoundError:
        raise LapaError(f"{path}: is missing; the dataset is incomplete.") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = "".join(filter(str.isprintable, " ".join(str(error).split())))
        raise LapaError(f"{path}: cannot be read as parquet ({reason}).") from None


def _names(feature: dict[str, Any] | None, width: int | None) -> tuple[str, ...]:
    """Names of a vector's dimensions: a list, lists in a list, or a dict of lists, as robots write them. Nothing where
    there is not one for each."""
    names = tuple(_flat((feature or {}).get("names")))
    return names if len(names) == width else ()


def _flat(names: Any) -> Iterator[str]:
    if isinstance(names, dict):
        names = list(names.values()) if all(isinstance(part, list) for part in names.values()) else list(names)
    if isinstance(names, list):
        for part in names:
            yield from _flat(part)
    elif names is not None:
        yield str(names)
