"""Small LeRobot datasets whose rows, clocks and films a test can change one by one. Written by hand: no writer of
lapa is used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made import video

Table = dict[str, Any]  # column -> values, one a row
STEP = 8  # levels of brightness between two frames
PATHS = {
    2: ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
    3: ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
}  # fmt: skip
CAMERA = "observation.images.top"
TASKS = ("pick the cup", "close the drawer")


def numbered(count: int, first: int = 0) -> np.ndarray:
    """uint8 [count, 24, 32, 3]: picture i shows the number first + i, which `shown` reads. Up to 31."""
    levels = STEP * (first + np.arange(count))
    return np.broadcast_to(levels[:, None, None, None], (count, 24, 32, 3)).astype(np.uint8)


def shown(frames: np.ndarray) -> list[int]:
    """The numbers of pictures [T, H, W, 3]."""
    return np.round(frames.astype(float).mean((1, 2, 3)) / STEP).astype(int).tolist()


def rows(count: int, first: int = 0, episode: int = 0, fps: float = 10) -> Table:
    """The rows of an episode: its action is (number of the frame, 100 + that), in step with the frames."""
    number = first + np.arange(count)
    return {
        "timestamp": (number / fps).astype(np.float32),
        "frame_index": number,
        "episode_index": np.full(count, episode),
        "task_index": np.full(count, episode % 2),
        "action": np.stack([number, 100 + number], 1).astype(np.float32),
        "observation.state": np.stack([number] * 3, 1).astype(np.float32),
    }


def taken(table: Table, keep: Sequence[int] | np.ndarray) -> Table:
    """Some of the rows, in the order of `keep`."""
    return {name: np.asarray(values)[np.asarray(keep, np.int64)] for name, values in table.items()}


def arrow(table: Table) -> pa.Table:
    """As a parquet file holds it: vectors as lists."""
    return pa.table({
        name: values if isinstance(values, pa.Array) else pa.array(
            list(values) if getattr(values, "ndim", 1) == 1 else np.asarray(values).tolist(),
            pa.float32() if getattr(values, "dtype", None) == np.float32 and values.ndim == 1 else None)
        for name, values in table.items()
    })  # fmt: skip


def features(**more: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of info.json, with others in their place (None: without)."""
    every: dict[str, Any] = {
        CAMERA: {"dtype": "video", "shape": [24, 32, 3], "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        **{name: {"dtype": "float32", "shape": [1], "names": None} for name in ("timestamp",)},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index")},
    }
    every |= {name.replace("__", "."): feature for name, feature in more.items()}
    return {name: feature for name, feature in every.items() if feature is not None}


def robot(
    root: Path,
    tables: Sequence[Table],
    films: Sequence[np.ndarray] | None = None,
    *,
    version: int = 2,
    fps: float = 10,
    film_fps: float = 10,
    about: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    tasks: Sequence[Any] | None = None,
) -> Path:
    """A dataset of version 2 or 3: `tables` are the rows of its episodes, `films` their pictures (none: no films are
    written), `about` the features, `tasks` what meta/episodes says of each."""
    films = [numbered(len(table["action"])) for table in tables] if films is None else films
    data, film = PATHS[version]
    (root / "meta").mkdir(parents=True)
    told = {"codebase_version": f"v{version}.{1 if version == 2 else 0}", "fps": fps, "chunks_size": 1000,
            "robot_type": "so100", "total_episodes": len(tables), "data_path": data, "video_path": film,
            "features": features() if about is None else dict(about), **(info or {})}  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(told))
    lengths = [len(next(iter(table.values()))) for table in tables]
    said = [[TASKS[number % 2]] for number in range(len(tables))] if tasks is None else list(tasks)
    if version == 2:
        _write_v2(root, tables, films, film_fps, lengths, said)
    else:
        _write_v3(root, tables, films, film_fps, lengths, said)
    return root


def _write_v2(
    root: Path, tables: Sequence[Table], films: Sequence[np.ndarray], film_fps: float, lengths: list[int],
    said: list[Any],
) -> None:  # fmt: skip
    data, film = PATHS[2]
    lines = [{"episode_index": i, "length": n, "tasks": said[i]} for i, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = [{"task_index": i, "task": text} for i, text in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tasks))
    for number, table in enumerate(tables):
        path = root / data.format(episode_chunk=0, episode_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(arrow(table), path)
    for number, frames in enumerate(films):
        video(root / film.format(episode_chunk=0, episode_index=number, video_key=CAMERA), frames, film_fps)


def _write_v3(
    root: Path, tables: Sequence[Table], films: Sequence[np.ndarray], film_fps: float, lengths: list[int],
    said: list[Any],
) -> None:  # fmt: skip
    data, film = PATHS[3]
    path = root / data.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables([arrow(table) for table in tables], promote_options="permissive"), path)
    count = len(lengths)
    zero = np.zeros(count, np.int64)
    frames = [len(one) for one in films] if len(films) else lengths
    starts = np.concatenate([[0], np.cumsum(frames)]) / film_fps
    episodes: Table = {"episode_index": np.arange(count), "length": np.array(lengths),
                       "data/chunk_index": zero, "data/file_index": zero}  # fmt: skip
    if said:
        episodes["tasks"] = pa.array(said)
    for key, values in {"chunk_index": zero, "file_index": zero, "from_timestamp": starts[:-1],
                        "to_timestamp": starts[1:]}.items():  # fmt: skip
        episodes[f"videos/{CAMERA}/{key}"] = values
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), root / "meta/tasks.parquet")
    if len(films):
        video(root / film.format(chunk_index=0, file_index=0, video_key=CAMERA), np.concatenate(list(films)), film_fps)
