"""Between two looks of the backbone: its last look in each running episode, and plans of every age to learn from.

For heads that look for themselves (heads/fast.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lapa.contracts import Array, Context, Inputs
from lapa.data.features import FrameFeatures
from lapa.data.index import Index

MOST = 10_000  # episodes that are remembered; those that have not been asked about for longest are forgotten


@dataclass
class Look:
    """The readout [D] of the backbone's last look in an episode, the instruction that it read, and how many answers
    have been given since and with it."""

    readout: Tensor
    text: str
    answers: int = 0


class Looks:
    """The last look in each running episode, by its number."""

    def __init__(self) -> None:
        self._last: dict[int, Look] = {}

    def context(
        self, ids: Sequence[int], texts: Sequence[str], every: int, look: Callable[[list[int]], Context]
    ) -> Context:
        """The plans for an answer in each of these episodes. `look(rows)` asks the backbone, for the episodes that are
        new, that have had `every` answers from their last look, or have another instruction now."""
        due = [row for row, (number, text) in enumerate(zip(ids, texts, strict=True)) if self._due(number, text, every)]
        if due:
            for row, readout in zip(due, look(due).readout.unbind(0), strict=True):
                self._last.pop(ids[row], None)
                self._last[ids[row]] = Look(readout, texts[row])
        found = []
        for number in ids:
            last = self._last[number]
            last.answers += 1
            found.append(last.readout)
        for number in list(self._last)[: max(len(self._last) - max(MOST, len(ids)), 0)]:
            del self._last[number]
        readout = torch.stack(found)
        return Context(readout[:, None], torch.ones_like(readout[:, :1], dtype=torch.bool), readout)

    def _due(self, number: int, text: str, every: int) -> bool:
        last = self._last.get(number)
        return last is None or last.answers >= every or last.text != text

    def forget(self, ids: Sequence[int] | None) -> None:
        """These episodes are over (None: all)."""
        for number in list(self._last) if ids is None else ids:
            self._last.pop(number, None)


@dataclass(frozen=True)
class Aged:
    """Targets for Examples whose frames are those of the plans.

    values    [N, ...]: what the head is to answer at each of N frames
    frames    int64 [N]
    each      int64 [M]: which of the N an example is of
    features  what the head sees in all frames of the data, by camera
    state     float32 [T, S] of all frames, as the head reads it, or None
    """

    values: Array
    frames: Array
    each: Array
    features: Mapping[str, FrameFeatures]
    state: Array | None

    def __getitem__(self, rows: Array) -> tuple[Array, Inputs]:
        some = self.each[rows]
        now = self.frames[some]
        shown = {"features": torch.stack([torch.from_numpy(found[now]) for found in self.features.values()], 1)}
        if self.state is not None:
            shown["state"] = torch.from_numpy(self.state[now])
        return self.values[some], shown


def plans(data: Index, frames: Array, oldest: int) -> tuple[Array, Array]:
    """For frames int64 [N] the frames of their plans, of every age from 0 to `oldest` frames, but not from before the
    episode began: frames int64 [N * (oldest + 1)], and which of the N each is of. A random one of these is a frame
    with a plan of random age."""
    first = data.starts[data.episode_of(frames)]
    made = np.maximum(frames[:, None] - np.arange(oldest + 1), first[:, None])
    return made.ravel(), np.repeat(np.arange(len(frames)), oldest + 1)
