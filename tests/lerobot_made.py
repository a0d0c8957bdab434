"""A LeRobot dataset of a robot arm with two cameras, a state and absolute actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lapa.contracts import Episode
from lapa.data.lerobot_format import LeRobotWriter

JOINTS = ("shoulder", "elbow", "gripper")


def arm(path: Path, lengths: tuple[int, ...] = (9, 8, 10)) -> Path:
    """Cameras `top` and `wrist` of 32 x 24 pixels at 10 Hz; the actions are where the joints are one step later."""
    random = np.random.default_rng(0)
    with LeRobotWriter(
        path, 10, (24, 32), JOINTS, JOINTS, {}, camera="top", views={"wrist": (24, 32)}, robot_type="arm",
        kinds=("absolute",) * 3, quality=None,
    ) as writer:  # fmt: skip
        for number, length in enumerate(lengths):
            state = np.cumsum(random.normal(size=(length + 1, 3)), 0).astype(np.float32)
            films = random.integers(0, 255, (2, length, 24, 32, 3), np.uint8)
            writer.add(
                Episode(
                    f"e{number}", films[0], 10.0, ("lift the cup", "push the lever")[number % 2], state[1:], state[:-1],
                    state_names=JOINTS, action_names=JOINTS, camera="top", action_kinds=("absolute",) * 3,
                ),
                {"wrist": films[1]},
            )  # fmt: skip
    return path
