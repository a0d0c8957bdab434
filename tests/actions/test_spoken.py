"""Directions in words: which axes are spoken of, and what is said of a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lapa.actions.codebook import ActionCodebook
from lapa.actions.directions import FIRST, NONE, SECOND, Directions
from lapa.actions.meaning import Meaning
from lapa.actions.spaces import ActionSpace
from lapa.contracts import ActionSpec, LapaError

ARM = ("dx", "dy", "dz", "gripper")
WITH_GRIPPER = ("delta", "delta", "delta", "binary")


def meaning(names: tuple[str, ...], kinds: Any = None, relative: bool = False) -> Meaning:
    kinds = kinds or ("delta",) * len(names)
    which = tuple(relative and kind == "absolute" for kind in kinds)
    return Meaning(ActionSpec(names, kinds, 5.0), which, names if any(which) else ())


def fitted(chunks: np.ndarray) -> ActionSpace:
    return ActionSpace.fit(chunks.reshape(-1, chunks.shape[-1]), 64, chunks.shape[1])


def said(directions: Directions, chunks: np.ndarray, pad: np.ndarray | None = None) -> list[str]:
    space = fitted(chunks)
    targets = space.targets(chunks, np.zeros(chunks.shape[:2], bool) if pad is None else pad)
    return [directions.phrase(row) for row in directions.classes(space, targets)]


def test_on_a_table() -> None:
    ways = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1], [1, -0.2], [0, 0], [0.3, -1]])
    chunks = np.repeat(ways[:, None], 3, 1).astype(np.float32)
    assert said(Directions.of(meaning(("dx", "dy")), {}, 3), chunks) == [
        "move right", "move left", "move down", "move up", "move down and right", "move up and left", "move right",
        "stay", "move up",
    ]  # fmt: skip


def test_an_arm_with_a_gripper() -> None:
    chunks = np.zeros((4, 3, 4), np.float32)
    chunks[:, :, 3] = 1
    chunks[0, :, 2] = 1
    chunks[1, :, 0], chunks[1, :, 1] = 1, -1
    chunks[2, 1:, 3] = -1
    chunks[3, 0, 3], chunks[3, :, 2] = -1, -1
    directions = Directions.of(meaning(ARM, WITH_GRIPPER), {}, 3)
    assert said(directions, chunks) == [
        "move up", "move forward and right", "close the gripper", "move down, open the gripper",
    ]  # fmt: skip
    assert len(Directions.of(meaning(ARM, WITH_GRIPPER), {}, 1)) == 3, "one command of a gripper is no motion"


def test_the_mean_motion_of_what_there_is() -> None:
    chunks = np.array([[[1, 0], [1, 0], [-5, 0]], [[1, 0], [1, 0], [-5, 0]], [[1, 0], [1, 0], [1, 0]]], np.float32)
    directions, pad = Directions.of(meaning(("x", "y")), {}, 3), np.zeros((3, 3), bool)
    pad[1, 2], pad[2] = True, True
    space = fitted(chunks)
    found = directions.classes(space, space.targets(chunks, pad))
    assert found.tolist() == [[FIRST, NONE], [SECOND, NONE], [-100, -100]]


def test_places_relative_to_the_state_and_places_alone() -> None:
    names, kinds = ("eef_x", "eef_y", "eef_z"), ("absolute",) * 3
    far = np.array([[[0.1, 0, 0], [0.2, 0, 0], [-0.5, 0, 0]]] * 2, np.float32)
    far[1] += 3
    relative = Directions.of(meaning(names, kinds, relative=True), {}, 3)
    assert said(relative, far)[0] == "move back", "the last of them is where it goes"
    alone = Directions.of(meaning(names, kinds), {}, 3)
    assert said(alone, far) == ["move back", "move back"], "how far the places are apart"
    with pytest.raises(LapaError, match=r"chunks of 1 .*eef_x"):
        Directions.of(meaning(names, kinds), {}, 1)


def test_clusters_mean_whole_chunks() -> None:
    chunks = np.repeat(np.array([[1, 0], [0, -1]], np.float32)[:, None], 4, 1).repeat(5, 0)
    space = ActionCodebook.clusters(chunks, 2)
    directions = Directions.of(meaning(("dx", "dy")), {}, 4)
    found = directions.classes(space, space.targets(chunks, np.zeros((10, 4), bool)))
    assert [directions.phrase(found[i]) for i in (0, 5)] == ["move right", "move up"]


@pytest.mark.parametrize(
    ("names", "kinds", "numbers"),
    [
        (("action_0", "action_1"), None, 2),
        (("0", "1", "2", "3"), WITH_GRIPPER, 4),
        (("world.x", "world.y", "world.z", "rot_x", "rot_y", "rot_z", "gripper"), None, 4),
        (("delta_x", "delta_y", "roll", "pitch", "yaw"), None, 2),
    ],
)
def test_what_is_spoken_of(names: tuple[str, ...], kinds: Any, numbers: int) -> None:
    assert len(Directions.of(meaning(names, kinds), {}, 4)) == numbers


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (("shoulder", "elbow", "gripper"), None),
        (("left_x", "left_y", "right_x", "right_y"), None),
        (tuple(f"action_{i}" for i in range(7)), None),
        (("gripper",), ("binary",)),
    ],
)
def test_names_that_tell_nothing(names: tuple[str, ...], kinds: Any) -> None:
    with pytest.raises(LapaError, match=f"{names[0]}.*words"):
        Directions.of(meaning(names, kinds), {}, 4)
    with pytest.raises(LapaError, match="directions"):
        Directions.of(None, {}, 4)


def test_words_of_ones_own() -> None:
    joints = meaning(("base", "elbow", "gripper"), ("delta", "delta", "binary"))
    directions = Directions.of(joints, {"base": ["clockwise", "anticlockwise"], "gripper": ["let go", "grasp"]}, 2)
    chunks = np.array([[[1, 9, 0], [1, 9, 1]], [[-1, 0, 1], [-1, 0, 0]]], np.float32)
    assert said(directions, chunks) == ["move anticlockwise, grasp", "move clockwise, let go"]
    told = directions.told(joints.spec)
    assert "base" in told
    assert "anticlockwise" in told
    for wrong in ({"hand": ["a", "b"]}, {"base": ["a"]}, {"base": "ab"}, {"base": ["a", ""]}, {"base": ["a", 1]}):
        with pytest.raises(LapaError, match=r"hand|base"):
            Directions.of(joints, wrong, 2)  # type: ignore[arg-type]
