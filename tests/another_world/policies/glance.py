"""A policy of one's own in one file: two small pictures, words and a state, one hidden layer, actions by regression."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.actions.meaning import Meaning
from lapa.contracts import Array, Labels, LapaError, Logs, Observation, PolicySpec
from lapa.data.index import Index
from lapa.data.observations import Seen, seen
from lapa.data.pack import Packed
from lapa.data.pixels import as_pixels
from lapa.policies import Examples, Policy, PolicyConfig, acting_frames, chunks_after, refuse_idm
from lapa.recipe import Recipe

WORDS = 16  # kinds of words that it tells apart


@dataclass(frozen=True)
class Config(PolicyConfig):
    """`--set policy.name=glance`, with options such as `--set 'policy.options={"width":64}'`."""

    cameras: tuple[str, ...] = ("front", "wrist")  # type: ignore[misc]
    size: int = 12
    width: int = 96
    chunk: int = 2

    @property
    def image_size(self) -> int:
        """Of both pictures."""
        return self.size

    def build(self, pretrained: bool = True) -> Glance:
        """Random weights: there are no others."""
        return Glance(self)


class Glance(Policy):
    """See the top of the file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.trunk = nn.Linear(len(config.cameras) * config.size**2 * 3 + WORDS, config.width)
        self.codes: tuple[int, int] = (0, 0)  # positions and classes
        self.meaning: Meaning | None = None
        self.state: tuple[str, ...] = ()

    def grow(self, codes: tuple[int, int], meaning: Meaning | None, state: tuple[str, ...]) -> None:
        """New heads and a new reader of the state."""
        self.codes, self.meaning, self.state = codes, meaning, state
        width = self.config.width
        self.named = nn.Linear(width, codes[0] * codes[1]) if codes[1] else nn.Identity()
        size = len(meaning.spec) if meaning else 0
        self.moves = nn.Linear(width, self.config.chunk * size) if size else nn.Identity()
        self.felt = nn.Linear(len(state), width) if state else nn.Identity()
        for name in ("centre", "spread"):
            self.register_buffer(name, torch.ones(size))

    @property
    def spec(self) -> PolicySpec:
        """Both cameras always, the state once it acts."""
        acts = self.meaning.spec if self.meaning else None
        return PolicySpec(self.config.cameras, self.state, acts, self.config.chunk, 1)

    def examples(self, labels: Labels, data: Index, about: Mapping[str, Any], recipe: Recipe) -> Examples:
        """Codes alone; what other methods know of actions is not for it."""
        if labels.kind != "codes":
            raise LapaError("The policy glance is pretrained on codes alone.")
        self.grow((labels.values.shape[1], int(about["classes"])), None, ())
        return Examples(data.starts[labels.episode] + labels.frame, labels.values)

    def adapt(self, data: Packed, recipe: Recipe, idm: Path | None = None) -> Examples:
        """The trunk stays; heads are new."""
        refuse_idm(idm)
        self.grow((0, 0), Meaning.of(data, recipe.actions), data.state_names)
        assert self.meaning
        frames = acting_frames(data)
        chunks, pad = chunks_after(data, frames, self.config.chunk)
        chunks = self.meaning.targets(chunks, None if data.state is None else data.state[frames])
        each = chunks[~pad]
        self.centre, self.spread = (torch.from_numpy(x.astype(np.float32)) for x in (each.mean(0), each.std(0) + 1e-3))
        return Examples(frames, np.where(pad[..., None], np.nan, chunks).astype(np.float32))

    def batch(self, seen: Seen, targets: Any) -> Any:
        """Inputs and targets, on the CPU."""
        pictures = [as_pixels(np.stack(list(each)), self.config.size, "cpu") for each in seen.images.values()]
        words = torch.zeros(len(seen), WORDS)
        for row, text in enumerate(seen.texts):
            for word in text.split():
                words[row, zlib.crc32(word.encode()) % WORDS] = 1
        state = None if seen.state is None or not self.state else torch.from_numpy(seen.state)
        told = torch.cat([*(each.flatten(1) for each in pictures), words], 1)
        return told, state, None if targets is None else torch.from_numpy(targets)

    def _hidden(self, told: Tensor, state: Tensor | None) -> Tensor:
        where = self.trunk.weight.device
        hidden = self.trunk(told.to(where))
        return torch.tanh(hidden if state is None else hidden + self.felt(state.to(where)))

    def loss(self, batch: Any) -> tuple[Tensor, Logs]:
        """Cross-entropy of codes, or the squared error of actions over their spread."""
        told, state, targets = batch
        hidden = self._hidden(told, state)
        targets = targets.to(hidden.device)
        if self.codes[1]:
            logits = self.named(hidden).view(-1, *self.codes)
            accuracy = (logits.argmax(-1) == targets).float().mean()
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), {"accuracy": float(accuracy)}
        known = ~targets.isnan()
        said = self.moves(hidden).view_as(targets)
        loss = ((said - (targets - self.centre) / self.spread)[known] ** 2).mean()
        return loss, {"error": float(loss.detach())}

    @torch.no_grad()
    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """See Policy."""
        if self.meaning is None:
            raise LapaError("This policy names codes; finetune it first (lapa finetune).")
        shown = seen(observations, self.spec)
        said = self.moves(self._hidden(*self.batch(shown, None)[:2])).view(len(shown), self.config.chunk, -1)
        actions: Array = (said * self.spread + self.centre).cpu().numpy()
        return self.meaning.robot(actions, shown.state)

    def description(self) -> dict[str, Any]:
        """See Policy."""
        grown = {"codes": self.codes, "meaning": self.meaning and asdict(self.meaning), "state": self.state}
        return {**super().description(), "grown": grown}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """See Policy."""
        grown = saved["grown"]
        self.grow(tuple(grown["codes"]), Meaning.from_json(grown["meaning"]), tuple(grown["state"]))
