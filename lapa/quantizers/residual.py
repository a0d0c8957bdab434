"""Residual codes: each level quantizes what the levels before it left over (Zeghidour et al., 2021: SoundStream).

With L levels a pair of frames has s * L codes of |C| each: |C| ** L distinct embeddings at every place from codebooks
that stay small. A level is a quantizer with a codebook: NSVQ or VQ-EMA.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lapa import plugins
from lapa.contracts import LapaError, Logs, Quantized


@dataclass(frozen=True)
class Config:
    """`levels` quantizers called `quantizer`, each of `size` codes of width `dim`; `options` are their further options.

    The codes of a pair are ordered by place, then by level; `positions` counts the places.
    """

    dim: int = 32
    size: int = 8
    positions: int = 1
    levels: int = 2
    quantizer: str = "nsvq"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plugins.choose(self.quantizer, ("nsvq", "vq_ema"), "quantizer for the levels of residual codes")
        if given := {"dim", "size", "positions"} & set(self.options):
            raise LapaError(
                f"The levels of residual codes take {sorted(given)[0]} from the settings of laq, not from options."
            )
        if self.levels < 1:
            raise LapaError(f"Residual codes have at least one level, not {self.levels}.")

    def build(self) -> nn.Module:
        return Residual(self)


class Residual(nn.Module):
    """The quantizer. State: that of its levels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size, self.positions = config.size, config.positions * config.levels
        options = {"dim": config.dim, "size": config.size, "positions": config.positions, **config.options}
        level = plugins.configure("quantizers", config.quantizer, options)
        self.levels = nn.ModuleList(level.build() for _ in range(config.levels))

    def forward(self, z: torch.Tensor) -> Quantized:
        """float [B, s, d] -> Quantized with codes int64 [B, s * levels]."""
        left, codes, loss = z.float(), [], torch.zeros((), device=z.device)
        for level in self.levels:
            answer = level(left)
            codes.append(answer.codes)
            loss = loss + answer.loss
            # By lookup, not by the embedding: NSVQ's is noisy in training, and what is left over is exact.
            before, left = left, left - level.lookup(answer.codes)  # type: ignore[operator]
        stacked = torch.stack(codes, -1).flatten(1)
        # The levels before the last as they are, the last as it trains: NSVQ's noise is then that of the whole.
        embedding = z.float() - before + answer.embedding if self.training else self.lookup(stacked)
        return Quantized(embedding, stacked, loss)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, s * levels] -> float32 [B, s, d]."""
        by_level = codes.unflatten(1, (-1, len(self.levels))).unbind(-1)
        entries = [level.lookup(c) for level, c in zip(self.levels, by_level, strict=True)]  # type: ignore[operator]
        return torch.stack(entries).sum(0)

    def after_step(self, step: int) -> Logs:
        """Upkeep of each level; its logs get the level's number."""
        logs = [level.after_step(step) for level in self.levels]  # type: ignore[operator]
        return {f"{name}_level{i}": value for i, each in enumerate(logs) for name, value in each.items()}
