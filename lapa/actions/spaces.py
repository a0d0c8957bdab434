"""Robot actions <-> classes, each transform beside its inverse. Both are saved with the policy, so the robot gets its
units back by the same numbers that made the classes.

Two spaces are here: latent codes, which are numbers without meaning, and equal-mass bins of every action dimension
(paper section 4.1, after RT-2 and OpenVLA). A third, in which each class means a whole action, is actions/codebook.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapa.actions.tables import Decoding, Rows, checked, norm_preserving, two_valued, typical_sizes
from lapa.contracts import Array


@dataclass(frozen=True)
class CodeSpace:
    """What a latent policy predicts: `codes` positions, each one of `classes` codes.

    code_embeddings  [codes * classes][k]: the coordinates of each code in its codebook;
                     (): unknown
    windows          of how many windows, one behind the other, the codes are predicted
    """

    codes: int
    classes: int
    kind: str = "codes"
    code_embeddings: Rows = ()
    windows: int = 1

    @property
    def positions(self) -> int:
        """How many classes are predicted at once: those of the first window, of the second, .."""
        return self.codes * self.windows

    def absent(self) -> Array:
        """Classes that are never predicted, bool [positions, classes]: none."""
        return np.zeros((self.positions, self.classes), bool)

    def embeddings(self) -> Array:
        """The coordinates of each code at every position, float64 [positions * classes, windows * k]; each window has
        coordinates of its own. [0, 0] where they are unknown."""
        return np.kron(np.eye(self.windows), np.array(self.code_embeddings, np.float64).reshape(
            len(self.code_embeddings), -1)) if self.code_embeddings else np.zeros((0, 0))  # fmt: skip


@dataclass(frozen=True)
class ActionSpace:
    """What a robot policy predicts: `chunk` actions of A dimensions, each dimension in bins.

    edges     for each dimension the increasing bin edges in the robot's units, number of bins + 1 of them; fewer bins
              where values repeat, for a value that fills bins alone has one to itself
    values    for each dimension what its bins decode to, the mean of the data in them; (): the middle of the edges, as
              older policies have it
    switches  [A]: whether a dimension has two values in the data, such as a gripper's: nothing lies between them
    width     classes of the head, where there are more than bins, as in the released policies; 0: as many as bins
    outside   what a class without a bin means, as in the released policies (1); None: such classes are never predicted
    """

    edges: Rows
    names: tuple[str, ...] = ()
    chunk: int = 1
    kind: str = "actions"
    values: Rows = ()
    switches: tuple[bool, ...] = ()
    width: int = 0
    outside: float | None = None

    @staticmethod
    def fit(actions: Array, bins: int, chunk: int = 1, names: tuple[str, ...] = ()) -> ActionSpace:
        """Equal-mass bins of float [N, A] actions. Raises LapaError on non-finite or too few actions."""
        actions = checked(actions)
        edges, values = zip(*(_bins(column, bins) for column in actions.T), strict=True)
        return ActionSpace(edges, names, chunk, values=values, switches=tuple(two_valued(actions[:, None]).tolist()))

    @property
    def dimensions(self) -> int:
        """A."""
        return len(self.edges)

    @property
    def positions(self) -> int:
        """chunk * A."""
        return self.chunk * self.dimensions

    @property
    def classes(self) -> int:
        """The largest number of bins of any dimension, or what the head has."""
        return max(max(len(e) for e in self.edges) - 1, self.width)

    @property
    def _switches(self) -> Array:
        """`switches` as bool [A]; those of an older policy are told by their number of bins."""
        return np.array(self.switches or [len(edges) == 3 for edges in self.edges])

    def centres(self) -> Array:
        """What each class decodes to, float64 [A, classes]; NaN where a dimension has fewer bins, unless `outside`."""
        values = self.values or [(np.array(edges[:-1]) + np.array(edges[1:])) / 2 for edges in self.edges]
        table = np.full((self.dimensions, self.classes), np.nan if self.outside is None else self.outside)
        for row, some in zip(table, values, strict=True):
            row[: len(some)] = some
        return table

    def absent(self) -> Array:
        """Classes that are never predicted, bool [positions, classes]: bins that a dimension does not have."""
        return np.tile(np.isnan(self.centres()), (self.chunk, 1))

    @property
    def code_embeddings(self) -> Array:
        """As in CodeSpace: one coordinate for each position; the place of a bin is its centre."""
        centres = self.centres()
        centres = np.tile(np.nan_to_num(centres / typical_sizes(centres)[:, None]), (self.chunk, 1))
        return np.einsum("pc,pq->pcq", centres, np.eye(len(centres))).reshape(-1, len(centres))

    def encode(self, actions: Array) -> Array:
        """float [..., A] -> int64 [..., A]; values outside the edges go to the outermost bins."""
        columns = [
            np.clip(np.searchsorted(edges, actions[..., i], side="right") - 1, 0, len(edges) - 2)
            for i, edges in enumerate(self.edges)
        ]
        return np.stack(columns, -1).astype(np.int64)

    def targets(self, actions: Array, pad: Array) -> Array:
        """Chunks float [N, chunk, A], pad bool [N, chunk] -> int64 [N, positions], -100 where there is no action."""
        return np.where(pad[..., None], -100, self.encode(actions)).reshape(len(actions), self.positions)

    def decode(self, classes: Array) -> Array:
        """int64 [..., A] -> float32 [..., A], the bins' centres."""
        return self.centres()[np.arange(self.dimensions), classes].astype(np.float32)

    def decide(self, probabilities: Array, decoding: Decoding) -> Array:
        """float [B, positions, classes] -> float32 [B, chunk, A], the actions of a policy with these probabilities."""
        shares = probabilities.reshape(len(probabilities), self.chunk, self.dimensions, -1)
        likeliest = self.decode(shares.argmax(-1))
        if decoding == "centre":
            return likeliest
        expected = self.expect_norm_preserving(shares) if decoding == "norm_preserving" else self.expect(shares)
        return np.where(self._switches, likeliest, expected)

    def expect(self, probabilities: Array) -> Array:
        """float [..., A, classes] -> float32 [..., A], the expected centre: smoother than the likeliest bin."""
        return (probabilities * np.nan_to_num(self.centres())).sum(-1).astype(np.float32)

    def expect_norm_preserving(self, probabilities: Array) -> Array:
        """float [..., A, classes] -> float32 [..., A], the expected centre at its `norm_preserving`, every dimension
        measured by its own bins (switches do not count in lengths), within the outermost centres."""
        centres = self.centres()
        unit = np.where(self._switches, np.inf, typical_sizes(centres))
        squared = (probabilities * np.nan_to_num(centres / unit[:, None]) ** 2).sum((-1, -2))
        longer = norm_preserving((probabilities * np.nan_to_num(centres)).sum(-1), squared, unit)
        return np.clip(longer, np.nanmin(centres, 1), np.nanmax(centres, 1)).astype(np.float32)


def _bins(column: Array, bins: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges and values of the bins of float64 [N]: one for each value where there are few (two for a gripper, however
    few the bins), else of equal mass. A value that fills bins alone, such as the zeros of a robot that mostly rests,
    gets one to itself; it would drag its neighbours along otherwise, or they it."""
    values = np.unique(column)
    between = (values[:-1] + values[1:]) / 2
    if len(values) <= max(bins, 2):
        margin = np.diff(values)[[0, -1]] / 2 if len(values) > 1 else np.array([1e-3, 1e-3])
        return (float(values[0] - margin[0]), *between.tolist(), float(values[-1] + margin[1])), tuple(values.tolist())
    quantiles, times = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)), return_counts=True)
    around = np.concatenate([values[:1], between, values[-1:]])
    alone = np.searchsorted(values, quantiles[times > 1])
    edges = np.unique(np.concatenate([quantiles[times == 1], around[alone], around[alone + 1]]))
    which = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, len(edges) - 2)
    count, total = (np.bincount(which, weights, len(edges) - 1) for weights in (None, column))
    some = count > 0  # beside a value with a bin to itself there may be nothing left
    return (*edges[:-1][some].tolist(), float(edges[-1])), tuple((total[some] / count[some]).tolist())
