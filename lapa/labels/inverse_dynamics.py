"""VPT: the actions that an inverse dynamics model, fitted on the few labelled trajectories, reads off all video."""

from __future__ import annotations

from dataclasses import dataclass

from lapa.artefacts.folder import load_artefact
from lapa.contracts import Array, FramePairs
from lapa.models.idm import InverseDynamics


@dataclass(frozen=True)
class Config:
    """`path`: folder of an inverse dynamics model made by `lapa fit`."""

    path: str = ""

    def build(self) -> InverseDynamicsSource:
        """Open the model. Raises LapaError if the folder is not one."""
        return InverseDynamicsSource(InverseDynamics.from_pretrained(self.path), load_artefact(self.path, "idm").hash)


@dataclass(frozen=True)
class InverseDynamicsSource:
    """See the module's docstring. `window` None: adjacent frames."""

    model: InverseDynamics
    hash: str
    kind: str = "actions"
    window: float | None = None
    classes: int = 0

    def label(self, pairs: FramePairs) -> Array:
        """-> float32 [B, A] in the robot's units."""
        return self.model.predict(pairs.now, pairs.later).cpu().numpy()
