"""An arm that grasps: seven numbers, two cameras, a state. A world that is nothing like Tabletop, in one file.

The hand is at x, y, z with three angles and a gripper. Grasp the red or the blue block: be at it, then close. With
`joints` as the path the same arm takes absolute targets in place of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lapa.contracts import ActionSpec, Actor, Array, LapaError, Observation, Step, TaskSpec

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
REACH, NEAR, LIMIT = 0.06, 0.1, 30  # longest step along an axis; how near the block is near; steps of an episode
BLOCKS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


@dataclass(frozen=True)
class Config:
    """`arm:steps` takes steps (delta), `arm:joints` targets (absolute)."""

    path: str = "steps"

    def build(self) -> Arm:
        """The benchmark."""
        if self.path not in ("steps", "joints"):
            raise LapaError(f"arm:{self.path} is neither arm:steps nor arm:joints.")
        return Arm(self.path == "joints")


class Arm:
    """See the top of the file."""

    def __init__(self, absolute: bool) -> None:
        self.absolute = absolute
        names = tuple(f"{axis}_target" if absolute else f"d{axis}" for axis in AXES)
        action = ActionSpec((*names, "gripper"), (*(("absolute" if absolute else "delta",) * 6), "binary"), 10.0)
        self.spec = TaskSpec(action, ("front", "wrist"), tuple(BLOCKS), LIMIT, (*AXES, "gripper"))

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        """Hand and blocks are where the seed says."""
        rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
        self.asked = [tuple(BLOCKS)[seed % len(BLOCKS)] for seed in seeds]
        self.hand = np.stack([np.append(rng.uniform(0.1, 0.9, 6), 0.0) for rng in rngs]).astype(np.float32)
        self.blocks = np.stack([rng.uniform(0.2, 0.8, (2, 2)) for rng in rngs])
        self.done = np.zeros(len(seeds), bool)
        return [self._shown(i) for i in range(len(seeds))]

    def step(self, actions: Array) -> list[Step]:
        """Move, then close or open the gripper."""
        wanted = actions[:, :6] - self.hand[:, :6] if self.absolute else actions[:, :6]
        moved = np.clip(self.hand[:, :6] + np.clip(wanted, -REACH, REACH), 0, 1)
        after = np.concatenate([moved, actions[:, 6:] > 0.5], 1).astype(np.float32)
        self.hand = np.where(self.done[:, None], self.hand, after)
        self.done |= (np.abs(self.goals() - self.hand[:, :3]).max(1) < NEAR) & (self.hand[:, 6] > 0.5)
        return [Step(self._shown(i), bool(done), bool(done)) for i, done in enumerate(self.done)]

    def goals(self) -> Array:
        """Where the blocks that are asked for lie, float [B, 3]: on the table, z = 0.2."""
        which = [tuple(BLOCKS).index(name) for name in self.asked]
        return np.stack([[*self.blocks[i, k], 0.2] for i, k in enumerate(which)])

    def tasks(self) -> tuple[str, ...]:
        """Which block is asked for."""
        return tuple(self.asked)

    def baselines(self) -> Mapping[str, Actor]:
        """no_op stays; expert goes to the block and closes the gripper."""
        return {"no_op": Row(self, 0.0), "expert": Row(self, 1.0)}

    def _shown(self, i: int) -> Observation:
        return {
            "images": {"front": self._front(i), "wrist": self._wrist(i)},
            "instruction": f"grasp the {self.asked[i]} block",
            "state": self.hand[i].copy(),
        }

    def _front(self, i: int) -> Array:
        """From above: blocks, and the hand in green; 36 x 48."""
        picture = np.full((36, 48, 3), 200, np.uint8)
        for place, colour in zip(self.blocks[i], BLOCKS.values(), strict=True):
            dot(picture, place, 4, colour)
        dot(picture, self.hand[i, :2], 3, (30, 160, 60))
        return picture

    def _wrist(self, i: int) -> Array:
        """What lies around the hand; 24 x 24, lighter the higher it is."""
        picture = np.full((24, 24, 3), int(100 + 100 * self.hand[i, 2]), np.uint8)
        for place, colour in zip(self.blocks[i], BLOCKS.values(), strict=True):
            dot(picture, 0.5 + place - self.hand[i, :2], 4, colour)
        return picture


class Row:
    """share 0: stay; 1: go to the block and close the gripper there."""

    def __init__(self, arm: Arm, share: float) -> None:
        self.arm, self.share = arm, share

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """float32 [B, 1, 7]."""
        rows = list(range(len(observations)) if ids is None else ids)
        hand, way = self.arm.hand[rows], np.zeros((len(rows), 6))
        way[:, :3] = self.share * np.clip(self.arm.goals()[rows] - hand[:, :3], -REACH, REACH)
        there = np.abs(self.arm.goals()[rows] - hand[:, :3]).max(1) < NEAR / 2
        made = hand[:, :6] + way if self.arm.absolute else way
        return np.concatenate([made, (self.share * there)[:, None]], 1)[:, None].astype(np.float32)


def dot(picture: Array, place: Array, radius: int, colour: tuple[int, int, int]) -> None:
    """Draw a disc at place, (x, y) in [0, 1], as far as it is on the picture."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    picture[(x - place[0] * width) ** 2 + (y - place[1] * height) ** 2 <= radius**2] = colour
