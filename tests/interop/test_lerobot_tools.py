"""What `lapa collect` and `lapa export lerobot` write is laid out as LeRobot's own tools need it. Where lerobot can be
run (LAPA_LEROBOT_PYTHON=python-that-has-it, or in this Python), its tools edit what was written."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from made import lerobot_v21, pictures

from lapa import cli
from lapa.artefacts.folder import provenance, save_artefact
from lapa.contracts import Episode
from lapa.data.lerobot_format import LeRobotWriter, whole_rate
from lapa.data.video import VideoFile
from lapa.interop.collect import collect, write
from lapa.recipe import Recipe

EDITS = Path(__file__).parent / "lerobot_edits.py"
STATS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory, tiny: Recipe) -> dict[str, Path]:
    """Two datasets of each kind: collected exactly, collected as browsers play it, and exported with labels."""
    root = tmp_path_factory.mktemp("robots")
    source = lerobot_v21(root / "source", lengths=(8, 9, 20, 12, 10))
    made = {}
    for name, quality in (("exact", None), ("collected", 20)):
        for seed in range(2):
            made[f"{name}{seed}"] = root / f"{name}{seed}"
            collect([f"lerobot:{source}" if quality else f"tabletop:sim,episodes=5,seed={seed}"],
                    made[f"{name}{seed}"], quality=quality)  # fmt: skip
    config = {
        "model": tiny.to_json()["laq"],
        "recipe": tiny.to_json(),
        "results": {},
        "provenance": provenance(0, {}, {}),
    }
    save_artefact(root / "laq", "laq", config, tiny.laq.build().state_dict())
    for seed in range(2):
        spec = f"lerobot:{source},camera=top,{['episodes=0-4', 'without=0'][seed]}"
        cli.main(["label", "--dataset", spec, "--source", f"{root}/laq", "--out", f"{root}/labels{seed}"])
        made[f"exported{seed}"] = root / f"exported{seed}"
        cli.main(["export", "lerobot", f"{root}/labels{seed}", str(made[f"exported{seed}"])])
    return made


def info_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "meta/info.json").read_text())
    return found


def pixels_of(root: Path, camera: str) -> str:
    with av.open(str(next((root / "videos" / camera).rglob("*.mp4")))) as file:
        return f"{file.streams.video[0].codec.canonical_name} {file.streams.video[0].codec_context.pix_fmt}"


@pytest.mark.parametrize("name", ["exact0", "collected0", "exported0"])
def test_the_layout(robots: dict[str, Path], name: str) -> None:
    """One row group for each episode, statistics of each, a card, a robot, and what the pictures are coded with."""
    root = robots[name]
    info = info_of(root)
    file = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    assert file.num_row_groups == info["total_episodes"] == 5
    for number in range(5):
        rows = file.read_row_group(number)
        assert set(rows["episode_index"].to_pylist()) == {number}
        assert rows["frame_index"].to_pylist() == list(range(len(rows)))

    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    whole = json.loads((root / "meta/stats.json").read_text())
    for key, feature in info["features"].items():
        assert set(whole[key]) == STATS
        found = {stat: episodes[f"stats/{key}/{stat}"].to_pylist() for stat in STATS}
        shape = (3, 1, 1) if feature["dtype"] == "video" else tuple(feature["shape"])
        assert all(np.shape(value) == shape for stat in STATS - {"count"} for value in found[stat])
        counts = np.array(found["count"], float)
        assert counts.shape == (5, 1)
        by_count = (np.array(found["mean"]).reshape(5, -1) * counts).sum(0) / counts.sum()
        np.testing.assert_allclose(by_count, np.ravel(whole[key]["mean"]), atol=1e-6)
        np.testing.assert_allclose(np.min(found["min"], 0), whole[key]["min"])
        np.testing.assert_allclose(np.max(found["max"], 0), whole[key]["max"])

    card = (root / "README.md").read_text()
    assert card.startswith("---\n")
    assert all(word in card for word in ("LeRobot", "robotics", "data/*/*.parquet", info["robot_type"], "5 episodes"))
    cameras = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    assert cameras
    for camera in cameras:
        coded = info["features"][camera]["info"]
        assert coded["video.codec"] == "h264"
        assert coded["video.g"] >= 1
        if name == "exact0":
            assert "video.pix_fmt" not in coded, "LeRobot's tools cannot code gbrp, and refuse a dataset that says it"
            assert pixels_of(root, camera) == "h264 gbrp"
        else:
            assert coded["video.pix_fmt"] == "yuv420p"
            assert coded["video.crf"] == (20 if name == "collected0" else 18)
            assert pixels_of(root, camera) == "h264 yuv420p"


def test_names_are_kept(robots: dict[str, Path]) -> None:
    for name, cameras in (("collected0", {"top", "wrist"}), ("exported0", {"top"})):
        info = info_of(robots[name])
        assert info["robot_type"] == "so100"
        assert {key.rpartition(".")[2] for key in info["features"] if "images" in key} == cameras


def test_a_robot_may_be_named(tmp_path: Path) -> None:
    cli.main(["collect", "--benchmark", "tabletop:sim", "--episodes", "1", "--out", str(tmp_path / "expert")])
    assert info_of(tmp_path / "expert")["robot_type"] == "tabletop_sim"
    video = VideoFile(tmp_path / "clips/a.mp4", 10, 24, 32)
    video.add(pictures(6))
    video.close()
    cli.main(["collect", "--dataset", f"video_folder:{tmp_path}/clips", "--robot", "my arm", "--out", f"{tmp_path}/ds"])
    assert info_of(tmp_path / "ds")["robot_type"] == "my arm"


def test_a_topic_as_a_camera(tmp_path: Path) -> None:
    """LeRobot refuses features with a slash in their names."""
    take = Episode("a", pictures(4), 10.0, camera="/front/image_raw"), {"/wrist/image": pictures(4)}
    write([take], tmp_path / "ds", {})
    cameras = {key for key, feature in info_of(tmp_path / "ds")["features"].items() if feature["dtype"] == "video"}
    assert cameras == {"observation.images.front_image_raw", "observation.images.wrist_image"}


def test_the_default_of_collect_goes_by_size(tmp_path: Path) -> None:
    for side, expected in ((96, "h264 gbrp"), (160, "h264 yuv420p"), (161, "h264 yuv444p")):
        write([(Episode("a", pictures(4, side, side), 10.0), {})], tmp_path / str(side), {})
        assert pixels_of(tmp_path / str(side), "observation.images.main") == expected


@pytest.mark.parametrize(
    ("fps", "written"), [(29.97, 30), (30000 / 1001, 30), (24000 / 1001, 24), (15.0, 15), (7.5, 7.5)]
)
def test_rates_that_are_nearly_whole(
    tmp_path: Path, fps: float, written: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """LeRobot's tools count in whole frames a second; 29.97 is written as 30, and that is said."""
    assert whole_rate(fps) == written
    write([(Episode("a", pictures(4), fps), {}), (Episode("b", pictures(5), written), {})], tmp_path / "ds", {})
    assert info_of(tmp_path / "ds")["fps"] == written
    said = capsys.readouterr().err
    assert (f"{fps:g}" in said) == (fps != 15)


