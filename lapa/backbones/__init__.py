"""Backbones: vision-language models that turn pictures and instructions into a context (plug-ins, one a file)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lapa.contracts import Context, ImageSpec, Inputs, LapaError
from lapa.data.features import FrameFeatures
from lapa.data.images import resized
from lapa.data.observations import Pictures, Seen
from lapa.data.pack import Packed
from lapa.data.pixels import as_pixels
from lapa.plugins import configure


class Backbone(nn.Module, ABC):
    """What a plug-in of lapa/backbones builds.

    width       D, the size of the readout
    image_spec  the pictures that it takes; `image_size`, the same number of pixels, is a field or property of the
                plug-in's Config too, for frames are packed before the model is built
    origin      {where its weights came from: their hash}, for the provenance of policies that start from them

    ships       the name of its weights in artefacts/borrowed.py, where lapa ships some: policies do not store those
                again that stay frozen
    acts_in     the arithmetic in which a policy acts on it; None: the fastest of the machine (runtime/precision.py)

    untaught    are there weights that nobody has trained before stage 2? Stage 3 without stage 2 then trains all that
                is not frozen, whatever `trainable` says

    If `build` loads weights from elsewhere, give the Config a field `grounded: bool`: it is set to False where a saved
    policy is opened, whose weights come next. Weights from elsewhere that are never trained need not be part of the
    module: let the Config have `borrowed() -> {part: reference}` then (artefacts/pretrained.py).
    """

    width: int
    image_spec: ImageSpec
    origin: Mapping[str, str] = {}
    ships: ClassVar[str] = ""
    acts_in: torch.dtype | None = None
    untaught: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, seen: Seen) -> Inputs:
        """What `encode` takes, on the CPU: pictures of the right size, tokens. Called in loader threads and by `act`,
        so it changes nothing in the backbone."""

    @abstractmethod
    def encode(self, inputs: Inputs) -> Context:
        """The context of B observations; inputs are on the device of the weights."""

    def forward(self, inputs: Inputs) -> Context:
        """`encode`."""
        return self.encode(inputs)

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """All weights, as "vision" (the vision encoder, frozen in stages 2 and 3), "language", "rest" (what reads the
        state and tells cameras apart)."""

    def extend(self, cameras: Sequence[str], state: int) -> None:
        """Read these cameras, and so many numbers of state, from now on. Raises LapaError where it cannot."""
        if len(cameras) > 1 or state:
            raise LapaError(
                f"The backbone {type(self).__name__} reads one camera and no state; leave policy.cameras and "
                "policy.state out, or choose another policy.backbone."
            )

    def answers(self, kind: str) -> None:
        """The head of its policy predicts this kind of space ("codes", "actions", ..) from now on, for a backbone whose
        prompt says so."""

    def features(self, packed: Packed) -> FrameFeatures | None:
        """What its frozen vision encoder sees in every frame of a pack of one camera (data/features.py), which
        `prepare` then gets in place of pictures; None: it looks at the pictures."""
        return None

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """Sentences for the user on what of the instructions it does not read."""
        return []


def grouped(backbone: nn.Module, vision: nn.Module, rest: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """`Backbone.groups`: "language" is what is neither in the vision encoder nor in `rest`."""
    others = {id(p) for p in (*vision.parameters(), *rest)}
    language = [p for p in backbone.parameters() if id(p) not in others]
    return {"vision": list(vision.parameters()), "language": language, "rest": rest}


def build_backbone(name: str, options: dict[str, Any], pretrained: bool) -> Backbone:
    """A plug-in of lapa/backbones; without weights of its own where it has the choice (Backbone)."""
    config = configure("backbones", name, options)
    if not pretrained and any(field.name == "grounded" for field in fields(config)):
        config = replace(config, grounded=False)
    built: Backbone = config.build()
    return built


def with_cameras(known: nn.Parameter | None, cameras: int, width: int, device: torch.device) -> nn.Parameter | None:
    """Embeddings [cameras, width] for several cameras: those that are known, and zeros for further ones. None for one
    camera, which needs none."""
    there = 0 if known is None else len(known)
    if cameras <= max(there, 1):
        return known
    more = torch.zeros(cameras - there, width, device=device)
    return nn.Parameter(more if known is None else torch.cat([known.detach(), more]))


def pictures(images: Pictures, spec: ImageSpec) -> Tensor:
    """Pictures of any size -> uint8 [B, size, size, 3], made smaller as a pack of them is; float ones [B, 3, H, W] ->
    float32 [B, 3, size, size]."""
    if isinstance(images, Tensor) and images.dtype != torch.uint8:
        return as_pixels(images, spec.size, images.device, fit=spec.fit)
    ready = [torch.from_numpy(resized(np.asarray(image), spec.size, spec.fit).copy()) for image in _each(images)]
    return torch.stack(ready) if ready else torch.zeros(0, spec.size, spec.size, 3, dtype=torch.uint8)


def _each(images: Pictures) -> Any:
    return images.numpy() if isinstance(images, Tensor) else images
