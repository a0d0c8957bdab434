"""NSVQ: vector quantization by noise substitution (the paper's quantizer; Vali and Backstrom, 2022).

In training the decoder receives z plus noise as long as the quantization error, ||z - q|| / ||v|| * v with
v ~ N(0, I), in place of the nearest codebook entry q. That is differentiable: the encoder learns through z,
the codebook through ||z - q||, and no VQ loss term is needed. In inference the decoder receives q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lapa.contracts import Logs, Quantized
from lapa.training.distributed import noise_like, sum_over_ranks


@dataclass(frozen=True)
class Config:
    """A codebook of `size` entries of width `dim`, shared by the `positions` codes of a pair.

    schedule   (first, last, every) ranges of optimizer steps, ends included, after which idle entries are
               replaced. The default is the released one: 10..90, 100..900 and 1000..4500.
    threshold  an entry is idle if it made up less than threshold / size of the codes since the last
               replacement: less than `threshold` of its fair share. (The released code compares the number of
               batches that used an entry with a fixed number; a share means the same at every interval and
               batch size.)
    noise      standard deviation of the perturbation of a replacement, in units of the codebook's own.
    """

    dim: int = 32
    size: int = 8
    positions: int = 1
    schedule: tuple[tuple[int, int, int], ...] = ((10, 90, 10), (100, 900, 100), (1000, 4500, 500))
    threshold: float = 0.1
    noise: float = 0.1

    def build(self) -> nn.Module:
        return NSVQ(self)


class NSVQ(nn.Module):
    """The quantizer. `usage` int64 [positions, size] counts the codes of training batches since the last
    replacement; it is part of the state, so a resumed run replaces the same entries."""

    usage: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.size = config.size
        self.codebook = nn.Parameter(torch.randn(config.size, config.dim))
        self.register_buffer("usage", torch.zeros(config.positions, config.size, dtype=torch.int64))

    def forward(self, z: torch.Tensor) -> Quantized:
        """float [B, s, d] -> Quantized. Training draws noise (torch's global generator) and counts usage."""
        z = z.float()  # distances decide codes: never in half precision
        # Squared distances by subtraction, not by a matrix product: exact, and autocast leaves it alone.
        codes = (z.detach().unsqueeze(-2) - self.codebook.detach()).square().sum(-1).argmin(-1)
        q = self.lookup(codes)
        if not self.training:
            return Quantized(q, codes, z.new_zeros(()), {"perplexity": perplexity(self._count(codes))})
        v = noise_like(z)
        # The gradient of the norm at 0 is undefined; a floor keeps an exact hit finite.
        error = (z - q).square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
        count = sum_over_ranks(self._count(codes))
        self.usage += count
        embedding = z + error / v.norm(dim=-1, keepdim=True) * v
        return Quantized(embedding, codes, z.new_zeros(()), {"perplexity": perplexity(count)})

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, s] -> float32 [B, s, d]."""
        return self.codebook[codes]

    @torch.no_grad()
    def after_step(self, step: int) -> Logs:
        """On a scheduled step, move idle entries next to used ones, drawn by use, and count anew."""
        if not any(step in range(first, last + 1, every) for first, last, every in self.config.schedule):
            return {}
        total = self.usage.sum(0)
        idle = total < self.config.threshold / self.size * total.sum()
        replaced = int(idle.sum())
        if 0 < replaced < self.size:
            parents = torch.multinomial((total * ~idle).float(), replaced, replacement=True)
            used = self.codebook[parents]
            self.codebook[idle] = used + self.config.noise * self.codebook.std() * torch.randn_like(used)
        self.usage.zero_()
        return {"codes_replaced": float(replaced)}

    def _count(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, s] -> int64 [s, size]: how often each position used each entry."""
        return torch.stack([torch.bincount(c, minlength=self.size) for c in codes.unbind(1)])


def perplexity(usage: torch.Tensor) -> float:
    """Counts [s, size] -> the effective number of entries in use, exp(entropy), averaged over positions.

    Between 1 (collapse) and `size` (all entries equally often)."""
    share = usage / usage.sum(-1, keepdim=True).clamp_min(1)
    return float(torch.special.entr(share).sum(-1).exp().mean())