def test_an_episode_without_labels_leaves_the_statistics_alone(tmp_path: Path) -> None:
    feature = {"latent_action": {"shape": [1], "names": ["a"], "info": {"no_value": -1}}}
    with LeRobotWriter(tmp_path / "ds", 5, 16, extra=feature) as writer:
        for codes in ([[3], [5], [-1]], [[-1], [-1], [-1]]):
            writer.add(Episode("e", pictures(3, 16, 16), 5.0), latent_action=np.array(codes))
    episodes = pq.read_table(tmp_path / "ds/meta/episodes/chunk-000/file-000.parquet")
    assert episodes["stats/latent_action/min"].to_pylist() == [[3.0], [3.0]]
    assert episodes["stats/latent_action/max"].to_pylist() == [[5.0], [5.0]]


# --- lerobot itself -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has lerobot."""
    named = os.environ.get("LAPA_LEROBOT_PYTHON", "")
    if named or importlib.util.find_spec("lerobot"):
        return named or sys.executable
    pytest.skip("no lerobot here: set LAPA_LEROBOT_PYTHON to a Python 3.12 that has lerobot[dataset] 0.6")


@pytest.mark.parametrize("name", ["exact", "collected", "exported"])
def test_lerobots_own_tools(robots: dict[str, Path], name: str, python: str, tmp_path: Path) -> None:
    """Delete, split, merge, remove a feature and recompute statistics, and merge what was edited again."""
    roots = [robots[f"{name}{seed}"] for seed in range(2)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    ran = subprocess.run([python, str(EDITS), *map(str, roots), str(tmp_path)], env=environment, capture_output=True,
                         text=True, cwd=tmp_path)  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    lengths = pq.read_table(roots[0] / "meta/episodes/chunk-000/file-000.parquet")["length"].to_pylist()
    others = info_of(roots[1])
    kept = [lengths[i] for i in (1, 3, 4)]
    whole = found["whole"]
    for edited, frames, episodes in (
        ("whole", sum(lengths), 5), ("deleted", sum(kept), 3), ("train", sum(lengths[:2]), 2),
        ("rest", sum(lengths[2:]), 3), ("merged", sum(lengths) + others["total_frames"], 5 + others["total_episodes"]),
        ("removed", sum(lengths), 5), ("again", sum(lengths[2:]) + sum(kept), 6), ("recomputed", sum(lengths), 5),
    ):  # fmt: skip
        told = found[edited]
        assert (told["frames"], told["episodes"], told["robot"]) == (frames, episodes, whole["robot"]), edited
        assert set(told["stats"]) == set(told["features"]), f"{edited}: statistics of every feature"
        assert all(np.isfinite(values).all() for values in told["stats"].values()), edited
    assert len(found["removed"]["features"]) == len(whole["features"]) - 1
    assert found["deleted"]["rows"]["action"][1] == whole["rows"]["action"][1], "the last episode stays"
    assert found["deleted"]["tasks"][1] == whole["tasks"][1]
    for key, (_, last) in whole["brightness"].items():
        assert abs(found["deleted"]["brightness"][key][1] - last) < 0.02, "coded again, the same picture"
        assert abs(found["merged"]["brightness"][key][0] - whole["brightness"][key][0]) < 0.01
    np.testing.assert_allclose(found["recomputed"]["stats"]["action"], whole["stats"]["action"], atol=1e-4)


def test_lerobot_doctor(robots: dict[str, Path], python: str) -> None:
    """Its findings are of the data (too few episodes to learn from), none of the format."""
    doctor = Path(python).parent / "lerobot-doctor"
    if not doctor.exists():
        pytest.skip(f"no lerobot-doctor beside {python}")
    for name in ("exact0", "collected0", "exported0"):
        ran = subprocess.run([str(doctor), str(robots[name])], capture_output=True, text=True)
        sections = {line[7:]: line[1:5] for line in ran.stdout.splitlines() if line.startswith("[")}
        for section in ("Metadata & Format Compliance", "Temporal Consistency", "Video Integrity", "Portability"):
            assert sections[section] == "PASS", ran.stdout
        assert "FAIL" not in sections.values(), ran.stdout
