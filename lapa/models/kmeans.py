"""K-means: codebooks that are fitted once, to the differences of a frozen encoder, and not trained.

Each further codebook is fitted to what those before it left over. Then all are fitted together (additive codes): every
entry becomes the mean of what the other codebooks leave of its pairs, a few times. A pair gets the codes whose sum is
nearest to it. The search keeps BEAM candidates a codebook.

A few pairs move far and most move little; k-means spends its codes on the far ones. With `root_length` a difference
keeps its direction and has the square root of its length. Codes are then in even use (docs/latents.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lapa.contracts import Array, LapaError, Logs, Quantized

TRIES, EARLY = 3, 5  # beginnings of k-means; rounds after which the one with the least distances goes on alone
ROUNDS = 30
TOGETHER = 10  # rounds in which all codebooks are fitted
BEAM = 8
AT_ONCE = 4096  # pairs


class KMeans(nn.Module):
    """The quantizer of LAQ with a frozen encoder: `positions` codes of `size` a pair, a codebook for each. State:
    `codebooks` float32 [positions, size, dim]; with `root_length` in the space of the shortened differences."""

    codebooks: torch.Tensor

    def __init__(self, dim: int, size: int, positions: int, root_length: bool = False) -> None:
        super().__init__()
        self.size, self.positions, self.root_length = size, positions, root_length
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
        x = left = self._measured(torch.from_numpy(differences.astype(np.float32)).to(self.codebooks.device))
        for level in range(self.positions):
            self.codebooks[level] = _centres(left, self.size, seed)
            left = left - self.codebooks[level][_squared(left, self.codebooks[level]).argmin(1)]
        for _ in range(TOGETHER if self.positions > 1 else 0):
            self._together(x)

    def _measured(self, x: torch.Tensor) -> torch.Tensor:
        """Differences float [N, dim] as the codebooks measure them. One of length 0 stays 0."""
        return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12).sqrt() if self.root_length else x

    def _together(self, x: torch.Tensor) -> None:
        """One round on float [N, dim]. An entry without pairs stays."""
        codes = self._nearest(x)
        for level, codebook in enumerate(self.codebooks):
            rest = x - self.lookup(codes).squeeze(1) + codebook[codes[:, level]]
            count = torch.bincount(codes[:, level], minlength=self.size)
            total = torch.zeros_like(codebook).index_add_(0, codes[:, level], rest)
            codebook[count > 0] = (total / count[:, None])[count > 0]

    def _nearest(self, x: torch.Tensor) -> torch.Tensor:
        """float [N, dim] -> codes int64 [N, positions]."""
        return torch.cat([self._search(part) for part in x.split(AT_ONCE)])

    def _search(self, x: torch.Tensor) -> torch.Tensor:
        left, codes = x[:, None], torch.zeros(len(x), 1, 0, dtype=torch.int64, device=x.device)
        for level, codebook in enumerate(self.codebooks):
            distance = torch.cdist(left, codebook).flatten(1)  # of each candidate to each entry
            kept = 1 if level + 1 == self.positions else min(BEAM, distance.shape[1])
            best = distance.topk(kept, 1, largest=False).indices
            candidate, entry = best // self.size, best % self.size
            codes = torch.cat([codes.gather(1, candidate[..., None].expand(-1, -1, level)), entry[..., None]], 2)
            left = left.gather(1, candidate[..., None].expand(-1, -1, left.shape[2])) - codebook[entry]
        return codes[:, 0]

    def forward(self, z: torch.Tensor) -> Quantized:
        """float [B, 1, dim] -> Quantized with codes int64 [B, positions]."""
        codes = self._nearest(self._measured(z.float().squeeze(1)))
        return Quantized(self.lookup(codes), codes, z.new_zeros((), dtype=torch.float32))

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, positions] -> float32 [B, 1, dim]."""
        entries = [codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)]
        return torch.stack(entries).sum(0)[:, None]

    def after_step(self, step: int) -> Logs:
        """Nothing is trained."""
        return {}


def _centres(x: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """K-means of float [N, dim]: `count` centres, those of the best of TRIES beginnings after EARLY rounds, refined."""
    began = []
    for number in range(TRIES):
        centres = _spread(x, count, torch.Generator().manual_seed(seed * TRIES + number))
        for _ in range(EARLY):
            centres = _refined(x, centres)
        began.append((float(_squared(x, centres).min(1).values.mean()), number, centres))
    centres = min(began, key=lambda one: one[:2])[2]
    for _ in range(ROUNDS - EARLY):
        centres = _refined(x, centres)
    return centres


def _spread(x: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """Rows of `x` to begin with, each drawn by its squared distance to those before it (k-means++)."""
    first = torch.randint(len(x), (1,), generator=random)
    centres, nearest = [x[first]], _squared(x, x[first])[:, 0]
    while len(centres) < count:
        share = nearest.cpu().double().cumsum(0)
        place = torch.rand(1, generator=random, dtype=torch.float64) * share[-1]
        chosen = torch.searchsorted(share, place).clamp_max(len(x) - 1)
        centres.append(x[chosen])
        nearest = torch.minimum(nearest, _squared(x, x[chosen])[:, 0])
    return torch.cat(centres)


def _refined(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The mean of the rows that are nearest to each centre; a centre without rows stays."""
    nearest = _squared(x, centres).argmin(1)
    count = torch.bincount(nearest, minlength=len(centres))[:, None]
    total = torch.zeros_like(centres).index_add_(0, nearest, x)
    return torch.where(count > 0, total / count.clamp_min(1), centres)


def _squared(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared distances [N, K] of float [N, dim] to [K, dim]."""
    made = x.square().sum(1, keepdim=True) - 2 * x @ centres.T + centres.square().sum(1)
    return made.clamp_min(0)
