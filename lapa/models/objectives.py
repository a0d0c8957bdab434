"""What stage 1 can ask of LAQ beside the paper's reconstruction. All of it is off by default.

Each term is a share: what is left of an error relative to knowing nothing, hence between 0 and about 1. A weight of 1
makes it count as much as the reconstruction does: shares are multiplied by the error of copying x_t.

Only training knows of this. What it adds to LAQ (heads, a frozen encoder) is not part of the artefact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lapa.contracts import Array, FramePairs, LapaError, Logs
from lapa.models.laq import LAQ, as_pixels
from lapa.training.distributed import device, noise_like

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that vision encoders expect


@dataclass(frozen=True)
class Objectives:
    """Weights are in units of the reconstruction (see above); 0 is off."""

    windows: int = 1
    """train on pairs that are 1, 2, ... so many windows apart"""
    augment: float = 0.0
    """shift, scale and tint both frames of a pair alike; 1 is strong (shifts by a tenth, a fifth of contrast)"""
    reversal: float = 0.0
    """weight of d(b, a) = -d(a, b)"""
    additivity: float = 0.0
    """weight of d(a, c) = d(a, b) + d(b, c)"""
    actions: float = 0.0
    """weight of the true action, read off the quantised difference; needs --labelled"""
    labelled_every: int = 4
    """every so many samples of a batch one is drawn from --labelled"""
    features: float = 0.0
    """weight of the features of x_{t+H} that a frozen vision encoder sees, predicted from those of x_t and the code"""
    features_of: str = ""
    """folder or hub name of that encoder, any `transformers` AutoModel for images"""
    features_size: int = 0
    """pixels a side of the images it is shown; 0 is what its configuration says"""
    pixels: bool = True
    """False: only the terms above teach the codes; the decoder still learns to draw from them"""

    @property
    def any(self) -> bool:
        """Is a loss or a batch other than the paper's asked for?"""
        return bool(self.augment or self.reversal or self.additivity or self.actions or self.features)


class Taught(nn.Module):
    """LAQ with further objectives, a contracts.Trainable. `actions` float [N, A]: the labelled pairs', to scale by."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, laq: LAQ, ask: Objectives, actions: Array | None = None) -> None:
        super().__init__()
        if bool(ask.actions) != (actions is not None):
            raise LapaError(
                "objectives.actions and labelled trajectories go together: give both --labelled NAME:PATH and "
                "--set objectives.actions=1, or neither."
            )
        self.laq, self.ask = laq, ask
        c = laq.config
        if actions is not None:
            self.read_action = nn.Linear(c.codes * c.quant_dim, actions.shape[1])
            self.register_buffer("mean", torch.as_tensor(actions.mean(0)))
            self.register_buffer("deviation", torch.as_tensor(actions.std(0)).clamp_min(1e-6))
        if ask.features:
            self.target = (FrozenFeatures(ask.features_of, ask.features_size),)  # a tuple: neither saved nor trained
            self.predict_features = FeatureDecoder(self.target[0].width, c.dim)

    def loss(self, batch: FramePairs) -> tuple[torch.Tensor, Logs]:
        """Reconstruction as LAQ.loss has it, plus the weighted terms. Logs have each term as its share.

        With additivity, rows 2i and 2i + 1 follow each other, as data/lessons.py chains them."""
        laq, ask = self.laq, self.ask
        now, later = (as_pixels(x, laq.config.image_size, device()) for x in (batch.now, batch.later))
        if ask.augment:
            now, later = alike(now, later, ask.augment, chained=bool(ask.additivity))
        d = laq.compare(now, later)
        quantized = laq.quantizer(laq.normalised(d))
        embedding = quantized.embedding
        future = laq.predict(now, embedding if ask.pixels else embedding.detach())
        loss, logs = laq.score(now, later, future, quantized)
        shares: dict[str, tuple[float, torch.Tensor]] = {}
        if ask.reversal:
            shares["reversal"] = ask.reversal, unlike(-d, laq.compare(later, now))
        if ask.additivity:
            across = laq.compare(now[0::2], later[1::2])
            shares["additivity"] = ask.additivity, unlike(across, d[0::2] + d[1::2])
        if ask.actions:
            assert batch.actions is not None
            actions = torch.as_tensor(batch.actions, device=d.device)
            known = actions.isfinite().all(-1)
            wanted = (actions[known] - self.mean) / self.deviation
            shares["actions"] = ask.actions, F.mse_loss(self.read_action(embedding[known].flatten(1)).float(), wanted)
        if ask.features:
            shares["features"] = ask.features, self._features_missed(now, later, embedding)
        copy = F.mse_loss(now, later).clamp_min(1e-8)
        loss = loss + copy * sum(weight * share for weight, share in shares.values())
        return loss, logs | {name: float(share.detach()) for name, (_, share) in shares.items()}

    def _features_missed(self, now: torch.Tensor, later: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            before, after = self.target[0](torch.cat([now, later])).chunk(2)
        predicted = self.predict_features(before, self.laq.project_out(embedding))
        return F.mse_loss(predicted.float(), after) / F.mse_loss(before, after).clamp_min(1e-8)

    def after_step(self, step: int) -> Logs:
        """Codebook upkeep after optimizer step number `step`, from 1."""
        return self.laq.after_step(step)


def unlike(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distance of two batches over their energy: 0 for equal ones, 1 for unrelated, 2 for opposite."""
    a, b = a.float(), b.float()
    return (a - b).square().sum() / (a.square().sum() + b.square().sum()).clamp_min(1e-12)


def alike(
    now: torch.Tensor, later: torch.Tensor, strength: float, chained: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both frames of a pair shifted, scaled and tinted by the same random amounts; [B, 3, H, W] in [0, 1] each.

    What leaves the frame is gone, what comes in repeats the border. `chained`: rows 2i and 2i + 1 follow each other,
    and get the same amounts.
    """
    r = noise_like(now.new_zeros(len(now), 9)).clamp(-2, 2) / 2 * strength
    if chained:
        r = r[0::2].repeat_interleave(2, 0)
    zoom, shift = 1 + 0.1 * r[:, :1], 0.2 * r[:, 1:3]  # shift in half widths: a tenth of the frame
    affine = torch.cat([torch.diag_embed(zoom.expand(-1, 2)), shift[..., None]], dim=-1)
    grid = F.affine_grid(affine, list(now.shape), align_corners=False)
    gain, offset = 1 + 0.2 * r[:, 3:6, None, None], 0.1 * r[:, 6:9, None, None]

    def changed(images: torch.Tensor) -> torch.Tensor:
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return (moved * gain + offset).clamp(0, 1)

    return changed(now), changed(later)


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
        self.down = nn.Linear(width, dim)
        layer = nn.TransformerDecoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerDecoder(layer, depth)
        self.up = nn.Linear(dim, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, before: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """float [B, N, width], [B, s, dim] -> [B, N, width]."""
        return before + self.up(self.blocks(self.down(before), codes))
