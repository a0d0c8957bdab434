"""Tabletop, closed loop: five families of pushing tasks, 60 steps at 5 Hz, success at any step (lapa/tabletop)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lapa.tabletop.benchmark import TabletopBenchmark


@dataclass(frozen=True)
class Config:
    """Which table: `tabletop:sim,split=unseen`."""

    path: str = "sim"
    """the domain: sim, real or hand"""
    split: str = "seen"
    """seen, or unseen: held-out objects and held-out phrases"""
    size: int = 48
    """pixels a side of the picture"""

    def build(self) -> TabletopBenchmark:
        """The benchmark. Raises LapaError for an unknown domain or split."""
        from lapa.benchmarks._mujoco import require_size
        from lapa.plugins import choose
        from lapa.tabletop.benchmark import TabletopBenchmark
        from lapa.tabletop.language import PHRASES
        from lapa.tabletop.render import DOMAINS

        choose(self.path, tuple(DOMAINS), "domain of Tabletop")
        choose(self.split, tuple(PHRASES), "split of Tabletop")
        require_size("tabletop", self.size)
        return TabletopBenchmark(self.path, self.split, self.size)
