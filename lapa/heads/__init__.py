"""Heads: from a backbone's context to codes or actions (plug-ins, one file each)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lapa.actions.saved import Space
from lapa.contracts import Context, LapaError, Logs


class Head(nn.Module, ABC):
    """What a plug-in of lapa/heads builds: `Config(..).build(width, space)`, width being that of the readout.

    space  what it predicts, and what that means in the robot's units (lapa/actions)
    """

    space: Space

    @abstractmethod
    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """target int64 [B, positions], -100 where there is none (past the end of an episode)."""

    @abstractmethod
    def logits(self, context: Context) -> Tensor:
        """-> float32 [B, positions, classes]; -inf for classes that do not exist."""

    def probabilities(self, context: Context) -> Tensor:
        """-> float32 [B, positions, classes]."""
        return self.logits(context).softmax(-1)

    def predict(self, context: Context) -> Tensor:
        """The likeliest classes, int64 [B, positions]."""
        return self.logits(context).argmax(-1)

    def reading(self) -> Head:
        """A head with the same weights; labels tell what its classes mean (heads/linear.py). Raises LapaError where
        this is not possible."""
        raise LapaError(f"What the head {type(self).__name__} says cannot be read; finetune with --head new.")
