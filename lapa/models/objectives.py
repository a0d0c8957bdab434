"""What stage 1 can ask of LAQ beside the paper's reconstruction: the features that a frozen vision encoder sees in the
later frame. Off by default.

The term is a share: what is left of the error relative to knowing nothing, hence between 0 and about 1. A weight of 1
makes it count as much as the reconstruction does: shares are multiplied by the error of copying x_t.

Only training knows of this. What it adds to LAQ (a head, a frozen encoder) is not part of the artefact. Other terms
were built, measured over three seeds and removed: none brought anything (docs/results.md, "Options of stage 1").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lapa.contracts import FramePairs, LapaError, Logs
from lapa.models.laq import LAQ
from lapa.runtime.distributed import device

HEADS = 4  # of the transformer that predicts features
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that vision encoders expect


@dataclass(frozen=True)
class Objectives:
    """The weight is in units of the reconstruction (see above); 0 is off."""

    features: float = 0.0
    """weight of the features of x_{t+H} that a frozen vision encoder sees, predicted from those of x_t and the code"""
    features_of: str = ""
    """folder or hub name of that encoder, any `transformers` AutoModel for images"""
    features_size: int = 0
    """pixels a side of the images it is shown; 0 is what its configuration says"""
    pixels: bool = True
    """False: the features alone teach the codes; the decoder still learns to draw from them"""


class Taught(nn.Module):
    """LAQ with the further objective, a contracts.Trainable."""

    def __init__(self, laq: LAQ, ask: Objectives) -> None:
        super().__init__()
        self.laq, self.ask = laq, ask
        self.target = (FrozenFeatures(ask.features_of, ask.features_size),)  # a tuple: neither saved nor trained
        self.predict_features = FeatureDecoder(self.target[0].width, laq.config.dim)

    def loss(self, batch: FramePairs) -> tuple[torch.Tensor, Logs]:
        """Reconstruction as LAQ.loss has it, plus the weighted term. Logs have it as its share."""
        laq, ask = self.laq, self.ask
        now, later = laq.pixels(batch.now, batch.later)
        quantized = laq.quantizer(laq.normalise(laq.difference(now, later)))
        embedding = quantized.embedding
        future = laq.predict(now, embedding if ask.pixels else embedding.detach())
        loss, logs = laq.score(now, later, future, quantized)
        missed = self._features_missed(now, later, embedding)
        copy = F.mse_loss(now, later).clamp_min(1e-8)
        return loss + ask.features * copy * missed, logs | {"features": float(missed.detach())}

    def _features_missed(self, now: torch.Tensor, later: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            before, after = self.target[0](torch.cat([now, later])).chunk(2)
        predicted = self.predict_features(before, self.laq.project_out(embedding))
        return F.mse_loss(predicted.float(), after) / F.mse_loss(before, after).clamp_min(1e-8)

    def after_step(self, step: int) -> Logs:
        """Codebook upkeep after optimizer step number `step`, from 1."""
        return self.laq.after_step(step)


class FrozenFeatures(nn.Module):
    """Patch features of a `transformers` vision encoder that nobody trains: [B, 3, H, W] in [0, 1] -> [B, N, width]."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, name: str, size: int = 0) -> None:
        super().__init__()
        try:
            from transformers import AutoModel
        except ImportError:
            raise LapaError('Frozen-feature targets need transformers: pip install "lapa[hf]".') from None
        if not name:
            raise LapaError("objectives.features needs an encoder: --set objectives.features_of=FOLDER_OR_HUB_NAME.")
        try:
            model: Any = AutoModel.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise LapaError(f'objectives.features_of: transformers cannot load "{name}" ({error}).') from None
        self.encoder = getattr(model, "vision_model", model).eval().requires_grad_(False).to(device())
        self.width: int = self.encoder.config.hidden_size
        self.size = size or int(self.encoder.config.image_size)
        self.mean, self.deviation = (torch.tensor(v, device=device()).view(3, 1, 1) for v in IMAGENET)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised over the width, so that no dimension and no token drowns the others."""
        shown = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        found = self.encoder(pixel_values=(shown - self.mean) / self.deviation).last_hidden_state
        tokens = found.flatten(2).transpose(1, 2) if found.ndim == 4 else found
        return F.layer_norm(tokens.float(), tokens.shape[-1:])


class FeatureDecoder(nn.Module):
    """Features of x_t and the codes -> features of x_{t+H}: a small transformer that starts from copying."""

    def __init__(self, width: int, dim: int, depth: int = 2) -> None:
        super().__init__()
        if dim % HEADS:
            raise LapaError(f"objectives.features: laq.dim is a multiple of {HEADS}, not {dim}.")
        self.down = nn.Linear(width, dim)
        layer = nn.TransformerDecoderLayer(dim, HEADS, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerDecoder(layer, depth)
        self.up = nn.Linear(dim, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, before: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """float [B, N, width], [B, s, dim] -> [B, N, width]."""
        return before + self.up(self.blocks(self.down(before), codes))
