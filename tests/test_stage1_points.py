"""`lapa track`: points followed through videos of two cameras tell the robot's actions in tasks without labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resuming import killed_after
from safetensors.torch import load_file

from lapa import cli
from lapa.actions.spec import ActionKind
from lapa.contracts import Episode, LapaError
from lapa.data.labelled import read_labels
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.pack import Packed, pack
from lapa.measures.probes import r2
from lapa.models.points import Points, PointsBatch, PointsConfig
from lapa.recipe import Recipe
from lapa.stage1_points import LABELS, track
from lapa.training.loop import Optimisation

SIZE, EPISODES, LENGTH = 48, 14, 24
NAMES = ("dx", "dy", "dz", "gripper")
KINDS: tuple[ActionKind, ...] = ("delta", "delta", "delta", "binary")


def drawn(places: np.ndarray, closed: np.ndarray, axes: tuple[int, int], still: np.ndarray) -> np.ndarray:
    """A hand, red where it is open and yellow where it is closed, before a background that stays."""
    y, x = np.mgrid[:SIZE, :SIZE]
    frames = np.repeat(still[None], len(places), 0)
    for frame, place, shut in zip(frames, places, closed, strict=True):
        u, v = (place[axis] * SIZE for axis in axes)
        near = np.exp(-((x - u) ** 2 + (y - v) ** 2) / 20)[..., None]
        frame[:] = near * np.array([250, 220 if shut else 20, 20]) + (1 - near) * frame
    return frames


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hands that move in space. Episodes 7 on go where the others never do, and something else moves there."""
    path, rng = tmp_path_factory.mktemp("points") / "ds", np.random.default_rng(0)
    stills = [rng.integers(60, 140, (SIZE // 6, SIZE // 6, 3)).repeat(6, 0).repeat(6, 1) for _ in range(2)]
    with LeRobotWriter(path, 10.0, SIZE, NAMES, camera="front", views={"top": (SIZE, SIZE)}, kinds=KINDS) as writer:
        for number in range(EPISODES):
            other = number >= EPISODES // 2
            speed = np.clip(np.cumsum(rng.normal(0, 0.015, (LENGTH, 3)), 0), -0.04, 0.04)
            start = rng.uniform(0.55, 0.7, 3) if other else rng.uniform(0.3, 0.45, 3)
            places = np.clip(start + np.cumsum(speed, 0), 0.1, 0.9)
            closed = np.arange(LENGTH) % 12 > 5
            moved = np.diff(places, axis=0, append=places[-1:])
            frames = [drawn(places, closed, axes, still) for axes, still in zip(((0, 2), (0, 1)), stills, strict=True)]
            if other:
                for each in frames:
                    for t, frame in enumerate(each):
                        frame[2:8, t : t + 6] = (20, 20, 200)
            actions = np.column_stack([100 * moved, closed]).astype(np.float32)
            made = Episode(f"e{number}", frames[0].astype(np.uint8), 10.0, f"task {other}", actions, action_names=NAMES)
            writer.add(made, views={"top": frames[1].astype(np.uint8)})
    return f"lerobot:{path}"


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
    cli.main([*command, "--cameras", "front,top", "--resume"])
    assert "finished already" in capsys.readouterr().out
    for wrong, says in ((command[:3] + command[5:], "--labelled"), ([*command, "--cameras", "front,side"], "side")):
        with pytest.raises(SystemExit):
            cli.main([*wrong, "--out", str(tmp_path / "other")])
        assert says in capsys.readouterr().err
