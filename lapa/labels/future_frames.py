"""UniPi: the future itself; each frame is labelled with the number of the one that comes next."""

from __future__ import annotations

from dataclasses import dataclass

from lapa.contracts import Array, FramePairs
from lapa.labels import SourceConfig


@dataclass(frozen=True)
class Config(SourceConfig):
    """Nothing to fit and nothing to open; `path` is ignored."""

    def build(self) -> FutureFramesSource:
        """The source."""
        return FutureFramesSource()


@dataclass(frozen=True)
class FutureFramesSource:
    """See the module's docstring. `window` None: adjacent frames, as the inverse dynamics that reads them has it."""

    hash: str = "future_frames"
    kind: str = "frames"
    window: float | None = None
    classes: int = 0

    def label(self, pairs: FramePairs) -> Array:
        """-> int64 [B, 1], numbers of frames within their episodes."""
        return (pairs.frame + pairs.offset)[:, None]
