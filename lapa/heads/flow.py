"""A small action expert for fine motion: noise becomes a chunk of actions in a few straight steps (flow matching).

    x_t = (1 - t) noise + t actions, 0 <= t <= 1        a straight path from noise to the actions
    the expert learns the speed along it, actions - noise, from x_t, t and what the backbone sees
    acting: from noise (t = 0), `steps` steps of Euler's method to t = 1

Unlike a regression it does not lead between two ways to go on: it takes one (Lipman et al., 2023; as the action expert
of pi0, Black et al., 2024). Actions past the end of an episode are neither learnt nor looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lapa.actions.numbers import NumberSpace
from lapa.contracts import Context, LapaError, Logs
from lapa.heads import ChunkHead, known_error
from lapa.runtime.distributed import noise_like

LONGEST_WAVE = 4.0  # of the sines that tell the expert where on the path it is


@dataclass(frozen=True)
class Config:
    """Size of the expert, and how it acts."""

    numbers: ClassVar[bool] = True

    width: int = 128
    """of the expert"""
    layers: int = 2
    heads: int = 4
    """attention heads"""
    steps: int = 10
    """steps from noise to actions; each asks the expert once, the backbone is asked once for all"""
    draws: int = 4
    """places on the path that are learnt for each example of a batch; the backbone looks once for all of them"""
    noise: Literal["seeded", "zero", "random"] = "seeded"
    """where the path begins in acting. seeded: always at the noise that `seed` gives; zero: in the middle of it; both
    answer alike to like observations. random: anywhere, so answers differ from call to call"""
    seed: int = 0

    def build(self, width: int, space: NumberSpace) -> Flow:
        """A new head for contexts of this width. Raises LapaError on settings that cannot be."""
        if min(self.layers, self.heads, self.steps, self.draws) < 1 or self.width < 2 or self.seed < 0:
            raise LapaError("flow: layers, heads, steps and draws are at least 1, width at least 2, seed at least 0.")
        if self.width % self.heads or self.width % 2:
            raise LapaError(f"flow: width {self.width} must be divisible by heads {self.heads} and by 2.")
        return Flow(width, self, space)


class Flow(ChunkHead):
    """See the module's docstring."""

    def __init__(self, inputs: int, config: Config, space: NumberSpace) -> None:
        super().__init__()
        self.space, self.config, width = space, config, config.width
        self.read, self.sum_up = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.moment = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.into, self.out = nn.Linear(space.dimensions, width), nn.Linear(width, space.dimensions)
        self.position = nn.Parameter(torch.randn(space.chunk, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    # --- learning

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """The mean squared error of the speed at `draws` random places of each path."""
        draws = self.config.draws
        target = target.repeat_interleave(draws, 0)
        actions, known = target.nan_to_num(), ~target.isnan()
        noise = noise_like(actions)
        t = torch.special.ndtr(noise_like(actions[:, 0, 0]))  # even from 0 to 1
        x = torch.lerp(noise, actions, t[:, None, None])
        hidden, absent, summed = (each.repeat_interleave(draws, 0) for each in self._seen(context))
        speed = self.speed(x, t, (hidden, absent, summed), past=~known.any(2))
        missed, _ = known_error(speed, torch.where(known, actions - noise, torch.nan))
        loss = missed.square().sum() / known.sum().clamp(min=1)
        return loss, {"speed_error": float(loss.detach())}

    # --- acting

    def answer(self, context: Context) -> Tensor:
        """-> float32 [B, chunk, A]."""
        seen, steps = self._seen(context), self.config.steps
        x = self._begin(context.readout)
        for step in range(steps):
            x = x + self.speed(x, x.new_full((len(x),), step / steps), seen) / steps
        return x

    def _begin(self, readout: Tensor) -> Tensor:
        """Where the paths begin, float32 [B, chunk, A]."""
        shape, how = (self.space.chunk, self.space.dimensions), self.config.noise
        if how == "zero":
            return torch.zeros(len(readout), *shape, device=readout.device)
        if how == "random":
            return torch.randn(len(readout), *shape, device=readout.device)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(self.config.seed))
        return drawn.to(readout.device).expand(len(readout), -1, -1)

    # --- the expert

    def _seen(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """What the expert sees of the context: hidden states [B, L, width], where there are none, bool [B, L], and the
        readout [B, width]."""
        return self.read(context.hidden), ~context.mask, self.sum_up(context.readout)

    def speed(self, x: Tensor, t: Tensor, seen: tuple[Tensor, Tensor, Tensor], past: Tensor | None = None) -> Tensor:
        """The speed float32 [B, chunk, A] at x float32 [B, chunk, A] and t float32 [B], given what `_seen` gives. past
        bool [B, chunk]: actions that there are not; the others do not look at them."""
        hidden, absent, summed = seen
        half = self.config.width // 2
        waves = torch.pi * torch.logspace(0, LONGEST_WAVE, half, 2.0, device=t.device) * t[:, None]
        moment = self.moment(torch.cat([waves.sin(), waves.cos()], -1))
        y = self.into(x) + self.position + (moment + summed)[:, None]
        for layer in self.layers:
            y = layer(y, hidden, tgt_key_padding_mask=past, memory_key_padding_mask=absent)
        return self.out(self.norm(y)).float()
