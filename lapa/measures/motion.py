"""The headline figure of stage 1: how much do the codes tell of what the robot did over the window?

What it did is actions/spec.py's `over_window`: the change of the state where actions are absolute targets, the sum of
deltas, the last value of a switch. R^2 is of episodes on which no probe was fitted. Beside the codes stand three
features that need no training, on the same pairs: the first picture, the difference of the two pictures, and k-means
on the principal components of that difference, with as many clusters as there are codes. Codes that are no better than
these have learnt nothing that a small picture does not tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from lapa.actions.spec import over_window
from lapa.contracts import ActionKind, Array
from lapa.data.images import resized
from lapa.data.index import Index, counted
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex
from lapa.measures.linear import LinearFit, rows_of

PIXELS = 24  # a side, of the pictures that codes are compared with
COMPONENTS = 16  # principal components of the difference picture
CLUSTERS = 256  # at most
LISTED = 40  # dimensions that are told one by one, at most
NOTHING = 0.05  # an R^2 below it says that codes tell nothing
TRIES = 3  # of k-means; the one with the least distances counts
FIRST, DIFFERENCE = "first picture", "difference picture"


@dataclass(frozen=True)
class Told:
    """R^2 of predictions: of each of D targets (NaN where it does not vary), their mean, and all together, which
    weights each by its variance."""

    each: tuple[float, ...]
    mean: float
    weighted: float

    @staticmethod
    def of(predicted: Array, true: Array) -> Told:
        """float [N, D] each. Targets that do not vary at all give 0."""
        spread = np.square(true - true.mean(0)).sum(0)
        missed = np.square(true - predicted).sum(0)
        varies = spread > 1e-9 * max(float(spread.max(initial=0)), 1e-3)
        each = np.where(varies, 1 - missed / np.where(varies, spread, 1), np.nan)
        if not varies.any():
            return Told(tuple(each.tolist()), 0.0, 0.0)
        together = 1 - missed.sum() / spread.sum()
        return Told(tuple(each.tolist()), float(each[varies].mean()), float(together))

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: None in its place."""
        each = [None if np.isnan(value) else value for value in self.each]
        return {"mean": self.mean, "weighted": self.weighted, "each": each}


@dataclass(frozen=True)
class Motion:
    """What the robot did over the window: float64 [N, D], of D names; `what` says it in words."""

    values: Array
    names: tuple[str, ...]
    what: str


def kinds_of(index: Index) -> tuple[ActionKind, ...]:
    """What the actions of a dataset are. () without actions."""
    return index.action_spec.kinds if index.action_spec is not None and index.actions is not None else ()


def motion(packed: Packed, pairs: PairIndex, rows: Array) -> Motion | None:
    """Of the pairs `rows`; the change of the state where there are no actions, None where there is neither."""
    now, later = pairs.now[rows], pairs.later[rows]
    if packed.actions is None:
        if packed.state is None:
            return None
        change = packed.state[later].astype(np.float64) - packed.state[now]
        return Motion(change, _names(packed.state_names, change.shape[1]), "change of the state over the window")
    kinds = kinds_of(packed)
    made = over_window(kinds, packed.actions, packed.state, now, later).astype(np.float64)
    known = packed.state is not None and packed.state.shape[1] == made.shape[1]
    words = {
        "delta": "sum of the actions",
        "absolute": "change of the state" if known else "last target",
        "binary": "last value of the switches",
    }
    what = " and ".join(words[kind] for kind in words if kind in kinds)
    return Motion(made, _names(packed.action_names, made.shape[1]), f"{what} over the window")


def _names(names: tuple[str, ...], width: int) -> tuple[str, ...]:
    return names if len(names) == width else tuple(f"dimension {i}" for i in range(width))


def told(features: Array, targets: Array, episode: Array, test: Array) -> Told:
    """What a linear function of float [N, F] tells of float [N, D] in the rows `test` bool [N]: fitted on the others,
    its penalty chosen on episodes left out among those. No episode may stand on both sides."""
    x, y = rows_of(features, targets)
    return Told.of(LinearFit.fit(x[~test], y[~test], episode[~test])(x[test]), y[test])


