"""A LAQ with a frozen encoder: its directions and codebooks are fitted to pairs of frames, in minutes and without
gradients (models/directions.py, quantizers). A few labelled episodes may stretch the directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lapa.contracts import Array, LapaError
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex, window_pairs
from lapa.measures.motion import Motion, motion
from lapa.models.laq import LAQ, LAQConfig
from lapa.runtime.distributed import on_first_rank

BLOCK = 4096  # frames at a time
PAIRS = 256  # pairs at a time
DIRECTED = 20_000  # pairs that the directions of a frozen encoder are fitted to, at most
FEWEST_TAUGHT = 3  # labelled episodes


@dataclass(frozen=True)
class Taught:
    """Labelled episodes: their pairs, and what the robot did in these."""

    packed: Packed
    pairs: PairIndex
    did: Motion


def taught_by(labelled: Packed, laq: LAQConfig, window: float) -> Taught:
    """Raises LapaError where they say nothing of the motion, are too few, or nothing would learn from them."""
    if not laq.encoder:
        raise LapaError(
            "--labelled stretches the directions of a frozen encoder, and this LAQ trains its own. Leave it out, or "
            "choose one: --preset video, or --set laq.encoder=NAME."
        )
    pairs = window_pairs(labelled, window)
    did = motion(labelled, pairs, np.arange(len(pairs)))
    if did is None:
        raise LapaError(f"{labelled.spec} has neither actions nor a state, so it teaches nothing of the motion.")
    if (episodes := len(np.unique(pairs.episode))) < FEWEST_TAUGHT:
        raise LapaError(
            f"{labelled.spec} has {episodes} labelled episode{'s' * (episodes > 1)} as long as the window; codes get "
            f"better from some {FEWEST_TAUGHT} on (docs/latents.md). Give more, or leave --labelled out."
        )
    return Taught(labelled, pairs, did)


def fit_codes(laq: LAQ, packed: Packed, pairs: PairIndex, pool: Array, seed: int, taught: Taught | None = None) -> str:
    """Fit the directions and the codebooks of a LAQ with a frozen encoder to the pairs `pool`, int64. Returns what was
    fitted, in words. Raises LapaError where there are too few pairs."""
    directions, seen = laq.directions, features_of(laq, packed)
    assert directions is not None
    rows = np.sort(np.random.default_rng(seed).choice(pool, min(DIRECTED, len(pool)), replace=False))
    # A window of one frame has no middle: it and the next one are the halves, where the episode goes on so long.
    short = pairs.offset[rows] < 2
    inside = pairs.later[rows] + pairs.offset[rows] < packed.starts[pairs.episode[rows] + 1]
    keep = ~short | (inside & (pairs.offset[rows] > 0))
    rows, short = rows[keep], short[keep]
    start, later = pairs.now[rows], pairs.later[rows]
    middle = np.where(short, later, (start + later) // 2)
    end = np.where(short, later + pairs.offset[rows], later)
    correlations = directions.fit(seen[start], seen[middle], seen[end])
    stretched = "" if taught is None else _stretch(laq, taught, seed)
    where = places_of(laq, packed)
    moved = where[pairs.later[rows]] - where[pairs.now[rows]]
    if directions.flow:
        directions.ways.fill_(1)
        way = _ways_of(laq, packed, pairs, rows)
        directions.weigh(moved, way)
        moved = np.concatenate([moved, way * directions.ways.cpu().numpy()], 1)
    laq.quantizer.fit(moved, seed)
    flow = f"The main flow of the picture counts {directions.flow:g} times as much as they. " if directions.flow else ""
    return (
        f"{directions.dim} directions of {directions.name}, fitted to {len(rows):,} windows. The change in one half of "
        f"a window tells that in the other with a correlation of {correlations[0]:.2f} in the first direction and "
        f"{correlations[-1]:.2f} in the last. {stretched}{flow}{laq.quantizer.positions} x {laq.quantizer.size} codes "
        "by k-means."
    )


def _stretch(laq: LAQ, taught: Taught, seed: int) -> str:
    """Stretch the directions by labelled episodes. Returns what to say of it."""
    assert laq.directions is not None
    packed, pairs = taught.packed, taught.pairs
    on_first_rank(lambda: len(features_of(laq, packed)))
    seen = features_of(laq, packed)
    rows = np.random.default_rng(seed).permutation(len(pairs))[:DIRECTED]
    change = seen[pairs.later[rows]].astype(np.float32) - seen[pairs.now[rows]]
    share = laq.directions.stretch(change, taught.did.values[rows], pairs.episode[rows])
    episodes = len(np.unique(pairs.episode))
    return (
        f"Stretched along what tells the {taught.did.what} of {episodes} labelled episodes ({share:.0%} of it in "
        "episodes that are left out). "
    )


def features_of(laq: LAQ, packed: Packed) -> FrameFeatures:
    """What the frozen encoder sees in every frame; from the cache where it is there."""
    directions = laq.directions
    assert directions is not None
    width, key = directions.axes.shape[0], f"{directions.config!r} {directions.config.weights()}"
    return frame_features(packed, directions.features, width, directions.name, key)


def places_of(laq: LAQ, packed: Packed) -> Array:
    """The place of every frame of a pack, float32 [N, dim] (models/directions.py)."""
    assert laq.directions is not None
    seen = features_of(laq, packed)
    parts = [
        laq.directions.place(torch.from_numpy(seen[i : i + BLOCK]).to(laq.device)) for i in range(0, len(seen), BLOCK)
    ]
    return torch.cat(parts).cpu().numpy()


def _ways_of(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array) -> Array:
    """The main flow of the pairs `rows`, float32 [len(rows), 2]; [len(rows), 0] where it does not count."""
    if not laq.config.flow:
        return np.zeros((len(rows), 0), np.float32)
    made = np.empty((len(rows), 2), np.float32)
    for start in range(0, len(rows), PAIRS):
        some = pairs.batch(packed, rows[start : start + PAIRS])
        made[start : start + PAIRS] = laq.ways(some.now, some.later).cpu().numpy()
    return made


def encode_all(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, batch: int = 64) -> Array:
    """Codes int64 [len(rows), s] of the given pairs."""
    if laq.directions is not None:
        where = torch.from_numpy(places_of(laq, packed)).to(laq.device)
        ways = torch.from_numpy(_ways_of(laq, packed, pairs, rows)).to(laq.device)
        return laq.codes_between(where[pairs.now[rows]], where[pairs.later[rows]], ways).cpu().numpy()
    parts = []
    for start in range(0, len(rows), batch):
        some = pairs.batch(packed, rows[start : start + batch])
        parts.append(laq.encode(some.now, some.later).cpu().numpy())
    return np.concatenate(parts)
