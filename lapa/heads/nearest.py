"""A point in the space of the codes; the codes whose sum lies nearest to it are what it says.

Class by class, all wrong codes are equally wrong. But codes have places: each adds its embedding to what the decoder
gets, and near ones mean similar motions (LAQ.code_embeddings). So this head learns the sum of the embeddings of a
pair's codes, by absolute error. What the policy comes to see is then motion, and not names of clusters: a few labels
are enough to read actions off it (docs/heads.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lapa.actions.saved import Space
from lapa.actions.spaces import CodeSpace
from lapa.contracts import Context, LapaError, Logs
from lapa.heads import Head


@dataclass(frozen=True)
class Config:
    """Width of the hidden layer, and how sure the head is of the nearest code."""

    width: int = 256
    sharpness: float = 8.0
    """of the probabilities: a code that is farther by one mean squared distance is exp(sharpness) times less likely"""

    def build(self, width: int, space: Space) -> Nearest:
        """A new head for readouts of this width. Raises LapaError for classes that are no latent codes, and for codes
        whose places are not known."""
        if not isinstance(space, CodeSpace):
            raise LapaError("The head nearest predicts latent codes alone. Name it in policy.code_head, and another "
                            "one for actions in policy.head.")  # fmt: skip
        if not space.code_embeddings:
            raise LapaError("The head nearest needs the places of the codes, and these labels have none: they were not "
                            "made by a LAQ (lapa label). Leave policy.code_head out.")  # fmt: skip
        if not space.code_embeddings[0]:
            raise LapaError("The head nearest needs codes at different places, and those of these labels are all at "
                            "one. Leave policy.code_head out, or fit a LAQ of more codes.")  # fmt: skip
        if self.width < 1:
            raise LapaError(f"nearest: width is at least 1, not {self.width}.")
        return Nearest(width, self, space)


class Nearest(Head):
    """See the module's docstring."""

    table: Tensor  # [s, |C|, k]: what each code adds to the point, in units of the points' mean deviation

    def __init__(self, inputs: int, config: Config, space: CodeSpace) -> None:
        super().__init__()
        self.space, self.sharpness = space, config.sharpness
        self.windows, self.codes = space.windows, space.codes
        places = np.array(space.code_embeddings, np.float32).reshape(space.codes, space.classes, -1)
        unit = np.sqrt(np.square(places - places.mean(1, keepdims=True)).mean((1, 2)).sum())
        self.register_buffer("table", torch.from_numpy(places / max(float(unit), 1e-12)), persistent=False)
        self.net = nn.Sequential(
            nn.Linear(inputs, config.width), nn.ReLU(), nn.Linear(config.width, space.windows * places.shape[2])
        )

    def points(self, context: Context) -> Tensor:
        """-> float32 [B, windows, k]: the latent action of each window before it is made codes."""
        found: Tensor = self.net(context.readout).float()
        return found.unflatten(1, (self.windows, -1))

    def logits(self, context: Context) -> Tensor:
        """Minus the squared distance of each code to what the likeliest codes of the positions before it leave over."""
        left, made = self.points(context), []
        for table in self.table:
            distance = (left[:, :, None] - table).square().mean(-1)  # [B, windows, |C|]
            made.append(-self.sharpness * distance)
            left = left - table[distance.argmin(-1)]
        return torch.stack(made, 2).flatten(1, 2)

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """The mean absolute error of the points. Logs: also the accuracy of the codes."""
        points = self.points(context)
        codes = target.view(len(target), self.windows, self.codes)
        known = (codes >= 0).all(2)
        each = torch.arange(self.codes, device=codes.device)
        due = self.table[each, codes.clamp(min=0)].sum(2)  # [B, windows, k]
        missed = torch.where(known[..., None], points - due, 0.0).abs().mean(-1)
        loss = missed.sum() / known.sum().clamp(min=1)
        with torch.no_grad():
            right = (self.logits(context).argmax(-1) == target)[target >= 0].float().mean()
        return loss, {"absolute_error": float(loss.detach()), "accuracy": float(right)}
