"""VQ-VAE with a codebook of moving averages and restart of dead codes (van den Oord et al., 2017, appendix A.1).

The decoder receives the nearest entry. The gradient goes to z unchanged (straight through), and a loss keeps z near its
entry. Entries are not learnt by gradient: each is the moving average of the z that chose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lapa.contracts import LapaError, Logs, Quantized
from lapa.runtime.distributed import sum_over_ranks


@dataclass(frozen=True)
class Config:
    """A codebook of `size` entries of width `dim`, shared by the `positions` codes of a pair.

    decay       of the moving averages, per optimizer step.
    commitment  weight of the loss that keeps z near its entry.
    threshold   an entry is dead if its average use is below threshold / size: less than `threshold` of its fair
                share. It restarts beside a used entry, drawn by use, with half of that entry's use.
    noise       standard deviation of the perturbation of a restart, in units of the codebook's own.
    """

    dim: int = 32
    size: int = 8
    positions: int = 1
    decay: float = 0.97
    commitment: float = 0.02
    threshold: float = 0.1
    noise: float = 0.1

    def __post_init__(self) -> None:
        for name in ("decay", "commitment", "threshold", "noise"):
            most = 1 if name == "decay" else math.inf
            if not 0 <= getattr(self, name) <= most:
                upto = "" if most == math.inf else f" to {most}"
                raise LapaError(f"vq_ema: {name} is a number from 0{upto}, not {getattr(self, name)}.")

    def build(self) -> nn.Module:
        return VQEMA(self)


class VQEMA(nn.Module):
    """The quantizer. State: `codebook` float32 [size, dim] and `usage` float32 [size], the average number of z that
    chose each entry in a step."""

    codebook: torch.Tensor
    usage: torch.Tensor
    step_usage: torch.Tensor
    step_sum: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.size, self.positions = config.size, config.positions
        self.register_buffer("codebook", torch.randn(config.size, config.dim))
        self.register_buffer("usage", torch.ones(config.size))
        # Of the step in hand alone, hence no part of the state.
        self.register_buffer("step_usage", torch.zeros(config.size), persistent=False)
        self.register_buffer("step_sum", torch.zeros(config.size, config.dim), persistent=False)

    def forward(self, z: torch.Tensor) -> Quantized:
        """float [B, s, d] -> Quantized. Training collects what the moving averages need."""
        z = z.float()
        codes = (z.detach().unsqueeze(-2) - self.codebook).square().sum(-1).argmin(-1)
        q = self.lookup(codes)
        if not self.training:
            return Quantized(q, codes, z.new_zeros(()))
        chosen = F.one_hot(codes.flatten(), self.size).to(z.dtype)
        self.step_usage += chosen.sum(0)
        self.step_sum.index_add_(0, codes.flatten(), z.detach().flatten(0, 1))
        loss = self.config.commitment * F.mse_loss(z, q)
        return Quantized(z + (q - z).detach(), codes, loss)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, s] -> float32 [B, s, d]."""
        return self.codebook[codes]

    @torch.no_grad()
    def after_step(self, step: int) -> Logs:
        """Move the averages by one step, then restart dead entries."""
        new, decay = sum_over_ranks(self.step_usage), self.config.decay
        mean = sum_over_ranks(self.step_sum) / new.clamp_min(1)[:, None]
        self.usage.mul_(decay).add_(new, alpha=1 - decay)
        weight = ((1 - decay) * new / self.usage.clamp_min(1e-12))[:, None]  # the mean of all z, weighted by age
        self.codebook.lerp_(mean, weight)
        self.step_usage.zero_()
        self.step_sum.zero_()
        dead = self.usage < self.config.threshold / self.size * self.usage.sum()
        restarted = int(dead.sum())
        if 0 < restarted < self.size:
            self._restart(dead, restarted)
        return {"codes_replaced": float(restarted)}

    def _restart(self, dead: torch.Tensor, count: int) -> None:
        parents = torch.multinomial(self.usage * ~dead, count, replacement=True)
        used = self.codebook[parents]
        self.codebook[dead] = used + self.config.noise * self.codebook.std() * torch.randn_like(used)
        self.usage[dead] = self.usage[parents] / 2
        self.usage[parents] /= 2
