"""Which of a client's keys is which camera, the state, the instruction; pictures in their usual forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lapa.contracts import ActionSpec, LapaError, PolicySpec
from lapa.serving import Fault
from lapa.serving.keys import PRESETS, Keys, flattened, keys_of, matched, notes_on
from lapa.serving.pictures import as_picture

HWC = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
ACTION = ActionSpec(("x",), ("delta",), 5.0)


def spec(*cameras: str, state: int = 0) -> PolicySpec:
    return PolicySpec(cameras, tuple(f"s{i}" for i in range(state)), ACTION)


# --- pictures


@pytest.mark.parametrize(
    "sent",
    [HWC, HWC.transpose(2, 0, 1), HWC.astype(np.float32), HWC / 255, (HWC / 255).astype(np.float32).transpose(2, 0, 1),
     HWC.astype(np.int64), HWC.tolist(), HWC[::1, ::1].copy(order="F")],
    ids=["HWC", "CHW", "float 255", "float 1", "CHW float", "int", "list", "Fortran"],
)  # fmt: skip
def test_every_usual_form_is_the_same_picture(sent: Any) -> None:
    found = as_picture(sent, "image")
    np.testing.assert_array_equal(found, HWC)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


def test_dark_pictures_and_slack() -> None:
    assert as_picture(np.zeros((4, 4, 3), np.float32), "k").max() == 0
    np.testing.assert_array_equal(as_picture(np.full((4, 4, 3), 1.002), "k"), 255)
    np.testing.assert_array_equal(as_picture(np.full((4, 4, 3), -1e-3), "k"), 0)
    np.testing.assert_array_equal(as_picture(np.full((3, 5, 3), 7, np.uint8), "k").shape, (3, 5, 3))


@pytest.mark.parametrize(
    "sent",
    [HWC[None], HWC[..., 0], HWC[..., :2], np.zeros((6, 8, 4), np.uint8), HWC / 127.5 - 1, HWC.astype(float) * 4,
     np.full((4, 4, 3), np.nan), HWC.astype(np.uint16) * 200, HWC > 100, np.zeros((0, 4, 3), np.uint8), "text", None,
     [[1, 2], [3]], np.zeros((2, 5000, 3), np.uint8)],
    ids=["batch", "grey", "two channels", "RGBA", "-1..1", "0..1020", "nan", "uint16", "bool", "empty", "text", "none",
         "ragged", "huge"],
)  # fmt: skip
def test_what_is_no_picture_is_refused_with_its_key(sent: Any) -> None:
    with pytest.raises(Fault, match="cam_7"):
        as_picture(sent, "cam_7")


# --- names


@pytest.mark.parametrize(
    ("cameras", "keys", "found"),
    [
        (("top", "wrist"), ("images/wrist", "images/top"), {"top": "images/top", "wrist": "images/wrist"}),
        (("observation.images.top",), ("images/top", "images/front"), {"observation.images.top": "images/top"}),
        (("main",), ("observation/image",), {"main": "observation/image"}),
        (("main",), ("observation/wrist_image", "observation/image"), {"main": "observation/image"}),
        (("main",), ("depth_image", "hand_image", "image"), {"main": "image"}),
        (("main",), ("images/front", "images/back"), None),
        (("hand",), ("left_wrist_image", "right_wrist_image", "image"), None),
        (("agentview", "eye_in_hand"), ("observation/image", "observation/wrist_image"),
         {"agentview": "observation/image", "eye_in_hand": "observation/wrist_image"}),
        (("left", "right"), ("images/a", "images/b"), None),
        (("a", "wrist_left", "wrist_right"), ("image", "left_wrist_image", "right_wrist_image"), None),
        (("top",), (), None),
        (("top", "wrist"), ("images/top",), None),
        (("top",), ("a/top", "b/top"), None),
    ],
)  # fmt: skip
def test_cameras_are_told_by_name(cameras: Any, keys: Any, found: Any) -> None:
    assert matched(cameras, keys) == found


def test_names_within_names() -> None:
    assert flattened({"images": {"top": 1}, "observation/state": 2, b"x": 3}) == {
        "images/top": 1, "observation/state": 2, "b'x'": 3}  # fmt: skip


def test_by_name() -> None:
    said: list[str] = []
    keys = Keys(spec("top", "wrist", state=2), say=said.append)
    sent = {"observation.images.top": HWC, "observation.images.wrist": HWC.transpose(2, 0, 1),
            "observation.state": [1, 2], "task": "push", "extra": 3}  # fmt: skip
    observation, state = keys.observation(sent)
    assert observation["instruction"] == "push"
    np.testing.assert_array_equal(observation["images"]["wrist"], HWC)
    np.testing.assert_array_equal(observation["state"], [1, 2])
    assert state is not None
    assert state.dtype == np.float32
    assert not said
    Keys(spec("main"), say=said.append).observation({"observation/image": HWC, "prompt": ""})
    assert len(said) == 1, "what is taken for what is said"
    assert "main" in said[0]


def test_a_state_that_two_keys_may_be_is_refused() -> None:
    sent = {"image": HWC, "prompt": "push", "observation/qpos": [1, 2], "observation/state": [3, 4]}
    with pytest.raises(Fault, match="observation/qpos, observation/state"):
        Keys(spec("image", state=2)).observation(sent)
    assert "state" not in Keys(spec("image")).observation(sent)[0]


CLIENTS: dict[str, list[dict[str, Any]]] = {
    "libero": [
        {"observation/image": HWC, "observation/wrist_image": HWC[::-1], "observation/state": np.arange(8.0)},
        {"images": {"agentview": HWC, "wrist": HWC[::-1]}, "states": np.arange(8.0), "task_description": "do"},
        {"full_image": HWC, "wrist_image": HWC[::-1], "state": np.arange(8.0), "instruction": "do"},
    ],
    "droid": [
        {"observation/exterior_image_1_left": HWC, "observation/wrist_image_left": HWC[::-1],
         "observation/joint_position": np.arange(7.0), "observation/gripper_position": np.array([7.0])},
        {"observation/exterior_image_1_left": HWC, "observation/wrist_image_left": HWC[::-1],
         "observation/joint_position": np.arange(7.0), "observation/gripper_position": 7.0},
    ],
    "aloha": [{"images": {"cam_high": HWC.transpose(2, 0, 1), "cam_left_wrist": HWC[::-1].transpose(2, 0, 1)},
               "state": np.arange(14.0)}],
    "widowx": [{"observation/image": HWC, "observation/wrist_image": HWC[::-1], "observation/state": np.arange(7.0)},
               {"image": HWC, "wrist_image": HWC[::-1], "state": np.arange(7.0), "instruction": "do"}],
}  # fmt: skip
NAMES = {"libero": ("agentview", "wrist"), "droid": ("exterior_image_1_left", "hand"),
         "aloha": ("cam_high", "cam_left_wrist"), "widowx": ("image", "wrist")}  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "number"), [(name, i) for name, every in CLIENTS.items() for i in range(len(every))]
)
def test_presets_take_what_their_clients_send(preset: str, number: int) -> None:
    sent = {"prompt": "do", **CLIENTS[preset][number]}
    count = sum(part for _, part in PRESETS[preset].state)
    cameras = NAMES[preset]
    keys = keys_of(spec(*cameras, state=count), preset)
    observation, _ = keys.observation(sent)
    np.testing.assert_array_equal(observation["images"][cameras[0]], HWC)
    np.testing.assert_array_equal(observation["images"][cameras[1]], HWC[::-1])
    np.testing.assert_array_equal(observation["state"], np.arange(count))
    assert observation["instruction"] == "do"
    assert cameras[0] in " ".join(keys.lines())
    one = keys_of(spec("anything"), preset).observation(sent)[0]
    np.testing.assert_array_equal(one["images"]["anything"], HWC, err_msg="a policy of one camera is shown the scene")


def test_what_a_preset_expects_is_told() -> None:
    told = " ".join(notes_on("droid", spec("a", state=3)))
    assert all(word in told for word in ("8", "gives 1", "reads 3", "10"))
    assert notes_on("", spec("a")) == []


WRONG: dict[str, dict[str, Any]] = {
    "picture": {"prompt": "x", "state": [1, 2]},
    "front": {"front": HWC, "back": HWC, "prompt": "x", "state": [1, 2]},
    "instruction": {"top": HWC, "state": [1, 2]},
    "s0": {"top": HWC, "prompt": "x"},
    "finite": {"top": HWC, "prompt": "x", "state": [1, float("nan")]},
    "numbers": {"top": HWC, "prompt": "x", "state": [[1, 2]]},
    "3": {"top": HWC, "prompt": "x", "state": [1, 2, 3]},
    "text": {"top": HWC, "prompt": "x" * 5000, "state": [1, 2]},
    "prompt": {"top": HWC, "prompt": 3, "state": [1, 2]},
    "embodiment": {"top": HWC, "prompt": "x", "state": [1, 2], "embodiment": 3},
    "state": {"top": HWC, "prompt": "x", "state": "1 2"},
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_observation_is_refused_by_name(word: str) -> None:
    with pytest.raises(Fault, match=word):
        Keys(spec("top", state=2)).observation(WRONG[word])


def test_usual_instruction_and_embodiment() -> None:
    keys = Keys(spec("top"), usual="tidy up", embodiment="arm")
    observation, _ = keys.observation({"top": HWC})
    assert observation["instruction"] == "tidy up"
    assert observation["embodiment"] == "arm"
    assert keys.observation({"top": HWC, "prompt": "", "embodiment": "leg"})[0]["embodiment"] == "leg"
    assert keys.observation({"top": HWC, "prompt": ["go"]})[0]["instruction"] == "go"
    nothing = {"prompt": None, "state": None, "embodiment": None}
    observation, state = keys.observation({"top": HWC, **nothing})
    assert (observation["instruction"], observation["embodiment"], state) == ("tidy up", "arm", None), "None: none"


# --- files


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_file_of_ones_own(form: str, tmp_path: Path) -> None:
    told = {"cameras": {"top": "rgb", "wrist": ["w1", "w2"]}, "state": ["arm", "grip"], "instruction": "say"}
    path = tmp_path / f"keys.{form}"
    path.write_text(json.dumps(told))  # JSON is YAML
    keys = keys_of(spec("top", "wrist", state=3), str(path))
    observation, _ = keys.observation({"rgb": HWC, "w2": HWC[::-1], "arm": [1, 2], "grip": 3, "say": "go"})
    np.testing.assert_array_equal(observation["images"]["wrist"], HWC[::-1])
    np.testing.assert_array_equal(observation["state"], [1, 2, 3])
    with pytest.raises(Fault, match="w1"):
        keys.observation({"rgb": HWC, "arm": [1, 2], "grip": 3, "say": "go"})


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", "3", '{"camera": {}}', '{"cameras": {"front": "x", "top": "y"}}', '{"cameras": {"wrist": "x"}}',
     '{"cameras": {"top": 3, "wrist": "x"}}', '{"state": {"a": 1}}', '{"cameras": ["top"]}'],
)  # fmt: skip
@pytest.mark.parametrize("form", ["json", "yml"])
def test_a_file_that_does_not_fit_names_itself(text: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"robot.{form}"
    path.write_text(text)
    with pytest.raises(LapaError, match="robot"):
        keys_of(spec("top", "wrist"), str(path))


def test_unknown_presets_and_files() -> None:
    with pytest.raises(LapaError, match="libero"):
        keys_of(spec("top"), "libera")
    with pytest.raises(LapaError, match=r"no\.yaml"):
        keys_of(spec("top"), "no.yaml")
    with pytest.raises(LapaError, match="front, back"):
        keys_of(spec("front", "back"), "libero")
