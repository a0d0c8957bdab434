"""`lapa collect`: any dataset becomes a LeRobot dataset, with its actions or without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_made import arm
from made_robots import arm as messages_of_an_arm
from made_robots import good, ros2, tar
from robot_rows import CAMERA, features, robot, rows

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.lerobot_format import LeRobotWriter, rate_in_words
from lapa.data.pack import pack
from lapa.interop.collect import collect

SPEC = "tabletop:sim,episodes=3,seed=4"


def test_written_and_read_back_it_is_what_it_was(tmp_path: Path) -> None:
    counts = collect([SPEC], tmp_path / "data")
    before, after = (pack([spec], 48, quiet=True) for spec in (SPEC, f"lerobot:{tmp_path}/data"))
    [told] = counts.pop("notes")
    assert told.startswith("instructions: 3 from")
    assert counts == {"episodes": 3, "frames": len(before), "with": "with", "cameras": ["main"]}
    everything = np.arange(len(before))
    assert np.array_equal(before.gather(everything), after.gather(everything))
    assert before.actions is not None
    assert after.actions is not None
    assert np.array_equal(before.actions, after.actions)
    assert before.instructions == after.instructions


def test_without_actions_there_are_none_and_stage_3_says_so(tmp_path: Path) -> None:
    assert collect([SPEC], tmp_path / "video", without_actions=True)["with"] == "without"
    packed = pack([f"lerobot:{tmp_path}/video"], 48, quiet=True)
    assert packed.actions is None
    with pytest.raises(LapaError, match=r"video.* actions.* finetuning"):
        packed.require_actions("finetuning")


def dataset(path: Path, names: tuple[str, ...] = ("x", "y"), **more: Any) -> str:
    """Two episodes at 10 Hz, or as `more` says: kinds, robot_type, fps."""
    about = {"kinds": ("delta",) * len(names), "robot_type": "one", "fps": 10.0} | more
    numbers = np.arange(5 * len(names), dtype=np.float32).reshape(5, -1) if names else None
    with LeRobotWriter(path, image_size=(24, 32), action_names=names, camera="top", **about) as writer:
        for number in range(2):
            writer.add(Episode(f"e{number}", made.pictures(5), about["fps"], "do it", numbers, action_names=names))
    return f"lerobot:{path}"


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"names": ()}, {}, "--without-actions"),
        ({}, {"names": ("y", "x")}, "y, x; x, y"),
        ({}, {"kinds": ("absolute", "absolute")}, "absolute, absolute; delta, delta"),
        ({}, {"robot_type": "two"}, "--robot"),
    ],
)
def test_what_differs_is_not_written_as_one(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], named: str
) -> None:
    specs = [dataset(tmp_path / "a", **first), dataset(tmp_path / "b", **second)]
    with pytest.raises(LapaError, match=named):
        collect(specs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if "robot_type" in second:
        collect(specs, tmp_path / "out", robot="both")
    if not first.get("names", "some"):
        collect(specs, tmp_path / "out", without_actions=True)


def test_datasets_together_tell_where_they_differ(tmp_path: Path) -> None:
    one = dataset(tmp_path / "a")
    said = "; ".join(pack([one, dataset(tmp_path / "b", ("y", "x"))], 16, quiet=True).told())
    assert "action: left out, for the datasets have actions of different kinds or in another order" in said
    said = "; ".join(pack([one, dataset(tmp_path / "d", ("dx", "dy"))], 16, quiet=True).told())
    assert "action: named differently by the datasets (x, y; dx, dy)" in said
    said = "; ".join(pack([one, dataset(tmp_path / "c", fps=30.0)], 16, quiet=True).told())
    assert "10 to 30 Hz" in said
    said = "; ".join(pack([one, one], 16, quiet=True).told())
    assert "named differently" not in said
    assert "Hz, each" not in said


def test_a_camera_that_some_episodes_lack(tmp_path: Path) -> None:
    """It costs the episodes that lack it, and no others."""
    root, whole = arm(tmp_path / "arm"), arm(tmp_path / "whole")
    (file,) = (root / "meta/episodes").rglob("*.parquet")
    table, name = pq.read_table(file), "videos/observation.images.wrist/from_timestamp"
    starts = [None if row == 1 else start for row, start in enumerate(table[name].to_pylist())]
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(starts, pa.float64())), file)
    with pytest.raises(LapaError, match=r"Camera wrist.*episode_000001.*--cameras"):
        collect([f"lerobot:{root}"], tmp_path / "none")
    made_of = collect([f"lerobot:{root}"], tmp_path / "out", skip_bad=True)
    assert (made_of["episodes"], made_of["cameras"]) == (2, ["top", "wrist"])
    for camera in made_of["cameras"]:
        before, _, last = good(f"lerobot:{whole},camera={camera}")
        for one, other in zip((before, last), good(f"lerobot:{tmp_path}/out,camera={camera}"), strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)


def test_depth_is_not_written_as_colour(tmp_path: Path) -> None:
    """Whatever options a dataset has, and one of several below a folder."""
    depth = {"dtype": "video", "shape": [24, 32, 1], "info": {"is_depth_map": True}}
    for name in ("one", "two"):
        root = robot(tmp_path / f"all/{name}", [rows(4), rows(4, 0, 1)], about=features(observation__images__z=depth))
        shutil.copytree(root / f"videos/chunk-000/{CAMERA}", root / "videos/chunk-000/observation.images.z")
    for number, spec in enumerate(("all", "all/one", "all/one,episodes=0-1", "all/two,stride=2", "all,episodes=1-2")):
        found = collect([f"lerobot:{tmp_path}/{spec}"], tmp_path / f"out{number}")
        assert found["cameras"] == ["top"], spec
    film = made.video(tmp_path / "film.mp4", made.pictures(6)).read_bytes()
    path = tar(tmp_path / "a.tar", {"a.top.mp4": film, "a.depth.mp4": film, "a.side.mp4": film})
    assert collect([f"webdataset:{path}"], tmp_path / "tar")["cameras"] == ["top", "side"]


def test_depth_of_ros_is_not_written_as_colour(tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason="mcap is not installed")
    messages = ros2(tmp_path / "a.mcap", messages_of_an_arm())
    found = collect([f"mcap:{messages}"], tmp_path / "mcap")
    assert len(found["cameras"]) == 2, "one of three is of depth"


def test_a_measured_rate_is_no_news() -> None:
    assert rate_in_words(10.000000000000568) == ""
    assert "29.97" in rate_in_words(29.97)


def test_another_camera_under_the_first_ones_name_is_told(tmp_path: Path) -> None:
    root = arm(tmp_path / "arm")
    found = collect([f"lerobot:{root},camera=top", f"lerobot:{root},camera=wrist"], tmp_path / "out")
    assert found["cameras"] == ["top"]
    assert "camera: wrist is written as top, the first episode's" in found["notes"]
    found = collect([f"lerobot:{root},camera=top"], tmp_path / "alone")
    assert not any("is written as" in note for note in found["notes"])


def test_an_episode_that_is_listed_twice(tmp_path: Path) -> None:
    root = robot(tmp_path / "a", [rows(4), rows(4, 0, 1)])
    table = root / "meta/episodes.jsonl"
    table.write_text(table.read_text() + table.read_text().splitlines()[0] + "\n")
    with pytest.raises(BadVideo, match=r"second episode .episode_000000"):
        collect([f"lerobot:{root}"], tmp_path / "out")
    assert collect([f"lerobot:{root}"], tmp_path / "out", skip_bad=True)["episodes"] == 2
