"""What is opened, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import lerobot_v21

from lapa import cli
from lapa.artefacts.folder import load_artefact, save_artefact
from lapa.contracts import LapaError
from lapa.data.spec import parted
from lapa.explorer import opened, panels, told
from lapa.explorer.opened import Explored, explored
from lapa.explorer.play import begin, own_code, plan, press

HAND = "tabletop:hand,episodes=4,seed=9,size=24"


def test_the_codes_are_those_of_the_laq(one: Explored) -> None:
    reading, laq = one.reading, one.source.laq
    assert len(reading) == len(reading.pairs) > 20
    some = reading.pairs.batch(one.packed, reading.rows[:5])
    np.testing.assert_array_equal(reading.codes[:5], laq.encode(some.now, some.later).cpu().numpy())
    assert one.shares.sum(1) == pytest.approx(1)
    code = tuple(reading.codes[0].tolist())
    assert set(one.having(code)) == set(np.flatnonzero(reading.codes[:, 0] == code[0]))


def test_the_arrow_of_a_code_is_the_mean_motion_of_its_pairs(one: Explored) -> None:
    column = one.reading.codes[:, 0]
    for code in range(one.size):
        if (column == code).any():
            np.testing.assert_allclose(one.arrows[0, code], one.reading.moved[column == code].mean(0))
        else:
            assert np.isnan(one.arrows[0, code]).all()


def test_few_pairs_are_read_if_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = explored([str(folder / "laq")], [HAND], most=7)
    assert len(run.reading) == 7
    assert "7 of" in capsys.readouterr().out


def test_a_policy_brings_its_laq_and_the_videos_of_training(folder: Path, tmp_path: Path) -> None:
    (run,) = explored([str(folder / "latent")])
    assert (run.name, run.policy_name, run.packed.spec) == ("laq", "latent", HAND)
    moved = tmp_path / "moved"
    (folder / "latent").rename(moved)
    try:
        assert explored([str(folder / "laq"), str(moved)], [HAND])[0].policy_name == "moved"
    finally:
        moved.rename(folder / "latent")


def test_paths_with_spaces_come_apart_as_they_were_joined() -> None:
    joined = "video_folder:my clips,fps=5 lerobot:a b c tabletop:hand"
    assert parted(joined) == ("video_folder:my clips,fps=5", "lerobot:a b c", "tabletop:hand")


def test_the_videos_of_training_may_lie_in_a_path_with_spaces(clips: Path, small: list[str], tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "my clips")
    data = ("--dataset", f"video_folder:{tmp_path / 'my clips'}")
    cli.main(["quantize", *data, *small, "--steps", "1", "--out", str(tmp_path / "laq")])
    (run,) = explored([str(tmp_path / "laq")])
    assert run.packed.episodes == 6


def test_a_laq_that_was_moved_together_with_its_policy_is_found(folder: Path, tmp_path: Path) -> None:
    for name in ("laq", "latent"):
        shutil.copytree(folder / name, tmp_path / "elsewhere" / name)
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        assert explored([str(tmp_path / "elsewhere" / "latent")], [HAND])[0].name == "laq"
        (tmp_path / "elsewhere" / "laq").rename(tmp_path / "lost")
        with pytest.raises(LapaError, match="--policy"):
            explored([str(tmp_path / "elsewhere" / "latent")], [HAND])
    finally:
        hidden.rename(folder)


def test_two_runs(folder: Path) -> None:
    runs = explored([str(folder / "laq"), str(folder / "two")], [HAND])
    assert [(run.name, run.positions, run.size) for run in runs] == [("laq", 1, 8), ("two", 2, 5)]
    assert runs[0].policy is None


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    for name, about in {"labels": ("manifest.json", {}), "idm": ("config.json", {"kind": "idm"})}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / about[0]).write_text(json.dumps(about[1]))
        with pytest.raises(LapaError, match=name):
            explored([str(tmp_path / name)], [HAND])
    (tmp_path / "robot").mkdir()
    (tmp_path / "robot/config.json").write_text(json.dumps({"kind": "policy", "space": {"kind": "bins"}}))
    (tmp_path / "robot/model.safetensors").write_bytes(b"")
    with pytest.raises(LapaError, match="robot"):
        explored([str(tmp_path / "robot")], [HAND])
    with pytest.raises(LapaError, match="two policies"):
        explored([str(folder / "laq"), str(folder / "latent"), str(folder / "latent")], [HAND])
    with pytest.raises(LapaError, match="nowhere"):
        explored([str(tmp_path / "nowhere")], [HAND])
    shutil.copytree(folder / "two", tmp_path / "two")
    with pytest.raises(LapaError, match="3 LAQs"):
        explored([str(folder / "laq"), str(folder / "two"), str(tmp_path / "two")], [HAND])


def test_videos_of_one_frame_can_be_played(folder: Path, tmp_path: Path) -> None:
    data = lerobot_v21(tmp_path / "data", lengths=(1, 1))
    (run,) = explored([str(folder / "laq")], [f"lerobot:{data}"], [str(folder / "latent")])
    assert len(run.reading) == 0
    assert run.notes
    assert run.moved is run.flow is run.way is None
    play = press(run, begin(run, 0), (3,))
    assert own_code(run, play) is None
    made = plan(run, play, "a word that nobody has said: zyxwv", steps=2)
    assert (len(made.codes), made.flow, made.way) == (2, None, None)
    assert told.of_code(run, (3,))
    with pytest.raises(LapaError):
        told.of_run(run)
    for text in (
        panels.video(run, 0, None),
        panels.keyboard(run, (3,), 0),
        panels.trail(run, play),
        panels.plan_panel(run, play, made),
        panels.pairs_panel(run, (3,), False, 0, 0)[0],
        panels.map_panel(run, (3,), 0),
        panels.told_panel(told.of_data(run), None, False),
    ):
        assert "nan" not in text.lower()


def test_without_the_library_for_flow(folder: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "installed", lambda: False)
    (run,) = explored([str(folder / "laq")], [f"video_folder:{clips}"], [str(folder / "latent")])
    assert run.moved is run.flow is run.way is None
    assert len(run.reading) > 0
    assert any("lapa[flow]" in note for note in run.notes)
    made = plan(run, begin(run, 0), "push", steps=1)
    assert "note" in panels.plan_panel(run, begin(run, 0), made)


def test_videos_without_states_move_by_flow(folder: Path, clips: Path) -> None:
    pytest.importorskip("cv2", reason="optical flow is not installed")
    (run,) = explored([str(folder / "laq")], [f"video_folder:{clips}"], [str(folder / "latent")])
    assert run.moved is not None
    assert run.did is None
    assert np.isfinite(run.moved.each).all()
    made = plan(run, begin(run, 0), "push", steps=3)
    assert made.flow is not None
    assert made.way is not None
    assert made.flow.shape[:2] == (3, 2)
    assert made.way.shape == (4, 2)


def test_a_decoder_that_was_not_trained_is_told(folder: Path, tmp_path: Path) -> None:
    artefact = load_artefact(folder / "laq", "laq")
    blank: dict[str, Any] = {k: v * 0 if ".out." in k else v for k, v in artefact.tensors.items()}
    save_artefact(tmp_path / "laq", "laq", artefact.config, blank)
    assert any("decoder" in note for note in explored([str(tmp_path / "laq")], [HAND])[0].notes)


def test_the_command_needs_its_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nicegui" else there(name))
    with pytest.raises(SystemExit):
        cli.main(["explore", "runs/laq"])
    assert "lapa[explore]" in capsys.readouterr().err
