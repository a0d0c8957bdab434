"""Tabletop, closed loop: five families of pushing tasks (lapa/tabletop), 60 steps at 5 Hz, success at any step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lapa.contracts import Actor, Array, LapaError, Observation, Outcome

TEST_SEEDS = 1_000_000_000  # training data draws from below (datasets/tabletop.py)
VALIDATION_SEEDS = 2_000_000_000  # for choosing settings; never reported


@dataclass(frozen=True)
class Config:
    """Which table, which split, what the policy sees."""

    domain: str = "sim"
    """sim, real or hand"""
    split: str = "seen"
    """seen, or unseen: held-out objects and held-out phrases"""
    image_size: int = 48
    """pixels a side of the observation"""
    validation: bool = False
    """draw scenes from the validation seeds in place of the test seeds"""
    instruction: Literal["right", "shuffled", "empty"] = "right"
    """what the policy is told: the scene's instruction, that of another scene, or nothing"""

    def build(self) -> TabletopBenchmark:
        """The benchmark."""
        from lapa.plugins import choose
        from lapa.tabletop.language import PHRASES
        from lapa.tabletop.render import DOMAINS

        choose(self.domain, tuple(DOMAINS), "domain of Tabletop")
        choose(self.split, tuple(PHRASES), "split of Tabletop")
        choose(self.instruction, ("right", "shuffled", "empty"), "instruction")
        return TabletopBenchmark(self)


class TabletopBenchmark:
    """Runs an actor on many scenes as one batch. `frames` keeps pictures of the first scenes for animations."""

    dimensions = 2  # of how far the effector moves

    def __init__(self, config: Config) -> None:
        from lapa.tabletop.language import FAMILIES

        self.config, self.families = config, FAMILIES
        self.frames: list[Array] = []  # uint8 [T, size, size, 3] of each recorded scene

    def run(
        self, actor: Actor | str, episodes: int, seed: int = 0, record: int = 0, record_size: int = 192
    ) -> list[Outcome]:
        """One Outcome per scene; scene i has seed base + seed * 100,000 + i, so every method meets the same scenes.

        actor: a policy, or one of the scripted rows "no_op", "random", "expert". Chunks are executed open loop.
        Raises LapaError for fewer than one episode, and when the actor's actions do not fit.
        """
        from lapa.tabletop import world
        from lapa.tabletop.env import Table

        if not 1 <= episodes <= 100_000:
            raise LapaError(f"Tabletop evaluates 1 to 100,000 episodes, not {episodes}.")
        if not 0 <= seed < 10_000:  # beyond lie the scenes of training or of validation
            raise LapaError(f"Tabletop evaluates with a seed from 0 to 9,999, not {seed}.")
        base = (VALIDATION_SEEDS if self.config.validation else TEST_SEEDS) + seed * 100_000
        table = Table(
            base + np.arange(episodes), self.config.domain, self.config.split, image_size=self.config.image_size
        )
        told = self._told(table.instructions, seed)
        act = _scripted(table)[actor] if isinstance(actor, str) else _Chunks(actor, table, told)
        steps = np.full(episodes, world.TIME_LIMIT)
        done = np.zeros(episodes, bool)
        film = [table.images(record_size, record)] if record else []
        for step in range(world.TIME_LIMIT):
            done |= table.step(act(~done))
            steps = np.where(done & (steps == world.TIME_LIMIT), step + 1, steps)
            if record:
                film.append(table.images(record_size, record))
            if done.all():
                break
        self.frames = [np.stack([f[i] for f in film[: steps[i] + 1]]) for i in range(record)]
        return [
            Outcome(
                self.families[int(table.tasks.family[i])],
                int(base + i),
                table.instructions[i],
                bool(done[i]),
                int(steps[i]),
            )
            for i in range(episodes)
        ]

    def _told(self, right: tuple[str, ...], seed: int) -> tuple[str, ...]:
        """What the policy is told in each scene. Success is judged by the right instruction whatever it is told."""
        if self.config.instruction == "empty":
            return ("",) * len(right)
        if self.config.instruction == "right":
            return right
        if len(right) < 2:
            raise LapaError("Shuffled instructions are those of other scenes: evaluate at least two episodes.")
        ring = np.random.default_rng([seed, 10]).permutation(len(right))  # each scene is told what another asks
        asked = dict(zip(ring, np.roll(ring, 1), strict=True))
        return tuple(right[asked[i]] for i in range(len(right)))

    def scripted(self) -> tuple[str, ...]:
        """Reference rows that `run` takes by name."""
        return ("no_op", "random", "expert")


class _Chunks:
    """Asks the policy for a chunk, executes it, asks again; scenes that are done are not asked about and stay."""

    def __init__(self, actor: Actor, table: Any, told: tuple[str, ...]) -> None:
        self.actor, self.table, self.told = actor, table, told
        self.queue: list[Array] = []

    def __call__(self, active: Array) -> Array:
        if not self.queue:
            images, texts = self.table.images(), self.told
            asked = np.flatnonzero(active)
            chunks = self.actor.act_batch([Observation(image=images[i], instruction=texts[i]) for i in asked])
            if chunks.ndim != 3 or chunks.shape[0] != len(asked) or chunks.shape[2] != 2:
                raise LapaError(
                    f"Tabletop needs actions [{len(asked)}, chunk, 2], the policy gave {list(chunks.shape)}. Is it of "
                    "another robot?"
                )
            full = np.zeros((chunks.shape[1], len(images), 2), np.float32)
            full[:, asked] = chunks.transpose(1, 0, 2)
            self.queue = list(full)
        return self.queue.pop(0)


def _scripted(table: Any) -> Mapping[str, Any]:
    """no_op stays; random walks straight for four steps at a time; expert is the scripted demonstrator."""
    from lapa.tabletop import world

    rngs = [np.random.default_rng([int(s), 9]) for s in table.scenes.seeds]
    turns = np.stack([rng.uniform(0, 2 * np.pi, world.TIME_LIMIT) for rng in rngs])

    def random(active: Array) -> Array:
        angle = turns[:, table.tick // 4 * 4]
        delta = world.STEP * np.stack([np.cos(angle), np.sin(angle)], 1)
        return np.stack([(delta * row).sum(1) for row in table.frame], 1)

    def expert(active: Array) -> Array:
        return table.expert()

    def no_op(active: Array) -> Array:
        return np.zeros((len(table.scenes), 2))

    return {"no_op": no_op, "random": random, "expert": expert}
