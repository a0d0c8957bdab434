"""The VQGAN of LWM and LAPA-7B: a picture -> a grid of codes -> a picture. No attention; groups of 32 channels.

The encoder halves the picture between its levels; each place of the last one is replaced by the nearest of the
codebook's vectors, whose number is the code (Esser et al., "Taming transformers"; layers as in the released LAPA code).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.contracts import LapaError
from lapa.runtime.precision import without_autocast

GROUPS, EPS = 32, 1e-6


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes. `width` times `mult[i]` channels at level i, which has `blocks` blocks; z channels before the quantizer,
    `embedding` of a code's vector; `codes` of them."""

    width: int = 128
    mult: tuple[int, ...] = (1, 2, 2, 4, 6)
    blocks: int = 2
    z: int = 64
    embedding: int = 64
    codes: int = 8192

    def __post_init__(self) -> None:
        counts = {"width": self.width, "blocks": self.blocks, "z": self.z, "embedding": self.embedding,
                  "codes": self.codes, "mult": min(self.mult, default=0)}  # fmt: skip
        if wrong := [f"{name} {value}" for name, value in counts.items() if value < 1]:
            raise LapaError(f"vqgan: {', '.join(wrong)}; each is at least 1.")
        if self.width % GROUPS:
            raise LapaError(f"vqgan: width is a multiple of {GROUPS}, not {self.width}.")

    @property
    def stride(self) -> int:
        """Pixels of a side that one code stands for."""
        return 2 ** (len(self.mult) - 1)

    def build(self) -> VQGAN:
        """The model; its weights are not set, for they come from a file."""
        return VQGAN(self)


class Conv(nn.Conv2d):
    """A convolution whose weights come from a file: making it costs nothing."""

    def reset_parameters(self) -> None:
        """Nothing."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, EPS)


class ResnetBlock(nn.Module):
    """Two convolutions beside what came in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), Conv(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), Conv(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else Conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Level(nn.Module):
    """Blocks of one size, then a change of size: "down" halves, "up" doubles, "" does neither."""

    def __init__(self, inputs: int, outputs: int, blocks: int, then: str) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResnetBlock(outputs if i else inputs, outputs) for i in range(blocks)))
        self.then = then
        self.resample = Conv(outputs, outputs, 3, 2 if then == "down" else 1, int(then == "up")) if then else None

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, H', W']."""
        x = self.blocks(x)
        if self.resample is None:
            return x
        return self.resample(F.pad(x, (0, 1, 0, 1)) if self.then == "down" else F.interpolate(x, scale_factor=2.0))


class Coder(nn.Module):
    """One half of the model: convolution, levels, two blocks before or after them, convolution."""

    def __init__(self, inputs: int, widths: list[int], outputs: int, blocks: int, up: bool) -> None:
        super().__init__()
        first, last, then = widths[0], widths[-1], "up" if up else "down"
        self.conv_in = Conv(inputs, first, 3, padding=1)
        middle = first if up else last
        self.middle = nn.Sequential(ResnetBlock(middle, middle), ResnetBlock(middle, middle))
        count = len(widths) - 1
        self.levels = nn.ModuleList(
            Level(widths[i], widths[i + 1], blocks, then if i < count - 1 else "") for i in range(count)
        )
        self.norm, self.conv_out = _norm(last), Conv(last, outputs, 3, padding=1)
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, H', W']."""
        x = self.conv_in(x)
        x = self.middle(x) if self.up else x
        for level in self.levels:
            x = level(x)
        x = x if self.up else self.middle(x)
        return self.conv_out(F.silu(self.norm(x)))


class VQGAN(nn.Module):
    """See the module's docstring. It computes in float32 whatever its surroundings do: codes must not depend on it."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.mult]
        self.encoder = Coder(3, [config.width, *widths], config.z, config.blocks, up=False)
        self.decoder = Coder(config.z, [widths[-1], *widths[::-1]], 3, config.blocks + 1, up=True)
        self.before = Conv(config.z, config.embedding, 1)
        self.after = Conv(config.embedding, config.z, 1)
        self.codebook = nn.Parameter(torch.empty(config.codes, config.embedding))

    def z(self, pixels: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in [-1, 1] -> float32 [B, H / stride, W / stride, embedding], before quantising."""
        with without_autocast(pixels):
            found: Tensor = self.before(self.encoder(pixels.float())).permute(0, 2, 3, 1)
        return found

    def encode(self, pixels: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in [-1, 1] -> int64 [B, H / stride, W / stride], the nearest code of each place."""
        with without_autocast(pixels):
            z, book = self.z(pixels), self.codebook.float()
            flat = z.reshape(-1, z.shape[-1])
            distance = (flat**2).sum(1, keepdim=True) + (book**2).sum(1) - 2 * flat @ book.T
            return distance.argmin(1).view(z.shape[:3])

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> float32 [B, 3, h * stride, w * stride] in [-1, 1]."""
        with without_autocast(codes):
            vectors = self.codebook.float()[codes].permute(0, 3, 1, 2)
            return self.decoder(self.after(vectors)).clamp(-1, 1)
