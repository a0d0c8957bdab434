"""Stage 1: what is trained on, and what its codes are held against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lapa
from lapa import stage1_latent_actions as stage1
from lapa.contracts import LapaError
from lapa.data.buffer import Buffer
from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.data.stream import Stream, stream
from lapa.measures.flow import COLUMNS, ROWS
from lapa.models.idm import InverseDynamics
from lapa.models.laq_fit import encode_all
from lapa.models.laq_look import code_table
from lapa.recipe import Recipe
from lapa.stage1_latent_actions import fit_idm, fit_laq
from lapa.training.held_out import is_held_out


@pytest.mark.parametrize("streamed", [False, True])
def test_something_is_left_to_train_on(robot: Path, tiny: Recipe, tmp_path: Path, streamed: bool) -> None:
    data = (stream if streamed else pack)([f"lerobot:{robot}"], 24, quiet=True)
    with pytest.raises(LapaError, match="hold_out=1 "):
        fit_laq(data, replace(tiny, hold_out=1), tmp_path / "laq", 0)


def test_inverse_dynamics_is_judged_by_pairs_of_all_episodes(
    packed: Packed, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one may show a robot that rests, of which an R^2 means nothing."""
    monkeypatch.setattr(stage1, "JUDGED", 12)
    actions = packed.require_actions("this").copy()
    actions[: packed.starts[1]] = 0
    assert fit_idm(replace(packed, actions=actions), tiny, tmp_path / "idm", 0)["train_r2"] > -100


def test_inverse_dynamics_is_standardised_by_what_it_learns(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    """Of absolute actions, far from zero, the change of the state."""
    assert packed.action_spec is not None
    width = len(packed.action_spec)
    rng = np.random.default_rng(0)
    state = (100 + np.cumsum(rng.normal(size=(len(packed), width)), 0)).astype(np.float32)
    spec = replace(packed.action_spec, kinds=("absolute",) * width)
    arm = replace(packed, state=state, actions=state + 1, action_spec=spec, state_names=spec.names)
    fit_idm(arm, tiny, tmp_path / "idm", 0)
    idm, pairs = InverseDynamics.from_pretrained(tmp_path / "idm"), window_pairs(arm, None)
    moved = arm.acted(pairs.now, pairs.later)
    assert moved is not None
    np.testing.assert_allclose(idm.mean.numpy(), moved.mean(0), atol=1e-4)
    np.testing.assert_allclose(idm.scale.numpy(), moved.std(0), rtol=1e-4)


def test_a_stream_holds_out_and_trains_on_the_episodes_that_a_pack_does(
    robot: Path, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def noted(stream: Stream, counts: np.ndarray, reach: np.ndarray, **more: Any) -> Buffer:
        trained.append(np.flatnonzero(counts))
        return Buffer(stream, counts, reach, **more)

    monkeypatch.setattr(stage1, "Buffer", noted)
    recipe = replace(tiny, hold_out=4, quantize=replace(tiny.quantize, steps=1))
    packed, streamed = (
        fit_laq(read([f"lerobot:{robot}"], 24, quiet=True), recipe, tmp_path / read.__name__, 0)
        for read in (pack, stream)
    )
    np.testing.assert_array_equal(trained, [np.flatnonzero(~is_held_out(np.arange(12), 4))])
    assert packed["watched_on"] == streamed["watched_on"]
    assert packed.keys() == streamed.keys()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_videos_that_stand_still_have_nothing_to_beat(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    still = replace(packed, _rows=np.zeros_like(packed._rows))
    assert fit_laq(still, tiny, tmp_path / "laq", 0)["error_over_copy"] == 1


def test_motion_is_the_effectors_or_that_of_the_picture(
    chain: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever column it lies in; joints are no motion in the picture."""
    laq, pairs = lapa.LAQ.from_pretrained(chain / "laq"), window_pairs(packed, 0.2)
    assert packed.state is not None
    assert packed.state_names[:2] == ("effector_x", "effector_y")
    rows = np.arange(64)
    table = code_table(laq, packed, pairs, rows)
    motion = table.motion
    turned = replace(packed, state=packed.state[:, ::-1], state_names=packed.state_names[::-1])
    assert motion is not None
    np.testing.assert_allclose(code_table(laq, turned, pairs, rows).motion, motion[..., ::-1])  # type: ignore[arg-type]
    assert table.flow is None
    assert table.first is not None
    seen = np.unique(encode_all(laq, packed, pairs, rows)[:, 0])
    assert np.array_equal(np.flatnonzero(np.isfinite(table.first).all((1, 2))), seen)
    for names in (("joint_0", "joint_1"), ()):
        joints = replace(packed, state=packed.state[:, :2], state_names=names)
        by_flow = code_table(laq, joints, pairs, rows)
        assert by_flow.flow is not None
        assert by_flow.flow.shape == (len(table.codes), 2, ROWS, COLUMNS)
        np.testing.assert_array_equal(by_flow.codes, table.codes)
        monkeypatch.setattr("lapa.models.laq_look.installed", lambda: False)
        assert code_table(laq, joints, pairs, rows).motion is None
        monkeypatch.undo()