def baselines(
    packed: Packed, pairs: PairIndex, rows: Array, targets: Array, episode: Array, test: Array, codes: int
) -> dict[str, Told]:
    """What three features that need no training tell of the same pairs; `codes`: how many there are."""
    first, difference = small_pictures(packed, pairs, rows)
    clusters = min(codes, CLUSTERS, max(2, int((~test).sum()) // 4))
    groups = clustered(difference, ~test, clusters)
    features = {FIRST: first, DIFFERENCE: difference, f"k-means of {clusters}": groups}
    return {name: told(values, targets, episode, test) for name, values in features.items()}


def small_pictures(packed: Packed, pairs: PairIndex, rows: Array) -> tuple[Array, Array]:
    """The first picture, and the later less the first, at PIXELS a side: float32 [N, 3 * PIXELS^2] each."""

    size = min(PIXELS, packed.image_size)

    def small(frames: Array) -> Array:
        parts = [packed.gather(frames[i : i + 256]) for i in range(0, len(frames), 256)]
        return np.stack([resized(frame, size) for part in parts for frame in part]).reshape(len(frames), -1)

    first, last = (small(frames).astype(np.float32) / 255 for frames in (pairs.now[rows], pairs.later[rows]))
    return first, last - first


def clustered(features: Array, fit: Array, clusters: int) -> Array:
    """The k-means cluster of each row of float [N, F] among principal components, as one-hot float32 [N, clusters].

    Components and clusters are made from the rows `fit`. The same input gives the same clusters."""
    centre = features[fit].mean(0)
    x = features[fit].astype(np.float64) - centre
    small = x.shape[1] > len(x)
    _, vectors = np.linalg.eigh(x @ x.T if small else x.T @ x)
    axes = x.T @ vectors[:, -COMPONENTS:] if small else vectors[:, -COMPONENTS:]
    axes /= np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    places = (features - centre) @ axes
    clusters = min(clusters, len(np.unique(places[fit], axis=0)))  # videos may stand still
    best, found = np.inf, places[fit][:clusters]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a cluster that nothing is near to: it does no harm
        for seed in range(TRIES):
            centres, _ = kmeans2(places[fit], clusters, iter=50, minit="++", rng=seed)
            distance = float(np.square(vq(places[fit], centres)[1]).mean())
            if distance < best:
                best, found = distance, centres
    return np.eye(len(found), dtype=np.float32)[vq(places, found)[0]]


def behind(codes: float, others: Mapping[str, Told]) -> list[str]:
    """The rows that codes of this R^2 (by variance) do not beat."""
    return [name for name, row in others.items() if row.weighted >= codes]


def verdict(codes: float, others: Mapping[str, Told], what: str, episodes: int, held_out: bool = True) -> str:
    """In words: what codes of this R^2 (by variance) tell, and which rows they do not beat. held_out: whether LAQ was
    not trained on these episodes."""
    judged = _judged(episodes, held_out)
    listed = {name: f"the {name} ({row.weighted:.2f})" for name, row in others.items()}
    ahead = [listed.pop(name) for name in behind(codes, others)]
    beaten = _and(list(listed.values()))
    if codes < NOTHING:
        rows = _and([f"the {name} {row.weighted:.2f}" for name, row in others.items()])
        return (
            f"The codes tell nothing of the {what} (R^2 {codes:.2f} on {judged}; {rows}). More video of the same "
            "scenes helps."
        )
    begin = f"The codes tell {codes:.2f} of the {what} (R^2 on {judged}), "
    if not ahead:
        return f"{begin}more than {beaten}, which need no training."
    less = f" They tell more than {beaten}." if listed else ""
    return f"{begin}no more than {_and(ahead)}: that needs no training at all.{less}"


def lines(about: Mapping[str, Any]) -> list[str]:
    """The headline (stage1_latent_actions.py `judge`) for people: a line a row, the codes by dimension, the verdict."""
    wide = max(map(len, about["rows"]))
    each = list(zip(about["names"], about["rows"]["codes"]["each"], strict=True))
    by_dimension = ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in each)
    few = len(each) <= LISTED  # else their mean says little: many of them hardly vary
    rows = [
        f"  {name:<{wide}}  " + (f"{row['mean']:5.2f}  " if few else "") + f"{row['weighted']:5.2f}"
        for name, row in about["rows"].items()
    ]
    kinds = "mean of the dimensions, by variance" if few else "by variance"
    return [
        f"R^2 of the {about['what']}, {_judged(about['episodes'], about.get('held_out', True))}: {kinds}",
        *rows,
        *([f"  codes, by dimension: {by_dimension}"] if few else []),
        about["verdict"],
    ]


def _judged(episodes: int, held_out: bool) -> str:
    """The episodes that tell, in words."""
    few = "that LAQ was trained on, as there are too few to hold any out"
    return f"{episodes} held-out episodes" if held_out else f"{counted(episodes, 'episode')} {few}"


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
