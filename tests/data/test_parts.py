"""Which numbers are the action and which the state."""

from __future__ import annotations

import pytest

from lapa.contracts import LapaError
from lapa.data.parts import ACTIONS, STATES, are_rivals, dimension_names, parts, taken

RT1 = ("action/base", "action/gripper", "action/terminate_episode", "action/world_vector", "observation/state")


def action(known: tuple[str, ...], wanted: str | None = None) -> tuple[str, ...]:
    return parts(known, ACTIONS, wanted, "action", " in x").names


@pytest.mark.parametrize(
    ("known", "wanted", "expected"),
    [
        (("action",), None, ("action",)),
        (("actions", "state"), None, ("actions",)),
        (("action.gripper", "action", "action.arm"), None, ("action",)),
        (("action.gripper", "action.arm"), None, ("action.gripper", "action.arm")),
        (("action.arm", "action.gripper", "action.is_pad"), None, ("action.arm", "action.gripper")),
        (("action.left.arm", "action.left.hand", "action.right.arm"), "left", ("action.left.arm", "action.left.hand")),
        (RT1, None, ("action/base", "action/gripper", "action/world_vector")),
        (RT1, "world_vector+gripper", ("action/world_vector", "action/gripper")),
        (RT1, "terminate_episode", ("action/terminate_episode",)),
        (RT1, "action.world_vector + gripper", ("action/world_vector", "action/gripper")),
        (("teleop", "action_is_pad"), None, ()),
        (("teleop",), "teleop", ("teleop",)),
    ],
)
def test_the_action(known: tuple[str, ...], wanted: str | None, expected: tuple[str, ...]) -> None:
    assert action(known, wanted) == expected


def test_the_state() -> None:
    for known in (("observation.state",), ("state",), ("observation/proprio",), ("observation.state.arm", "x")):
        assert parts(known, STATES, None, "state", "").names == (known[0],)


def test_what_is_passed_over_is_said() -> None:
    chosen, none = parts(RT1, ACTIONS, None, "action", ""), parts(RT1, ("x",), None, "state", "")
    said = taken(chosen, none, RT1)
    assert all(word in said for word in (*RT1, "no state", "state="))
    assert parts(RT1, ACTIONS, "action", "action", "").passed == ("action/terminate_episode",)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("griper", ["griper", "action/gripper"]),
        ("gripper+gripper", ["gripper", "twice"]),
        ("arm", ["l/arm", "r/arm"]),
        ("gripper+", ["x"]),
    ],
)
def test_parts_that_cannot_be_taken(wanted: str, words: list[str]) -> None:
    with pytest.raises(LapaError) as caught:
        action((*RT1, "l/arm", "r/arm"), wanted)
    assert [word for word in (*words, " in x") if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("names", "rivals"),
    [
        ("arm gripper", False),
        ("joint_position gripper_position", False),
        ("pos rot gripper", False),
        ("world_vector rotation_delta gripper_closedness", False),
        ("left/pos right/pos", False),
        ("joint_position joint_velocity", True),
        ("pos delta_pos", True),
        ("cartesian_position joint_position", True),
        ("qpos eef_pose", True),
        ("target_cartesian_position cartesian_position", True),
    ],
)
def test_the_same_motion_in_several_ways(names: str, rivals: bool) -> None:
    assert are_rivals([f"action/{name}" for name in names.split()]) == rivals


def test_names_of_dimensions() -> None:
    assert dimension_names({"action": 2}, {}) == ()
    assert dimension_names({"action": 2}, {"action": ["a", "b"]}) == ("a", "b")
    assert dimension_names({"action": 6}, {"action": ["arm", "joint"]}) == ()
    assert dimension_names({"action/pos": 2, "action/grip": 1}, {}) == ("pos_0", "pos_1", "grip_0")
    assert dimension_names({"l.arm": 1, "r.arm": 1}, {}) == ("l.arm_0", "r.arm_0")
    assert dimension_names({"l.arm": 1, "r.hand": 1}, {"l.arm": ["x"], "r.hand": ["x"]}) == ("arm.x", "hand.x")
