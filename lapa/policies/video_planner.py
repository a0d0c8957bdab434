"""UniPi: imagine the next frames from image and instruction, then read the actions off them with inverse dynamics.

The backbone's readout, the same start as every method's, tells the video diffusion which future is wanted. Stage 2
trains both on all videos, stage 3 on the few labelled trajectories; `adapt` gives the planner VPT's inverse dynamics,
and with it actions (paper section 4.1).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lapa.artefacts.folder import Artefact, load_strictly
from lapa.contracts import Array, LapaError, Logs, Observation
from lapa.data.pixels import as_pixels
from lapa.models.idm import IDMConfig, InverseDynamics
from lapa.models.video_diffusion import VideoDiffusion, VideoDiffusionConfig
from lapa.policies import Policy
from lapa.policies.vla import Batch, build_backbone, seen
from lapa.training.loop import device, fast_dtype

AT_ONCE = 64  # observations imagined at once: larger batches leave the cache


@dataclass(frozen=True)
class Config:
    """A backbone (a plug-in of lapa/backbones with its options) and the video diffusion. It imagines images of the
    size that the backbone reads."""

    backbone: str = "tiny"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    video: VideoDiffusionConfig = VideoDiffusionConfig()

    def build(self, pretrained: bool = True) -> VideoPlanner:
        """A planner that imagines; `adapt` makes it act. `pretrained=False` skips the backbone's own weights."""
        return VideoPlanner(self, build_backbone(self.backbone, self.backbone_options, pretrained))

    @staticmethod
    def load(artefact: Artefact) -> VideoPlanner:
        """Open a saved planner strictly."""

        def config(video: dict[str, Any], **others: Any) -> Config:
            return Config(video=VideoDiffusionConfig(**video), **others)

        def reader(model: dict[str, Any], dimensions: int) -> InverseDynamics:
            return InverseDynamics(IDMConfig(**model), dimensions)

        planner = artefact.settings(config).build(pretrained=False)
        if artefact.config.get("reader"):
            planner.adapt(artefact.settings(reader, "reader"))
        load_strictly(planner, artefact.tensors, artefact.path)
        return planner.to(device()).eval()


class VideoPlanner(nn.Module, Policy):
    """See the module's docstring."""

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.size: int = backbone.image_size  # type: ignore[assignment]
        self.video = VideoDiffusion(config.video, backbone.width)  # type: ignore[arg-type]
        self.reader: InverseDynamics | None = None

    @property
    def dimensions(self) -> int:
        """A, once it reads actions."""
        return len(self.reader.mean) if self.reader is not None else 0

    def adapt(self, reader: InverseDynamics) -> None:
        """From now on actions are read off the imagined frames, by a model that is not trained any more."""
        self.reader = reader.requires_grad_(False)

    def trainable(self, which: Literal["head", "all"]) -> Iterator[nn.Parameter]:
        """Freeze all but the video diffusion, or all but vision encoder and reader, and return what trains."""
        if which not in ("head", "all"):
            raise LapaError(f'Trainable is "head" or "all", not "{which}".')
        self.requires_grad_(which == "all")
        for parameter in self.backbone.vision_parameters():  # type: ignore[operator]
            parameter.requires_grad_(False)
        self.video.requires_grad_(True)
        if self.reader is not None:
            self.reader.requires_grad_(False)
        return (p for p in self.parameters() if p.requires_grad)

    def loss(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The video diffusion's. `targets` are the next frames, uint8 [B, K, H, W, 3]."""
        now = self._pixels(batch.images)
        future = self._pixels(batch.targets.reshape(-1, *batch.targets.shape[2:]))
        return self.video.loss(now, future.unflatten(0, (len(now), -1)), self.backbone(now, batch.texts))

    @torch.no_grad()
    def imagine(self, images: Array | Tensor, texts: Sequence[str]) -> Tensor:
        """-> the next frames, float32 [B, K, 3, size, size] in [0, 1]. The same image and text give the same frames.
        In the arithmetic that is fast here, whatever that of training."""
        now = self._pixels(images)
        noise = torch.stack([self._noise(pixels, text) for pixels, text in zip(now.cpu(), texts, strict=True)])
        with torch.autocast(device().type, fast_dtype(), enabled=fast_dtype() != torch.float32):
            return self.video.sample(now, self.backbone(now, list(texts)), noise.to(now.device))

    @torch.no_grad()
    def act_batch(self, observations: Sequence[Observation]) -> Array:
        """B observations -> float32 [B, executed, A] in the robot's units. Ask again when they are done: replanning
        is asking."""
        if self.reader is None:
            raise LapaError("This policy imagines frames and cannot act yet; finetune it first (lapa finetune).")
        images, texts = seen(observations, self.size)
        parts = [self._plan(images[i : i + AT_ONCE], texts[i : i + AT_ONCE]) for i in range(0, len(texts), AT_ONCE)]
        return np.concatenate(parts)

    def _plan(self, images: Array | Tensor, texts: list[str]) -> Array:
        now = self._pixels(images)
        actions = self.read(now, self.imagine(now, texts)[:, : self.config.video.executed])
        return actions.cpu().numpy()

    def read(self, now: Tensor, film: Tensor) -> Tensor:
        """Actions that lead through a film: float [B, 3, H, W], [B, K, 3, H, W] -> float32 [B, K, A], robot units."""
        assert self.reader is not None
        frames = [now, *film.unbind(1)]
        return torch.stack([self.reader.predict(a, b) for a, b in pairwise(frames)], 1)

    def _pixels(self, images: Array | Tensor) -> Tensor:
        return as_pixels(images, self.size, next(self.video.parameters()).device)

    def _noise(self, pixels: Tensor, text: str) -> Tensor:
        """Noise that is a function of what is seen, so that a plan does not depend on the batch it is made in."""
        content = (pixels * 255).round().byte().numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode(), zlib.crc32(content)))
        return torch.randn(self.config.video.frames, *pixels.shape, generator=generator)

    def description(self) -> dict[str, Any]:
        """What config.json needs to open this planner again."""
        reader = self.reader.description() if self.reader is not None else None
        return {"policy": "video_planner", "model": asdict(self.config), "reader": reader}
