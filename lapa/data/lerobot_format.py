"""LeRobot dataset v3.0, the project's one format on disk: layout and writer. The reader is a dataset plug-in.

meta/info.json                              fps, totals, features, path templates
meta/stats.json                             min, max, mean, std, count and quantiles per feature
meta/tasks.parquet                          instruction -> task_index
meta/episodes/chunk-000/file-000.parquet    where each episode's rows and frames are, and its statistics
meta/lapa.json                              provenance; other readers ignore it
README.md                                   the card that the hub shows (data/lerobot_card.py)
data/chunk-000/file-000.parquet             one row per frame, one row group per episode
videos/<camera>/chunk-000/file-000.mp4      many episodes per file: time = from_timestamp + timestamp
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lapa.contracts import ActionKind, Array, Episode, LapaError
from lapa.data import lerobot_stats
from lapa.data.folders import new_folder
from lapa.data.lerobot_card import card
from lapa.data.lerobot_stats import Stats
from lapa.data.video import VideoFile, check_quality, coding, rational

VERSION = "v3.0"
CAMERA = "observation.images.main"  # where the source does not name its camera
INFO, STATS, TASKS, PROVENANCE = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/lapa.json"
CARD = "README.md"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

CHUNK = 1000  # files per chunk folder, LeRobot's default
FRAMES_PER_FILE = 250_000  # of pictures so small that PIXELS_PER_FILE is not reached before
PIXELS_PER_FILE = 200_000_000  # real clips take a byte a pixel, losslessly; LeRobot's default limit is 200 MB
WHOLE = 2e-3  # of a rate: so near to a whole one it is taken for that, as 29.97 for 30
INDEX_FEATURES = {"frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


class LeRobotWriter:
    """Writes episodes into a new LeRobot v3.0 folder; nothing appears at `path` before `finish`.

    Use it as a context manager: leaving the block finishes, an exception leaves no trace. `action` and
    `observation.state` are written only when their names are given. `image_size` is one number for squares, else
    (H, W), of the camera `camera`; `views` are further cameras, each with its (H, W). `kinds` say what the actions are
    (contracts.ActionSpec). Pictures are kept exactly, or in less room with a `quality` (data/video.py VideoFile).
    `extra` are further int64 features, such as labels, by name as info.json describes them: "shape" [D],
    "names", and an "info" of your own, where "no_value" marks rows that the statistics leave out. Raises LapaError
    when `path` exists.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        image_size: int | tuple[int, int],
        action_names: tuple[str, ...] = (),
        state_names: tuple[str, ...] = (),
        provenance: dict[str, Any] | None = None,
        extra: Mapping[str, dict[str, Any]] | None = None,
        *,
        camera: str = "",
        views: Mapping[str, tuple[int, int]] | None = None,
        robot_type: str | None = None,
        kinds: tuple[ActionKind, ...] = (),
        quality: int | None = None,
    ) -> None:
        if not (np.isfinite(fps) and fps > 0):
            raise LapaError(f"{path}: fps must be above 0, got {fps}.")
        self._fps, self._provenance = float(fps), provenance
        main = (image_size, image_size) if isinstance(image_size, int) else image_size
        self._main = _feature(camera or "main")
        self._sizes = {self._main: main} | {_feature(name): size for name, size in (views or {}).items()}
        if len(self._sizes) != 1 + len(views or {}):
            raise LapaError(f"{path}: two cameras have the same name, {camera or 'main'}.")
        check_quality(quality)
        self._robot, self._kinds, self._quality = robot_type, tuple(kinds), quality
        largest = max(height * width for height, width in self._sizes.values())
        self._per_file = min(FRAMES_PER_FILE, max(PIXELS_PER_FILE // largest, 1))
        self._names = {"action": tuple(action_names), "observation.state": tuple(state_names)}
        self._vectors: dict[str, list[Array]] = {key: [] for key, names in self._names.items() if names}
        self._extra = dict(extra or {})
        self._values: dict[str, list[Array]] = {key: [] for key in self._extra}
        self._lengths: list[int] = []
        self._task_of: list[int] = []
        self._tasks: dict[str, int] = {}
        self._video_of: list[tuple[int, int]] = []  # per episode: number of its file, first frame in the file
        self._pixels = {key: np.zeros((3, 256), np.int64) for key in self._sizes}
        self._seen: dict[str, list[Stats]] = {key: [] for key in self._sizes}
        self._videos: dict[str, VideoFile] = {}
        self._files = 0
        self._stack = ExitStack()
        self._root = self._stack.enter_context(new_folder(Path(path)))

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._close_videos()
            self._stack.__exit__(kind, error, trace)

    def add(self, episode: Episode, views: Mapping[str, Array] | None = None, **extra: Array) -> None:
        """Append one episode: frames uint8 [T, H, W, 3], T >= 1, at the writer's fps; as many frames of each further
        camera; int64 [T, D] per extra feature.

        Raises LapaError naming the episode when frames, actions, state or extra do not fit what was declared.
        """
        films = {self._main: episode.frames} | {_feature(name): frames for name, frames in (views or {}).items()}
        self._check(episode, films, extra)
        if not self._videos or self._videos[self._main].frames >= self._per_file:
            self._close_videos()
            for key, (height, width) in self._sizes.items():
                file = self._root / VIDEO_PATH.format(video_key=key, **_place(self._files))
                self._videos[key] = VideoFile(file, self._fps, height, width, self._quality)
            self._files += 1
        self._video_of.append((self._files - 1, self._videos[self._main].frames))
        for key, frames in films.items():
            self._videos[key].add(frames)
            counts = lerobot_stats.histogram(frames)
            self._pixels[key] += counts
            self._seen[key].append(lerobot_stats.of_pictures(counts, self._sizes[key]))
        for key, kept in self._vectors.items():
            kept.append(np.asarray(_vector(episode, key), np.float32))
        for key, values in self._values.items():
            values.append(np.asarray(extra[key], np.int64))
        self._lengths.append(len(episode.frames))
        self._task_of.append(self._tasks.setdefault(episode.instruction, len(self._tasks)))

    def finish(self) -> None:
        """Write the tables, then let the folder appear at its path. Calling it again does nothing."""
        stack = self._stack.pop_all()
        with stack:
            if not self._root.exists():
                return
            self._close_videos()
            if not self._lengths:
                raise LapaError(f"{self._root.parent}: a dataset needs at least one episode; none was added.")
            columns = self._columns()
            stats, info = self._stats(columns), self._info()
            self._write_data(columns)
            self._write_episodes(self._episode_stats(columns, stats))
            _write_parquet(self._root / TASKS, self._tasks_table())
            _write_json(self._root / STATS, {key: _listed(entry) for key, entry in stats.items()})
            _write_json(self._root / INFO, info)
            (self._root / CARD).write_text(card(info, list(self._tasks), self._provenance or {}))
            if self._provenance is not None:
                _write_json(self._root / PROVENANCE, self._provenance)

    def _close_videos(self) -> None:
        while self._videos:
            self._videos.popitem()[1].close()

    def _check(self, episode: Episode, films: Mapping[str, Array], extra: Mapping[str, Array]) -> None:
        where, frames = f'Episode "{episode.id}"', episode.frames
        if films.keys() != self._sizes.keys():
            cameras, declared = (", ".join(sorted(keys)) for keys in (films, self._sizes))
            raise LapaError(f"{where} has the cameras {cameras}; the dataset has {declared}.")
        for key, film in films.items():
            wanted = (*self._sizes[key], 3)
            if film.dtype != np.uint8 or film.ndim != 4 or film.shape[1:] != wanted or not len(film):
                raise LapaError(f"{where}: frames must be uint8 [T >= 1, {wanted}], got {film.dtype} {film.shape}.")
            if len(film) != len(frames):
                raise LapaError(f"{where}: {key} has {len(film)} frames, {self._main} {len(frames)}.")
        if abs(episode.fps - self._fps) > 1e-6 * self._fps:
            raise LapaError(
                f"{where} runs at {episode.fps} fps in a dataset of {self._fps} fps; use one rate, such as "
                f"fps={min(episode.fps, self._fps):g} in the options of videos and LeRobot data. Where fps= says what "
                "rate pictures have (hdf5, zarr, rlds, frame_folder), stride= thins them."
            )
        for key in self._vectors:
            value, shape = _vector(episode, key), (len(frames), len(self._names[key]))
            if value is None or value.shape != shape:
                got = "none" if value is None else str(value.shape)
                raise LapaError(f"{where}: {key} must have the shape {shape}, got {got}.")
            if not np.isfinite(value).all():
                raise LapaError(f"{where}: {key} holds NaN or infinity.")
        for key, feature in self._extra.items():
            rows, due = extra.get(key, np.empty(0)).shape, (len(frames), *feature["shape"])
            if rows != due:
                raise LapaError(f"{where}: {key} must have the shape {due}, got {rows}.")

    def _columns(self) -> dict[str, Array]:
        """Per-frame columns [N] or [N, D], in LeRobot's order."""
        lengths = np.array(self._lengths, np.int64)
        frame = np.concatenate([np.arange(n) for n in lengths])
        vectors = {**self._vectors, **self._values}
        columns: dict[str, Array] = {key: np.concatenate(parts) for key, parts in vectors.items()}
        columns["timestamp"] = (frame / self._fps).astype(np.float32)
        columns["frame_index"] = frame
        columns["episode_index"] = np.repeat(np.arange(len(lengths)), lengths)
        columns["index"] = np.arange(len(frame))
        columns["task_index"] = np.repeat(np.array(self._task_of, np.int64), lengths)
        return columns

    def _write_data(self, columns: dict[str, Array]) -> None:
        """One parquet file beside each video file, so that both hold the same episodes, each a row group of its own:
        LeRobot reads an episode without the others."""
        table = pa.table({key: _arrow(values) for key, values in columns.items()})
        bounds = np.concatenate([[0], np.cumsum(self._lengths)])
        file_of = np.array([number for number, _ in self._video_of])
        for number in range(self._files):
            episodes = np.flatnonzero(file_of == number)
            path = self._root / DATA_PATH.format(**_place(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(path, table.schema) as writer:
                for episode in episodes:
                    writer.write_table(table.slice(int(bounds[episode]), self._lengths[episode]))

    def _stats(self, columns: dict[str, Array]) -> dict[str, Stats]:
        """Over the whole dataset, by feature."""
        seen = {key: lerobot_stats.of_pictures(counts, self._sizes[key]) for key, counts in self._pixels.items()}
        return seen | {
            key: lerobot_stats.of_rows_with_gaps(values, self._no_value(key)) for key, values in columns.items()
        }

    def _episode_stats(self, columns: dict[str, Array], whole: dict[str, Stats]) -> dict[str, pa.Array]:
        """Those of each episode, as columns "stats/FEATURE/STATISTIC"."""
        bounds = np.cumsum(self._lengths)[:-1]
        by_episode = dict(self._seen) | {
            key: [
                lerobot_stats.of_rows_with_gaps(rows, self._no_value(key), whole[key])
                for rows in np.split(values, bounds)
            ]
            for key, values in columns.items()
        }
        return {
            f"stats/{key}/{name}": pa.array([stats[name].tolist() for stats in each])
            for key, each in by_episode.items()
            for name in each[0]
        }

    def _no_value(self, key: str) -> int | None:
        found: int | None = self._extra.get(key, {}).get("info", {}).get("no_value")
        return found

    def _write_episodes(self, stats: Mapping[str, pa.Array]) -> None:
        lengths = np.array(self._lengths, np.int64)
        stop = np.cumsum(lengths)
        places = [_place(number) for number, _ in self._video_of]
        chunk, file = [p["chunk_index"] for p in places], [p["file_index"] for p in places]
        rate = float(rational(self._fps))  # the rate the video file really has
        first = np.array([frame for _, frame in self._video_of])
        tasks = list(self._tasks)
        table = pa.table(
            {
                "episode_index": np.arange(len(lengths)),
                "tasks": pa.array([[tasks[t]] for t in self._task_of], pa.list_(pa.string())),
                "length": lengths,
                "data/chunk_index": pa.array(chunk, pa.int64()),
                "data/file_index": pa.array(file, pa.int64()),
                "dataset_from_index": stop - lengths,
                "dataset_to_index": stop,
                **{
                    f"videos/{key}/{name}": values
                    for key in self._sizes
                    for name, values in {
                        "chunk_index": pa.array(chunk, pa.int64()),
                        "file_index": pa.array(file, pa.int64()),
                        "from_timestamp": first / rate,
                        "to_timestamp": (first + lengths) / rate,
                    }.items()
                },
                **stats,
                "meta/episodes/chunk_index": np.zeros(len(lengths), np.int64),
                "meta/episodes/file_index": np.zeros(len(lengths), np.int64),
            }
        )
        _write_parquet(self._root / EPISODES_PATH.format(chunk_index=0, file_index=0), table)

    def _tasks_table(self) -> pa.Table:
        """LeRobot reads this with pandas and expects the instruction as the index: the metadata says so."""
        described = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
                for name, kind, numpy in described
            ],
            "pandas_version": "2.2.3",
        }
        table = pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

    def _info(self) -> dict[str, Any]:
        fps = int(self._fps) if self._fps.is_integer() else self._fps
        episodes = len(self._lengths)
        features: dict[str, Any] = {}
        for camera, (height, width) in self._sizes.items():
            video = {
                "height": height,
                "width": width,
                **coding(self._quality, height, width).told,
                "fps": fps,
                "channels": 3,
            }
            features[camera] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {f"video.{key}": value for key, value in video.items()}
                | {"video.is_depth_map": False, "is_depth_map": False, "has_audio": False},
            }
        for key in self._vectors:
            names = list(self._names[key])
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
        if self._kinds and "action" in features:
            features["action"]["info"] = {"kinds": list(self._kinds)}
        features |= {key: {"dtype": "int64", **feature} for key, feature in self._extra.items()}
        for key, dtype in {"timestamp": "float32", **INDEX_FEATURES}.items():
            features[key] = {"dtype": dtype, "shape": [1], "names": None}
        return {
            "codebase_version": VERSION,
            "robot_type": self._robot,
            "total_episodes": episodes,
            "total_frames": sum(self._lengths),
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }


def whole_rate(fps: float) -> float:
    """The rate to write for pictures at `fps`: LeRobot's tools take whole numbers, and 29.97 is 30 to everybody. Others
    stay as they are."""
    return float(round(fps)) if 0 < abs(fps - round(fps)) <= WHOLE * fps else fps


def rate_in_words(fps: float) -> str:
    """A sentence for people on a rate that is no whole number; "" for one that is."""
    if abs((rate := whole_rate(fps)) - fps) > 1e-6 * fps:
        return f"{fps:g} frames a second are written as {rate:g}: LeRobot's tools take whole rates alone."
    if rate == round(rate):
        return ""
    hint = f" Add fps={int(rate)} to the options of videos or LeRobot data for a whole one." if rate > 1 else ""
    return (
        f"{rate:g} frames a second are no whole number: LeRobot reads them, but its tools that delete, split and merge "
        f"take whole rates alone.{hint}"
    )


def _feature(camera: str) -> str:
    """A camera's name -> its feature; one that is a feature's name already stays. Slashes, as of a topic of ROS, become
    underscores: LeRobot's names have none."""
    camera = camera.strip("/").replace("/", "_")
    return camera if "." in camera else CAMERA.rpartition(".")[0] + "." + camera


def _vector(episode: Episode, key: str) -> Array | None:
    return episode.actions if key == "action" else episode.state


def _place(number: int) -> dict[str, int]:
    """The chunk and file index of file number `number`."""
    return {"chunk_index": number // CHUNK, "file_index": number % CHUNK}


def _arrow(values: Array) -> pa.Array:
    """[N] or [N, 1] as a plain column (LeRobot stores vectors of one so), [N, D] as lists of D."""
    if values.ndim == 2 and values.shape[1] > 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values.ravel())


def _listed(stats: Stats) -> dict[str, Any]:
    return {name: value.tolist() for name, value in stats.items()}


def _write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
