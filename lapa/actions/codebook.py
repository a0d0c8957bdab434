"""An action codebook: classes that mean a whole action each.

It is made from actions by k-means. Or labels tell what the classes of a policy, such as latent codes, mean
(actions/readout.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from lapa.actions.readout import regress, similar_classes
from lapa.actions.tables import (
    Decoding,
    Rows,
    as_chunks,
    as_rows,
    norm_preserving,
    squared_lengths,
    two_valued,
    typical_sizes,
)
from lapa.contracts import Array, LapaError


@dataclass(frozen=True)
class ActionCodebook:
    """Classes that mean an action each. A policy acts by the mean of these actions, weighted by its probabilities.

    positions, classes   as the policy predicts them
    means    [positions * classes][chunk * A]: `chunk` actions in the robot's units
    squares  [positions * classes][chunk]: their squared lengths, every dimension measured by its `unit`
    unit     [A]: root mean square of each dimension in the data
    reach    [A][2]: the smallest and the largest value of each dimension in the data, which no action exceeds
    switches [A]: whether a dimension has two values in the data, such as a gripper's. It takes the nearer one, and does
             not count in lengths
    absences [positions * classes]: classes that do not exist, as of a dimension with fewer bins; (): all exist
    """

    positions: int
    classes: int
    means: Rows
    squares: Rows
    unit: tuple[float, ...]
    reach: Rows
    names: tuple[str, ...] = ()
    switches: tuple[bool, ...] = ()
    kind: str = "codebook"
    absences: tuple[bool, ...] = ()

    @staticmethod
    def clusters(actions: Array, classes: int, names: tuple[str, ...] = (), pad: Array | None = None) -> ActionCodebook:
        """The centres of k-means of float [N, A] or chunks [N, chunk, A], always the same for the same actions; fewer
        if there are fewer different ones. pad bool [N, chunk]: actions that there are not, past the end of an episode;
        chunks with such have no part in it. Raises LapaError on non-finite or too few actions."""
        actions = as_chunks(actions) if pad is None else as_chunks(np.asarray(actions)[~pad.any(1)])
        unit = typical_sizes(actions.reshape(-1, actions.shape[-1]).T)
        scaled = (actions / unit).reshape(len(actions), -1)
        classes = min(classes, len(np.unique(scaled, axis=0)))
        some = scaled[np.random.default_rng(0).permutation(len(scaled))[:CLUSTERED]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a cluster that nothing is near to: it does no harm
            centres, _ = kmeans2(some, classes, iter=50, minit="++", rng=0)
        means = centres.reshape(classes, *actions.shape[1:]) * unit
        return ActionCodebook._of(1, means, squared_lengths(means, unit, two_valued(actions)), actions, unit, names)

    @staticmethod
    def from_readout(
        probabilities: Array,
        actions: Array,
        names: tuple[str, ...] = (),
        code_embeddings: Array | Rows = (),
        absences: tuple[bool, ...] = (),
        pad: Array | None = None,
    ) -> ActionCodebook:
        """What the classes of a policy mean, told by its probabilities float [N, positions, classes] for frames whose
        actions float [N, A] or chunks [N, chunk, A] are known: ridge regression, towards no motion. pad as in
        `clusters`: these are left out.

        `code_embeddings` float [positions * classes, k] says which classes are alike. Then the regression is towards a
        linear function of them, which has k + 1 numbers a dimension instead of one for each class. So few labels are
        enough, and the meaning of a class that no label shows follows from its neighbours. Raises LapaError on
        non-finite or too few actions.
        """
        actions = as_chunks(actions)
        rows, positions, _ = probabilities.shape
        here = np.ones(actions.shape[:2], bool) if pad is None else ~pad
        each = actions[here]  # [M, A]
        unit, switches = typical_sizes(each.T), two_valued(each[:, None])
        said = probabilities.reshape(rows, -1).astype(np.float64)
        squares = squared_lengths(actions, unit, switches)
        alone, nowhere = np.eye(said.shape[1]), np.zeros((said.shape[1], 0))
        basis = similar_classes(np.asarray(code_embeddings, np.float64), positions) if len(code_embeddings) else alone
        around = similar_classes(nowhere, positions)  # spread around the means, much the same for all classes
        if here.all():
            means = regress(said, actions.reshape(rows, -1), basis).reshape(-1, *actions.shape[1:])
            inside = squared_lengths(means, unit, switches)
            spread = regress(said, squares - said @ inside, around)
        else:  # step by step, each on the frames that have it
            steps = [(said[some], actions[some, k]) for k, some in enumerate(here.T)]
            means = np.stack([regress(told, known, basis) for told, known in steps], 1)
            inside = squared_lengths(means, unit, switches)
            spread = np.stack(
                [
                    regress(said[some], squares[some, k] - said[some] @ inside[:, k], around)
                    for k, some in enumerate(here.T)
                ],
                1,
            )
        made = ActionCodebook._of(positions, means, inside + np.maximum(spread, 0), each[:, None], unit, names)
        return replace(made, absences=absences)

    @staticmethod
    def _of(
        positions: int, means: Array, squares: Array, actions: Array, unit: Array, names: tuple[str, ...]
    ) -> ActionCodebook:
        low, high = actions.min((0, 1)), actions.max((0, 1))
        return ActionCodebook(
            positions, len(means) // positions, as_rows(means.reshape(len(means), -1)), as_rows(squares),
            tuple(unit.tolist()), as_rows(np.stack([low, high], 1)), names, tuple(two_valued(actions).tolist()),
        )  # fmt: skip

    @property
    def dimensions(self) -> int:
        """A."""
        return len(self.unit)

    def absent(self) -> Array:
        """Classes that are never predicted, bool [positions, classes]."""
        return np.array(self.absences or [False] * (self.positions * self.classes)).reshape(self.positions, -1)

    @property
    def code_embeddings(self) -> Array:
        """As in CodeSpace: the embedding of a class is its action."""
        means = np.array(self.means).reshape(len(self.means), -1, self.dimensions)
        return (means / self.unit).reshape(len(means), -1)

    @property
    def chunk(self) -> int:
        """Actions that a class means, one after the other."""
        return len(self.squares[0])

    def encode(self, actions: Array, pad: Array | None = None) -> Array:
        """float [N, A] or chunks [N, chunk, A] -> int64 [N, 1], the class whose meaning is nearest, as far as there are
        actions (pad bool [N, chunk]: there are not). Raises LapaError if it takes several classes together to mean an
        action."""
        if self.positions > 1:
            raise LapaError(
                f"Here {self.positions} classes mean an action together, so it cannot be put into one. Finetune with "
                "--head linear or --head new."
            )
        unit = np.array(self.unit)
        scaled = np.asarray(actions, np.float64).reshape(len(actions), self.chunk, -1) / unit
        means = np.array(self.means).reshape(-1, self.chunk, self.dimensions) / unit
        found = vq(scaled.reshape(len(actions), -1), means.reshape(len(means), -1))[0].astype(np.int64)
        for row in np.flatnonzero(pad.any(1)) if pad is not None else ():
            here = ~pad[row]  # type: ignore[index]
            found[row] = ((means[:, here] - scaled[row, here]) ** 2).sum((1, 2)).argmin()
        return found[:, None]

    def targets(self, actions: Array, pad: Array) -> Array:
        """Chunks float [N, chunk, A], pad bool [N, chunk] -> int64 [N, 1], the class that fits the existing actions."""
        return self.encode(actions, pad if pad.any() else None)

    def decide(self, probabilities: Array, decoding: Decoding) -> Array:
        """float [B, positions, classes] -> float32 [B, chunk, A], the actions of a policy with these probabilities."""
        if decoding == "centre":
            probabilities = np.eye(self.classes)[probabilities.argmax(-1)]
        said = probabilities.reshape(len(probabilities), -1)
        actions = expected = (said @ np.array(self.means)).reshape(len(said), self.chunk, -1)
        switches, (low, high) = np.array(self.switches or [False] * self.dimensions), np.array(self.reach).T
        if decoding == "norm_preserving":
            unit = np.where(switches, np.inf, self.unit)
            actions = norm_preserving(actions, said @ np.array(self.squares), unit)
        nearer = np.where(expected > (low + high) / 2, high, low)
        return np.where(switches, nearer, np.clip(actions, low, high)).astype(np.float32)


CLUSTERED = 20_000  # actions that k-means looks at, at most
