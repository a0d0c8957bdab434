"""Readings of Tabletop with codes made by hand, where the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapa.analysis.reading import Reading
from lapa.data.pack import pack
from lapa.data.pairs import window_pairs

SECTORS = 24


def sectors(moved: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A perfect alphabet: the direction of a motion, int64 [N, 1]; the last class is none."""
    angle = np.arctan2(moved[:, 1], moved[:, 0]) / (2 * np.pi) % 1
    still = np.linalg.norm(moved, axis=1) < 0.01
    return np.where(still, SECTORS, np.minimum((angle * SECTORS).astype(int), SECTORS - 1))[:, None]


def reading(domain: str, episodes: int = 40) -> Reading:
    """Every pair of some Tabletop videos with perfect codes."""
    packed = pack([f"tabletop:{domain},episodes={episodes},seed=7,size=24"], 24, quiet=True)
    pairs = window_pairs(packed, 0.2)
    rows = np.arange(len(pairs))
    bare = Reading(domain, packed, pairs, rows, np.zeros((len(rows), 1), np.int64), SECTORS + 1)
    return recoded(bare, sectors(bare.moved))


def recoded(r: Reading, codes: np.ndarray[Any, Any], classes: int = SECTORS + 1) -> Reading:
    return Reading(r.name, r.packed, r.pairs, r.rows, codes, classes)
