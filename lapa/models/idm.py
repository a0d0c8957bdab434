"""The inverse dynamics model of the VPT baseline: two adjacent frames -> the action between them.

The paper uses a ResNet18 and an MLP; this is the same idea at a size that twenty trajectories can feed: residual
convolutions over both frames and their difference, pooled to a grid, then an MLP. Targets are standardised. Both frames
are shifted alike while training: a motion is the same wherever it happens, and ten trajectories do not go everywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.artefacts.folder import Artefact, load_artefact
from lapa.contracts import Array, FramePairs, LapaError, Logs
from lapa.data.pixels import Images, as_pixels
from lapa.runtime.distributed import Dropout, device, noise_like

MOST_BLOCKS = 12  # each halves the picture
LARGEST_IMAGE = 4096  # pixels a side: no weight has a shape that tells it


@dataclass(frozen=True)
class IDMConfig:
    """Architecture of the inverse dynamics model."""

    image_size: int = 48
    """input pixels a side"""
    width: int = 32
    """channels of the first convolution"""
    blocks: int = 2
    """residual stages, each halving the image"""
    dropout: float = 0.1
    """dropout before the MLP"""
    shift: float = 0.17
    """training: both frames are shifted alike by up to this share of the image, their edges repeated (0: not at all)"""

    def __post_init__(self) -> None:
        if not 2 <= self.image_size <= LARGEST_IMAGE or self.image_size % 2:
            raise LapaError(f"Inverse dynamics: image_size is even, 2 to {LARGEST_IMAGE}, not {self.image_size}.")
        if self.width < 1 or not 0 <= self.blocks <= MOST_BLOCKS:
            raise LapaError(
                f"Inverse dynamics: width is at least 1, blocks 0 to {MOST_BLOCKS}, not {self.width} and {self.blocks}."
            )
        if self.blocks and self.width % 2:
            raise LapaError(f"Inverse dynamics: width is even where there are blocks, not {self.width}.")
        if not (0 <= self.dropout < 1 and 0 <= self.shift < 1):
            raise LapaError(f"Inverse dynamics: dropout and shift are 0 to 1, not {self.dropout} and {self.shift}.")


def shifted(images: Tensor, most: int) -> Tensor:
    """float [B, C, H, W], each image moved by its own whole number of pixels, up to `most` a way; edges repeat."""
    count, channels, height, width = images.shape
    uniform = torch.special.ndtr(noise_like(images.new_empty(count, 2)))
    start = (uniform * (2 * most + 1)).long().clamp(max=2 * most)  # [B, 2], top left corner in the padded image
    rows, columns = (
        start[:, i, None] + torch.arange(n, device=images.device) for i, n in enumerate((height, width))
    )  # fmt: skip
    padded = F.pad(images, (most,) * 4, mode="replicate")
    each = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[each, channel, rows[:, None, :, None], columns[:, None, None, :]]


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride=2, padding=1)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1, stride=2)
        self.norms = nn.ModuleList(nn.GroupNorm(4, outside) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(inner + self.skip(x))


class InverseDynamics(nn.Module):
    """frames now, later -> action [A] in the robot's units."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: IDMConfig, dimensions: int) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**i for i in range(config.blocks + 1)]
        self.stem = nn.Conv2d(36, widths[0], 3, padding=1)  # at half resolution: 2x2 pixels are 36 channels
        self.body = nn.Sequential(*(_Residual(a, b) for a, b in pairwise(widths)))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), Dropout(config.dropout),
            nn.Linear(9 * widths[-1], 128), nn.ReLU(), nn.Linear(128, dimensions),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))

    def standardise(self, actions: Array) -> None:
        """Fit mean and scale of the targets to float [N, A]."""
        table = torch.as_tensor(actions, dtype=torch.float64)  # in float32 the mean of equal numbers may be another
        self.mean.copy_(table.mean(0))
        self.scale.copy_(table.std(0, correction=0).clamp_min(1e-6))  # of one pair as well

    def forward(self, now: Tensor, later: Tensor) -> Tensor:
        """Pixels float [B, 3, H, W] twice -> standardised action [B, A]."""
        x = F.pixel_unshuffle(torch.cat([now - 0.5, later - 0.5, 4 * (later - now)], 1), 2)
        return self.head(self.body(F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)))))

    def loss(self, batch: FramePairs) -> tuple[Tensor, Logs]:
        """Mean squared error of the standardised action."""
        if batch.actions is None:
            raise LapaError("Inverse dynamics needs actions; the dataset has none.")
        now, later = self._pixels(batch.now), self._pixels(batch.later)
        if self.training and (most := round(self.config.shift * self.config.image_size)):
            now, later = shifted(torch.cat([now, later], 1), most).chunk(2, 1)
        predicted = self(now, later).float()
        target = (torch.as_tensor(batch.actions, device=predicted.device) - self.mean) / self.scale
        loss = F.mse_loss(predicted, target)
        return loss, {"mse": float(loss.detach())}

    @torch.no_grad()
    def predict(self, now: Images, later: Images) -> Tensor:
        """-> float32 [B, A] in the robot's units."""
        return self(self._pixels(now), self._pixels(later)).float() * self.scale + self.mean

    def _pixels(self, images: Images) -> Tensor:
        return as_pixels(images, self.config.image_size, self.mean.device)

    def description(self) -> dict[str, Any]:
        """What config.json needs to open this model again."""
        return {"model": asdict(self.config), "dimensions": len(self.mean)}

    @staticmethod
    def from_pretrained(path: str | Path) -> InverseDynamics:
        """Open a saved model strictly."""
        return InverseDynamics.opened(load_artefact(path, "idm"))

    @staticmethod
    def opened(artefact: Artefact) -> InverseDynamics:
        """The model in an artefact, strictly."""
        artefact.require_known(("dimensions", "meaning"))
        config, dimensions = artefact.settings(IDMConfig), artefact.value(int, "dimensions")
        if dimensions < 1:
            raise LapaError(f"{artefact.path}/config.json: dimensions is at least 1, not {dimensions}.")
        return artefact.build(lambda: InverseDynamics(config, dimensions)).to(device()).eval()
