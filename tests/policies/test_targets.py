"""Chunks of codes and of actions, from labels of single frames."""

from __future__ import annotations

import numpy as np
import pytest

from lapa.actions.meaning import Meaning
from lapa.actions.numbers import NumberSpace
from lapa.contracts import ActionSpec, Labels
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
    many = np.concatenate([known, known[::-1]], 2)
    some, kept = kept_space(NumberSpace.fit(many * np.array([1, 0.4, 1, 1, 1, 1])), many, pad)
    assert kept, "one of six"
    assert isinstance(some, NumberSpace)
    assert some.width == pytest.approx(NumberSpace.fit(many).width)
    _, kept = kept_space(NumberSpace.fit(known * np.array([1, 0.4, 1])), known, pad)
    assert not kept, "one of three"
    again, kept = kept_space(NumberSpace.fit(known), known, pad)
    assert kept
    assert again == NumberSpace.fit(known)
    other, kept = kept_space(NumberSpace.fit(known * 0.01), known, pad)
    assert not kept, "another robot's units"
    assert other == NumberSpace.fit(known, pad=pad)
    assert "in the range of these labels" in capsys.readouterr().out
