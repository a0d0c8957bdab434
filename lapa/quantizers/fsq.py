"""FSQ: finite scalar quantization (Mentzer et al., 2024). No codebook: a few numbers, each rounded to a few levels.

z is projected to one number per dimension of the grid, squashed to [0, 1] and rounded; the code is the number of the
cell. The gradient ignores the rounding. There is no codebook that could die, but cells can stay empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from lapa.contracts import LapaError, Logs, Quantized


@dataclass(frozen=True)
class Config:
    """A grid of `size` cells, the same at each of the `positions` codes of a pair.

    levels   levels of each dimension; their product is `size`. []: fours as far as they go, so 8 is 4x2, 16 is 4x4
             and 64 is 4x4x4.
    """

    dim: int = 32
    size: int = 8
    positions: int = 1
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.levels and (math.prod(self.levels) != self.size or min(self.levels) < 2):
            raise LapaError(
                f"FSQ: the levels {list(self.levels)} make {math.prod(self.levels)} codes, but codebook_size is "
                f"{self.size}. Change one of them; every dimension has at least 2 levels."
            )

    def build(self) -> nn.Module:
        return FSQ(self)


class FSQ(nn.Module):
    """The quantizer. State: the two projections."""

    levels: torch.Tensor
    stride: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size, self.positions = config.size, config.positions
        levels = list(config.levels) or factors(config.size)
        self.project_in = nn.Linear(config.dim, len(levels))
        self.project_out = nn.Linear(len(levels), config.dim)
        stride = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("stride", torch.tensor(stride), persistent=False)

    def forward(self, z: torch.Tensor) -> Quantized:
        """float [B, s, d] -> Quantized."""
        with torch.autocast(z.device.type, enabled=False):  # rounding decides codes: never in half precision
            # In [0, levels], the cells one unit wide. The logistic function is near the normal distribution's, so
            # numbers that are normally distributed fill the cells about evenly.
            u = torch.sigmoid(1.702 * self.project_in(z.float())) * self.levels
            cell = u.detach().floor().clamp(max=self.levels - 1)
            codes = (cell * self.stride).sum(-1).long()
            # Straight through: the centre of the cell forward, u backward.
            embedding = self._embed(u + (cell + 0.5 - u).detach())
        return Quantized(embedding, codes, z.new_zeros((), dtype=torch.float32))

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, s] -> float32 [B, s, d]."""
        cell = codes.unsqueeze(-1) // self.stride % self.levels
        with torch.autocast(codes.device.type, enabled=False):
            return self._embed(cell + 0.5)

    def after_step(self, step: int) -> Logs:
        """There is no codebook to look after."""
        return {}

    def _embed(self, place: torch.Tensor) -> torch.Tensor:
        return self.project_out(2 * place / self.levels - 1)


def factors(size: int) -> list[int]:
    """Levels whose product is `size`: fours, then primes. 8 -> [4, 2], 16 -> [4, 4], 10 -> [2, 5], 1 -> [1]."""
    found, left = [], size
    for factor in (4, *range(2, size + 1)):
        while left % factor == 0 and left > 1:
            found.append(factor)
            left //= factor
    return found or [1]
