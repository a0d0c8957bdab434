"""`lapa evaluate --policy P --dataset D`: whom it is judged by, and what is said of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_robots
import numpy as np
import pytest

from lapa import cli
from lapa.contracts import LapaError
from lapa.data.episode_keys import keys_of
from lapa.data.labelled import read_labels
from lapa.data.pack import pack
from lapa.experiments.offline import evaluate_offline, judged, lines
from lapa.measures.offline import HOLD, MEAN, POLICY, RIDGE
from lapa.recipe import Recipe
from lapa.run_folder import begin
from lapa.stage1_latent_actions import fit_idm
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import finetune

LABELLED = "tabletop:sim,episodes=6,seed=4"
WHOLE = "tabletop:sim,episodes=10,seed=4"  # the same six and four more


@pytest.fixture(scope="module")
def policy(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("offline") / "policy"
    recipe = replace(tiny, head="new", clusters=4)
    begin(out, recipe, 0, False, "policy", dataset=(LABELLED,))
    finetune(pack([LABELLED], 24, quiet=True), None, recipe, out, 0)
    return out


def opener(*specs: str) -> Any:
    return lambda size, fit, cameras: pack(specs, size, quiet=True, fit=fit, cameras=cameras)


def test_episodes_that_it_was_taught_are_left_out(policy: Path, tmp_path: Path) -> None:
    made = evaluate_offline(policy, opener(WHOLE), tmp_path)
    assert list(made["rows"]) == [POLICY, HOLD, MEAN, RIDGE]
    assert (made["episodes"], made["left_out"], made["unseen"]) == (4, 6, True)
    assert "6 labelled episodes" in made["fitted_on"]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(made))
    assert (tmp_path / "offline.png").exists()
    assert "flatter" not in "\n".join(lines(made))
    assert evaluate_offline(policy, opener(WHOLE), tmp_path) == made, "the same again, into the same folder"


def test_other_episodes_are_judged_beside_rows_fitted_on_those_it_was_taught(policy: Path, tmp_path: Path) -> None:
    made = evaluate_offline(policy, opener("tabletop:sim,episodes=3,seed=77"), tmp_path)
    assert (made["episodes"], made["unseen"]) == (3, True)
    assert "6 labelled episodes" in made["fitted_on"]
    moved = tmp_path / "moved"
    shutil.copytree(policy, moved)
    (moved / "run.json").unlink()
    made = evaluate_offline(moved, opener("tabletop:sim,episodes=4,seed=77"), tmp_path / "half")
    assert "(2)" in made["fitted_on"]
    assert made["episodes"] == 2


def test_what_was_seen_is_said(policy: Path, tmp_path: Path) -> None:
    made = evaluate_offline(policy, opener(LABELLED), tmp_path)
    assert not made["unseen"]
    assert made["episodes"] == 3, "half fits the rows beside it"
    assert "flatter" in "\n".join(lines(made))
    packed = pack([WHOLE], 24, quiet=True)
    some, unseen = judged(packed, keys_of(packed.subset(np.arange(7))))
    assert unseen
    assert some.tolist() == [7, 8, 9]
    assert np.array_equal(judged(packed, keys_of(packed))[0], np.arange(10))


def test_what_stage_2_was_taught_is_left_out_too(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """True actions, or what was read from a few labelled episodes; codes tell nothing of actions."""
    seven, one = (pack([f"tabletop:sim,episodes={n},seed=4"], 24, quiet=True) for n in (7, 1))
    label(seven, "ground_truth", tmp_path / "true")
    fit_idm(one, tiny, tmp_path / "idm", 0)
    label(seven, str(tmp_path / "idm"), tmp_path / "read")
    for labels, taught in (("true", 7), ("read", 1)):
        out = tmp_path / f"from_{labels}"
        pretrain(seven, *read_labels(tmp_path / labels), tiny, out, 0)
        made = evaluate_offline(out, opener(WHOLE), tmp_path / f"before_{labels}")
        assert (made["left_out"], made["unseen"]) == (taught, True)
    capsys.readouterr()
    own = replace(tiny, head="own", replay=0.0)
    finetune(pack(["tabletop:sim,episodes=5,seed=4"], 24, quiet=True), tmp_path / "from_true", own, tmp_path / "p", 0)
    assert "of 1 of these 1, so this error flatters" in capsys.readouterr().out
    made = evaluate_offline(tmp_path / "p", opener(WHOLE), tmp_path / "after")
    assert (made["left_out"], made["episodes"]) == (7, 3)


def test_rows_are_fitted_on_data_with_as_large_a_state(tiny: Recipe, tmp_path: Path) -> None:
    """The policy's own labelled episodes have no state: half of those that are given are taken."""
    robot = f"hdf5:{made_robots.robomimic(tmp_path / 'robot.hdf5', (12, 13, 14, 15, 16, 17))}"
    recipe, without = replace(tiny, head="new", clusters=4), (f"{robot},episodes=0-1,state=none",)
    begin(tmp_path / "policy", recipe, 0, False, "policy", dataset=without)
    finetune(pack(without, 24, quiet=True), None, recipe, tmp_path / "policy", 0)
    made = evaluate_offline(tmp_path / "policy", opener(f"{robot},episodes=2-5"), tmp_path / "out")
    assert "half of the given episodes (2)" in made["fitted_on"]


