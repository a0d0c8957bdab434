"""`lapa label --labelled`: few labels say what LAQ's latent actions mean, and the labels are actions."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hands import KINDS, LENGTH, NAMES, SIZE, hands

from lapa import cli
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.labels import _motions
from lapa.labels._read import Followed, read_actions, read_with_laq
from lapa.measures.probes import r2
from lapa.models.laq import LAQConfig
from lapa.recipe import Recipe
from lapa.stage1_latent_actions import fit_laq

EPISODES = 60
SMALL = LAQConfig(image_size=SIZE, patch_size=6, encoder="pixels", encoder_options={"side": 12}, quant_dim=12, codes=2,
                  codebook_size=8, decoder="unet", unet_width=8)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_motions, "STEPS", 300)
    monkeypatch.setattr(_motions, "NETWORKS", 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return hands(tmp_path_factory.mktemp("hands") / "ds", aside=False, width=60, episodes=EPISODES)


@pytest.fixture(scope="module")
def packs(root: str) -> tuple[Packed, Packed]:
    return pack([root], SIZE, quiet=True), pack([f"{root},episodes=0-39"], SIZE, quiet=True)


@pytest.fixture(scope="module")
def laq(packs: tuple[Packed, Packed], tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("laq") / "run"
    fit_laq(packs[0], replace(tiny, laq=SMALL, window=0.2, starts=()), out, 0)
    return out


def test_actions_of_videos_without_labels(packs: tuple[Packed, Packed], laq: Path, tmp_path: Path) -> None:
    packed, few = packs
    manifest = read_with_laq(packed, few, laq, tmp_path / "labels")
    labels, written = read_labels(tmp_path / "labels")
    assert (written["method"], written["kind"], written["source"]) == ("read", "actions", str(laq))
    assert written["pairs"] == len(labels.values) == manifest["pairs"] == EPISODES * (LENGTH - 1)
    assert written["meaning"]["spec"]["kinds"] == list(KINDS)
    assert written["action_names"] == list(NAMES)
    unseen = labels.episode >= 40
    actions = packed.require_actions("this")[packed.starts[labels.episode] + labels.frame]
    seen_in_front = [0, 2]  # the camera in front sees no depth
    told = [r2(labels.values[unseen][:, [i]], actions[unseen][:, [i]]) for i in seen_in_front]
    assert min(told) > 0.5, told
    assert set(np.unique(labels.values[:, 3])) == {0.0, 1.0}, "a gripper is open or closed"


def test_a_gripper_that_takes_time_to_close(packs: tuple[Packed, Packed], capsys: pytest.CaptureFixture[str]) -> None:
    """It takes half a second, and is seen badly."""
    packed, few = packs
    rng = np.random.default_rng(0)

    def followed(some: Packed) -> Followed:
        wanted, seen = some.require_actions("this")[:, 3], np.zeros(len(some))
        for first, end in pairwise(some.starts):
            for t in range(first + 1, end):
                seen[t] = seen[t - 1] + np.clip(wanted[t - 1] - seen[t - 1], -0.2, 0.2)
        seen += rng.normal(0, 0.4, len(some))
        return Followed(some, rng.normal(size=(len(some), 2)), seen[:, None])

    actions, _ = read_actions(followed(few), followed(packed), 0.1, "this")
    assert "gripper: read from the frames at -0.2, +0.0, +0.1, +0.4 s" in capsys.readouterr().out
    unseen = slice(packed.starts[40], None)
    assert (actions[unseen, 3] == packed.require_actions("this")[unseen, 3]).mean() > 0.8


def test_where_to_be_is_read_as_how_far_to_go(tiny: Recipe, tmp_path: Path) -> None:
    """Of most robots actions are absolute: labels are the changes of the state, as those of VPT and ActionVLA are."""
    root = hands(tmp_path / "ds", aside=False, width=60, episodes=EPISODES, absolute=True)
    packed, few = pack([root], SIZE, quiet=True), pack([f"{root},episodes=0-39"], SIZE, quiet=True)
    fit_laq(packed, replace(tiny, laq=SMALL, window=0.2, starts=()), tmp_path / "laq", 0)
    manifest = read_with_laq(packed, few, tmp_path / "laq", tmp_path / "labels")
    assert manifest["meaning"]["relative"] == (True, True, True, False)
    assert manifest["r2_of_true_actions"] > 0.3
    labels, _ = read_labels(tmp_path / "labels")
    now = packed.starts[labels.episode] + labels.frame
    assert packed.state is not None
    assert packed.actions is not None
    changes, unseen = packed.state[now + 1] - packed.state[now], labels.episode >= 40
    told = [r2(labels.values[unseen][:, [i]], changes[unseen][:, [i]]) for i in (0, 2)]
    assert min(told) > 0.5, told
    mute = replace(packed, state=None, actions=None, action_spec=None)
    read_with_laq(mute, few, tmp_path / "laq", tmp_path / "mute")
    assert np.array_equal(read_labels(tmp_path / "mute")[0].values, labels.values), "videos need neither"
    steps = packed.steps()
    assert steps is not None
    assert steps[now, :3] == pytest.approx(changes[:, :3])
    assert np.array_equal(steps[:, 3], packed.actions[:, 3]), "a gripper is not relative"
    ends = packed.starts[1:] - 1
    assert np.array_equal(steps[ends, :3], steps[ends - 1, :3]), "what comes after the last frame nobody knows"


def test_where_to_be_without_a_state(packs: tuple[Packed, Packed], root: str, laq: Path, tmp_path: Path) -> None:
    few = pack([f"{root},episodes=0-39,kinds=absolute"], SIZE, quiet=True)
    with pytest.raises(LapaError, match="or absolute ones and a state of as many numbers"):
        read_with_laq(packs[0], few, laq, tmp_path / "labels")


def test_the_same_again_and_other_labels(packs: tuple[Packed, Packed], laq: Path, tmp_path: Path) -> None:
    packed, few = packs
    first = read_with_laq(packed, few, laq, tmp_path / "labels")
    assert read_with_laq(packed, few, laq, tmp_path / "labels")["shards"] == first["shards"]
    with pytest.raises(LapaError, match="exists already, with other labels"):
        read_with_laq(packed, few.subset(np.arange(3)), laq, tmp_path / "labels")


def test_a_trained_encoder_has_no_places(packs: tuple[Packed, Packed], tiny: Recipe, tmp_path: Path) -> None:
    fit_laq(packs[0], replace(tiny, starts=()), tmp_path / "laq", 0)
    with pytest.raises(LapaError, match="this LAQ has a trained one"):
        read_with_laq(*packs, tmp_path / "laq", tmp_path / "labels")


def test_the_command(root: str, laq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["label", "--dataset", root, "--source", str(laq), "--labelled", f"{root},episodes=0-39"]
    cli.main([*command, "--out", str(tmp_path / "labels")])
    said = capsys.readouterr().out
    assert f"Labelled {EPISODES * (LENGTH - 1)} frames (actions)" in said
    assert "R^2 of the dataset's own actions" in said
    assert re.search(r"left out: dx 0\.\d+, dy -?\d\.\d+, dz 0\.\d+\. By networks \d+%, \d+%, \d+%", said), said
    for more, says in (
        (["--workers", "2"], "--workers belongs to labels of codes"),
        (["--labelled", f"{root},kinds=absolute"], "takes one robot at a time"),
        (["--dataset", f"{root},stride=2"], "needs one rate"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*command, *more, "--out", str(tmp_path / "other")])
        assert says in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
