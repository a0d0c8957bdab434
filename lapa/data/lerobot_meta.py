"""What the metadata of a LeRobot dataset say: info.json with its features and cameras, splits, tasks. All is checked
here: others wrote it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lapa.contracts import BadVideo, LapaError
from lapa.data.cameras import Camera, best, camera, named
from lapa.data.json_files import read_foreign_json, read_lines
from lapa.data.lerobot_format import INFO, TASKS
from lapa.data.lerobot_tables import number_type, read_table, text_of
from lapa.plugins import choose

TASKS_V2 = "meta/tasks.jsonl"
INFO_V1 = "meta_data/info.json"
TO_V2 = (
    "Convert it to v2.0, which lapa reads: python -m lerobot.datasets.v2.convert_dataset_v1_to_v2 of lerobot 0.3.3 or "
    "older (lerobot/common/datasets/v2 in the oldest). Its v20_to_v21 does not convert v1."
)
SIDE = 16  # pixels: numbers of three dimensions are a picture from so many a side on


def read_info(root: Path) -> dict[str, Any]:
    """meta/info.json. Raises LapaError where it is missing, describes no dataset, or one of another version."""
    path = root / INFO
    if not path.exists():
        if (root / INFO_V1).exists():
            raise LapaError(f"{root}: is LeRobot v1. {TO_V2}")
        raise LapaError(f"{root}: is no LeRobot dataset, {INFO} is missing here and in the folders below. Check the "
                        "path.")  # fmt: skip
    info = read_foreign_json(path)
    features = info.get("features", {}) if isinstance(info, dict) else None
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise LapaError(f"{path}: is no description of a dataset.")
    if major(info) not in ("2", "3"):
        version = info.get("codebase_version", "of unknown version")
        newer = major(info).isdecimal() and int(major(info)) > 3
        how = TO_V2 if major(info) in ("0", "1") else "It is newer than this lapa." if newer else ""
        raise LapaError(f"{root}: is LeRobot {version}; lapa reads v2.x and v3.x. {how}".rstrip())
    missing = [key for key in ("fps", "features", "data_path") if not info.get(key)]
    if missing:
        raise LapaError(f"{path}: lacks {', '.join(missing)}.")
    return info


def major(info: dict[str, Any]) -> str:
    """The first number of its version, such as "3"."""
    return str(info.get("codebase_version", "")).lstrip("v").split(".")[0]


def camera_features(features: dict[str, Any], root: Path) -> dict[str, str]:
    """Name of each camera -> its feature. The name is the feature's last word, where that tells them apart."""
    cameras = [name for name, f in features.items() if f.get("dtype") in ("video", "image") or _is_picture(f)]
    if not cameras:
        raise LapaError(f"{root}: none of its features is a video or an image. Features: {', '.join(features)}.")
    short = [re.split(r"[./]", name)[-1] for name in cameras]
    return dict(zip(short if len(set(short)) == len(short) else cameras, cameras, strict=True))


def _is_picture(feature: dict[str, Any]) -> bool:
    """Are these numbers a picture: of three dimensions, one of them of 1, 3 or 4 channels?"""
    shape = shape_of(feature) or ()
    sides = sorted(shape)
    return len(shape) == 3 and sides[0] in (1, 3, 4) and sides[0] in (shape[0], shape[-1]) and sides[1] >= SIDE


def chosen_camera(cameras: dict[str, str], about: list[Camera], wanted: str | None, root: Path) -> tuple[str, str]:
    """The feature named `wanted`, whole or by its last word, or the best one (data/cameras.py); and why."""
    if wanted:
        known = cameras.values() if re.search(r"[./]", wanted) else cameras
        chosen = named(wanted, list(known), f" in {root}")
        return cameras.get(chosen, chosen), "as asked for"
    name, why = best(about, str(root))
    return cameras[name], why


def about_camera(name: str, feature: dict[str, Any]) -> Camera:
    """What info.json says of a camera: its own flags, those of "info", and in older versions of "video_info"."""
    flags = {key: value for key, value in feature.items() if not isinstance(value, dict | list)}
    for part in (feature.get("video_info"), feature.get("info")):
        flags |= part if isinstance(part, dict) else {}
    return camera(name, flags=flags, channels=_channels(feature))


def _channels(feature: dict[str, Any]) -> int | None:
    """Of a picture: the axis that "names" calls so, else the first or the last, whichever is no side of a picture."""
    shape, names = shape_of(feature), feature.get("names")
    if shape is None:
        return None
    if len(shape) == 2:
        return 1
    axis = {str(name).rstrip("s"): at for at, name in enumerate(names)} if isinstance(names, list) else {}
    if "channel" in axis and axis["channel"] < len(shape):
        return shape[axis["channel"]]
    return next((shape[at] for at in (-1, 0) if shape[at] <= 4), None)


