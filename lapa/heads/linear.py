"""Nothing is trained: what the classes of a pretrained head mean as actions is read off the labels (ridge regression).

The network is that of the head before it (heads/parallel.py), as it is. A handful of trajectories suffices, for classes
whose code embeddings lie near each other mean similar actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.saved import Space
from lapa.contracts import Array, Logs
from lapa.heads.parallel import Parallel
from lapa.measures.probes import r2

FOLDS = 10  # parts of the labelled trajectories of which each is left out once


@dataclass(frozen=True)
class Config:
    """Width of the hidden layer of the network that it keeps."""

    width: int = 256

    def build(self, width: int, space: Space) -> Linear:
        """A network of that size; its weights come from the head before it."""
        return Linear(width, self.width, space)


class Linear(Parallel):
    """See the module's docstring."""

    def read(self, said: Array, chunks: Array, episode: Array, names: tuple[str, ...] = ()) -> Logs:
        """From now on its classes mean what they are told to by labels.

        said     float [N, positions, classes]: what it says of N frames
        chunks   float [N, chunk, A]: the actions there; episode int64 [N]

        Returns how well: R^2 of these actions, and of those of trajectories that were left out in turn.
        """
        embeddings, absent = self.space.code_embeddings, tuple(self.space.absent().flatten().tolist())
        self.space = ActionCodebook.from_readout(said, chunks, names, embeddings, absent if any(absent) else ())
        results = {
            "labels": float(len(said)),
            "r2_of_labels": _agreement(self.space.decide(said, "expectation"), chunks),
        }
        fold = np.unique(episode, return_inverse=True)[1] % FOLDS
        if fold.any():  # more than one trajectory
            unseen = np.empty(chunks.shape, np.float32)
            for k in np.unique(fold):
                others = ActionCodebook.from_readout(said[fold != k], chunks[fold != k], code_embeddings=embeddings)
                unseen[fold == k] = others.decide(said[fold == k], "expectation")
            results["r2_left_out"] = _agreement(unseen, chunks)
        return results


def _agreement(acted: Array, chunks: Array) -> float:
    return r2(acted.reshape(len(chunks), -1), chunks.reshape(len(chunks), -1))
