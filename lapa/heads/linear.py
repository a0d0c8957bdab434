"""Nothing is trained: labels tell what the classes of a pretrained head mean as actions (ridge regression).

The network is that of the head before it (heads/parallel.py), unchanged. A few trajectories are enough, because classes
with near code embeddings mean similar actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.saved import Space
from lapa.actions.spaces import CodeSpace
from lapa.contracts import Array, Logs
from lapa.heads.parallel import Parallel
from lapa.measures.probes import r2

FOLDS = 10  # parts of the labelled trajectories of which each is left out once


@dataclass(frozen=True)
class Config:
    """Width of the hidden layer of the network that it keeps."""

    readable: ClassVar[bool] = True

    width: int = 256

    def build(self, width: int, space: Space) -> LinearHead:
        """A network of that size; its weights come from the head before it."""
        return LinearHead(width, self.width, space)


LEAST = 2  # frames that classes are read from


class LinearHead(Parallel):
    """See the module's docstring."""

    def read(self, said: Array, chunks: Array, pad: Array, episode: Array, names: tuple[str, ...] = ()) -> Logs:
        """Find out from labels what its classes mean.

        said     float [N, positions, classes]: what it says of N frames
        chunks   float [N, chunk, A]: the actions there; pad bool [N, chunk]: True past the end of the episode
        episode  int64 [N]

        Returns how well: R^2 of these actions, and of those of trajectories that were left out in turn.
        """
        space = self.space
        embeddings = space.embeddings() if isinstance(space, CodeSpace) else space.code_embeddings
        absent = tuple(space.absent().flatten().tolist())
        meaning = ActionCodebook.from_readout(
            said, chunks, names, embeddings, absent if any(absent) else (), pad if pad.any() else None
        )
        whole = np.flatnonzero(~pad.any(1))
        self.space = meaning
        results = {
            "labels": float(len(said)),
            "r2_of_labels": _agreement(meaning.decide(said, "expectation"), chunks, whole),
        }
        fold = np.unique(episode, return_inverse=True)[1] % FOLDS
        if fold.any():  # more than one trajectory
            unseen = np.empty(chunks.shape, np.float32)
            if any((fold != k).sum() < LEAST for k in np.unique(fold)):
                return results  # too little is left to read the classes from
            for k in np.unique(fold):
                rest = fold != k
                others = ActionCodebook.from_readout(
                    said[rest], chunks[rest], code_embeddings=embeddings, pad=pad[rest] if pad.any() else None
                )
                unseen[~rest] = others.decide(said[~rest], "expectation")
            results["r2_left_out"] = _agreement(unseen, chunks, whole)
        return results


def _agreement(acted: Array, chunks: Array, whole: Array) -> float:
    return r2(acted[whole].reshape(len(whole), -1), chunks[whole].reshape(len(whole), -1))
