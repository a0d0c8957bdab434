"""The language model of LWM and LAPA-7B: Llama's layers, with positions turned in neighbouring pairs of numbers.

Weights are those of the released files; only their names and the order of axes differ. The table of positions can be
that of bfloat16, with which the released models were trained: angles above 256 fall on multiples of 2 there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.contracts import LapaError
from lapa.runtime.precision import without_autocast

Cache = list[tuple[Tensor, Tensor]]  # keys and values [B, heads, n, head size] of each layer


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes; `theta` and `eps` of positions and norms; `rope`: the arithmetic of the table of positions."""

    width: int = 4096
    depth: int = 32
    heads: int = 32
    intermediate: int = 11008
    theta: float = 5e7
    eps: float = 1e-6
    rope: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("width", "depth", "heads", "intermediate")}
        if wrong := [f"{name} {value}" for name, value in counts.items() if value < 1]:
            raise LapaError(f"lwm: {', '.join(wrong)}; each is at least 1.")
        if self.width % (2 * self.heads):
            raise LapaError(f"lwm: width {self.width} makes no {self.heads} heads of an even size.")


def rope_table(positions: int, size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [positions, size / 2] each, for heads of this size.

    Exponents, angles and results are rounded to `dtype`, and between those it is float64, as in the released code.
    """

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    exponents = rounded(torch.arange(0, size, 2).float() / size)
    frequency = torch.from_numpy(1.0 / np.power(theta, exponents.numpy()))
    angle = rounded(torch.arange(positions).double()[:, None] * frequency)
    return rounded(angle.cos()).float(), rounded(angle.sin()).float()


class Dense(nn.Linear):
    """A linear layer without bias whose weights come from a file: making it costs nothing."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(inputs, outputs, bias=False, dtype=dtype)

    def reset_parameters(self) -> None:
        """Nothing."""


class RMSNorm(nn.Module):
    """x over its root mean square, in float32; then in the weights' arithmetic, times a weight."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width, dtype=dtype)), eps

    def forward(self, x: Tensor) -> Tensor:
        """float [.., width] -> the same shape."""
        with without_autocast(x):
            x = x.float()
            return (x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(self.weight.dtype) * self.weight


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Numbers 2i and 2i + 1 of x [B, heads, n, size], as a point in the plane, turned by angle i of its position;
    angles complex64 [B, n, size / 2]: cosine and sine."""
    points = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(points * angles[:, None]).flatten(-2).to(x.dtype)


class LlamaLayer(nn.Module):
    """Attention, then a gated network, each beside what came in."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, width, inner = config.heads, config.width, config.intermediate
        self.attention_norm = RMSNorm(width, config.eps, dtype)
        self.wq, self.wk, self.wv, self.wo = (Dense(width, width, dtype) for _ in range(4))
        self.ffn_norm = RMSNorm(width, config.eps, dtype)
        self.w1, self.w3, self.w2 = Dense(width, inner, dtype), Dense(width, inner, dtype), Dense(inner, width, dtype)

    def forward(
        self, x: Tensor, angles: Tensor, mask: Tensor, keys: Tensor | None, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, n, width], after tokens whose keys and values are given; mask bool [B, 1, n, all]: what each may see.
        Returns x, and the keys and values of all."""
        h = self.attention_norm(x)
        q, k, v = (w(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = turned(q, angles), turned(k, angles)
        if keys is not None and values is not None:
            k, v = torch.cat([keys.to(k.dtype), k], 2), torch.cat([values.to(v.dtype), v], 2)
        seen = F.scaled_dot_product_attention(q, k, v, mask)
        x = x + self.wo(seen.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h)), k, v


class Llama(nn.Module):
    """The layers and the last norm. Embeddings and what reads the hidden states are for others."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(LlamaLayer(config, dtype) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.eps, dtype)
        self._table: Tensor | None = None

    def forward(self, x: Tensor, present: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Embeddings float [B, n, width] of tokens after those in the cache -> hidden states [B, n, width], and the
        cache with these. present bool [B, all]: False for padding, of the cached tokens too; positions count what is
        present."""
        new, every = x.shape[1], present.shape[1]
        positions = (present.cumsum(1) - 1).clamp(min=0)[:, every - new :]
        angles = self._positions(every, x.device)[positions]
        order = torch.arange(every, device=x.device)
        mask = (order <= order[every - new :, None]) & present[:, None]
        # Padding sees itself, lest it be undefined; nobody else sees it.
        mask = (mask | (order == order[every - new :, None]))[:, None]
        made: Cache = []
        for i, layer in enumerate(self.layers):
            keys, values = cache[i] if cache else (None, None)
            x, keys, values = layer(x, angles, mask, keys, values)
            made.append((keys, values))
        return self.norm(x), made

    def _positions(self, count: int, where: torch.device) -> Tensor:
        """complex64 [count or more, head size / 2]."""
        if self._table is None or len(self._table) < count or self._table.device != where:
            size = self.config.width // self.config.heads
            cosines, sines = rope_table(max(count, 512), size, self.config.theta, self.config.rope)
            self._table = torch.complex(cosines, sines).to(where)
        return self._table


@dataclass
class Continued:
    """Reads further tokens after a prompt (contracts.Continuation). present bool [B, all]: False for padding."""

    llama: Llama
    present: Tensor
    cache: Cache = field(default_factory=list)

    def __call__(self, embeddings: Tensor) -> Tensor:
        """See contracts.Continuation."""
        self.present = F.pad(self.present, (0, embeddings.shape[1]), value=True)
        dtype = self.llama.norm.weight.dtype
        hidden, self.cache = self.llama(embeddings.to(dtype), self.present, self.cache)
        return hidden
