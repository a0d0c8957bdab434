"""Hands that move in space, filmed by two cameras: data for what reads a robot's motions from video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lapa.actions.spec import ActionKind
from lapa.contracts import Episode
from lapa.data.lerobot_format import LeRobotWriter

SIZE, EPISODES, LENGTH = 48, 14, 24
NAMES = ("dx", "dy", "dz", "gripper")
KINDS: tuple[ActionKind, ...] = ("delta", "delta", "delta", "binary")
ABSOLUTE: tuple[ActionKind, ...] = ("absolute", "absolute", "absolute", "binary")


def drawn(places: np.ndarray, closed: np.ndarray, axes: tuple[int, int], still: np.ndarray, width: float) -> np.ndarray:
    """A hand, red where it is open and yellow where it is closed, before a background that stays."""
    y, x = np.mgrid[:SIZE, :SIZE]
    frames = np.repeat(still[None], len(places), 0)
    for frame, place, shut in zip(frames, places, closed, strict=True):
        u, v = (place[axis] * SIZE for axis in axes)
        near = np.exp(-((x - u) ** 2 + (y - v) ** 2) / width)[..., None]
        frame[:] = near * np.array([250, 220 if shut else 20, 20]) + (1 - near) * frame
    return frames


def hands(path: Path, aside: bool = True, width: float = 20, episodes: int = EPISODES, absolute: bool = False) -> str:
    """A LeRobot dataset. With `aside` episodes 7 on go where the others never do, and something else moves there.
    absolute: actions say where to be, and the state where the hand is; else how it moves, without a state."""
    rng = np.random.default_rng(0)
    stills = [rng.integers(60, 140, (SIZE // 6, SIZE // 6, 3)).repeat(6, 0).repeat(6, 1) for _ in range(2)]
    kinds, states = (ABSOLUTE, NAMES) if absolute else (KINDS, ())
    with LeRobotWriter(
        path, 10.0, SIZE, NAMES, states, camera="front", views={"top": (SIZE, SIZE)}, kinds=kinds
    ) as writer:
        for number in range(episodes):
            other = aside and number >= episodes // 2
            speed = np.clip(np.cumsum(rng.normal(0, 0.015, (LENGTH, 3)), 0), -0.04, 0.04)
            start = rng.uniform(0.55, 0.7, 3) if other else rng.uniform(0.3, 0.45, 3)
            places = np.clip(start + np.cumsum(speed, 0), 0.1, 0.9)
            closed = np.arange(LENGTH) % 12 > 5
            moved = np.diff(places, axis=0, append=places[-1:])
            frames = [
                drawn(places, closed, axes, still, width) for axes, still in zip(((0, 2), (0, 1)), stills, strict=True)
            ]
            if other:
                for each in frames:
                    for t, frame in enumerate(each):
                        frame[2:8, t : t + 6] = (20, 20, 200)
            actions = np.column_stack([100 * (moved + absolute * places), closed]).astype(np.float32)
            state = np.column_stack([100 * places, closed]).astype(np.float32) if absolute else None
            made = Episode(f"e{number}", frames[0].astype(np.uint8), 10.0, f"task {other}", actions, state,
                           state_names=states, action_names=NAMES)  # fmt: skip
            writer.add(made, views={"top": frames[1].astype(np.uint8)})
    return f"lerobot:{path}"
