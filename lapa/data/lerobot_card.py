"""The card of a LeRobot dataset: README.md at its root, which the hub shows and reads its tags from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 10  # instructions
HEAD = """---
license: other
license_name: that-of-the-source
task_categories:
- robotics
tags:
- LeRobot
- lapa
configs:
- config_name: default
  data_files: data/*/*.parquet
---
"""


def card(info: Mapping[str, Any], tasks: Sequence[str], origin: Mapping[str, Any]) -> str:
    """What info.json, the instructions and the provenance (meta/lapa.json) say, for people. The licence is not known to
    lapa, so the card says that it is that of the source."""
    features = info["features"]
    cameras = [_camera(key, feature) for key, feature in features.items() if feature["dtype"] == "video"]
    vectors = [f"| {key} | {feature['dtype']} {feature['shape']} | {_names(feature)} |" for key, feature in
               features.items() if feature["dtype"] != "video" and feature["names"]]  # fmt: skip
    shown = [f"* {_line(task)}" for task in tasks[:SHOWN] if task.strip()]
    more = [f"* and {len(tasks) - SHOWN} more"] if len(tasks) > SHOWN else []
    sources = [f"* {_line(str(source))}" for source in origin.get("sources", ())]
    return HEAD + "\n".join([
        "", "# LeRobot dataset written by lapa", "",
        f"{info['total_episodes']} episodes, {info['total_frames']} frames at {info['fps']} frames a second; robot: "
        f"{info['robot_type'] or 'not named by the source'}. The format is LeRobot {info['codebase_version']}.", "",
        "Licence: that of the source. Change `license` at the top of this file before you publish it.", "",
        "## Cameras", "", "| camera | pictures | coding |", "|---|---|---|", *cameras, "",
        "## Numbers", "", "| feature | type | names |", "|---|---|---|", *vectors, "",
        "## Instructions", "", *(shown or ["None."]), *more, "",
        "## Made from", "", *(sources or ["Not recorded."]), "",
    ])  # fmt: skip


def _camera(key: str, feature: Mapping[str, Any]) -> str:
    height, width, _ = feature["shape"]
    info = feature["info"]
    pixels = info.get("video.pix_fmt")
    kept = f"{pixels}, quality {info['video.crf']} (crf)" if pixels else "RGB, every pixel kept"
    return f"| {key} | {width} x {height} | {info['video.codec']} {kept} |"


def _names(feature: Mapping[str, Any]) -> str:
    return ", ".join(map(_line, feature["names"]))


def _line(text: str) -> str:
    """A text in one line that is no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
