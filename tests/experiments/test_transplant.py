"""`lapa study transplant`: codes of one dataset applied to frames of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lapa.contracts import Array, LapaError
from lapa.experiments.transplant import same_way, same_way_by_cell, study_transplant


def _flow(degrees: Array, length: float = 0.1) -> Array:
    """One cell of a 6 x 8 grid moves: float [N, 2, 6, 8]."""
    made = np.zeros((len(degrees), 2, 6, 8))
    made[:, :, 2, 3] = length * np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)
    return made


def test_the_share_that_goes_the_same_way() -> None:
    source = _flow(np.array([0.0, 90, 180, 350]))
    made = _flow(np.array([20.0, 90, 140, 10]))
    assert same_way(source, made) == same_way_by_cell(source, made) == 0.75
    assert same_way(source, _flow(np.array([20.0, 90, 140, 10]), length=1e-6)) == 0  # nothing moves


def test_flows_that_move_in_other_places() -> None:
    source = _flow(np.zeros(3))
    elsewhere = np.roll(source, 3, 3)
    assert same_way(source, elsewhere) == 1
    assert same_way_by_cell(source, elsewhere) == 0


def test_one_dataset_is_no_transplant(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="two datasets"):
        study_transplant("runs/laq", ("tabletop:sim,episodes=2",), tmp_path)
