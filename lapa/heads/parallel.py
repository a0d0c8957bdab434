"""All positions at once: one hidden layer over the readout, then a class for each position, independently.

On request, positions are queries of their own (`queries`), and the answer takes a few rounds, in each of which the
most certain positions are kept and given back as input (`rounds`): heads/_rounds.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lapa.actions.saved import Space
from lapa.contracts import Context, LapaError, Logs
from lapa.heads import Head, cross_entropy, possible
from lapa.heads._rounds import Rounds
from lapa.plugins import find


@dataclass(frozen=True)
class Config:
    """What tells the classes, and in how many rounds."""

    width: int = 256
    """of the hidden layer; with queries=decoder the largest width of the decoder"""
    queries: Literal["none", "decoder", "backbone"] = "none"
    """none: the readout alone tells all positions; decoder: each position is a query that looks at all that the
    backbone saw, in a small decoder; backbone: each position is a token behind the prompt, all read in one pass"""
    rounds: int = 1
    """above 1: so many rounds, in each of which the most certain positions are kept and given back as input"""
    layers: int = 2
    """of the decoder"""
    heads: int = 4
    """its attention heads"""

    @property
    def readable(self) -> bool:
        """See heads.is_readable: with neither queries nor rounds it is what heads/linear.py keeps."""
        return self.queries == "none" and self.rounds == 1

    def build(self, width: int, space: Space) -> Head:
        """A new head for readouts of this width. Raises LapaError on settings that cannot be."""
        if min(self.width, self.rounds, self.layers, self.heads) < 1:
            raise LapaError("parallel: width, rounds, layers and heads are at least 1.")
        if self.readable:
            return Parallel(width, self.width, space)
        return Rounds(width, self, space)


class Parallel(nn.Sequential, Head):
    """See the module's docstring."""

    def __init__(self, inputs: int, hidden: int, space: Space) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, space.positions * space.classes))
        self.space = space

    def logits(self, context: Context) -> Tensor:
        """-> float32 [B, positions, classes]; -inf for classes that do not exist."""
        logits = self(context.readout).float().view(-1, self.space.positions, self.space.classes)
        return possible(logits, self.space.absent())

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """Cross-entropy of the classes. Logs: accuracy, and the perplexity of the mean prediction."""
        return cross_entropy(self.logits(context), target)

    def reading(self) -> Head:
        """This network, unchanged; labels tell what its classes mean."""
        first: nn.Linear = self[0]  # type: ignore[assignment]
        head: Head = find("heads", "linear")(first.out_features).build(first.in_features, self.space)
        head.load_state_dict(self.state_dict())
        return head.to(first.weight.device)
