"""LAPA: the codes of a frozen LAQ encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from lapa.contracts import Array, FramePairs
from lapa.models.laq import LAQ
from lapa.training.checkpoint import load_artefact
from lapa.training.precision import NO_TWINS, Twins


@dataclass(frozen=True)
class Config:
    """`path`: folder of a LAQ that stage 1 fitted.

    precision  arithmetic of the encoder. bfloat16 is several times as fast for a large model; of the pairs that lie
               between two codes it gives some the other one (docs/performance.md). Distances are float32 either way.
    """

    path: str = ""
    precision: Literal["float32", "bfloat16"] = "float32"

    def build(self) -> LatentSource:
        """Open the LAQ. Raises LapaError if the folder is not one."""
        artefact = load_artefact(self.path, "laq")
        window = artefact.settings(lambda window, **_: float(window), "recipe")
        laq = LAQ.from_pretrained(self.path)
        return LatentSource(laq, artefact.hash, window, twins=Twins(laq, getattr(torch, self.precision)))


@dataclass(frozen=True)
class LatentSource:
    """See the module's docstring. `window`: seconds between the two frames, as in training."""

    laq: LAQ
    hash: str
    window: float | None
    kind: str = "codes"
    twins: Twins = field(default=NO_TWINS, repr=False)

    @property
    def classes(self) -> int:
        """|C|."""
        return self.laq.config.codebook_size

    def label(self, pairs: FramePairs) -> Array:
        """-> int64 [B, s]."""
        with self.twins.evaluating():
            return self.laq.encode(pairs.now, pairs.later).cpu().numpy()
