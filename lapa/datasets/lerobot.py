"""A LeRobot dataset v3.x on disk: this project's own (data/lerobot_format.py) and anyone else's."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lapa.contracts import Array, Episode, LapaError
from lapa.data.folders import existing_folder, listing_hash
from lapa.data.lerobot_format import INFO, TASKS
from lapa.data.video import VideoReader
from lapa.plugins import choose

CONVERT = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=<its name>"


@dataclass(frozen=True)
class Config:
    """`path` is the folder that holds meta/info.json; `camera` a feature such as observation.images.main,
    by default the first one."""

    path: str
    camera: str | None = None

    def build(self) -> LeRobotDataset:
        """Read the metadata. Raises LapaError for a folder that is no LeRobot dataset v3.x."""
        return LeRobotDataset(existing_folder(self.path, "LeRobot dataset"), self.camera)


class LeRobotDataset:
    """Yields the episodes of one camera, file after file; a file is decoded forward once."""

    def __init__(self, root: Path, camera: str | None = None) -> None:
        self.root = root
        self._info = _read_info(root)
        features: dict[str, Any] = self._info["features"]
        cameras = [name for name, f in features.items() if f.get("dtype") in ("video", "image")]
        if not cameras:
            raise LapaError(f"{root}: none of its features is a video or an image. Features: {', '.join(features)}.")
        self.camera = choose(camera, cameras, f"camera in {root}") if camera else cameras[0]
        self.fps = float(self._info["fps"])
        self._is_video = features[self.camera]["dtype"] == "video"
        self._names = {key: _names(features.get(key)) for key in ("action", "observation.state")}
        self._tasks = _read_tasks(root / TASKS)
        self._episodes = self._read_episodes()

    def __len__(self) -> int:
        return len(self._episodes)

    def signature(self) -> str:
        """A hash of the names, sizes and times of all files, and of the camera."""
        listing = listing_hash(self.root, (p for p in self.root.rglob("*") if p.is_file()))
        return f"{listing}-{self.camera}"

    def episodes(self) -> Iterator[Episode]:
        """Yield every episode, ordered as the frames are on disk. LapaError for missing or short files."""
        frames = self._video_frames() if self._is_video else self._image_frames()
        rows = _Rows(self.root, self._info["data_path"], ["task_index", *self._names])
        for row, pixels in frames:
            columns = rows.of(row)
            yield Episode(
                id=f"episode_{row['episode_index']:06d}",
                frames=pixels,
                fps=self.fps,
                instruction=self._instruction(columns, row),
                actions=_matrix(columns, "action", row),
                state=_matrix(columns, "observation.state", row),
                state_names=self._names["observation.state"],
                action_names=self._names["action"],
            )

    def _instruction(self, columns: pa.Table, row: dict[str, Any]) -> str:
        if "task_index" not in columns.column_names:
            return ""
        task = columns["task_index"][0].as_py()
        if task not in self._tasks:
            raise LapaError(f"{self.root}: episode {row['episode_index']} has task {task}, which {TASKS} lacks.")
        return self._tasks[task]

    def _read_episodes(self) -> list[dict[str, Any]]:
        """Rows of the episode table, sorted by where their frames are."""
        files = sorted((self.root / "meta/episodes").rglob("*.parquet"))
        if not files:
            raise LapaError(f"{self.root}: meta/episodes holds no parquet file; the dataset is incomplete.")
        wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        order = ["data/chunk_index", "data/file_index", "episode_index"]
        if self._is_video:
            video = [f"videos/{self.camera}/{key}" for key in ("chunk_index", "file_index", "from_timestamp")]
            wanted, order = wanted + video, [*video, "episode_index"]
        rows = [row for file in files for row in _read_table(file, wanted).to_pylist()]
        return sorted(rows, key=lambda row: [row[key] for key in order])

    def _video_frames(self) -> Iterator[tuple[dict[str, Any], Array]]:
        prefix = f"videos/{self.camera}"
        by_file: dict[Path, list[dict[str, Any]]] = {}
        for row in self._episodes:
            place = {key: row[f"{prefix}/{key}"] for key in ("chunk_index", "file_index")}
            path = self.root / self._info["video_path"].format(video_key=self.camera, **place)
            by_file.setdefault(path, []).append(row)
        for path, rows in by_file.items():
            starts = [row[f"{prefix}/from_timestamp"] for row in rows]
            yield from zip(rows, cut(path, starts, [row["length"] for row in rows], self.fps), strict=True)

    def _image_frames(self) -> Iterator[tuple[dict[str, Any], Array]]:
        images = _Rows(self.root, self._info["data_path"], [self.camera])
        for row in self._episodes:
            stored = images.of(row)[self.camera].to_pylist()
            yield (
                row,
                np.stack([np.asarray(Image.open(io.BytesIO(i["bytes"])).convert("RGB")) for i in stored]),
            )


def cut(path: Path, starts: list[float], lengths: list[int], fps: float) -> Iterator[Array]:
    """Decode a video once, forward, and yield uint8 [length, H, W, 3] per stretch from `starts` seconds on.

    `starts` ascend. A frame stands at the time step it is nearest to. Raises LapaError when one is missing.
    """
    with VideoReader(path) as video:
        frames = iter(video)
        for start, length in zip(starts, lengths, strict=True):
            taken: list[Array] = []
            while len(taken) < length:
                time, frame = next(frames, (np.inf, None))
                step = (time - start) * fps
                if frame is None or step > len(taken) + 0.5:
                    raise LapaError(
                        f"{path}: has no frame at {start + len(taken) / fps:.3f} s, step {len(taken)} of "
                        f"{length} of an episode. The file is cut short or belongs elsewhere; copy it again."
                    )
                if step > len(taken) - 0.5:  # else it lies before the stretch
                    taken.append(frame)
            yield np.stack(taken)


class _Rows:
    """The rows of an episode in the data files, keeping the file in use open as a table."""

    def __init__(self, root: Path, template: str, columns: list[str]) -> None:
        self._root, self._template, self._columns = root, template, columns
        self._path: Path | None = None

    def of(self, row: dict[str, Any]) -> pa.Table:
        """The rows of an episode in frame order. Raises LapaError when they are not `length` many."""
        place = {key: row[f"data/{key}"] for key in ("chunk_index", "file_index")}
        path = self._root / self._template.format(**place)
        if path != self._path:
            self._table = _read_table(path, ["episode_index"], also=self._columns)
            index = self._table["episode_index"].to_numpy()
            self._order = np.argsort(index, kind="stable")
            self._sorted, self._path = index[self._order], path
        start, stop = np.searchsorted(self._sorted, row["episode_index"] + np.arange(2))
        if stop - start != row["length"]:
            raise LapaError(
                f"{path}: episode {row['episode_index']} has {stop - start} rows, meta/episodes says {row['length']}."
            )
        where = self._order[start:stop]
        if where[-1] - where[0] == len(where) - 1:
            return self._table.slice(where[0], len(where))
        return self._table.take(where)


def _read_info(root: Path) -> dict[str, Any]:
    path = root / INFO
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError:
        raise LapaError(f"{root}: is no LeRobot dataset, {INFO} is missing. Check the path.") from None
    except ValueError as error:
        raise LapaError(f"{path}: is not valid JSON ({error}).") from None
    version = str(info.get("codebase_version", "unknown"))
    if version.lstrip("v").split(".")[0] != "3":
        raise LapaError(f"{root}: is LeRobot {version}; lapa reads v3.x. Convert it with lerobot: {CONVERT}")
    missing = [key for key in ("fps", "features", "data_path", "video_path") if key not in info]
    if missing:
        raise LapaError(f"{path}: lacks {', '.join(missing)}.")
    return info


def _read_tasks(path: Path) -> dict[int, str]:
    """task_index -> instruction. The instruction is the one text column, under whatever name it was saved."""
    if not path.exists():
        return {}
    table = _read_table(path, ["task_index"], also=None)
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if not texts:
        raise LapaError(f"{path}: has no text column. Columns: {', '.join(table.column_names)}.")
    text = next((name for name in ("task", "__index_level_0__") if name in texts), texts[0])
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))


def _read_table(path: Path, need: list[str], also: Sequence[str] | None = ()) -> pa.Table:
    """The columns `need` (LapaError if missing) and those of `also` that exist; every column for None."""
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            missing = [name for name in need if name not in present]
            if missing:
                raise LapaError(f"{path}: lacks the column {', '.join(missing)}. Columns: {', '.join(present)}.")
            columns = None if also is None else [*need, *(name for name in also if name in present)]
            return file.read(columns=columns)
    except FileNotFoundError:
        raise LapaError(f"{path}: is missing; the dataset is incomplete.") from None
    except (pa.ArrowException, OSError) as error:
        raise LapaError(f"{path}: cannot be read as parquet ({error}).") from None


def _matrix(columns: pa.Table, key: str, row: dict[str, Any]) -> Array | None:
    """A feature as float32 [T, D], or None when the dataset lacks it."""
    if key not in columns.column_names:
        return None
    column = columns[key].combine_chunks()
    if not pa.types.is_nested(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.float32)[:, None]
    flat = column.flatten()
    if len(flat) % row["length"]:
        raise LapaError(f'"{key}" of episode {row["episode_index"]} has rows of different lengths.')
    return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(row["length"], -1)


def _names(feature: dict[str, Any] | None) -> tuple[str, ...]:
    """Names of a vector's dimensions: a list, a dict of lists as some robots write them, or nothing."""
    names = (feature or {}).get("names") or []
    if isinstance(names, dict):
        names = [name for part in names.values() if isinstance(part, list) for name in part]
    return tuple(map(str, names))
