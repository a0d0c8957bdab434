"""What actions mean over time: kinds told by the data, and actions over a window."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lapa.actions.spec import by_names, described, over_window, parse_kinds, summed, told_by_data
from lapa.contracts import ActionSpec, LapaError


def robot(length: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Deltas of three joints and the state that they lead to, float32 [N, 3] each; a joint does not move."""
    rng = np.random.default_rng(seed)
    steps = (rng.normal(size=(length, 3)) * [0.02, 0.05, 0]).astype(np.float32)
    return steps, np.array([0.3, -1.2, 0.7], np.float32) + np.cumsum(steps, 0) - steps


def test_targets_near_the_state_are_absolute_and_steps_are_not() -> None:
    steps, state = robot()
    assert told_by_data(steps, state) == ("delta",) * 3
    assert told_by_data(state + steps, state) == ("absolute",) * 3, "also the joint that rests"
    assert told_by_data(state + 2 * steps, state) == ("absolute",) * 3, "a target some steps ahead"
    assert told_by_data(state + steps, None) == ("delta",) * 3
    assert told_by_data(state + steps, state[:, :2]) == ("delta",) * 3, "a state of other numbers tells nothing"


def test_names_say_which_numbers_of_the_state_are_the_actions() -> None:
    """Also where the state has more of them, such as velocities, or another order."""
    steps, state = robot()
    more = np.hstack([steps, state[:, ::-1]])
    found = by_names(more, ("a", "b", "c"), ("va", "vb", "vc", "c", "b", "a"))
    assert_array_equal(found, state)
    assert told_by_data(state + steps, found) == ("absolute",) * 3
    assert by_names(more, ("a", "b", "x"), ("va", "vb", "vc", "c", "b", "a")) is more
    assert by_names(None, ("a",), ()) is None
    assert by_names(more, (), ()) is more, "no names tell nothing"


def test_steps_in_units_of_their_own_are_no_targets() -> None:
    steps, state = robot()
    assert told_by_data(steps * 40, state)[:2] == ("delta", "delta"), "as from -1 to 1"


def test_a_dimension_at_rest_at_zero_goes_with_the_others() -> None:
    steps, state = robot()
    nothing = np.zeros((len(steps), 1), np.float32)
    assert told_by_data(np.hstack([steps, nothing]), np.hstack([state, nothing]))[3] == "delta"
    assert told_by_data(np.hstack([state + steps, nothing]), np.hstack([state, nothing]))[3] == "absolute"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0.04, 0.08)])
def test_two_levels_within_a_tolerance_are_binary(low: float, high: float) -> None:
    steps, state = robot()
    shut = np.where(np.arange(len(steps)) % 90 < 40, low, high).astype(np.float64)
    shut[39::90] = (low + high) / 2  # a reading on the way
    shut += np.random.default_rng(1).uniform(-0.02, 0.02, len(shut)) * (high - low)
    acted = np.column_stack([steps, shut]).astype(np.float32)
    assert told_by_data(acted, np.column_stack([state, shut])) == ("delta", "delta", "delta", "binary")
    shut[::10] = (low + high) / 2
    assert told_by_data(np.column_stack([steps, shut]), None)[3] == "delta", "a tenth lies between: no two levels"


def test_over_a_window() -> None:
    actions = np.array([[1, 10, 0], [2, 20, 1], [4, 30, 1], [8, 40, 0]], np.float32)
    state = np.array([[0, 5, 0], [0, 15, 0], [0, 25, 0], [0, 35, 0]], np.float32)
    kinds = ("delta", "absolute", "binary")
    now, later = np.array([0, 1, 2, 3]), np.array([2, 3, 3, 3])
    made = over_window(kinds, actions, state, now, later)
    assert_array_equal(made, [[3, 20, 1], [6, 20, 1], [4, 10, 1], [0, 0, 0]])
    assert_array_equal(over_window(kinds, actions, None, now, later)[:, 1], [20, 30, 30, 40])
    assert made.dtype == np.float32
    assert actions[0, 1] == 10, "the actions stay"


def test_deltas_are_the_sums_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(50, 4)).astype(np.float32)
    now = rng.integers(0, 40, 30)
    later = now + rng.integers(0, 10, 30)
    expected = [actions[a:b].sum(0, dtype=np.float32) for a, b in zip(now, later, strict=True)]
    assert_array_equal(over_window(("delta",) * 4, actions, None, now, later), summed(actions, now, later - now))
    np.testing.assert_allclose(summed(actions, now, later - now), expected, rtol=1e-5, atol=1e-6)  # order of ten sums


def test_kinds_as_options() -> None:
    assert parse_kinds("absolute", 3) == ("absolute",) * 3
    assert parse_kinds("2delta+binary", 3) == ("delta", "delta", "binary")
    assert parse_kinds("delta+binary", 2) == ("delta", "binary")
    for wrong in ("2delta", "relative", "delta+", "", "2delta+2binary"):
        with pytest.raises(LapaError, match="kinds="):
            parse_kinds(wrong, 3)


def test_a_spec_in_words() -> None:
    spec = ActionSpec(("x", "y", "z", "yaw", "grip"), ("delta",) * 4 + ("binary",), 10.0)
    assert described(spec) == "5 numbers at 10 Hz: 4 delta (x, y, z, ..), 1 binary (grip)"
