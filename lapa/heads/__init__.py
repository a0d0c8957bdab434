"""Heads: from a backbone's context to codes or actions (plug-ins, one file each).

A `Head` predicts classes: latent codes in stage 2, classes of actions in stage 3. A `ChunkHead` answers with actions as
numbers, so it is for stage 3; its Config has the class variable `numbers` = True. What both have is `AnyHead`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.actions.meaning import Meaning
from lapa.actions.numbers import NumberSpace
from lapa.actions.saved import AnySpace, Space
from lapa.contracts import Array, Context, LapaError, Logs
from lapa.data.features import FrameFeatures
from lapa.data.pack import Packed


class AnyHead(nn.Module, ABC):
    """What a plug-in of lapa/heads builds: `Config(..).build(width, space)`, width being that of the readout.

    space    what it predicts, and what that means in the robot's units (lapa/actions)
    execute  how many actions of an answer are carried out before it is asked again; 0: all
    every    of a head that looks for itself (heads/fast.py): the backbone looks at the first of so many answers, and
             for the others the head gets the readout of that look. 0: the backbone alone looks, each time
    """

    space: Any  # AnySpace
    execute: int = 0
    every: int = 0

    @abstractmethod
    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """The loss of targets [B, ...], which `space.targets` made, and figures for the log."""

    @abstractmethod
    def answer(self, context: Context) -> Tensor:
        """-> float32 [B, ...], what `space.decide` makes actions of."""

    def trained(self) -> Iterator[nn.Parameter]:
        """Its weights but those that are never trained."""
        return self.parameters()

    def meet(self, image_size: int, cameras: int, state: int) -> None:
        """What the policy is shown, for a head that looks for itself: pictures of so many pixels a side from so many
        cameras, so many numbers of state. Raises LapaError where it cannot look at that."""
        return

    def means(self, meaning: Meaning | None) -> None:
        """What the actions mean that it predicts (None: not known), for a head that speaks of them. Called after it is
        made, and before its weights are loaded. Raises LapaError where it cannot speak of them."""
        return

    def says(self, context: Context) -> list[str]:
        """What it says in words before it acts, for each of B observations. Raises LapaError where it says nothing."""
        raise LapaError(
            "This head says no directions before it acts; the head autoregressive does with "
            """policy.head_options={"directions":true}."""
        )

    def features(self, packed: Packed) -> FrameFeatures | None:
        """What its own frozen vision encoder sees in every frame of a pack of one camera; None: it has none."""
        return None

    def reading(self) -> Head:
        """A head with the same weights; labels tell what its classes mean (heads/linear.py). Raises LapaError where
        this is not possible; of a head where it is, the Config has `readable` = True."""
        raise LapaError(f"What the head {type(self).__name__} says cannot be read; finetune with --head new.")


class Head(AnyHead):
    """A head over classes."""

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

    def answer(self, context: Context) -> Tensor:
        """The probabilities."""
        return self.probabilities(context)


class ChunkHead(AnyHead):
    """A head that answers with a chunk of actions as numbers, most of them from -1 to 1."""

    space: NumberSpace

    @abstractmethod
    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """target float32 [B, chunk, A], NaN where there is none (past the end of an episode)."""

    @abstractmethod
    def answer(self, context: Context) -> Tensor:
        """-> float32 [B, chunk, A]."""


def possible(logits: Tensor, absent: Array) -> Tensor:
    """Logits float [B, n, classes], with -inf for classes that do not exist; absent bool [n, classes]."""
    return logits.masked_fill(torch.from_numpy(absent).to(logits.device), -torch.inf) if absent.any() else logits


def cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Logs]:
    """Of float32 [B, positions, classes] and int64 [B, positions], -100 where there is none. Logs: accuracy, and the
    perplexity of the mean prediction."""
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
    with torch.no_grad():
        accuracy = (logits.argmax(-1) == target)[target >= 0].float().mean()
        used = torch.special.entr(logits.softmax(-1).mean(0)).sum(-1).exp().mean()
    return loss, {"accuracy": float(accuracy), "prediction_perplexity": float(used)}


def predicts_numbers(config: Any) -> bool:
    """Does the head of this `Config` answer with numbers (ChunkHead), not with classes?"""
    return bool(getattr(config, "numbers", False))


def is_readable(config: Any) -> bool:
    """Can labels tell what the classes of the head of this `Config` mean (AnyHead.reading)?"""
    return bool(getattr(config, "readable", False))


def known_error(said: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What a chunk [B, chunk, A] misses the targets by, and where there are any, bool; 0 where there are none."""
    known = ~target.isnan()
    return torch.where(known, said - target.nan_to_num(), 0.0), known


def absolute_error(said: Tensor, target: Tensor) -> tuple[Tensor, Logs]:
    """The mean absolute error of the actions that there are, 1 being half of their range, as a loss."""
    missed, known = known_error(said, target)
    loss = missed.abs().sum() / known.sum().clamp(min=1)
    return loss, {"absolute_error": float(loss.detach())}


__all__ = [
    "AnyHead", "AnySpace", "ChunkHead", "Head", "absolute_error", "cross_entropy", "is_readable", "known_error",
    "possible", "predicts_numbers",
]  # fmt: skip
