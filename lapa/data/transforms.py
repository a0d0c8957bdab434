"""Robot actions <-> classes, each transform beside its inverse, saved with the policy, so that the robot gets its own
units back from the same numbers that made the classes.

Three spaces: latent codes (nothing but numbers), equal-mass bins of every action dimension (paper section 4.1, after
RT-2 and OpenVLA), and a vocabulary, in which each class means a whole action. A vocabulary is made from actions, by
clustering them, or read off a policy that has its classes already, such as latent codes. Before that, the actions of
robots that differ in units or speed can be brought to one scale, each by its own statistics.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from lapa.contracts import Array, LapaError

Decoding = Literal["expectation", "full_length", "centre"]
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class CodeSpace:
    """What a latent policy predicts: `codes` positions, each one of `classes` codes.

    places  [codes * classes][k]: where each code lies among the others, in the coordinates of its codebook; (): unknown
    """

    codes: int
    classes: int
    kind: str = "codes"
    places: Rows = ()

    @property
    def positions(self) -> int:
        """How many classes are predicted at once."""
        return self.codes


@dataclass(frozen=True)
class ActionSpace:
    """What a robot policy predicts: `chunk` actions of A dimensions, each dimension in bins.

    edges     for each dimension the increasing bin edges in the robot's units, number of bins + 1 of them; fewer bins
              where values repeat, for a value that fills bins alone has one to itself
    values    for each dimension what its bins decode to, the mean of the data in them; (): the middle of the edges, as
              older policies have it
    switches  [A]: whether a dimension has two values in the data, such as a gripper's: nothing lies between them
    """

    edges: Rows
    names: tuple[str, ...] = ()
    chunk: int = 1
    kind: str = "actions"
    values: Rows = ()
    switches: tuple[bool, ...] = ()

    @staticmethod
    def fit(actions: Array, bins: int, chunk: int = 1, names: tuple[str, ...] = ()) -> ActionSpace:
        """Equal-mass bins of float [N, A] actions. Raises LapaError on non-finite or too few actions."""
        actions = _checked(actions)
        edges, values = zip(*(_bins(column, bins) for column in actions.T), strict=True)
        return ActionSpace(edges, names, chunk, values=values, switches=tuple(_two_valued(actions[:, None]).tolist()))

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
        """The largest number of bins of any dimension."""
        return max(len(e) for e in self.edges) - 1

    @property
    def _switches(self) -> Array:
        """`switches` as bool [A]; those of an older policy are told by their number of bins."""
        return np.array(self.switches or [len(edges) == 3 for edges in self.edges])

    def centres(self) -> Array:
        """What each bin decodes to, float64 [A, classes]; NaN where a dimension has fewer bins."""
        values = self.values or [(np.array(edges[:-1]) + np.array(edges[1:])) / 2 for edges in self.edges]
        table = np.full((self.dimensions, self.classes), np.nan)
        for row, some in zip(table, values, strict=True):
            row[: len(some)] = some
        return table

    @property
    def places(self) -> Array:
        """As a CodeSpace's: a coordinate for every position, on which its bins lie where their centres do."""
        centres = self.centres()
        centres = np.tile(np.nan_to_num(centres / _lengths(centres)[:, None]), (self.chunk, 1))
        return np.einsum("pc,pq->pcq", centres, np.eye(len(centres))).reshape(-1, len(centres))

    def encode(self, actions: Array) -> Array:
        """float [..., A] -> int64 [..., A]; values outside the edges go to the outermost bins."""
        columns = [
            np.clip(np.searchsorted(edges, actions[..., i], side="right") - 1, 0, len(edges) - 2)
            for i, edges in enumerate(self.edges)
        ]
        return np.stack(columns, -1).astype(np.int64)

    def decode(self, classes: Array) -> Array:
        """int64 [..., A] -> float32 [..., A], the bins' centres."""
        return self.centres()[np.arange(self.dimensions), classes].astype(np.float32)

    def decide(self, probabilities: Array, decoding: Decoding) -> Array:
        """float [B, positions, classes] -> float32 [B, chunk, A], the actions that a policy takes who says this."""
        shares = probabilities.reshape(len(probabilities), self.chunk, self.dimensions, -1)
        likeliest = self.decode(shares.argmax(-1))
        if decoding == "centre":
            return likeliest
        expected = self.expect_full_length(shares) if decoding == "full_length" else self.expect(shares)
        return np.where(self._switches, likeliest, expected)

    def expect(self, probabilities: Array) -> Array:
        """float [..., A, classes] -> float32 [..., A], the expected centre: smoother than the likeliest bin."""
        return (probabilities * np.nan_to_num(self.centres())).sum(-1).astype(np.float32)

    def expect_full_length(self, probabilities: Array) -> Array:
        """float [..., A, classes] -> float32 [..., A], the expected centre at its `full_length`, every dimension
        measured by its own bins (switches are none of the length), within the outermost centres."""
        centres = self.centres()
        unit = np.where(self._switches, np.inf, _lengths(centres))
        squared = (probabilities * np.nan_to_num(centres / unit[:, None]) ** 2).sum((-1, -2))
        longer = full_length((probabilities * np.nan_to_num(centres)).sum(-1), squared, unit)
        return np.clip(longer, np.nanmin(centres, 1), np.nanmax(centres, 1)).astype(np.float32)


