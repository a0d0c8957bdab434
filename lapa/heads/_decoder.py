"""A small transformer over positions, which looks at the backbone's hidden states: a part of several heads.

`autoregressive` reads classes one after another with it, each given those before (causal); `parallel` asks all
positions at once, each sees all others. Keys and values of what was read before are kept.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.contracts import Context

Pair = tuple[Tensor, Tensor]  # keys and values [B, heads, n, head size]


class Sizes(Protocol):
    """Settings of a head."""

    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def width(self) -> int: ...


def inner_width(width: int, sizes: Sizes) -> int:
    """The decoder's width: the backbone's, but at most `sizes.width`, and a multiple of its heads."""
    return max(min(width, sizes.width) // sizes.heads, 1) * sizes.heads


class Decoder(nn.Module):
    """See the module's docstring."""

    def __init__(self, width: int, sizes: Sizes, positions: int) -> None:
        super().__init__()
        inner = inner_width(width, sizes)
        self.start = nn.Parameter(torch.randn(inner) * 0.02)
        self.position = nn.Parameter(torch.randn(positions, inner) * 0.02)
        self.read = nn.Linear(width, inner)
        self.sum_up = nn.Linear(width, inner)
        self.layers = nn.ModuleList(DecoderLayer(inner, sizes.heads) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(inner)

    def prepend(self, count: int) -> None:
        """There are so many positions before those that it was made for."""
        before = torch.randn(count, self.position.shape[1], device=self.position.device) * 0.02
        self.position = nn.Parameter(torch.cat([before, self.position.detach()]))

    def reading(self, context: Context, causal: bool = True) -> Reading:
        """It, with this context before its eyes."""
        return Reading(self, context, causal)


class Reading:
    """A contracts.Continuation, once `start` has been called: each call reads further positions."""

    def __init__(self, decoder: Decoder, context: Context, causal: bool) -> None:
        self.decoder, self.mask, self.causal = decoder, context.mask[:, None, None], causal
        seen = decoder.read(context.hidden)
        self.seen: list[Pair] = [layer.look(seen) for layer in decoder.layers]  # type: ignore[operator]
        self.before: list[Pair | None] = [None] * len(self.seen)
        self.first, self.count = decoder.start + decoder.sum_up(context.readout), 0

    def start(self) -> Tensor:
        """The hidden state [B, inner] before any class."""
        return self(self.first[:, None])[:, -1]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """See contracts.Continuation."""
        until = self.count + embeddings.shape[1]
        x = embeddings.to(self.first.dtype) + self.decoder.position[self.count : until]
        self.count = until
        for i, layer in enumerate(self.decoder.layers):
            x, self.before[i] = layer(x, self.seen[i], self.mask, self.before[i], self.causal)
        found: Tensor = self.decoder.norm(x)
        return found


class DecoderLayer(nn.Module):
    """Positions read each other, then the context, then think."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.own_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.other_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def look(self, seen: Tensor) -> Pair:
        """What it sees of the context [B, L, width]."""
        keys, values = self.keys_values(seen).chunk(2, -1)
        return self._heads(keys), self._heads(values)

    def forward(self, x: Tensor, seen: Pair, mask: Tensor, before: Pair | None, causal: bool) -> tuple[Tensor, Pair]:
        """x [B, n, width], after positions of which `before` has keys and values; mask bool [B, 1, 1, L]: False for
        padding of the context. Returns x, and keys and values of all positions so far."""
        q, k, v = map(self._heads, self.own(self.norms[0](x)).chunk(3, -1))
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        new, every = q.shape[2], k.shape[2]
        order = torch.ones(new, every, dtype=torch.bool, device=x.device).tril(every - new) if causal else None
        x = x + self.own_out(_joined(F.scaled_dot_product_attention(q, k, v, order if new > 1 else None)))
        q = self._heads(self.query(self.norms[1](x)))
        x = x + self.other_out(_joined(F.scaled_dot_product_attention(q, *seen, mask)))
        return x + self.mlp(self.norms[2](x)), (k, v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
