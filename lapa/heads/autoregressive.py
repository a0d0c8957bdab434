"""One class after another, each given those before it: the paper's way to predict codes and actions (section 3.2).

The classes become tokens: each has an embedding, and one linear layer reads the next class off a hidden state. With
`in_backbone` the backbone's language model reads these tokens behind its prompt (LWM); else a small decoder does, which
looks at the backbone's hidden states. Training gives it the right classes before each position (teacher forcing).

With `directions` it first says in words which way to go, "move up and left", and acts given that, as the paper's
Language Table models do after RT-H (actions/directions.py): a class for each axis comes before the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.actions.directions import Directions, spoken
from lapa.actions.meaning import Meaning
from lapa.actions.saved import Space
from lapa.actions.spaces import CodeSpace
from lapa.contracts import Context, Continuation, LapaError, Logs
from lapa.data.observations import say_once
from lapa.heads import Head, cross_entropy, possible
from lapa.heads._decoder import Decoder, inner_width

Choose = Callable[[Tensor, int], Tensor]  # float32 logits [B, classes] at a position -> int64 [B]


@dataclass(frozen=True)
class Config:
    """Where it generates and how it chooses."""

    in_backbone: bool = False
    """generate in the backbone itself, as LWM and LAPA-7B do; else in a decoder of its own"""
    layers: int = 2
    """of the decoder"""
    heads: int = 4
    """attention heads of the decoder, whose width is the backbone's, but at most `width`"""
    width: int = 256
    """largest width of the decoder"""
    stop: int = -1
    """a latent code after which all others are 0, as in the released code, where 2 means the end; -1: none. Of actions
    there is none"""
    sample: bool = False
    """draw each class instead of taking the likeliest, as the released robot server does"""
    top: int = 50
    """of so many likeliest classes"""
    temperature: float = 1.0
    """of the draw"""
    seed: int = 1234
    """of the draws of a process"""
    directions: bool = False
    """say a direction in words before the action; for actions alone, in stage 3"""
    words: dict[str, Any] = field(default_factory=dict)
    """the words of directions, {name of an action's number: [for less, for more]}; {}: by names and kinds"""

    def build(self, width: int, space: Space) -> Autoregressive:
        """A new head for readouts of this width. Raises LapaError on settings that cannot be."""
        if min(self.layers, self.heads, self.width, self.top) < 1 or self.temperature <= 0:
            raise LapaError("autoregressive: layers, heads, width and top are at least 1, temperature above 0.")
        if self.stop < -1 or (isinstance(space, CodeSpace) and self.stop >= space.classes):
            raise LapaError(f"autoregressive: stop {self.stop}: it is one of the {space.classes} codes, or -1.")
        if self.directions:
            spoken(space)
        return Autoregressive(width, self, space)