@dataclass(frozen=True)
class Vocabulary:
    """Classes that mean an action each; what a policy does is what they mean, weighted by its probabilities.

    positions, classes   as the policy predicts them
    means    [positions * classes][chunk * A]: `chunk` actions in the robot's units
    squares  [positions * classes][chunk]: their squared lengths, every dimension measured by its `unit`
    unit     [A]: root mean square of each dimension in the data
    reach    [A][2]: the smallest and the largest value of each dimension in the data, which no action exceeds
    switches [A]: whether a dimension has two values in the data, such as a gripper's: it takes the nearer one, and is
             none of the length
    """

    positions: int
    classes: int
    means: Rows
    squares: Rows
    unit: tuple[float, ...]
    reach: Rows
    names: tuple[str, ...] = ()
    switches: tuple[bool, ...] = ()
    kind: str = "vocabulary"

    @staticmethod
    def clusters(actions: Array, classes: int, names: tuple[str, ...] = ()) -> Vocabulary:
        """The centres of k-means of float [N, A] or chunks [N, chunk, A], always the same for the same actions; fewer
        if there are fewer different ones. Raises LapaError on non-finite or too few actions."""
        actions = _chunks(actions)
        unit = _lengths(actions.reshape(-1, actions.shape[-1]).T)
        scaled = (actions / unit).reshape(len(actions), -1)
        classes = min(classes, len(np.unique(scaled, axis=0)))
        some = scaled[np.random.default_rng(0).permutation(len(scaled))[:CLUSTERED]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a cluster that nothing is near to: it does no harm
            centres, _ = kmeans2(some, classes, iter=50, minit="++", rng=0)
        means = centres.reshape(classes, *actions.shape[1:]) * unit
        return Vocabulary._of(1, means, _squares(means, unit, _two_valued(actions)), actions, unit, names)

    @staticmethod
    def read(
        probabilities: Array, actions: Array, names: tuple[str, ...] = (), places: Array | Rows = ()
    ) -> Vocabulary:
        """What the classes of a policy mean, told by its probabilities float [N, positions, classes] for frames whose
        actions float [N, A] or chunks [N, chunk, A] are known: ridge regression, towards no motion.

        `places` float [positions * classes, k] says which classes are alike. Then it is towards a linear function of
        those instead, which takes k + 1 numbers a dimension in place of one a class: few labels suffice, and a class
        that none of them shows is known from its neighbours. Raises LapaError on non-finite or too few actions.
        """
        actions = _chunks(actions)
        rows, positions, _ = probabilities.shape
        unit, switches = _lengths(actions.reshape(-1, actions.shape[-1]).T), _two_valued(actions)
        said = probabilities.reshape(rows, -1).astype(np.float64)
        known, squares = actions.reshape(rows, -1), _squares(actions, unit, switches)
        alone, nowhere = np.eye(said.shape[1]), np.zeros((said.shape[1], 0))
        basis = _alike(np.asarray(places, np.float64), positions) if len(places) else alone
        means = _told(said, known, basis).reshape(-1, *actions.shape[1:])
        inside = _squares(means, unit, switches)
        spread = _told(said, squares - said @ inside, _alike(nowhere, positions))  # around the means, much the same
        return Vocabulary._of(positions, means, inside + np.maximum(spread, 0), actions, unit, names)

    @staticmethod
    def _of(
        positions: int, means: Array, squares: Array, actions: Array, unit: Array, names: tuple[str, ...]
    ) -> Vocabulary:
        low, high = actions.min((0, 1)), actions.max((0, 1))
        return Vocabulary(positions, len(means) // positions, _rows(means.reshape(len(means), -1)), _rows(squares),
                          tuple(unit.tolist()), _rows(np.stack([low, high], 1)), names,
                          tuple(_two_valued(actions).tolist()))  # fmt: skip

    @property
    def dimensions(self) -> int:
        """A."""
        return len(self.unit)

    @property
    def places(self) -> Array:
        """As a CodeSpace's: the classes lie where their meanings do."""
        means = np.array(self.means).reshape(len(self.means), -1, self.dimensions)
        return (means / self.unit).reshape(len(means), -1)

    @property
    def chunk(self) -> int:
        """Actions that a class means, one after the other."""
        return len(self.squares[0])

    def encode(self, actions: Array) -> Array:
        """float [N, A] or chunks [N, chunk, A] -> int64 [N, 1], the class whose meaning is nearest. Raises LapaError if
        it takes several classes together to mean an action."""
        if self.positions > 1:
            raise LapaError(
                f"Here {self.positions} classes mean an action together, so it cannot be put into one. Finetune with "
                "--head read or --head new."
            )
        unit = np.array(self.unit)
        scaled = (np.asarray(actions, np.float64).reshape(len(actions), self.chunk, -1) / unit).reshape(
            len(actions), -1
        )
        means = (np.array(self.means).reshape(-1, self.chunk, self.dimensions) / unit).reshape(len(self.means), -1)
        return vq(scaled, means)[0].astype(np.int64)[:, None]

    def decide(self, probabilities: Array, decoding: Decoding) -> Array:
        """float [B, positions, classes] -> float32 [B, chunk, A], the actions that a policy takes who says this."""
        if decoding == "centre":
            probabilities = np.eye(self.classes)[probabilities.argmax(-1)]
        said = probabilities.reshape(len(probabilities), -1)
        actions = expected = (said @ np.array(self.means)).reshape(len(said), self.chunk, -1)
        switches, (low, high) = np.array(self.switches or [False] * self.dimensions), np.array(self.reach).T
        if decoding == "full_length":
            unit = np.where(switches, np.inf, self.unit)
            actions = full_length(actions, said @ np.array(self.squares), unit)
        nearer = np.where(expected > (low + high) / 2, high, low)
        return np.where(switches, nearer, np.clip(actions, low, high)).astype(np.float32)


@dataclass(frozen=True)
class Scales:
    """One range of actions per dataset: its 1st and 99th percentile in each dimension, which become -1 and 1 (as
    OpenVLA and Octo do). low, high [D][A], in the units of each of the D datasets."""

    low: Rows
    high: Rows

    @staticmethod
    def of(actions: Array, source: Array) -> Scales:
        """From float [N, A] actions of the datasets int64 [N], which count from 0 and each have some. Raises LapaError
        on non-finite or too few actions."""
        ranges = [np.quantile(_checked(actions[source == i]), (0.01, 0.99), axis=0) for i in range(source.max() + 1)]
        return Scales(_rows(np.stack([low for low, _ in ranges])), _rows(np.stack([high for _, high in ranges])))

    @property
    def datasets(self) -> int:
        """D."""
        return len(self.low)

    def normalise(self, actions: Array, source: Array) -> Array:
        """float [N, ..., A] in the units of the datasets int64 [N] -> float32, the same shape, mostly in -1 to 1."""
        middle, half = self._ranges(source, actions.ndim)
        return ((actions - middle) / half).astype(np.float32)

    def restore(self, actions: Array, source: Array) -> Array:
        """The inverse of `normalise`."""
        middle, half = self._ranges(source, actions.ndim)
        return (actions * half + middle).astype(np.float32)

    def _ranges(self, source: Array, axes: int) -> tuple[Array, Array]:
        """Middle and half width, float64 [N, 1, .., A]; a dimension that does not vary keeps its size."""
        low, high = np.array(self.low)[source], np.array(self.high)[source]
        shape = (len(source), *(1,) * (axes - 2), low.shape[-1])
        half = np.where(high > low, (high - low) / 2, 1.0)
        return ((low + high) / 2).reshape(shape), half.reshape(shape)


CLUSTERED = 20_000  # actions that k-means looks at, at most


def full_length(mean: Array, squared: Array, unit: Array) -> Array:
    """The direction of the mean [..., A] at the length that an action is expected to have, the root of `squared` [...],
    every dimension measured by its unit [A]; one with an infinite unit is none of it and stays.

    Where a policy wavers, the mean of the ways that it wavers between is shorter than each of them, and a robot
    that follows it comes to a halt before the obstacle.
    """
    tiny = np.finfo(np.float32).tiny
    found = ((mean / unit) ** 2).sum(-1)
    longer = mean * np.sqrt(np.maximum(squared, 0.0) / np.maximum(found, tiny))[..., None]
    return np.where(np.isinf(unit), mean, longer)


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


def _two_valued(actions: Array) -> Array:
    """[N, chunk, A] -> bool [A]."""
    return np.array([len(np.unique(column)) == 2 for column in actions.reshape(-1, actions.shape[-1]).T])


TOGETHER, ALONE = 3.0, 0.3  # what classes have in common and what sets one apart, before any label, in frames


def _told(said: Array, known: Array, basis: Array) -> Array:
    """What each of C classes contributes: float64 [C, D], such that said [N, C] times it is known [N, D]; ridge
    regression on the columns of the basis [C, K]."""
    features = said @ basis
    found: Array = basis @ np.linalg.solve(features.T @ features + np.eye(basis.shape[1]), features.T @ known)
    return found


def _alike(places: Array, positions: int) -> Array:
    """Of classes that lie at places [C, k]: the basis [C, 1 + k + C] of functions that are linear in the place, more or
    less (TOGETHER), and differ from that by class, a little (ALONE)."""
    of_position = places.reshape(positions, len(places) // positions, places.shape[1])
    inner = (of_position - of_position.mean(1, keepdims=True)).reshape(places.shape)
    inner = inner / max(np.sqrt((inner**2).sum(1).mean()), np.finfo(np.float32).tiny)
    common = np.concatenate([np.full((len(places), 1), 1 / positions), inner], 1)
    return np.concatenate([np.sqrt(TOGETHER) * common, np.sqrt(ALONE) * np.eye(len(places))], 1)


def _squares(actions: Array, unit: Array, switches: Array) -> Array:
    """[N, chunk, A] -> squared lengths [N, chunk] in units, but for the switches."""
    squares: Array = ((actions / np.where(switches, np.inf, unit)) ** 2).sum(-1)
    return squares


def _lengths(values: Array) -> Array:
    """[A, N] -> float64 [A], the root mean square of what is there, never quite 0."""
    lengths: Array = np.maximum(np.sqrt(np.nanmean(values**2, axis=1)), np.finfo(np.float32).tiny)
    return lengths


def _rows(table: Array) -> Rows:
    return tuple(tuple(row) for row in table.tolist())


def _checked(actions: Array) -> Array:
    """Finite float64 [N, A], at least two."""
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or len(actions) < 2:
        raise LapaError(f"Action classes need at least two actions [N, A]; got shape {actions.shape}.")
    if not np.isfinite(actions).all():
        row, dimension = np.argwhere(~np.isfinite(actions))[0]
        raise LapaError(
            f"Action classes need finite actions; row {row}, dimension {dimension} is {actions[row, dimension]}."
        )
    return actions


def _chunks(actions: Array) -> Array:
    """[N, A] or [N, chunk, A] -> finite float64 [N, chunk, A]."""
    actions = np.asarray(actions, dtype=np.float64)
    actions = actions[:, None] if actions.ndim == 2 else actions
    _checked(actions.reshape(len(actions), -1))
    return actions


Space = CodeSpace | ActionSpace | Vocabulary


def scales_from_json(content: dict[str, Any] | None) -> Scales | None:
    """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else."""
    if content is None:
        return None
    try:
        low, high = np.array(content["low"], np.float64), np.array(content["high"], np.float64)
        if low.ndim != 2 or low.shape != high.shape or not np.isfinite([low, high]).all():
            raise ValueError(f"shapes {low.shape} and {high.shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise LapaError(f"The policy's scales in config.json are not ones lapa wrote ({error}).") from None
    return Scales(_rows(low), _rows(high))


def space_from_json(content: dict[str, Any]) -> Space:
    """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else."""
    try:
        kind, fields = content["kind"], {k: v for k, v in content.items() if k != "kind"}
        if kind == "codes":
            return CodeSpace(**{**fields, "places": _rows(np.array(fields.get("places", ())))})
        if kind == "vocabulary":
            for name in ("means", "squares", "reach"):
                fields[name] = _rows(np.array(fields[name]))
            for name in ("unit", "names", "switches"):
                fields[name] = tuple(fields.get(name, ()))
            return Vocabulary(**fields)
        for name, given in (("edges", fields["edges"]), ("values", fields.get("values", ()))):
            fields[name] = tuple(tuple(float(x) for x in row) for row in given)
        for name in ("names", "switches"):
            fields[name] = tuple(fields.get(name, ()))
        if fields["values"] and [len(v) + 1 for v in fields["values"]] != [len(e) for e in fields["edges"]]:
            raise ValueError("values and edges do not go together")
        return ActionSpace(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise LapaError(f"The policy's space in config.json is not one lapa wrote ({error}).") from None
