"""LAPA: the codes of a frozen LAQ encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch

from lapa.artefacts.folder import load_artefact
from lapa.contracts import Array, FramePairs, LapaError
from lapa.labels import BATCH, SourceConfig
from lapa.models.laq import LAQ
from lapa.runtime.precision import NO_SHADOW, ShadowWeights


@dataclass(frozen=True)
class Config(SourceConfig):
    """`path`: folder of a LAQ that stage 1 fitted.

    precision  arithmetic of the encoder. bfloat16 is several times as fast for a large model; of the pairs that lie
               between two codes it gives some the other one (docs/performance.md). Distances are float32 either way.
    compile    torch.compile the encoder with its weights frozen in: a minute at the start, quicker batches.
    """

    opens: ClassVar[str] = "laq"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def build(self) -> LatentSource:
        """Open the LAQ. Raises LapaError if the folder is not one."""
        artefact = load_artefact(self.path, "laq")
        window = float(artefact.value(float, "recipe", "window"))
        if window <= 0:
            raise LapaError(f"{artefact.path}/config.json: recipe.window is above 0 seconds, not {window:g}.")
        laq = LAQ.from_pretrained(self.path)
        shadow = ShadowWeights(laq, getattr(torch, self.precision))
        if self.compile:
            laq.difference = freeze(laq)  # type: ignore[method-assign, assignment]
        return LatentSource(laq, artefact.hash, window, shadow=shadow, whole_batches=self.compile)


def freeze(laq: LAQ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """`laq.difference`, compiled. The weights become constants that the compiler packs as products like them best."""
    compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.compile(
        laq.difference, options={"freezing": True}
    )
    return compiled


@dataclass(frozen=True)
class LatentSource:
    """See the module's docstring. `window`: seconds between the two frames, as in training. With `whole_batches`
    shorter ones are filled up: a compiled encoder takes a minute for every new length."""

    laq: LAQ
    hash: str
    window: float | None
    kind: str = "codes"
    shadow: ShadowWeights = field(default=NO_SHADOW, repr=False)
    whole_batches: bool = False

    @property
    def classes(self) -> int:
        """|C|."""
        return self.laq.config.codebook_size

    @property
    def code_embeddings(self) -> Array:
        """Where each code lies among the others (LAQ.code_embeddings)."""
        return self.laq.code_embeddings()

    def label(self, pairs: FramePairs) -> Array:
        """-> int64 [B, s]."""
        if self.laq.directions is not None:
            return self._by_frame(pairs)
        now, later, count = pairs.now, pairs.later, len(pairs.now)
        if self.whole_batches and count < BATCH:
            now, later = (np.resize(frames, (BATCH, *frames.shape[1:])) for frames in (now, later))
        with self.shadow.evaluating():
            return self.laq.encode(now, later)[:count].cpu().numpy()

    def _by_frame(self, pairs: FramePairs) -> Array:
        """A frozen encoder looks at each frame by itself: once, though a frame is in two pairs."""
        count = len(pairs.now)
        keys = np.stack([np.tile(pairs.episode, 2), np.concatenate([pairs.frame, pairs.frame + pairs.offset])], 1)
        _, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        images = np.stack([pairs.now[i] if i < count else pairs.later[i - count] for i in first])
        where = self.laq.places(images)[torch.from_numpy(place.ravel()).to(self.laq.device)]
        ways = self.laq.ways(pairs.now, pairs.later)
        return self.laq.codes_between(where[:count], where[count:], ways).cpu().numpy()
