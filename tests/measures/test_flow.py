"""The optical flow that stands in for actions where there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lapa.contracts import Array
from lapa.data.observations import _SAID
from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.measures.flow import COLUMNS, ROWS, flow_between, flow_motion
from lapa.models.laq_look import look_at


def textured(size: int, seed: int = 0) -> Array:
    """Blobs of many brightnesses, uint8 [size, size, 3]."""
    small = np.random.default_rng(seed).integers(0, 255, (size // 4, size // 4, 3), np.uint8)
    return np.kron(small, np.ones((4, 4, 1), np.uint8))


@pytest.mark.parametrize(("down", "right"), [(0, 3), (4, 0), (-2, 2)])
def test_what_moves_is_told_in_sides_of_the_picture(down: int, right: int) -> None:
    frame = textured(96)
    found = flow_between(frame, np.roll(frame, (down, right), (0, 1)))
    inside = found[:, 1:-1, 1:-1] * 96
    assert np.median(inside[0]) == pytest.approx(right, abs=0.25)
    assert np.median(inside[1]) == pytest.approx(down, abs=0.25)


def test_only_the_cells_move_in_which_something_moves() -> None:
    frame = textured(96)
    later = frame.copy()
    later[:, 48:] = np.roll(frame[:, 48:], 3, 0)
    found = flow_between(frame, later) * 96
    assert found.shape == (2, ROWS, COLUMNS)
    assert np.abs(found[:, :, : COLUMNS // 2 - 1]).max() < 0.5
    assert np.median(found[1, 1:-1, COLUMNS // 2 + 1 :]) == pytest.approx(3, abs=0.3)


@pytest.fixture(scope="module")
def video() -> Packed:
    """No actions, no state."""
    return replace(pack(["tabletop:sim,episodes=12,seed=5"], 48, quiet=True), actions=None, state=None)


def test_videos_without_actions_are_judged_by_flow(video: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = window_pairs(video, 0.4)
    look = look_at(video, pairs, pairs.episode % 4 == 0, seed=0)
    compared = look.comparison(16)
    assert compared is not None
    did, others = compared
    rows, _ = look.probed
    assert did.values == pytest.approx(flow_motion(video, pairs, rows).values)
    assert did.values.shape == (len(rows), 2 * ROWS * COLUMNS) == (len(rows), len(did.names))
    assert len(others) == 3


def test_a_missing_library_is_said(
    video: Packed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _SAID.clear()
    monkeypatch.setattr("lapa.models.laq_look.installed", lambda: False)
    pairs = window_pairs(video, 0.4)
    assert look_at(video, pairs, pairs.episode % 4 == 0, seed=0).comparison(16) is None
    assert "lapa[flow]" in capsys.readouterr().err
