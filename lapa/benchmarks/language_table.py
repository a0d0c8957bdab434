"""Language Table, the real one (PyBullet): an arm pushes blocks: language_table:block2block+separate."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lapa.benchmarks import _language_table as real
from lapa.benchmarks._mujoco import OwnRow, Pictures
from lapa.benchmarks._side_by_side import SideBySide
from lapa.contracts import ActionSpec, Actor, Array, LapaError, Observation, TaskSpec
from lapa.data.images import resized
from lapa.plugins import choose, require

NEEDS = {
    "pybullet": 'pip install "lapa[language-table]"',
    "$LANGUAGE_TABLE": "git clone https://github.com/google-research/language-table, and name that folder with the "
    "environment variable LANGUAGE_TABLE or the option clone=FOLDER",
}

VARIABLE = "LANGUAGE_TABLE"
STATE = ("effector_x", "effector_y")  # metres
ACTION = ("dx", "dy")  # metres
LIMIT = 200  # steps of an episode at 10 a second, as in the repository's evaluation
FAST = 0.035  # metres in one step of 10 a second: the oracle's largest motion
BLOCKS = ("BLOCK_4", "BLOCK_8", "N_CHOOSE_K")  # the others have one block, or a pole that the repository cannot place
SPLITS = ("all", "seen", "unseen")


@dataclass(frozen=True)
class Config:
    """Which tasks, and how they are seen: `language_table:block2block+separate,blocks=BLOCK_4,size=128`."""

    path: str = "all"
    """all, or families joined by +: block2block, block2absolute, block2block_relative, block2relative, separate"""
    clone: str = ""
    """folder of the user's clone of google-research/language-table ("": what LANGUAGE_TABLE names)"""
    blocks: str = "BLOCK_8"
    """BLOCK_4, BLOCK_8, or N_CHOOSE_K, 4 to 10 of 16"""
    split: str = "all"
    """seen, unseen: one of five combinations of blocks and places is held out, or all"""
    size: int = 128
    """pixels a side of the picture, squashed from 320 x 180 (0: as it is)"""
    camera: str = "front"
    """front, the repository's; corner: turned by 35 degrees about the middle of the table"""
    look: Literal["own", "other"] = "own"
    """other: other colours of table and floor, and light from another side in another colour"""
    repeat: int = 1
    """steps of the simulator for one action: 10 / repeat actions a second, each with a motion up to repeat * 10 cm"""
    max_steps: int | None = None
    """actions of an episode (None: 200 / repeat)"""
    batch: int = 10
    """episodes side by side"""

    def build(self) -> LanguageTable:
        """The benchmark. Raises LapaError where the package or the clone is missing and for unknown names."""
        require("benchmarks", "language_table", given=("$LANGUAGE_TABLE",) if self.clone else ())
        return LanguageTable(self)


class LanguageTable(SideBySide[real.World]):
    """One table a running episode. Scene `seed` is of family seed modulo their number, so that each has as many."""

    def __init__(self, config: Config) -> None:
        super().__init__("language_table", config.batch)
        self.config, self.families = config, families_named(config.path)
        choose(config.blocks, BLOCKS, "set of blocks of Language Table")
        choose(config.split, SPLITS, "split of Language Table")
        choose(config.camera, real.TURNED, "camera of Language Table")
        most = LIMIT // max(config.repeat, 1)
        steps = most if config.max_steps is None else config.max_steps
        for option, value, low, high in (
            ("size", config.size, 0, 4096),
            ("repeat", config.repeat, 1, LIMIT),
            ("max_steps", steps, 1, 100_000),
            ("batch", config.batch, 1, 500),
        ):
            if not low <= value <= high:
                raise LapaError(f"language_table: {option} is {low} to {high}, not {value}.")
        reach = real.LIMIT * config.repeat
        self.spec = TaskSpec(
            ActionSpec(ACTION, ("delta", "delta"), real.HZ / config.repeat), (config.camera,), self.families, steps,
            STATE, config.batch, limits=((-reach, reach),) * 2, stages=real.STAGES,
        )  # fmt: skip
        clone = Path(config.clone or os.environ[VARIABLE]).expanduser().resolve()
        self._package = real.load(clone)
        self._idle: list[real.World] = []
        seen = f"{config.size} pixels a side, squashed from 320 x 180" if config.size else "320 x 180 pixels"
        look = ", another look" if config.look == "other" else ""
        print(f"language_table: {', '.join(self.families)}; {config.blocks}, split {config.split}; camera "
              f"{config.camera} at {seen}{look}; {self.spec.action.hz:g} actions a second; from {clone}.",
              file=sys.stderr)  # fmt: skip

    # --- the contract

    def family(self, seed: int) -> str:
        """The family of a scene."""
        return self.families[int(seed) % len(self.families)]

    def picture(self, i: int, size: int) -> Array:
        """Episode i as it is now, in the shape of the camera, at most `size` pixels a side."""
        from PIL import Image

        image = Image.fromarray(self._worlds[i].picture())
        image.thumbnail((size, size))
        return np.asarray(image)

    def baselines(self) -> Mapping[str, Actor]:
        """no_op: stays; random: any motion up to the oracle's largest; expert: the repository's RRT push oracle."""
        stay = np.zeros(len(ACTION), np.float32)
        return {
            "no_op": OwnRow(lambda i: stay),
            "random": OwnRow(self._anything),
            "expert": OwnRow(self._demonstrated),
        }

    # --- acting

    def _taken(self, seed: int) -> real.World:
        if self._idle:
            return self._idle.pop()
        told = self.config
        return real.World(self._package, told.blocks, told.split, told.repeat, told.camera, told.look)

    def _rest(self, worlds: Sequence[real.World]) -> None:
        self._idle += worlds

    def _begin(self, world: real.World, seed: int) -> None:
        world.begin(self.family(seed), seed)

    def _act(self, world: real.World, action: Array) -> None:
        world.step(action)

    def _anything(self, i: int) -> Array:
        most = FAST * self.config.repeat
        return self._random[i].uniform(-most, most, len(ACTION)).astype(np.float32)

    def _demonstrated(self, i: int) -> Array:
        return self._worlds[i].expert().astype(np.float32)

    def _observation(self, world: real.World) -> Observation:
        def draw(camera: str) -> Array:
            return resized(world.picture(), self.config.size or None)

        return Observation(
            images=Pictures(self.spec.cameras, draw, lambda: world.clock), instruction=world.instruction,
            state=np.asarray(world.state["effector_translation"], np.float32),
        )  # fmt: skip


def families_named(path: str) -> tuple[str, ...]:
    """The families that PATH names. Raises LapaError with a suggestion for an unknown one."""
    if path == "all":
        return tuple(real.REWARDS)
    found = tuple(choose(name, real.REWARDS, "family of Language Table") for name in path.split("+"))
    if len(set(found)) < len(found):
        raise LapaError(f"language_table:{path} names a family twice.")
    return found
