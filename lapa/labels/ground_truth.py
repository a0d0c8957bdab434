"""ActionVLA, the upper bound: the true actions of all video."""

from __future__ import annotations

from dataclasses import dataclass

from lapa.actions.meaning import HasActions, Meaning
from lapa.contracts import Array, FramePairs, LapaError
from lapa.data.episode_keys import keys_of
from lapa.data.index import Index
from lapa.labels import SourceConfig


@dataclass(frozen=True)
class Config(SourceConfig):
    """Nothing to fit and nothing to open; `path` is ignored."""

    def build(self) -> GroundTruthSource:
        """The source."""
        return GroundTruthSource()


@dataclass(frozen=True)
class GroundTruthSource:
    """See the module's docstring. `window` None: adjacent frames."""

    hash: str = "ground_truth"
    kind: str = "actions"
    window: float | None = None
    classes: int = 0

    def label(self, pairs: FramePairs) -> Array:
        """-> float32 [B, A]. Raises LapaError for data without actions."""
        if pairs.actions is None:
            raise LapaError("Ground-truth labels need actions, and this dataset has none. Label it with a LAQ instead.")
        return pairs.actions

    def taught(self, data: Index) -> frozenset[str]:
        """Keys of the episodes whose actions the labels tell: all."""
        return keys_of(data)

    def meaning(self, data: HasActions) -> Meaning | None:
        """What the labels of these data mean: the change of state, where an action is absolute and the state is known
        (actions/spec.py `over_window`)."""
        return Meaning.of(data)
