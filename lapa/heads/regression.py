"""Actions as numbers, read off the readout by a small network and learnt by their absolute error, as OpenVLA-OFT does.

Absolute errors are learnt towards the median: of two ways to go on it takes the more frequent one, where squares would
lead it between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lapa.actions.numbers import NumberSpace
from lapa.contracts import Context, LapaError, Logs
from lapa.heads import ChunkHead, absolute_error


@dataclass(frozen=True)
class Config:
    """Width of the hidden layer."""

    numbers: ClassVar[bool] = True

    width: int = 256
    """of the hidden layer; 0: none, a linear head"""

    def build(self, width: int, space: NumberSpace) -> Regression:
        """A new head for readouts of this width. Raises LapaError on a width that cannot be."""
        if self.width < 0:
            raise LapaError(f"regression: width is at least 0, not {self.width}.")
        return Regression(width, self.width, space)


class Regression(ChunkHead):
    """See the module's docstring."""

    def __init__(self, inputs: int, hidden: int, space: NumberSpace) -> None:
        super().__init__()
        self.space, count = space, space.chunk * space.dimensions
        deep = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, count)) if hidden else ()
        self.net = nn.Sequential(*(deep or (nn.Linear(inputs, count),)))

    def answer(self, context: Context) -> Tensor:
        """-> float32 [B, chunk, A]."""
        found: Tensor = self.net(context.readout).float()
        return found.unflatten(1, (self.space.chunk, -1))

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """The mean absolute error of the actions that there are."""
        return absolute_error(self.answer(context), target)
