"""Run in a Python that has lerobot: `python lerobot_edits.py ROOT OTHER OUT` edits a dataset with lerobot's own tools.

ROOT and OTHER are LeRobot datasets; OUT is a new folder. Prints what came out as JSON, one line."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.dataset_tools import (
    delete_episodes,
    merge_datasets,
    recompute_stats,
    remove_feature,
    split_dataset,
)
from lerobot.datasets.lerobot_dataset import LeRobotDataset

logging.disable(logging.WARNING)


def told(data: LeRobotDataset) -> dict[str, Any]:
    """What a dataset holds, and its first and last frame."""
    columns = [name for name in data.meta.features if data.meta.features[name]["dtype"] == "float32"]
    ends = [data[0], data[len(data) - 1]]
    stats = json.loads((Path(data.root) / "meta/stats.json").read_text())
    return {
        "episodes": data.meta.total_episodes,
        "frames": len(data),
        "robot": data.meta.robot_type,
        "features": sorted(data.meta.features),
        "stats": {key: np.ravel(entry["mean"]).tolist() for key, entry in stats.items()},
        "counts": {key: entry["count"] for key, entry in stats.items()},
        "tasks": [str(end["task"]) for end in ends],
        "rows": {name: [end[name].tolist() for end in ends] for name in columns},
        "brightness": {key: [float(end[key].mean()) for end in ends] for key in data.meta.video_keys},
    }


root, other, out = map(Path, sys.argv[1:4])
data, second = LeRobotDataset("me/one", root=root), LeRobotDataset("me/two", root=other)
found = {"whole": told(data)}
found["deleted"] = told(delete_episodes(data, [0, 2], output_dir=out / "deleted", repo_id="me/deleted"))
halves = split_dataset(
    data, {"train": [0, 1], "rest": list(range(2, data.meta.total_episodes))}, output_dir=out / "split"
)
found |= {name: told(half) for name, half in halves.items()}
found["merged"] = told(merge_datasets([data, second], "me/merged", output_dir=out / "merged"))
removed = "latent_action" if "latent_action" in data.meta.features else "observation.state"
found["removed"] = told(remove_feature(data, removed, output_dir=out / "removed", repo_id="me/removed"))
again = merge_datasets(
    [halves["rest"], LeRobotDataset("me/deleted", root=out / "deleted")], "me/again", output_dir=out / "again"
)
found["again"] = told(again)
found["recomputed"] = told(recompute_stats(data))
print(json.dumps(found))