class Autoregressive(Head):
    """See the module's docstring."""

    def __init__(self, width: int, config: Config, space: Space) -> None:
        super().__init__()
        self.space, self.config = space, config
        inner = width if config.in_backbone else inner_width(width, config)
        self.decoder = None if config.in_backbone else Decoder(width, config, space.positions)
        self.embedding = nn.Embedding(space.classes, inner)
        self.output = nn.Linear(inner, space.classes, bias=False)
        for table in (self.embedding, self.output):
            nn.init.normal_(table.weight, std=inner**-0.5)
        self._draws: torch.Generator | None = None
        self.directions: Directions | None = None  # once `means` has been called, and on request
        self.register_module("word", None)
        self.register_module("tell", None)

    def means(self, meaning: Meaning | None) -> None:
        """See AnyHead: makes what says directions."""
        if not self.config.directions or self.directions is not None:
            return
        self.directions = Directions.of(meaning, self.config.words, spoken(self.space).chunk)
        more, inner = len(self.directions), self.embedding.embedding_dim
        self.word, self.tell = nn.Embedding(3 * more, inner), nn.Linear(inner, 3 * more)
        nn.init.normal_(self.word.weight, std=inner**-0.5)
        if self.decoder is not None:
            self.decoder.prepend(more)
        assert meaning is not None
        say_once(self.directions.told(meaning.spec))

    # --- learning

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """Cross-entropy of each class, given those before it; of directions too, where they are said. Logs: accuracy,
        given the right ones before, and the perplexity of the mean prediction."""
        first, further = self._begin(context)
        given, directions = self.embedding(target[:, :-1].clamp(min=0)), self._directions_of(target)
        if directions is not None:
            given = torch.cat([self._words(directions.clamp(min=0)), given], 1)
        before = further(given) if given.shape[1] else first[:, None][:, :0]
        states = torch.cat([first[:, None].to(before.dtype), before], 1)
        if directions is None:
            return cross_entropy(self._classes(states), target)
        said = self._tell(states[:, : directions.shape[1]])
        loss, logs = cross_entropy(self._classes(states[:, directions.shape[1] :]), target)
        of_directions, its = cross_entropy(said, directions)
        return loss + of_directions, {**logs, "direction_accuracy": its["accuracy"]}

    # --- saying directions

    def _directions_of(self, target: Tensor) -> Tensor | None:
        """The right ones, int64 [B, k]; None where none are said."""
        if self.directions is None:
            return None
        found = self.directions.classes(spoken(self.space), target.cpu().numpy())
        return torch.from_numpy(found).to(target.device)

    def _words(self, classes: Tensor, first: int = 0) -> Tensor:
        """Classes int64 [B, n] of the axes from `first` on -> embeddings [B, n, D]."""
        axis = torch.arange(first, first + classes.shape[1], device=classes.device)
        found: Tensor = self.word(classes + 3 * axis)
        return found

    def _tell(self, states: Tensor, first: int = 0) -> Tensor:
        """Hidden states [B, n, D] before the axes from `first` on -> float32 [B, n, 3]."""
        every = self.tell(states.to(self.tell.weight.dtype)).float().unflatten(-1, (-1, 3))
        axis = torch.arange(states.shape[1], device=states.device)
        found: Tensor = every[:, axis, first + axis]
        return found

    def _said(self, state: Tensor, further: Continuation) -> tuple[Tensor, Tensor]:
        """Directions int64 [B, k], and the hidden state after them, from that before them."""
        said = list[Tensor]()
        for axis in range(len(self.directions or ())):
            logits = self._tell(state[:, None], axis)[:, 0]
            said.append(self._drawn(logits) if self.config.sample else logits.argmax(-1))
            state = further(self._words(said[-1][:, None], axis))[:, 0]
        return torch.stack(said, 1) if said else state.new_zeros(len(state), 0, dtype=torch.int64), state

    def says(self, context: Context) -> list[str]:
        """See AnyHead."""
        if self.directions is None:
            return super().says(context)
        classes = self._said(*self._begin(context))[0]
        return [self.directions.phrase(row) for row in classes.tolist()]

    # --- generating

    @property
    def stop(self) -> int:
        """The code after which all others are 0; -1: none. An action's class is no end."""
        return self.config.stop if isinstance(self.space, CodeSpace) else -1

    def generate(self, context: Context, choose: Choose) -> tuple[Tensor, Tensor]:
        """Classes int64 [B, positions], each `choose`n by its logits, and those logits, float32 [B, positions,
        classes]; after a direction, where it says one."""
        state, further = self._begin(context)
        state = self._said(state, further)[1]
        chosen, logits = list[Tensor](), list[Tensor]()
        for position in range(self.space.positions):
            if position:
                state = further(self.embedding(chosen[-1])[:, None])[:, 0]
            logits.append(self._classes(state[:, None], position)[:, 0])
            chosen.append(choose(logits[-1], position))
        return torch.stack(chosen, 1), torch.stack(logits, 1)

    def logits(self, context: Context) -> Tensor:
        """-> float32 [B, positions, classes], each position given the likeliest classes before it; -inf for classes
        that do not exist."""
        return self.generate(context, lambda logits, _: logits.argmax(-1))[1]

    def predict(self, context: Context) -> Tensor:
        """The classes that it generates, int64 [B, positions]: the likeliest, or drawn ones; after `stop`, zeros."""
        if not self.config.sample:
            classes = self.generate(context, lambda logits, _: logits.argmax(-1))[0]
        else:
            classes = self.generate(context, lambda logits, _: self._drawn(logits))[0]
        if self.stop >= 0:
            ended = (classes == self.stop).cumsum(1)
            classes = classes.masked_fill(ended - (classes == self.stop).long() > 0, 0)
        return classes

    def probabilities(self, context: Context) -> Tensor:
        """-> float32 [B, positions, classes], given the likeliest classes before; all on one class where classes are
        drawn, or may stop."""
        if not self.config.sample and self.stop < 0:
            return super().probabilities(context)
        return F.one_hot(self.predict(context), self.space.classes).float()

    def _drawn(self, logits: Tensor) -> Tensor:
        if self._draws is None:
            self._draws = torch.Generator().manual_seed(self.config.seed)
        scaled = logits.cpu() / self.config.temperature
        least = scaled.topk(min(self.config.top, scaled.shape[-1])).values[:, -1:]
        likely = scaled.masked_fill(scaled < least, -torch.inf).softmax(-1)
        return torch.multinomial(likely, 1, generator=self._draws)[:, 0].to(logits.device)

    def _begin(self, context: Context) -> tuple[Tensor, Continuation]:
        """The hidden state [B, D] that tells the first class, and what reads the classes after it."""
        if self.decoder is not None:
            reads = self.decoder.reading(context)
            return reads.start(), reads
        if context.further is None:
            raise LapaError(
                'This backbone cannot go on after its prompt: leave "in_backbone" out of policy.head_options, or '
                "choose the backbone lwm or hf (hf without recompute=true)."
            )
        return context.readout, context.further

    def _classes(self, states: Tensor, first: int = 0) -> Tensor:
        """Hidden states [B, n, D] at positions from `first` on -> float32 [B, n, classes]."""
        logits = self.output(states.to(self.output.weight.dtype)).float()
        return possible(logits, self.space.absent()[first : first + states.shape[1]])
