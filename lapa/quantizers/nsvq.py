"""NSVQ: vector quantization by noise substitution (the paper's quantizer; Vali and Backstrom, 2022).

In training the decoder receives z plus noise as long as the quantization error, ||z - q|| / ||v|| * v with
v ~ N(0, I), in place of the codebook entry q. That is differentiable: the encoder learns through z, the codebook
through ||z - q||, and no VQ loss term is needed. In inference the decoder receives q.

An entry that is never the nearest is never trained, and the codes collapse. Two settings prevent this. `schedule`, the
released one, moves idle entries after fixed steps. `balance` gives every entry, at every position, its share of the
pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lapa.contracts import LapaError, Logs, Quantized
from lapa.runtime.distributed import noise_like, sum_over_ranks


@dataclass(frozen=True)
class Config:
    """A codebook of `size` entries of width `dim`, shared by the `positions` codes of a pair.

    schedule   (first, last, every) ranges of optimizer steps, ends included, after which idle entries are
               replaced. The default is the released one: 10..90, 100..900 and 1000..4500. []: never.
    threshold  an entry is idle if it made up less than threshold / size of the codes since the last
               replacement: less than `threshold` of its fair share. (The released code compares the number of
               batches that used an entry with a fixed number; a share means the same at every interval and
               batch size.)
    noise      standard deviation of the perturbation of a replacement, in units of the codebook's own.
    balance    how fast prices change; 0: there are none (the paper); 0.03 in our presets. Each position adds a price
               to the squared distance from each entry. The price of an entry rises while it is used more than its
               share, and falls while it is used less. Prices do not change in inference.
    attract    after every step each entry moves this share of the way to the mean of the z that chose it. 0: it does
               not (the paper, where the decoder's loss alone moves the codebook).
    warmup     optimizer steps over which the noise grows from zero to the length of the quantization error. 0: full
               noise from the start (the paper). Before the encoder has found what moves, the noise is as large as the
               signal, and training may stand still for long. On other videos little noise makes the codes worse
               (docs/experiments.md).
    """

    dim: int = 32
    size: int = 8
    positions: int = 1
    schedule: tuple[tuple[int, int, int], ...] = ((10, 90, 10), (100, 900, 100), (1000, 4500, 500))
    threshold: float = 0.1
    noise: float = 0.1
    balance: float = 0.0
    attract: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        limits = {"threshold": math.inf, "noise": math.inf, "balance": math.inf, "attract": 1, "warmup": math.inf}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                upto = "" if most == math.inf else f" to {most}"
                raise LapaError(f"nsvq: {name} is a number from 0{upto}, not {getattr(self, name)}.")
        if any(every < 1 for _, _, every in self.schedule):
            raise LapaError(f"nsvq: every range of schedule is first, last, every, with every at least 1; got "
                            f"{list(map(list, self.schedule))}.")  # fmt: skip

    def build(self) -> nn.Module:
        if self.balance and self.size < 2:
            raise LapaError(
                "nsvq: balance shares the pairs out between codes, and a codebook of size 1 has but one. Choose "
                "laq.codebook_size of 2 or more, or the quantizer option balance 0."
            )
        return NSVQ(self)


class NSVQ(nn.Module):
    """The quantizer. State: `price` float32 [positions, size], and `usage` int64 [positions, size], which counts the
    codes of training batches since the last replacement; so a resumed run does what an unbroken one does."""

    price: torch.Tensor
    usage: torch.Tensor
    step_usage: torch.Tensor
    step_sum: torch.Tensor
    margin: torch.Tensor
    loudness: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.size, self.positions = config.size, config.positions
        self.codebook = nn.Parameter(torch.randn(config.size, config.dim))
        self.register_buffer("price", torch.zeros(config.positions, config.size))
        self.register_buffer("usage", torch.zeros(config.positions, config.size, dtype=torch.int64))
        if config.warmup:
            self.register_buffer("loudness", torch.zeros(()))  # of the noise, 0 to 1
        # Of the step in hand alone, hence no part of the state.
        self.register_buffer("step_usage", torch.zeros_like(self.usage), persistent=False)
        self.register_buffer("step_sum", torch.zeros(config.size, config.dim), persistent=False)
        self.register_buffer("margin", torch.zeros(config.positions), persistent=False)

    def forward(self, z: torch.Tensor) -> Quantized:
        """float [B, s, d] -> Quantized. Training draws noise (torch's global generator) and counts usage."""
        z = z.float()  # distances decide codes: never in half precision
        # Squared distances by subtraction, not by a matrix product: exact, and autocast leaves it alone.
        cost = (z.detach().unsqueeze(-2) - self.codebook.detach()).square().sum(-1) + self.price
        codes = cost.argmin(-1)
        q = self.lookup(codes)
        if not self.training:
            return Quantized(q, codes, z.new_zeros(()))
        self.step_usage += F.one_hot(codes, self.size).sum(0)
        if self.config.balance:
            first, second = cost.topk(2, largest=False).values.unbind(-1)
            self.margin += (second - first).sum(0)
        if self.config.attract:
            self.step_sum.index_add_(0, codes.flatten(), z.detach().flatten(0, 1))
        v = noise_like(z)
        # The gradient of the norm at 0 is undefined; a floor keeps an exact hit finite.
        error = (z - q).square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
        if self.config.warmup:
            error = error * self.loudness
        return Quantized(z + error / v.norm(dim=-1, keepdim=True) * v, codes, z.new_zeros(()))

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, s] -> float32 [B, s, d]."""
        return self.codebook[codes]

    @torch.no_grad()
    def after_step(self, step: int) -> Logs:
        """Move prices; on a scheduled step, also move idle entries next to used ones, drawn by use, and count anew."""
        if self.config.warmup:
            self.loudness.fill_(min(1.0, step / self.config.warmup))
        usage = sum_over_ranks(self.step_usage)
        self.usage += usage
        if self.config.balance:
            self._adjust_prices(usage, sum_over_ranks(self.margin))
        if self.config.attract:
            self._attract(usage.sum(0), sum_over_ranks(self.step_sum))
        self.step_usage.zero_()
        self.step_sum.zero_()
        self.margin.zero_()
        if not any(step in range(first, last + 1, every) for first, last, every in self.config.schedule):
            return {}
        total = self.usage.sum(0)
        idle = total < self.config.threshold / self.size * total.sum()
        replaced = int(idle.sum())
        if 0 < replaced < self.size:
            parents = torch.multinomial((total * ~idle).float(), replaced, replacement=True)
            used = self.codebook[parents]
            self.codebook[idle] = used + self.config.noise * self.codebook.std() * torch.randn_like(used)
            self.price[:, idle] = self.price[:, parents]
        self.usage.zero_()
        return {"codes_replaced": float(replaced)}

    def _attract(self, usage: torch.Tensor, total: torch.Tensor) -> None:
        """Move entries towards the mean of the z of this step that chose them; less far where few chose them."""
        share = usage * self.size / usage.sum().clamp_min(1)
        mean = total / usage.clamp_min(1)[:, None]
        self.codebook.lerp_(mean, (self.config.attract * share.clamp(max=1))[:, None])

    def _adjust_prices(self, usage: torch.Tensor, margin: torch.Tensor) -> None:
        """A step towards equal use. Its unit is the mean margin of the position, the distance between the best and the
        second-best offer, so it fits features of any scale."""
        pairs = usage.sum(1, keepdim=True).clamp_min(1)
        excess = usage * self.size / pairs - 1  # 0 at the fair share, -1 when idle
        self.price += self.config.balance * margin[:, None] / pairs * excess
        self.price -= self.price.mean(1, keepdim=True)
