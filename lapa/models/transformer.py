"""The transformer of LAQ (paper, "Latent Action Quantization"): attention over the space or time of a video.

Everything speaks videos of tokens, float [B, T, h, w, d]. A block is, each with a residual:

    PEG (where am I?) -> attention (over space or over time) -> cross-attention (decoder only) -> feed-forward

Parameters follow the released model one to one (same shapes, same split into modules), so that a released
checkpoint loads by renaming. Two habits of that model show: keys and values of self-attention read the tokens
before normalisation, and every attention owns a `context_norm`, which only cross-attention uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

SCALE = 8.0  # queries and keys have unit length, so logits need a fixed temperature (the released value)


class LayerNorm(nn.Module):
    """Layer normalisation with a learned gain `gamma` and a constant offset `beta` (a buffer)."""

    beta: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class PEG(nn.Module):
    """Position encoding generator: a depthwise 3x3x3 convolution, causal in time. [B, T, h, w, d] -> same.

    It starts at zero: a random one smears every token over its neighbours and frames, and the small LAQ then
    needs twice the steps before its codes carry any motion."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim, dim, kernel_size=3, groups=dim)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        t = video.shape[1]
        out = self._tap(video, 0, self.conv.bias)
        for back in range(1, min(t, 3)):
            out[:, back:] += self._tap(video[:, : t - back], back)
        return out

    def _tap(self, video: torch.Tensor, back: int, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The kernel's 3x3 slice for the frame `back` steps ago. 2-D convolutions, channels last, replace the
        3-D one: a training step of PEG takes 1.3 ms in place of 10.9 (CPU, 64 videos of 2x6x6 tokens)."""
        frames = rearrange(video, "b t h w d -> (b t) d h w")  # a view in channels-last layout, not a copy
        weight = self.conv.weight[:, :, 2 - back].contiguous(memory_format=torch.channels_last)
        out = F.conv2d(frames, weight, bias, padding=1, groups=len(weight))
        return rearrange(out, "(b t) d h w -> b t h w d", b=len(video))


class PositionBias(nn.Module):
    """Continuous 2-D relative position bias: an MLP from the offset between two patches (signed, logarithmic)
    to one logit a head. (h, w) -> [heads, h * w, h * w], [i, j] for query i and key j."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Linear(2, dim),
            nn.LeakyReLU(0.1),
            nn.Linear(dim, dim),
            nn.LeakyReLU(0.1),
        ]
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, heads))

    def forward(self, h: int, w: int) -> torch.Tensor:
        device = next(self.parameters()).device
        # Each distinct offset goes through the MLP once: (2h-1)(2w-1) rows in place of (hw)^2.
        dy, dx = torch.arange(1 - h, h, device=device), torch.arange(1 - w, w, device=device)
        offsets = torch.stack(torch.meshgrid(dy, dx, indexing="ij"), dim=-1).float()
        table = self.mlp(offsets.sign() * offsets.abs().log1p())  # [2h-1, 2w-1, heads]
        y = torch.arange(h, device=device).repeat_interleave(w)
        x = torch.arange(w, device=device).repeat(h)
        return table[y[:, None] - y + h - 1, x[:, None] - x + w - 1].permute(2, 0, 1)


class Attention(nn.Module):
    """Multi-head attention with unit-length queries and keys, learned per-dimension scales and null keys.

    `null_keys` learned key-value pairs let a query attend to nothing in particular.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, null_keys: int = 0) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm = LayerNorm(dim)
        self.context_norm = LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.null_kv = nn.Parameter(torch.randn(heads, 2 * null_keys, dim_head))  # key, value, key, ...

    def forward(
        self, x: torch.Tensor, context: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [B, N, d] attends to itself or to `context` [B, M, d]; `bias` [heads, N, M] joins the logits."""
        source = x if context is None else self.context_norm(context)
        q = rearrange(self.to_q(self.norm(x)), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.to_kv(source), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        if self.null_kv.numel():
            null_k, null_v = rearrange(self.null_kv, "h (n two) d -> two 1 h n d", two=2).to(k.dtype)
            k = torch.cat([null_k.expand(len(k), -1, -1, -1), k], dim=2)
            v = torch.cat([null_v.expand(len(v), -1, -1, -1), v], dim=2)
        logits = _unit(q, SCALE * self.q_scale) @ _unit(k, self.k_scale).transpose(-2, -1)
        if bias is not None:
            # Null keys come first and have no position.
            logits = logits + F.pad(bias, (logits.shape[-1] - bias.shape[-1], 0))
        # Written out: at these sizes quicker on a CPU than scaled_dot_product_attention (2x in bfloat16).
        out = logits.softmax(dim=-1).to(v.dtype) @ v
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


def _unit(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Vectors of unit length, then `scale` per dimension. As an RMS norm: one fused, quicker operation."""
    d = x.shape[-1]
    return F.rms_norm(x, (d,), (scale * d**-0.5).to(x.dtype), eps=1e-12)


class FeedForward(nn.Module):
    """GEGLU feed-forward: half of the hidden units, through GELU, gate the other half."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = int(4 * 2 / 3 * dim)  # two thirds: the gate brings a third matrix, the parameter count stays
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class Block(nn.Module):
    """PEG, attention, optional cross-attention and feed-forward, each with a residual."""

    def __init__(self, dim: int, heads: int, dim_head: int, cross: bool, peg: type[PEG] = PEG) -> None:
        super().__init__()
        self.peg = peg(dim)
        self.attention = Attention(dim, heads, dim_head)
        self.cross = Attention(dim, heads, dim_head, null_keys=2) if cross else None
        self.feed_forward = FeedForward(dim)

    def forward(
        self,
        video: torch.Tensor,
        over: Literal["space", "time"],
        bias: torch.Tensor | None,
        context: torch.Tensor | None,
    ) -> torch.Tensor:
        """[B, T, h, w, d] -> same shape."""
        video = video + self.peg(video)
        tokens, unfold = _fold(video, "(b t) (h w) d" if over == "space" else "(b h w) t d")
        video = unfold(tokens + self.attention(tokens, bias=bias))
        if self.cross is not None:
            assert context is not None, "cross-attention needs a context"
            tokens, unfold = _fold(video, "b (t h w) d")
            video = unfold(tokens + self.cross(tokens, context=context))
        return video + self.feed_forward(video)


class Transformer(nn.Module):
    """`depth` blocks over a video of tokens, attending `over` the patches of a frame ("space") or over the
    frames at a patch position ("time"); with `cross`, tokens also attend to a context [B, M, d]."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        over: Literal["space", "time"] = "space",
        cross: bool = False,
        peg: type[PEG] = PEG,
    ) -> None:
        super().__init__()
        self.over = over
        self.recompute = False  # the loop switches it on: blocks keep their input alone, see training/loop.py
        self.blocks = nn.ModuleList(Block(dim, heads, dim_head, cross, peg) for _ in range(depth))
        self.norm_out = LayerNorm(dim)

    def forward(
        self, video: torch.Tensor, bias: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, T, h, w, d] -> same shape. `bias` [heads, N, N] is for self-attention, `context` for cross."""
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                video = checkpoint(block, video, self.over, bias, context, use_reentrant=False)
            else:
                video = block(video, self.over, bias, context)
        return self.norm_out(video)


def _fold(video: torch.Tensor, layout: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """A video as sequences of tokens in `layout`, and the way back."""
    b, t, h, w, _ = video.shape
    tokens = rearrange(video, f"b t h w d -> {layout}")
    return tokens, lambda x: rearrange(x, f"{layout} -> b t h w d", b=b, t=t, h=h, w=w)
