"""K-means: codebooks that are fitted once, to the differences of a frozen encoder, and not trained.

Each further codebook is fitted to what those before it left over (residual codes).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import nn

from lapa.contracts import Array, LapaError, Logs, Quantized

TRIES = 3  # of k-means; the one with the least distances counts
ROUNDS = 30


class KMeans(nn.Module):
    """The quantizer of LAQ with a frozen encoder: `positions` codes of `size` a pair, a codebook for each. State:
    `codebooks` float32 [positions, size, dim]."""

    codebooks: torch.Tensor

    def __init__(self, dim: int, size: int, positions: int) -> None:
        super().__init__()
        self.size, self.positions = size, positions
        self.register_buffer("codebooks", torch.zeros(positions, size, dim))

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
        """float [B, 1, dim] -> Quantized with codes int64 [B, positions]."""
        left, codes = z.float().squeeze(1), []
        for codebook in self.codebooks:
            codes.append(torch.cdist(left, codebook).argmin(1))
            left = left - codebook[codes[-1]]
        stacked = torch.stack(codes, 1)
        return Quantized(self.lookup(stacked), stacked, z.new_zeros((), dtype=torch.float32))

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, positions] -> float32 [B, 1, dim]."""
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
