"""VPT: the actions that an inverse dynamics model, fitted on the few labelled trajectories, reads off all video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lapa.actions.meaning import HasActions, Meaning
from lapa.artefacts.folder import load_artefact
from lapa.contracts import Array, FramePairs
from lapa.labels import SourceConfig
from lapa.models.idm import InverseDynamics


@dataclass(frozen=True)
class Config(SourceConfig):
    """`path`: folder of an inverse dynamics model made by `lapa fit`."""

    opens: ClassVar[str] = "idm"

    def build(self) -> InverseDynamicsSource:
        """Open the model. Raises LapaError if the folder is not one."""
        artefact = load_artefact(self.path, "idm")
        told = "labelled" in artefact.config  # not by an older lapa
        fitted_on = artefact.value(tuple[str, ...], "labelled", "trained") if told else ()
        return InverseDynamicsSource(
            InverseDynamics.opened(artefact), artefact.hash, Meaning.from_json(artefact.config.get("meaning")),
            frozenset(fitted_on),
        )  # fmt: skip


@dataclass(frozen=True)
class InverseDynamicsSource:
    """See the module's docstring. `window` None: adjacent frames."""

    model: InverseDynamics
    hash: str
    robot: Meaning | None = None
    fitted_on: frozenset[str] = frozenset()
    kind: str = "actions"
    window: float | None = None
    classes: int = 0

    def label(self, pairs: FramePairs) -> Array:
        """-> float32 [B, A] in the robot's units."""
        return self.model.predict(pairs.now, pairs.later).cpu().numpy()

    def taught(self, data: HasActions) -> frozenset[str]:
        """Keys of the episodes whose actions the labels tell of: those that the model was fitted on."""
        return self.fitted_on

    def meaning(self, data: HasActions) -> Meaning | None:
        """What the labels mean: what the actions of the robot mean that it was fitted on."""
        return self.robot
