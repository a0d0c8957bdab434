"""The head `parallel` with queries, and with rounds: positions that fit together, in fewer steps than there are.

    round 1    ?  ?  ?  ?      all are asked; the most certain is kept
    round 2    ?  5  ?  ?      the others are asked again, given it
    round 3    ?  5  2  ?      and so on: after round r of R, cos(pi r / 2R) of them are still open
    answer     1  5  2  7

Confidence re-masking as in MaskGIT (Chang et al., 2022) and Discrete Diffusion VLA (Liang et al., 2025); what is kept
stays. Training hides a random number of positions, evenly from one to all, shows the others, and learns the hidden
ones. The backbone looks once for all rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from lapa.actions.saved import Space
from lapa.contracts import Context, LapaError, Logs
from lapa.heads import Head, cross_entropy, possible
from lapa.heads._decoder import Decoder, Sizes, inner_width
from lapa.runtime.distributed import noise_like

HIDDEN = -1  # in place of a class


class Settings(Sizes, Protocol):
    """Of the head `parallel`."""

    @property
    def queries(self) -> str: ...
    @property
    def rounds(self) -> int: ...


class Rounds(Head):
    """See the module's docstring."""

    def __init__(self, width: int, config: Settings, space: Space) -> None:
        super().__init__()
        if config.rounds > space.positions:
            raise LapaError(f"parallel: rounds {config.rounds} is more than the {space.positions} positions there are.")
        if config.rounds > 1 and config.queries == "backbone":
            raise LapaError("parallel: rounds need queries=decoder or none; the backbone reads its queries once.")
        self.space, self.rounds = space, config.rounds
        self.asks: nn.Module = {"none": OfReadout, "decoder": InDecoder, "backbone": InBackbone}[config.queries](
            width, config, space
        )

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """Cross-entropy of the hidden positions, given those that are shown. Logs: their accuracy, and the perplexity
        of the mean prediction."""
        if self.rounds == 1:
            return cross_entropy(self._asked(context, torch.full_like(target, HIDDEN)), target)
        hidden = hidden_at_random(target)
        logits = self._asked(context, target.masked_fill(hidden, HIDDEN))
        return cross_entropy(logits, target.masked_fill(~hidden, -100))

    def logits(self, context: Context) -> Tensor:
        """-> float32 [B, positions, classes], each position given those that were kept before it; -inf for classes
        that do not exist."""
        shape = len(context.readout), self.space.positions
        shown = torch.full(shape, HIDDEN, device=context.readout.device)
        found = self._asked(context, shown)
        for left in still_open(self.rounds, self.space.positions):
            certainty, likeliest = found.softmax(-1).max(-1)
            certainty = certainty.masked_fill(shown >= 0, torch.inf)  # what is kept stays
            kept = certainty.sort(dim=1, descending=True, stable=True).indices.argsort(1) < self.space.positions - left
            shown = torch.where(kept, torch.where(shown >= 0, shown, likeliest), HIDDEN)
            found = torch.where((shown >= 0)[..., None], found, self._asked(context, shown))
        return found

    def _asked(self, context: Context, shown: Tensor) -> Tensor:
        """shown int64 [B, positions], HIDDEN where nothing is -> float32 [B, positions, classes]."""
        logits: Tensor = self.asks(context, shown).float()
        return possible(logits, self.space.absent())


def still_open(rounds: int, positions: int) -> Iterator[int]:
    """How many positions are open after each round but the last; at least one fewer in each."""
    left = positions
    for done in range(1, rounds):
        left = min(left - 1, int(positions * math.cos(math.pi / 2 * done / rounds) + 1e-9))
        yield left


def hidden_at_random(target: Tensor) -> Tensor:
    """Of targets int64 [B, positions], -100 where there is none: bool [B, positions], what is hidden. Evenly from one
    to all of those that there are, and always those that there are not. The same however the batch is split."""
    there = target >= 0
    count = there.sum(1, keepdim=True)
    shown = (count * torch.special.ndtr(noise_like(target[:, :1].float()))).long().clamp(max=(count - 1).clamp(min=0))
    order = noise_like(target.float()).masked_fill(~there, torch.inf).argsort(1).argsort(1)
    return order >= shown


class OfReadout(nn.Module):
    """The network of heads/parallel.py, to whose hidden layer each class that is shown adds a vector."""

    def __init__(self, width: int, config: Settings, space: Space) -> None:
        super().__init__()
        self.shape = space.positions, space.classes
        self.first, self.last = nn.Linear(width, config.width), nn.Linear(config.width, space.positions * space.classes)
        self.shown = nn.Embedding(space.positions * (space.classes + 1), config.width)
        nn.init.normal_(self.shown.weight, std=0.5)

    def forward(self, context: Context, shown: Tensor) -> Tensor:
        positions, classes = self.shape
        row = shown + 1 + (classes + 1) * torch.arange(positions, device=shown.device)
        x = self.first(context.readout) + self.shown(row).sum(1)
        found: Tensor = self.last(x.relu())
        return found.unflatten(1, self.shape)


class InDecoder(nn.Module):
    """Positions look at each other and at all that the backbone saw (heads/_decoder.py)."""

    def __init__(self, width: int, config: Settings, space: Space) -> None:
        super().__init__()
        inner = inner_width(width, config)
        self.decoder = Decoder(width, config, space.positions)
        self.shown = nn.Embedding(space.classes + 1, inner)
        self.output = nn.Linear(inner, space.classes)
        for table in (self.shown, self.output):
            nn.init.normal_(table.weight, std=inner**-0.5)

    def forward(self, context: Context, shown: Tensor) -> Tensor:
        reads = self.decoder.reading(context, causal=False)
        found: Tensor = self.output(reads(reads.first[:, None] + self.shown(shown + 1)))
        return found


class InBackbone(nn.Module):
    """Positions are tokens behind the backbone's prompt, read in one pass; each sees those before it."""

    def __init__(self, width: int, config: Settings, space: Space) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(space.positions, width) * width**-0.5)
        self.output = nn.Linear(width, space.classes)

    def forward(self, context: Context, shown: Tensor) -> Tensor:
        if context.further is None:
            raise LapaError(
                'parallel: this backbone cannot go on after its prompt; say "queries":"decoder" in '
                "policy.head_options, or choose the backbone lwm or hf (hf without recompute=true)."
            )
        states = context.further(self.queries.expand(len(shown), -1, -1))
        found: Tensor = self.output(states.to(self.output.weight.dtype))
        return found
