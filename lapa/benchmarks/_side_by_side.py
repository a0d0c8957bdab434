"""What benchmarks share whose running episodes have a simulator each: how they begin, go on and end side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from lapa.contracts import Array, LapaError, Observation, Step, TaskSpec


class World(Protocol):
    """The simulator of one running episode. over: the episode has ended, without success too."""

    @property
    def success(self) -> bool: ...

    @property
    def over(self) -> bool: ...

    def stages(self) -> tuple[str, ...]:
        """Those of TaskSpec.stages that hold now."""
        ...


W = TypeVar("W", bound=World)


class SideBySide(ABC, Generic[W]):
    """The part of contracts.Benchmark that needs no simulator. Made with its name, and how many episodes it runs."""

    spec: TaskSpec

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._worlds: list[W] = []

    @abstractmethod
    def family(self, seed: int) -> str:
        """The task of a scene."""

    @abstractmethod
    def _taken(self, seed: int) -> W:
        """A world for this scene, an idle one where there is one."""

    @abstractmethod
    def _rest(self, worlds: Sequence[W]) -> None:
        """These are idle now."""

    @abstractmethod
    def _begin(self, world: W, seed: int) -> None:
        """Scene `seed` in this world, which depends on nothing else."""

    @abstractmethod
    def _act(self, world: W, action: Array) -> None:
        """Carry out one action."""

    @abstractmethod
    def _observation(self, world: W) -> Observation:
        """What the world shows now."""

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        """See Benchmark. Raises LapaError for more seeds than `most`."""
        if len(seeds) > self._most:
            raise LapaError(f"{self._name} runs {self._most} episodes side by side (batch=), not {len(seeds)}.")
        self._rest(self._worlds)
        self._worlds = []
        for seed in map(int, seeds):
            self._worlds.append(self._taken(seed))
            self._begin(self._worlds[-1], seed)
        self._tasks = tuple(self.family(int(seed)) for seed in seeds)
        self._done = [False] * len(seeds)
        self._random = [np.random.default_rng([int(seed), 9]) for seed in seeds]
        self._shown = [self._observation(world) for world in self._worlds]
        return list(self._shown)

    def step(self, actions: Array) -> list[Step]:
        """See Benchmark."""
        return [
            Step(self._shown[i], world.success, True) if self._done[i] else self._step(i, actions[i])
            for i, world in enumerate(self._worlds)
        ]

    def tasks(self) -> tuple[str, ...]:
        """See Benchmark."""
        return self._tasks

    def _step(self, i: int, action: Array) -> Step:
        world = self._worlds[i]
        self._act(world, action)
        self._shown[i], won = self._observation(world), world.success
        self._done[i] = won or world.over
        return Step(self._shown[i], won, self._done[i], world.stages())

    def _anything(self, i: int) -> Array:
        """Any action within the limits, float32 [A], for the row random."""
        low, high = np.array(self.spec.limits).T
        drawn = self._random[i].uniform(low, high)
        return np.where(np.array(self.spec.action.kinds) == "binary", np.sign(drawn), drawn).astype(np.float32)
