"""LAPA: the codes of a frozen LAQ encoder."""

from __future__ import annotations

from dataclasses import dataclass

from lapa.contracts import Array, FramePairs
from lapa.models.laq import LAQ
from lapa.training.checkpoint import load_artefact


@dataclass(frozen=True)
class Config:
    """`path`: folder of a LAQ that stage 1 fitted."""

    path: str = ""

    def build(self) -> LatentSource:
        """Open the LAQ. Raises LapaError if the folder is not one."""
        artefact = load_artefact(self.path, "laq")
        window = artefact.settings(lambda window, **_: float(window), "recipe")
        return LatentSource(LAQ.from_pretrained(self.path), artefact.hash, window)


@dataclass(frozen=True)
class LatentSource:
    """See the module's docstring. `window`: seconds between the two frames, as in training."""

    laq: LAQ
    hash: str
    window: float | None
    kind: str = "codes"

    @property
    def classes(self) -> int:
        """|C|."""
        return self.laq.config.codebook_size

    def label(self, pairs: FramePairs) -> Array:
        """-> int64 [B, s]."""
        return self.laq.encode(pairs.now, pairs.later).cpu().numpy()
