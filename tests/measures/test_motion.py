"""What codes are compared with, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.measures.motion import Told, baselines, lines, motion, told, verdict


@pytest.fixture(scope="module")
def packed() -> Packed:
    return pack(["tabletop:sim,episodes=40,seed=5"], 24, quiet=True)


def test_r2_by_hand() -> None:
    true = np.array([[0.0, 0.0, 5.0], [2.0, 20.0, 5.0]])
    made = Told.of(np.array([[0.0, 10.0, 5.0], [2.0, 10.0, 5.0]]), true)  # all of the first, nothing of the second
    assert made.each[:2] == (1.0, 0.0)
    assert np.isnan(made.each[2]), "what does not vary has no R^2"
    assert made.mean == 0.5
    assert made.weighted == pytest.approx(1 - 200 / 202)
    assert Told.of(np.ones((4, 1)), np.zeros((4, 1))).weighted == 0.0


def test_deltas_add_up_and_absolute_targets_give_the_change_of_state(packed: Packed) -> None:
    pairs = window_pairs(packed, 0.4)
    rows = np.arange(0, len(pairs), 7)
    summed = motion(packed, pairs, rows)
    assert summed is not None
    assert "action" in summed.what
    assert packed.actions is not None
    first, last = pairs.now[rows[3]], pairs.later[rows[3]]
    assert summed.values[3] == pytest.approx(packed.actions[first:last].sum(0), abs=1e-5)
    assert packed.state is not None
    still = motion(replace(packed, actions=None), pairs, rows)
    assert still is not None
    assert "state" in still.what
    assert still.names == packed.state_names
    assert still.values[3] == pytest.approx(packed.state[last] - packed.state[first], abs=1e-6)
    assert motion(replace(packed, actions=None, state=None), pairs, rows) is None


@pytest.fixture(scope="module")
def gauges(packed: Packed) -> Packed:
    """Two bars as bright as the two numbers of the state, which walk at random: only a difference tells the walk."""
    rng = np.random.default_rng(0)
    state = np.clip(128 + np.cumsum(rng.normal(size=(len(packed), 2)) * 6, 0), 10, 245).round().astype(np.float32)
    frames = np.full((len(packed), 24, 24, 3), 90, np.uint8)
    frames[:, :, :8] = state[:, 0, None, None, None]
    frames[:, :, 16:] = state[:, 1, None, None, None]
    return replace(packed, _maps=(frames,), state=state, state_names=("a", "b"), actions=None)


def test_untrained_features_tell_a_change_as_well_as_they_can(gauges: Packed) -> None:
    pairs = window_pairs(gauges, 0.4)
    rows = np.arange(len(pairs))
    did = motion(gauges, pairs, rows)
    assert did is not None
    test = pairs.episode % 5 == 0
    found = baselines(gauges, pairs, rows, did.values, pairs.episode, test, 16)
    assert list(found) == ["first picture", "difference picture", "k-means of 16"]
    assert found["difference picture"].weighted > 0.99
    assert 0.5 < found["k-means of 16"].weighted < 0.95
    assert found["first picture"].weighted < 0.4
    assert baselines(gauges, pairs, rows, did.values, pairs.episode, test, 16) == found
    assert "k-means of 128" in baselines(gauges, pairs, rows, did.values, pairs.episode, test, 128)
    perfect = told(did.values, did.values, pairs.episode, test)
    assert perfect.weighted > 0.999


def test_the_verdict_names_what_the_codes_do_not_beat() -> None:
    others = {name: Told((value,), value, value) for name, value in (("first picture", 0.2), ("k-means of 64", 0.4))}
    worse, better = (verdict(value, others, "change of the state", 9) for value in (0.3, 0.5))
    assert "no more than the k-means of 64 (0.40)" in worse
    assert "(0.20)" in worse
    assert "no more" not in better
    assert "0.50" in better
    nothing = verdict(-0.01, {"first picture": Told((-0.2,), -0.2, -0.2)}, "optical flow", 3)
    assert "tell nothing of the optical flow" in nothing, "though it is more than the first picture tells"
    assert "first picture -0.20" in nothing
    assert "on 3 held-out episodes" in nothing
    taught = verdict(-0.01, {}, "optical flow", 1, held_out=False)
    assert "on 1 episode that LAQ was trained on, as there are too few to hold any out" in taught
    about = {
        "what": "change of the state", "names": ["elbow", "hand"], "episodes": 9, "verdict": better,
        "rows": {"codes": Told((0.5, float("nan")), 0.5, 0.5).to_json(),
                 **{name: row.to_json() for name, row in others.items()}},
    }  # fmt: skip
    text = "\n".join(lines(about))
    assert "elbow 0.50, hand -" in text
    assert "k-means of 64" in text
