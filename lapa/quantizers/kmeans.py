"""K-means: a codebook that is fitted once, to the differences of a frozen encoder, and not trained.

With `levels`, each further codebook is fitted to what those before it left over (residual codes).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import nn

from lapa.contracts import Array, LapaError, Logs, Quantized

TRIES = 3  # of k-means; the one with the least distances counts
ROUNDS = 30


@dataclass(frozen=True)
class Config:
    """`levels` codebooks of `size` entries of width `dim`; a pair has one place, hence `levels` codes."""

    dim: int = 32
    size: int = 64
    positions: int = 1
    levels: int = 1

    def __post_init__(self) -> None:
        if self.positions != 1 or self.levels < 1:
            raise LapaError(
                f"The quantizer kmeans gives a pair one place and at least one level; got laq.codes={self.positions} "
                f"and levels={self.levels}. More codes a pair are more levels."
            )

    def build(self) -> nn.Module:
        return KMeans(self)


class KMeans(nn.Module):
    """The quantizer. State: `codebooks` float32 [levels, size, dim]."""

    codebooks: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size, self.positions = config.size, config.levels
        self.register_buffer("codebooks", torch.zeros(config.levels, config.size, config.dim))

    @torch.no_grad()
    def fit(self, differences: Array, seed: int) -> None:
        """float [N, dim]: fit the codebooks. The same input gives the same ones. Raises LapaError for fewer rows than
        entries."""
        if len(differences) < self.size:
            raise LapaError(
                f"There are {len(differences)} pairs of frames for {self.size} codes. Give more video, or take fewer: "
                f"--set laq.codebook_size={max(2, len(differences) // 4)}."
            )
        left = differences.astype(np.float64)
        for level in range(self.positions):
            centres = _centres(left, self.size, seed)
            self.codebooks[level] = torch.from_numpy(centres)
            left = left - centres[vq(left, centres)[0]]

    def forward(self, z: torch.Tensor) -> Quantized:
        """float [B, 1, dim] -> Quantized with codes int64 [B, levels]."""
        left, codes = z.float().squeeze(1), []
        for codebook in self.codebooks:
            codes.append(torch.cdist(left, codebook).argmin(1))
            left = left - codebook[codes[-1]]
        stacked = torch.stack(codes, 1)
        return Quantized(self.lookup(stacked), stacked, z.new_zeros((), dtype=torch.float32))

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, levels] -> float32 [B, 1, dim]."""
        entries = [codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)]
        return torch.stack(entries).sum(0)[:, None]

    def after_step(self, step: int) -> Logs:
        """Nothing is trained."""
        return {}


def _centres(x: Array, count: int, seed: int) -> Array:
    best, found = np.inf, x[:count]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a cluster that nothing is near to: it does no harm
        for number in range(TRIES):
            centres, _ = kmeans2(x, count, iter=ROUNDS, minit="++", rng=seed * TRIES + number)
            distance = float(np.square(vq(x, centres)[1]).mean())
            if distance < best:
                best, found = distance, centres
    return found
