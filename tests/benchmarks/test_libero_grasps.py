"""Where a hand fits, and where it can rise with what it holds."""

from __future__ import annotations

import numpy as np
import pytest

from lapa.benchmarks._libero_grasps import NOTHING, Solids, across, aside, grasps
from lapa.contracts import Array


def solids(*boxes: tuple[tuple[float, float, float], tuple[float, float, float], float]) -> Solids:
    """Of (middle, half of each side, turn about the vertical in degrees)."""
    turns = [np.radians(turn) for *_, turn in boxes]
    axes = np.array([[[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]] for t in turns])
    return Solids(np.array([box[0] for box in boxes]), axes, np.array([box[1] for box in boxes]))


def ring(radius: float, height: float) -> Array:
    """float [N, 3]: the wall of a bowl."""
    angles = np.arange(48) * np.pi / 24
    flat = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    return np.concatenate([np.c_[flat, np.full(48, z)] for z in (0.0, height)])


def test_a_turned_wall_is_as_thin_as_it_is() -> None:
    wall = solids(((0, 0, 0.1), (0.1, 0.005, 0.1), 45))
    along = np.array([[0.05, 0.05, 0.1], [-0.06, -0.06, 0.1]])
    beside = np.array([[0.05, -0.05, 0.1], [0.02, 0.0, 0.1]])
    assert (wall.hit(along), wall.hit(beside)) == (2, 0)
    assert wall.hit(beside, room=0.01) == 1, "the second is 0.014 from its middle"
    assert NOTHING.hit(along) == 0


def test_what_is_narrow_is_taken_across() -> None:
    box = np.array([[x, y, z] for x in (-0.02, 0.02) for y in (-0.1, 0.1) for z in (0, 0.06)])
    best = grasps(box, NOTHING)[0]
    np.testing.assert_allclose(np.abs(across(best.angle)), [1, 0], atol=1e-9)
    np.testing.assert_allclose(best.place[:2], 0, atol=1e-9)


@pytest.mark.parametrize("turn", [0, 30, 60])
def test_a_rim_is_taken_where_no_wall_is(turn: float) -> None:
    """A bowl in a tray that is turned: walls at both sides of one direction, room in the other."""
    way = np.array([np.cos(np.radians(turn)), np.sin(np.radians(turn))])
    walls = solids(*(((*(side * 0.08 * way), 0.03), (0.005, 0.3, 0.03), turn) for side in (-1, 1)))
    free, there = grasps(ring(0.06, 0.05), NOTHING)[0], grasps(ring(0.06, 0.05), walls)[0]
    assert abs(there.place[:2] @ way) < 0.03
    assert np.linalg.norm(there.place[:2]) > 0.03
    assert free.angle == 0, "without walls the hand is not turned"


def test_it_rises_beside_what_overhangs() -> None:
    """A shelf over half of a bowl: the way out is the short one, away from it."""
    bowl, hand = ring(0.05, 0.05), np.array([-0.05, 0, 0.03])
    shelf = solids(((0.1, 0, 0.2), (0.09, 0.5, 0.01), 0))
    way = aside(hand, 0.0, bowl, shelf, 0.4)
    assert way[0] < -0.03
    assert way[2] == 0
    assert shelf.hit(bowl + way + [0, 0, 0.17]) == 0
    assert not aside(hand, 0.0, bowl, NOTHING, 0.4).any()