def split_of(splits: Any, wanted: str, root: Path) -> list[range]:
    """The episodes of a split: info.json says "0:80", or "0:40, 50:90"."""
    where = f"{root / INFO}: splits"
    if not isinstance(splits, dict) or not splits:
        raise LapaError(f"{where} are not there, so split={wanted} names nothing. Say which with episodes=0-9.")
    text = str(splits[choose(wanted, splits, "split", f" in {root}")])
    found = [re.fullmatch(r"(\d+):(\d+)", part.strip()) for part in text.split(",")]
    if not all(found):
        raise LapaError(f'{where}: {wanted} is "{text:.40}", not such as "0:80". Say which with episodes=0-9.')
    return [range(int(span[1]), int(span[2])) for span in found if span]


def names_of(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """What a feature calls its numbers, one after another: "names" is a list, or lists by what they are names of."""
    return tuple(_flat(feature.get("names")))


def _flat(names: Any) -> Iterator[str]:
    if isinstance(names, dict):
        names = list(names.values()) if all(isinstance(part, list) for part in names.values()) else list(names)
    if isinstance(names, list):
        for part in names:
            yield from _flat(part)
    elif names is not None:
        yield str(names)


def shape_of(feature: dict[str, Any] | None) -> tuple[int, ...] | None:
    """A feature's shape, or None where there is none that makes sense."""
    shape = (feature or {}).get("shape")
    fits = isinstance(shape, list) and all(isinstance(d, int) and 0 < d < 2**31 for d in shape)
    return tuple(shape) if fits and shape else None


def rate_of(fps: Any, root: Path) -> float:
    """Rows a second. Raises LapaError for what is no rate."""
    if not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise LapaError(f"{root / INFO}: fps is {fps!r:.40}, no number above 0.")
    return float(fps)


def whole_number(row: dict[str, Any], key: str, where: Path | str) -> int:
    """A count or an index. Raises BadVideo for anything else."""
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():  # as pandas writes a column that had gaps once
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise BadVideo(f"{where}: {key} is {value!r:.40}, no whole number from 0 on.")
    return value


def seconds(value: Any, where: str) -> float:
    """A time. Raises BadVideo for anything else."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadVideo(f"{where}: from_timestamp is {value!r:.40}, no number of seconds.")
    return float(value)


def height_width(shape: Sequence[int] | None) -> tuple[int, int] | None:
    """A feature's shape as (H, W): [H, W, 3], or [3, H, W] as some write it."""
    if not shape or len(shape) != 3:
        return None
    height, width = (shape[1], shape[2]) if shape[0] in (1, 3) else (shape[0], shape[1])
    return int(height), int(width)


def read_tasks(root: Path) -> dict[int, str]:
    """task_index -> instruction, of whichever table there is."""
    if os.path.lexists(root / TASKS):
        return _tasks_table(root / TASKS)
    return _tasks_lines(root / TASKS_V2) if os.path.lexists(root / TASKS_V2) else {}


def _tasks_table(path: Path) -> dict[int, str]:
    """The instruction is the one column of texts, under whatever name it was saved."""
    table = read_table(path, ["task_index"], also=None)
    texts = [name for name in table.column_names if name != "task_index" and not number_type(table[name].type)]
    if not texts:
        raise LapaError(f"{path}: has no text column. Columns: {', '.join(table.column_names)}.")
    text = next((name for name in ("task", "__index_level_0__") if name in texts), texts[0])
    rows = zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)
    return {index: text_of(said) for index, said in rows if isinstance(index, int) and text_of(said)}


def _tasks_lines(path: Path) -> dict[int, str]:
    tasks = {}
    for number, row in read_lines(path):
        if isinstance(row, BadVideo):
            raise row
        if not isinstance(row.get("task"), str | list):
            raise LapaError(f"{path}, line {number}: task is no text.")
        tasks[whole_number(row, "task_index", f"{path}, line {number}")] = text_of(row["task"])
    return tasks


def listed_tasks(tasks: Any) -> tuple[Any, ...]:
    """The tasks that meta has for an episode: numbers or texts, in a list or alone."""
    return tuple(tasks) if isinstance(tasks, list) else (tasks,) if isinstance(tasks, str) and tasks else ()


def flattened(features: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The features by name; of those that are described within another, "outer.inner"."""
    found: dict[str, dict[str, Any]] = {}
    for name, feature in features.items():
        inner = {} if "dtype" in feature else {k: v for k, v in feature.items() if isinstance(v, dict)}
        if inner and all("dtype" in v or any(isinstance(w, dict) for w in v.values()) for v in inner.values()):
            found |= {f"{name}.{key}": value for key, value in flattened(inner).items()}
        else:
            found[name] = feature
    return found
