"""Tabletop, closed loop: five families of pushing tasks (lapa/tabletop), 60 steps at 5 Hz, success at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lapa.contracts import ActionSpec, Actor, Array, LapaError, Observation, Step, TaskSpec
from lapa.tabletop import world
from lapa.tabletop.env import ACTION_NAMES, Table
from lapa.tabletop.language import FAMILIES
from lapa.tabletop.render import render

CAMERA = "image"
ACTION = ActionSpec(ACTION_NAMES, ("delta", "delta"), world.FPS)
STRAIGHT = 4  # steps that the random row walks in one direction


class TabletopBenchmark:
    """Scenes of one domain and split, all of them side by side."""

    def __init__(self, domain: str, split: str, size: int) -> None:
        self.domain, self.split, self.size = domain, split, size
        self.spec = TaskSpec(ACTION, (CAMERA,), FAMILIES, world.TIME_LIMIT)
        self._table: Table | None = None
        self._turns: Array | None = None

    @property
    def table(self) -> Table:
        """The scenes of the last `reset`."""
        if self._table is None:
            raise LapaError("Call reset() before step() on Tabletop.")
        return self._table

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        """See Benchmark. Raises LapaError for no seeds."""
        self._table = Table(np.asarray(seeds, np.int64), self.domain, self.split, image_size=self.size)
        self._turns = None
        self._done = np.zeros(len(seeds), bool)
        return self._observations()

    def step(self, actions: Array) -> list[Step]:
        """See Benchmark. A scene that is done goes on unseen, which changes nothing."""
        success = self.table.step(np.where(self._done[:, None], 0.0, actions))
        self._done |= success
        shown = zip(self._observations(), self._done.tolist(), strict=True)
        return [Step(observation, done, done) for observation, done in shown]

    def tasks(self) -> tuple[str, ...]:
        """See Benchmark."""
        return tuple(FAMILIES[int(family)] for family in self.table.tasks.family)

    def picture(self, i: int, size: int) -> Array:
        """Scene i as it is now, drawn at uint8 [size, size, 3]."""
        scenes = self.table.scenes
        one = type(scenes)(*(part[i : i + 1] for part in (scenes.kinds, scenes.blocks, scenes.effector, scenes.seeds)))
        drawn: Array = render(one, self.domain, size, self.table.tick)[0]
        return drawn

    def baselines(self) -> Mapping[str, Actor]:
        """no_op stays; random walks straight for four steps at a time; expert is the scripted demonstrator."""
        return {"no_op": _Row(self._still), "random": _Row(self._random), "expert": _Row(self._expert)}

    def _still(self) -> Array:
        return np.zeros((len(self.table.scenes), len(ACTION)))

    def _random(self) -> Array:
        if self._turns is None:
            rngs = [np.random.default_rng([int(seed), 9]) for seed in self.table.scenes.seeds]
            self._turns = np.stack([rng.uniform(0, 2 * np.pi, world.TIME_LIMIT) for rng in rngs])
        angle = self._turns[:, self.table.tick // STRAIGHT * STRAIGHT]
        delta = world.STEP * np.stack([np.cos(angle), np.sin(angle)], 1)
        return np.stack([(delta * row).sum(1) for row in self.table.frame], 1)

    def _expert(self) -> Array:
        return self.table.expert()

    def _observations(self) -> list[Observation]:
        drawn = _Drawn(self.table)
        return [
            Observation(images=_Pictures(drawn, i), instruction=text) for i, text in enumerate(self.table.instructions)
        ]


class _Drawn:
    """The pictures of all scenes as they are now, drawn when the first of them is looked at."""

    def __init__(self, table: Table) -> None:
        self._of = (table.scenes, table.domain, table.image_size, table.tick)  # scenes never change; new ones are made
        self._images: Array | None = None

    def __getitem__(self, i: int) -> Array:
        if self._images is None:
            self._images = render(*self._of)
        picture: Array = self._images[i]
        return picture


class _Pictures(Mapping[str, Array]):
    """{CAMERA: picture of scene i}. The scripted rows do not look, and drawing takes most of the time."""

    def __init__(self, drawn: _Drawn, i: int) -> None:
        self._drawn, self._i = drawn, i

    def __getitem__(self, camera: str) -> Array:
        if camera != CAMERA:
            raise KeyError(camera)
        return self._drawn[self._i]

    def __iter__(self) -> Iterator[str]:
        return iter((CAMERA,))

    def __len__(self) -> int:
        return 1


class _Row:
    """An actor that looks at the table and not at pictures; `ids` are the scenes that it is asked about."""

    def __init__(self, act: Callable[[], Array]) -> None:
        self._act = act

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """float64 [B, 1, 2]; without `ids`, of the first B scenes."""
        rows = np.arange(len(observations)) if ids is None else np.asarray(ids)
        actions: Array = self._act()[rows, None]
        return actions
