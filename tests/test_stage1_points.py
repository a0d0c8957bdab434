"""`lapa track`: points followed through videos of two cameras tell the robot's actions in tasks without labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hands import EPISODES, KINDS, LENGTH, NAMES, SIZE, hands
from PIL import Image
from resuming import killed_after
from safetensors.torch import load_file

from lapa import cli
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.labels import _motions
from lapa.measures.probes import r2
from lapa.models.points import Points, PointsBatch, PointsConfig
from lapa.recipe import Recipe
from lapa.stage1_points import LABELS, track
from lapa.training.loop import Optimisation


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_motions, "STEPS", 300)
    monkeypatch.setattr(_motions, "NETWORKS", 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return hands(tmp_path_factory.mktemp("points") / "ds")


@pytest.fixture
def recipe(tiny: Recipe) -> Recipe:
    points = PointsConfig(encoder="pixels", image_size=SIZE, trackers=2, window=0.1, dropout=0.0)
    return replace(tiny, points=points, fit_points=Optimisation(steps=150, batch_size=16, learning_rate=1e-2))


@pytest.fixture
def packs(root: str) -> tuple[Packed, Packed]:
    cameras = ("front", "top")
    return pack([root], SIZE, quiet=True, cameras=cameras), pack(
        [f"{root},episodes=0-6"], SIZE, quiet=True, cameras=cameras
    )


def test_actions_of_tasks_without_labels(packs: tuple[Packed, Packed], recipe: Recipe, tmp_path: Path) -> None:
    """All of the episodes without labels are somewhere else, and something else moves in them."""
    packed, few = packs
    manifest = track(packed, few, recipe, tmp_path / "run", 0)
    labels, written = read_labels(tmp_path / "run" / LABELS)
    assert written["pairs"] == len(labels.values) == manifest["pairs"] == EPISODES * (LENGTH - 1)
    assert written["meaning"]["spec"]["kinds"] == list(KINDS)
    assert written["action_names"] == list(NAMES)
    actions = packed.require_actions("this")
    rows = packed.starts[labels.episode] + labels.frame
    others = labels.episode >= EPISODES // 2
    told = [r2(labels.values[others][:, [i]], actions[rows[others]][:, [i]]) for i in range(4)]
    assert min(told[:3]) > 0.5, told
    assert told[3] > 0.3, told
    assert written["r2_of_true_actions"] > 0.5


def test_a_killed_run_goes_on(packs: tuple[Packed, Packed], recipe: Recipe, tmp_path: Path) -> None:
    short = replace(recipe, fit_points=replace(recipe.fit_points, steps=4))
    track(*packs, short, tmp_path / "whole", 3)
    killed_after(2, lambda out: track(*packs, short, out, 3), tmp_path / "killed")
    track(*packs, short, tmp_path / "killed", 3)
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(whole[name].equal(killed[name]) for name in whole)
    one, other = (read_labels(tmp_path / name / LABELS)[0].values for name in ("whole", "killed"))
    np.testing.assert_array_equal(one, other)
    more = replace(recipe, fit_points=replace(recipe.fit_points, steps=6))
    track(*packs, more, tmp_path / "killed", 3)
    longer, written = read_labels(tmp_path / "killed" / LABELS)
    assert not np.array_equal(longer.values, one), "a longer run labels anew"
    assert written["source_hash"] == json.loads((tmp_path / "killed/config.json").read_text())["hash"]


def test_a_keypoint_goes_with_the_flow() -> None:
    """Without labels that say anything, it is the flow that a step makes keypoints agree with."""
    torch.manual_seed(0)
    config = PointsConfig(encoder="pixels", encoder_options={"side": 8}, trackers=1, follow=1.0, dropout=0.0)
    model = Points(config, (3, 8, 8), 1, 2)
    now, flow = torch.rand(4, 3, 8, 8), torch.zeros(4, 2, 256)
    still = PointsBatch([now], [now], torch.zeros(4, 2), [now], [now], [flow])
    assert model.loss(still)[1] == {"motion": 0.0, "astray": 0.0}
    moves = still._replace(flow=[flow + 0.5])
    assert model.loss(moves)[1]["astray"] == pytest.approx(0.5)
    assert model.loss(still._replace(motion=torch.ones(4, 2)))[1]["motion"] > 0


def test_what_it_cannot_do_is_said(packs: tuple[Packed, Packed], recipe: Recipe, root: str, tmp_path: Path) -> None:
    packed, few = packs
    absolute = pack([f"{root},episodes=0-6,kinds=absolute"], SIZE, quiet=True)
    with pytest.raises(LapaError, match="reads motions, and these actions are absolute"):
        track(packed, absolute, recipe, tmp_path / "a", 0)
    with pytest.raises(LapaError, match="trackers are at least 1"):
        PointsConfig(trackers=0)
    short = replace(recipe, points=replace(recipe.points, window=60.0))
    with pytest.raises(LapaError, match="no episode is longer than the window"):
        track(packed, few, short, tmp_path / "b", 0)


def test_the_command(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--set", "points.encoder=pixels", "--set", f"points.image_size={SIZE}", "--set", "points.trackers=1"]
    command = [
        "track",
        "--dataset",
        root,
        "--labelled",
        f"{root},episodes=0-6",
        "--steps",
        "2",
        "--out",
        str(out),
        *options,
    ]
    cli.main([*command, "--cameras", "front,top"])
    said = capsys.readouterr().out
    assert f"lapa pretrain --dataset {root} --labels {out}/labels" in said
    assert "sees no depth" not in said
    with Image.open(out / "pictures/points.png") as picture:
        assert picture.width > 8 * 100
    assert json.loads((out / "config.json").read_text())["cameras"] == ["front", "top"]
    otherwise = [f"{root}/,episodes=0-6" if word == f"{root},episodes=0-6" else word for word in command]
    cli.main([*otherwise, "--cameras", "front,top", "--resume"])  # the same data, written otherwise
    assert "finished already" in capsys.readouterr().out
    for wrong, says in ((command[:3] + command[5:], "--labelled"), ([*command, "--cameras", "front,side"], "side")):
        with pytest.raises(SystemExit):
            cli.main([*wrong, "--out", str(tmp_path / "other")])
        assert says in capsys.readouterr().err
