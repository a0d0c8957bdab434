"""Which camera is read where nobody says: names, flags, channels and bits; and what commands are told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import features_json, image, lerobot_v21, rlds

from lapa.contracts import LapaError
from lapa.data.cameras import best, camera, is_on_hand
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import stream

DEPTH = ("depth", "head_depth", "aligned_depth_to_color", "observation.images.depth.left", "depthImage", "disparity")
ODD = ("infra1", "ir_left", "observation.images.seg_instance_id.head", "rgb_tactile", "thermal_cam")
HAND = (
    "wrist", "cam_left_wrist", "wrist_image_left", "wristcam", "leftWristCam", "rgb_gripper", "gripperPOV",
    "hand_camera", "robot0_eye_in_hand_image", "eye_in_hand_rgb", "hand_left", "finger_vision_1", "eef_cam",
    "end_effector", "wrist225",
)  # fmt: skip
SCENE = (
    "image_0", "front", "overhead", "handle_cam", "cam_high", "agentview_image", "exterior_image_1_left", "laptop",
    "color_aligned_to_depth", "rgb_static", "top", "teeth", "ringlight", "thirdperson", "steered", "handover_table",
)  # fmt: skip


def test_names() -> None:
    assert [name for name in DEPTH if camera(name).fault != "a depth map"] == []
    assert [name for name in ODD if not camera(name).fault] == []
    assert [name for name in HAND if not is_on_hand(name) or camera(name).fault] == []
    assert [name for name in SCENE if is_on_hand(name) or camera(name).fault] == []


@pytest.mark.parametrize(
    "known",
    [
        {"flags": {"is_depth_map": True}},
        {"flags": {"video.is_depth_map": True}},
        {"flags": {"is_depth_map": "true"}},
        {"flags": {"video.is_depth_map": 1}},
        {"flags": {"depth_unit": "mm"}},
        {"flags": {"video.pix_fmt": "gray12le"}},
        {"pixels": "gray16le"},
        {"pixels": "gray10be"},
        {"bits": 16},
        {"flags": {"bit_depth": 12, "video.channels": 1}},
    ],
)
def test_flags_of_depth(known: dict[str, Any]) -> None:
    assert camera("front", **known).fault
    assert best([camera("front", **known), camera("wrist")], "x")[0] == "wrist"


@pytest.mark.parametrize(
    "known",
    [
        {},
        {"flags": {"is_depth_map": False}},
        {"channels": 3},
        {"bits": 8},
        {"bits": 10, "pixels": "yuv420p10le", "channels": 3},
    ],
)
def test_flags_of_colour(known: dict[str, Any]) -> None:
    assert camera("front", **known).rank == 0


def test_the_order_of_dislike() -> None:
    every = [camera("depth"), camera("grey", channels=1), camera("wrist"), camera("side"), camera("top")]
    assert [best(every[:n], "x")[0] for n in (2, 3, 4, 5)] == ["grey", "wrist", "side", "side"]
    _, why = best(every, "x")
    assert all(word in why for word in ("depth", "grey", "wrist")), why
    assert "top" not in why
    assert best([camera("wrist")], "x") == ("wrist", "")
    with pytest.raises(LapaError, match=r"here/robot.*depth.*camera="):
        best([camera("depth")], "here/robot")


def lerobot(root: Path, **features: dict[str, Any]) -> str:
    """A data set whose cameras wrist and top are told of so in info.json."""
    lerobot_v21(root)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for name, more in features.items():
        info["features"][f"observation.images.{name}"] |= more
    path.write_text(json.dumps(info))
    return f"lerobot:{root}"


@pytest.mark.parametrize("flag", ["is_depth_map", "video.is_depth_map"])
@pytest.mark.parametrize("place", ["info", "video_info", ""])
def test_lerobot_takes_the_colour_camera_and_says_so(tmp_path: Path, flag: str, place: str) -> None:
    spec = lerobot(tmp_path / "ds", top={place: {flag: True}} if place else {flag: True})
    for read in (pack, stream):
        found = read([spec], 8, quiet=True, cache=tmp_path / "cache")
        assert found.camera == "wrist"
        assert [line for line in found.told() if "camera: wrist" in line and "top" in line], found.told()
        asked = read([f"{spec},camera=top"], 8, quiet=True, cache=tmp_path / "cache")
        assert asked.camera == "top"


def test_lerobot_passes_over_the_wrist(tmp_path: Path) -> None:
    found = pack([lerobot(tmp_path / "ds")], 8, quiet=True, cache=tmp_path / "cache")
    assert found.camera == "top"
    assert [line for line in found.told() if "camera: top" in line and "wrist" in line]


def test_one_channel_by_shape(tmp_path: Path) -> None:
    spec = lerobot(tmp_path / "ds", top={"shape": [24, 32, 1], "names": ["height", "width", "channel"]})
    assert open_dataset(spec).camera == "observation.images.wrist"  # type: ignore[attr-defined]
    spec = lerobot(tmp_path / "first", top={"shape": [1, 24, 32], "names": None})
    assert open_dataset(spec).camera == "observation.images.wrist"  # type: ignore[attr-defined]


def test_rlds_by_the_same_words(tmp_path: Path) -> None:
    root = rlds(tmp_path / "taco_play")
    tree = {"observation": {"rgb_gripper": image(), "rgb_static": image(), "aligned_depth": image()}}
    (root / "features.json").write_text(json.dumps(features_json(tree)))
    assert open_dataset(f"rlds:{root}").camera == "observation/rgb_static"  # type: ignore[attr-defined]
    assert open_dataset(f"rlds:{root},camera=rgb_gripper").camera == "observation/rgb_gripper"  # type: ignore[attr-defined]
