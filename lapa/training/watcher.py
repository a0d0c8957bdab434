"""The codebook watcher: are the codes of recent training batches all in use, at every position?

A batch is too small to tell, so counts fade slowly: figures are of about the last 50 batches.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

from lapa.contracts import Logs
from lapa.runtime.distributed import rank, sum_over_ranks

KEEP = 0.98  # of the counts, from step to step: a window of 1 / (1 - KEEP) = 50 batches
UNTIL = 300  # no warning before this step: codebooks need some to find the data
LOW = 0.5  # of the codes: below it the watcher warns, and again whenever use has halved since


class CodebookWatcher(nn.Module):
    """Counts codes and warns. State: `recent` float32 [positions, size], the fading counts."""

    recent: torch.Tensor
    step_usage: torch.Tensor

    def __init__(self, positions: int, size: int, trained: bool = True) -> None:
        super().__init__()
        self.size, self.trained = size, trained  # a codebook that is fitted and not trained cannot collapse
        self.lowest = 1.0  # share of the codes in use that the user has been told of
        self.register_buffer("recent", torch.zeros(positions, size))
        self.register_buffer("step_usage", torch.zeros(positions, size), persistent=False)

    def count(self, codes: torch.Tensor) -> None:
        """Take note of the codes int64 [B, positions] of a training batch."""
        self.step_usage += F.one_hot(codes, self.size).sum(0)

    @torch.no_grad()
    def after_step(self, step: int) -> Logs:
        """perplexity_p, the effective number of codes in use at position p, and utilisation_p, the share of the codes
        used at all; warns on stderr."""
        self.recent.mul_(KEEP).add_(sum_over_ranks(self.step_usage))
        self.step_usage.zero_()
        effective = self.perplexity()
        # Used at all in the last 50 batches or so: younger than a count of one that has faded that long.
        used = (self.recent > KEEP**50).float().mean(1).tolist()
        if self.trained and step >= UNTIL and rank() == 0:
            self._warn(step, effective)
        logs = {f"perplexity_{p}": value for p, value in enumerate(effective)}
        return logs | {f"utilisation_{p}": value for p, value in enumerate(used)}

    def perplexity(self) -> list[float]:
        """The effective number of codes in use at each position, over the last 50 training batches."""
        return perplexity(self.recent).tolist()

    def _warn(self, step: int, effective: list[float]) -> None:
        worst = min(range(len(effective)), key=effective.__getitem__)
        share = effective[worst] / self.size
        if share >= LOW * self.lowest or self.size == 1:
            return
        self.lowest = share
        print(
            f"Warning: the codes are collapsing. At step {step}, position {worst} uses {effective[worst]:.1f} of its "
            f"{self.size} codes (perplexity over the last 50 batches), and codes that are hardly used tell nothing. "
            "If they are not set yet, try --set laq.quantizer=nsvq --set 'laq.quantizer_options={\"balance\": 0.03}', "
            "which gives every code its share, and --set laq.normalise=true. If they are, too little moves between the "
            "two frames: try a longer --window or a smaller laq.codebook_size. Curves: lapa inspect RUN.",
            file=sys.stderr,
        )


def perplexity(usage: torch.Tensor) -> torch.Tensor:
    """Counts [s, size] -> float [s], the effective number of entries in use at each position: exp(entropy).

    Between 1 (collapse) and `size` (all entries equally often)."""
    share = usage / usage.sum(-1, keepdim=True).clamp_min(1e-12)
    return torch.special.entr(share).sum(-1).exp()