def test_refusals(policy: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="no actions"):
        evaluate_offline(policy, opener(f"video_folder:{clips}"), tmp_path / "clips")
    evaluate_offline(policy, opener(WHOLE), tmp_path / "taken")
    with pytest.raises(LapaError, match=rf"taken holds the evaluation on {WHOLE}"):
        evaluate_offline(policy, opener("tabletop:sim,episodes=3,seed=77"), tmp_path / "taken")
    assert json.loads((tmp_path / "taken/results.json").read_text())["dataset"] == WHOLE
    (tmp_path / "taken/notes.txt").write_text("mine")
    with pytest.raises(LapaError, match=r"notes\.txt"):
        evaluate_offline(policy, opener(WHOLE), tmp_path / "taken")


def test_another_robot_is_told(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has as many numbers, and they mean something else."""
    packed = pack([WHOLE], 24, quiet=True)
    assert packed.action_spec is not None
    evaluate_offline(policy, lambda *_: packed, tmp_path / "own")
    assert "is not of the robot" not in capsys.readouterr().err
    other = replace(packed.action_spec, kinds=("absolute",) * 2, names=("pan", "tilt"), hz=30.0)
    moved = replace(packed, action_spec=other, action_names=other.names, spec="camera")
    evaluate_offline(policy, lambda *_: moved, tmp_path / "other")
    said = capsys.readouterr().err
    for words in ("not of the robot in camera", "dx, dy, there pan, tilt", "absolute", "there 30"):
        assert words in said


def test_another_camera_is_told(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where `,camera=wrist` was given for training, and is forgotten here."""
    packed = replace(pack([LABELLED], 24, quiet=True), camera="wrist", cameras=("top", "wrist"))
    finetune(packed, None, replace(tiny, head="new", clusters=4), tmp_path / "policy", 0, rehearse=False)
    for camera in ("wrist", "top"):
        shown = replace(pack([WHOLE], 24, quiet=True), camera=camera, cameras=("top", "wrist"))
        evaluate_offline(tmp_path / "policy", lambda *_, shown=shown: shown, tmp_path / camera)
        assert ("from the camera wrist" in capsys.readouterr().err) == (camera == "top")


def test_by_command(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--policy", str(policy), "--dataset", WHOLE, "--out", str(tmp_path / "out")]
    cli.main(words)
    said = capsys.readouterr().out
    error = json.loads((tmp_path / "out/results.json").read_text())["rows"][POLICY]["error"]
    assert f"{error:.2f}" in said
    assert all(row in said for row in (HOLD, MEAN, RIDGE, "dx"))
    with pytest.raises(SystemExit):
        cli.main([*words, "--episodes", "3"])
    assert "--episodes " in capsys.readouterr().err
