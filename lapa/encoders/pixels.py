"""The picture itself, made small: the encoder that needs no weights and no package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lapa.artefacts.pretrained import Reference
from lapa.contracts import LapaError


@dataclass(frozen=True)
class Config:
    """side: pixels a side of the small picture."""

    side: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.side <= 256:
            raise LapaError(f"encoder pixels: side is 1 to 256, not {self.side}.")

    def features(self, image_size: int) -> int:
        """Numbers a picture."""
        return 3 * self.side**2

    def grid(self, image_size: int) -> tuple[int, int, int]:
        """Channels, rows, columns."""
        return 3, self.side, self.side

    def weights(self) -> str:
        """There are none."""
        return ""

    def borrowed(self) -> Reference:
        """Nothing."""
        return {}

    def build(self) -> nn.Module:
        return SmallPicture(self.side)


class SmallPicture(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> float32 [B, 3 * side^2]."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.grid(images).flatten(1)

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] -> float32 [B, 3, side, side]."""
        return F.interpolate(images.float(), size=(self.side, self.side), mode="area")
