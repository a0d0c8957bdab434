"""Video diffusion over the next few frames, for the UniPi baseline (paper section 4.1): noise -> what happens next.

    r = (x_{t+1}, .., x_{t+K}) - x_t, times `scale`      what changes; a pixel that stays is zero
    y = (1 - s) r + s noise, 0 <= s <= 1                 a straight path from the future to noise (flow matching)
    UNet(y, x_t, s, condition) -> r                      trained by the squared error
    sampling: from noise, in a few straight steps towards what the UNet says r is

The paper takes AVDC's model; this one has a laptop's size. A kernel over time would span all of the two to four frames,
so time is folded into the channels of a 2-D UNet. Not diffusers: the sampler is four lines, where a scheduler of theirs
takes 62 MB and ten seconds to import (0.42, two busy cores).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.contracts import LapaError, Logs
from lapa.runtime.distributed import noise_like

MOST_STEPS = 1000
WAVES = 8  # sines and cosines of s that tell the UNet how noisy its input is
LEAK = 0.1  # slope below zero: pictures of another robot must not silence the UNet, which would end all learning


@dataclass(frozen=True)
class VideoDiffusionConfig:
    """Architecture of the video diffusion, and how it is sampled."""

    pixels: int = 0
    """pixels a side of the frames that are imagined; 0: as many as the policy's backbone reads"""
    frames: int = 2
    """frames imagined, one of the robot's steps apart"""
    executed: int = 2
    """actions executed before imagining anew, at most `frames` (paper: 2)"""
    width: int = 32
    """channels at half resolution; twice as many at a quarter"""
    blocks: int = 2
    """residual blocks at a quarter of the resolution"""
    steps: int = 6
    """steps from noise to frames"""
    scale: float = 0.5
    """what differences of pixels in [0, 1] are multiplied by: noise has a standard deviation of 1"""
    lean: float = 2.0
    """training draws s = u^(1 / lean), u even in [0, 1]: above 1 it leans towards noise, where the future is hidden and
    only the condition tells it"""

    def __post_init__(self) -> None:
        if min(self.width, self.blocks + 1) < 1 or not 1 <= self.steps <= MOST_STEPS:
            raise LapaError(
                f"UniPi: width is at least 1, blocks at least 0 and steps 1 to {MOST_STEPS}, not {self.width}, "
                f"{self.blocks} and {self.steps}."
            )
        if self.pixels < 0 or self.pixels % 4:
            raise LapaError(f"UniPi: pixels is a multiple of 4, or 0, not {self.pixels}.")
        if not (self.scale > 0 and self.lean > 0):
            raise LapaError(f"UniPi: scale and lean are above 0, not {self.scale} and {self.lean}.")
        if not 1 <= self.executed <= self.frames:
            raise LapaError(f"UniPi executes 1 to {self.frames} actions of {self.frames} frames, not {self.executed}.")


class VideoDiffusion(nn.Module):
    """See the module's docstring. K frames; `condition` float [B, D] says which future is wanted."""

    def __init__(self, config: VideoDiffusionConfig, condition: int) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config, condition)

    def loss(self, now: Tensor, future: Tensor, condition: Tensor) -> tuple[Tensor, Logs]:
        """Squared error of the change. now float [B, 3, H, W], future [B, K, 3, H, W], both in [0, 1].

        Logs: error_over_copy, relative to saying that nothing changes, over all levels of noise.
        """
        change = ((future - now[:, None]) * self.config.scale).flatten(1, 2)
        noisiness = torch.special.ndtr(noise_like(now[:, :1, :1, :1])) ** (1 / self.config.lean)
        told = self.unet(change.lerp(noise_like(change), noisiness), now, noisiness, condition).float()
        loss = F.mse_loss(told, change)
        return loss, {"error_over_copy": float(loss.detach() / change.square().mean().clamp_min(1e-8))}

    def sample(self, now: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1], conditions and normal noise [B, K, 3, H, W] -> frames like the noise, in
        [0, 1]. The same noise gives the same frames."""
        y = noise.flatten(1, 2)
        for s, less in pairwise(torch.linspace(1, 0, self.config.steps + 1, device=y.device)):
            told = self.unet(y, now, s.expand(len(y), 1, 1, 1), condition).float()
            y = told + less / s * (y - told)
        return (now[:, None] + y.view_as(noise) / self.config.scale).clamp(0, 1)


class UNet(nn.Module):
    """Convolutions at a half and a quarter of the resolution with a skip. Condition and noisiness scale and shift the
    channels (FiLM). The last layer starts at zero: nothing changes."""

    def __init__(self, config: VideoDiffusionConfig, condition: int) -> None:
        super().__init__()
        w, pixels = config.width, 12  # at half resolution: 2x2 pixels are 12 channels
        self.stem = nn.Conv2d(pixels * (config.frames + 1), w, 3, padding=1)
        self.fine = ConvBlock(w)
        self.down = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList(ConvBlock(2 * w) for _ in range(config.blocks))
        self.up = nn.Conv2d(2 * w, 4 * w, 1)
        self.merge = ConvBlock(w)
        self.out = nn.Conv2d(w, pixels * config.frames, 3, padding=1)
        self.widths = [2 * w, *([4 * w] * config.blocks), 2 * w]
        self.film = nn.Sequential(
            nn.Linear(condition + 2 * WAVES, 4 * w), nn.LeakyReLU(LEAK), nn.Linear(4 * w, sum(self.widths))
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, y: Tensor, now: Tensor, noisiness: Tensor, condition: Tensor) -> Tensor:
        """y [B, 3K, H, W], now [B, 3, H, W], noisiness [B, 1, 1, 1], condition [B, D] -> [B, 3K, H, W]."""
        angles = noisiness.flatten(1) * torch.pi * 2.0 ** torch.arange(WAVES, device=y.device)
        scales = self.film(torch.cat([condition, angles.sin(), angles.cos()], 1))[:, :, None, None]
        fine, *coarse, merge = scales.split(self.widths, 1)
        # Channels last: the layout the CPU and GPU convolutions are fastest in.
        x = F.pixel_unshuffle(torch.cat([y, now - 0.5], 1), 2).contiguous(memory_format=torch.channels_last)
        skip = self.fine(F.leaky_relu(self.stem(x), LEAK), fine)
        h = F.leaky_relu(self.down(skip), LEAK)
        for block, by in zip(self.coarse, coarse, strict=True):
            h = block(h, by)
        h = self.merge(skip + F.pixel_shuffle(self.up(h), 2), merge)
        return F.pixel_shuffle(self.out(F.leaky_relu(h, LEAK)), 2)


class ConvBlock(nn.Module):
    """x + convolutions of x, scaled and shifted (FiLM) between the two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        """[B, C, h, w], by [B, 2C, 1, 1] -> [B, C, h, w]."""
        scale, shift = by.chunk(2, 1)
        return x + self.second(F.leaky_relu(self.first(x) * (1 + scale) + shift, LEAK))
