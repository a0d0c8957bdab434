"""Tabletop demonstrations, generated while they are read: `tabletop:sim,episodes=200,seed=1,split=seen`.

Episodes are rolled out by the scripted expert in batches and end one frame after success. Seeds below 1,000,000,000
belong to training; benchmarks draw theirs from above (benchmarks/tabletop.py), so no test scene is ever seen here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.plugins import choose

BATCH = 250
CAMERA = "main"
TRAINING_SEEDS = 1_000_000_000


@dataclass(frozen=True)
class Config:
    """`path` is the domain: sim, real or hand; split seen or unseen; size in pixels; family one task family, or "" for
    all five."""

    path: str = "sim"
    episodes: int = 200
    seed: int = 0
    split: str = "seen"
    size: int = 48
    family: str = ""

    def build(self) -> TabletopDataset:
        """Check the options. Raises LapaError on an unknown domain or value."""
        from lapa.tabletop.language import FAMILIES, PHRASES
        from lapa.tabletop.render import DOMAINS

        choose(self.path, tuple(DOMAINS), "domain of Tabletop")
        fits = self.size >= 16 and 0 <= self.seed * 100_000 + self.episodes < TRAINING_SEEDS
        if not (fits and 1 <= self.episodes <= 100_000):
            raise LapaError(f"tabletop:{self.path}: at least 1 episode (100,000 at most), 16 pixels, seed 0 to 9,998.")
        choose(self.split, tuple(PHRASES), "split of Tabletop")
        families = (choose(self.family, FAMILIES, "task family of Tabletop"),) if self.family else FAMILIES
        return TabletopDataset(self.path, self.episodes, self.seed, self.split, self.size, families)


@dataclass(frozen=True)
class TabletopDataset:
    """See Config."""

    domain: str
    episodes_wanted: int
    seed: int
    split: str
    pixels: int
    families: tuple[str, ...]
    cameras = (CAMERA,)

    def signature(self) -> str:
        """The settings, which determine every pixel."""
        from lapa import __version__

        return f"{__version__} {self}"

    def __len__(self) -> int:
        return self.episodes_wanted

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield the demonstrations in order of seed, at the size they are drawn at whatever `size` says."""
        first = self.seed * 100_000
        for start in range(0, self.episodes_wanted, BATCH):
            yield from self._rollout(np.arange(first + start, first + min(start + BATCH, self.episodes_wanted)))

    def _rollout(self, seeds: np.ndarray) -> Iterator[Episode]:
        from lapa.tabletop import world
        from lapa.tabletop.env import ACTION_NAMES, STATE_NAMES, Table

        table = Table(seeds, self.domain, self.split, self.families, self.pixels)
        images, actions, states = [table.images()], [], [table.state()]
        end = np.full(len(seeds), world.TIME_LIMIT)
        for step in range(world.TIME_LIMIT):
            action = table.expert()
            success = table.step(action)
            actions.append(action)
            images.append(table.images())
            states.append(table.state())
            end = np.where(success & (end == world.TIME_LIMIT), step + 1, end)
            if (end <= step + 1).all():
                break
        frames, states_all = np.stack(images, 1), np.stack(states, 1)
        actions_all = np.stack([*actions, np.zeros_like(actions[0])], 1)  # the last frame leads nowhere
        for i, seed in enumerate(seeds):
            stop = int(end[i]) + 1
            acted = actions_all[i, :stop].copy()
            acted[-1] = 0.0
            yield Episode(
                id=f"{self.domain}-{self.split}-{seed}",
                frames=frames[i, :stop],
                fps=world.FPS,
                instruction=table.instructions[i],
                actions=acted,
                state=states_all[i, :stop],
                state_names=STATE_NAMES,
                action_names=ACTION_NAMES,
                camera=CAMERA,
                action_kinds=("delta", "delta"),
                embodiment=f"tabletop_{self.domain}",
            )
