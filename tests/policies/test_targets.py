"""Chunks of codes and of actions, from labels of single frames."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lapa.actions.meaning import Meaning
from lapa.actions.numbers import NumberSpace
from lapa.contracts import ActionSpec, Labels, LapaError
from lapa.policies._targets import actions_ahead, codes_ahead, kept_space


def labels(kind: str, order: list[int] | None = None) -> Labels:
    """Episode 0 has frames 0 to 4, episode 1 frames 0 to 2 and 4; a label is 10 * episode + frame, and its negative."""
    episode, frame = np.array([0] * 5 + [1] * 4), np.array([0, 1, 2, 3, 4, 0, 1, 2, 4])
    value = np.stack([10 * episode + frame, -(10 * episode + frame)], 1).astype(np.int64 if kind == "codes" else float)
    rows = np.arange(9) if order is None else np.array(order)
    return Labels(kind, episode[rows], frame[rows], value[rows])


def test_codes_of_the_windows_behind() -> None:
    found = codes_ahead(labels("codes"), np.array([2, 1]), 3)
    assert found.shape == (9, 6)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 14]
    assert found[:, 2].tolist() == [2, 3, 4, -100, -100, 11, 12, -100, -100]  # two frames on, and one
    assert found[:, 4].tolist() == [4, -100, -100, -100, -100, 12, -100, -100, -100]  # nothing behind a gap
    assert np.array_equal(found[:, 3], np.where(found[:, 2] < 0, -100, -found[:, 2]))


def test_the_order_of_the_labels_does_not_matter() -> None:
    order = [8, 3, 1, 0, 7, 2, 6, 5, 4]
    shuffled, known = actions_ahead(labels("actions", order), 3, None)
    straight, known_straight = actions_ahead(labels("actions"), 3, None)
    assert np.array_equal(known, known_straight[order])
    assert np.array_equal(np.where(known[..., None], 0, shuffled), np.where(known[..., None], 0, straight[order]))


def test_changes_of_absolute_actions_add_up() -> None:
    spec = ActionSpec(("joint", "grip"), ("absolute", "delta"), 10.0)
    chunks, pad = actions_ahead(labels("actions"), 3, Meaning(spec, (True, False), ("joint", "grip")))
    assert chunks[1, :, 0].tolist() == [1, 3, 6]
    assert chunks[1, :, 1].tolist() == [-1, -2, -3]
    assert pad[3].tolist() == [False, False, True]


def late_robot(lags: tuple[int, int], offset: float, lengths: tuple[int, ...] = (40, 50, 60)) -> SimpleNamespace:
    """Two joints that are where actions told them to be so many frames later, but for an offset, and a gripper."""
    rng, made = np.random.default_rng(0), []
    for length in lengths:
        state = np.cumsum(np.cumsum(rng.normal(0, 0.1, (length + 9, 3)), 0), 0).astype(np.float32)
        told = np.stack([state[lag : lag + length, i] + offset for i, lag in enumerate(lags)], 1)
        made.append((np.column_stack([told, rng.integers(0, 2, length)]), state[:length]))
    actions, state = (np.concatenate(each).astype(np.float32) for each in zip(*made, strict=True))
    spec = ActionSpec(("a", "b", "grip"), ("absolute", "absolute", "binary"), 10.0)
    return SimpleNamespace(spec="late", action_spec=spec, state=state, state_names=("a", "b", "grip"), actions=actions,
                           starts=np.cumsum([0, *lengths]))  # fmt: skip


@pytest.mark.parametrize("lags", [(3, 1), (0, 2), (1, 1)])
def test_how_late_the_robot_is_where_it_was_told_to_be(lags: tuple[int, int]) -> None:
    """Labels are changes of the state: moved by the lag, they add up to the actions."""
    data = late_robot(lags, 0.25)
    meaning = Meaning.of(data)
    assert meaning is not None
    assert meaning.lag[:2] == lags
    assert meaning.offset[:2] == pytest.approx((0.25, 0.25), abs=1e-5)
    now = np.concatenate([np.arange(a, b - 1) for a, b in zip(data.starts, data.starts[1:], strict=False)])
    episode = np.searchsorted(data.starts, now, side="right") - 1
    changes = np.column_stack([data.state[now + 1, :2] - data.state[now, :2], data.actions[now, 2]])
    chunks, pad = actions_ahead(Labels("actions", episode, now - data.starts[episode], changes), 4, meaning)
    ahead = np.minimum(now[:, None] + np.arange(4), len(data.actions) - 1)
    true = meaning.targets(data.actions[ahead], data.state[now])
    assert chunks[~pad] == pytest.approx(true[~pad], abs=1e-4)
    lost = 3 * (3 + max(max(lags), 1))  # of each episode, in which the last changes are not known
    assert (~pad).all(1).sum() == len(data.actions) - lost
    assert ("0.1 to 0.3 s" in meaning.described_lag()) == (lags == (3, 1))
    assert bool(meaning.described_lag()) == (lags != (1, 1))


def test_episodes_too_short_to_tell_how_late() -> None:
    meaning = Meaning.of(late_robot((3, 1), 0.25, (2, 1)))
    assert meaning is not None
    assert meaning.lag == (1, 1, 1)


def test_what_was_written_before_there_was_a_lag() -> None:
    spec = {"names": ["a"], "kinds": ["absolute"], "hz": 10.0}
    before = Meaning.from_json({"spec": spec, "relative": [True], "state": ["a"]})
    assert before is not None
    assert (before.lag, before.longest, before.described_lag()) == ((), 1, "")
    for wrong in ({"lag": [1, 2]}, {"lag": [-1]}, {"offset": [0.0, 0.0]}):
        with pytest.raises(LapaError, match="lag and offset"):
            Meaning.from_json({"spec": spec, "relative": [True], "state": ["a"], **wrong})


def test_numbers_that_stage_2_held_still(capsys: pytest.CaptureFixture[str]) -> None:
    """As of an arm that no video moves: they get the range of the robot, and the others mean what they meant."""
    rng = np.random.default_rng(0)
    known = rng.normal(0, 1, (500, 2, 3))
    pad, scale = np.zeros((500, 2), bool), np.array([1, 0.001, 1])
    space, kept = kept_space(NumberSpace.fit(known * scale, ("a", "b", "c")), known, pad)
    assert kept
    assert isinstance(space, NumberSpace)
    own = NumberSpace.fit(known * scale)
    assert (space.low[0], space.high[2], space.reach[2]) == (own.low[0], own.high[2], own.reach[2])
    assert (space.low[1], space.high[1]) == (NumberSpace.fit(known).low[1], NumberSpace.fit(known).high[1])
    said = capsys.readouterr().out
    assert "1 of 3 numbers go farther in the labelled episodes than in the labels of stage 2 (b)" in said
    assert "lie outside" not in said
    some, kept = kept_space(NumberSpace.fit(known * np.array([1, 0.4, 1])), known, pad)
    assert kept, "fewer than half"
    assert isinstance(some, NumberSpace)
    assert some.width == pytest.approx(NumberSpace.fit(known).width)
    _, kept = kept_space(NumberSpace.fit(known * np.array([0.4, 0.4, 1])), known, pad)
    assert not kept, "most of them"
    again, kept = kept_space(NumberSpace.fit(known), known, pad)
    assert kept
    assert again == NumberSpace.fit(known)
    other, kept = kept_space(NumberSpace.fit(known * 0.01), known, pad)
    assert not kept, "another robot's units"
    assert other == NumberSpace.fit(known, pad=pad)
    assert "in the range of these labels" in capsys.readouterr().out
