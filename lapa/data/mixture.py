"""Which rows a training step draws: all alike, or datasets by their weights whatever their sizes."""

from __future__ import annotations

import numpy as np

from lapa.contracts import Array, LapaError
from lapa.data.index import Index


class Mixture:
    """Rows to draw from, row i belonging to episode[i] (int64 [N]) of `packed`.

    Without weights every row is as likely as any other, so a dataset counts by its length. With them a dataset is
    drawn by its weight first, then one of its rows. Raises LapaError when a weighted dataset has no row.
    """

    def __init__(self, packed: Index, episode: Array) -> None:
        self._size, self._shares = len(episode), None
        if packed.weights is None:
            return
        source = packed.source[episode]
        self._rows = np.argsort(source, kind="stable")  # dataset after dataset
        self._counts = np.bincount(source, minlength=len(packed.weights))
        self._starts = np.cumsum(self._counts) - self._counts
        if not self._counts.all():
            missing = int(np.flatnonzero(self._counts == 0)[0])
            raise LapaError(
                f"Dataset {missing + 1} of {packed.spec} has a weight but no episode to train on here: those that are "
                "too short and those that are held out (hold_out) do not count. Give it more episodes, or no weight."
            )
        self._shares = np.array(packed.weights) / np.sum(packed.weights)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Rows int64 [count], with replacement."""
        if self._shares is None:
            return rng.integers(self._size, size=count)
        source = rng.choice(len(self._shares), size=count, p=self._shares)
        return self._rows[self._starts[source] + rng.integers(self._counts[source])]
