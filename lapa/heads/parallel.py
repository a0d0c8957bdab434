"""All positions at once: one hidden layer over the readout, then a class for each position, independently."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.actions.saved import Space
from lapa.contracts import Context, Logs
from lapa.heads import Head
from lapa.plugins import find


@dataclass(frozen=True)
class Config:
    """Width of the hidden layer."""

    width: int = 256

    def build(self, width: int, space: Space) -> Parallel:
        """A new head for readouts of this width."""
        return Parallel(width, self.width, space)


class Parallel(nn.Sequential, Head):
    """See the module's docstring."""

    def __init__(self, inputs: int, hidden: int, space: Space) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, space.positions * space.classes))
        self.space = space

    def logits(self, context: Context) -> Tensor:
        """-> float32 [B, positions, classes]; -inf for classes that do not exist."""
        logits = self(context.readout).float().view(-1, self.space.positions, self.space.classes)
        absent = self.space.absent()
        return logits.masked_fill(torch.from_numpy(absent).to(logits.device), -torch.inf) if absent.any() else logits

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """Cross-entropy of the classes. Logs: accuracy, and the perplexity of the mean prediction."""
        logits = self.logits(context)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
        with torch.no_grad():
            known = target >= 0
            accuracy = (logits.argmax(-1) == target)[known].float().mean()
            used = torch.special.entr(logits.softmax(-1).mean(0)).sum(-1).exp().mean()
        return loss, {"accuracy": float(accuracy), "prediction_perplexity": float(used)}

    def reading(self) -> Head:
        """This network, unchanged; labels tell what its classes mean."""
        first: nn.Linear = self[0]  # type: ignore[assignment]
        head: Head = find("heads", "linear")(first.out_features).build(first.in_features, self.space)
        head.load_state_dict(self.state_dict())
        return head.to(first.weight.device)
