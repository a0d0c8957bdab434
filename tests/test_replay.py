"""Stage 3 that goes on learning stage 2's labels beside the trajectories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resuming import resumed_equals_unbroken

from lapa import cli
from lapa.artefacts.folder import load_artefact
from lapa.contracts import Labels, LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.measures.offline import offline
from lapa.policies import Examples, Policy, look
from lapa.policies.vla import VLA
from lapa.recipe import Recipe
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import Replay, finetune

VIDEOS, FEW = "tabletop:sim,episodes=12,seed=4", "tabletop:sim,episodes=2,seed=9"


@pytest.fixture(scope="module")
def packs() -> tuple[Packed, Packed]:
    return pack([VIDEOS], 24, quiet=True), pack([FEW], 24, quiet=True)


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return replace(tiny, head="own", clusters=4, trainable="all", pretrain=replace(tiny.pretrain, steps=150),
                   finetune=replace(tiny.finetune, steps=60))  # fmt: skip


@pytest.fixture(scope="module")
def made(packs: tuple[Packed, Packed], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of the true actions and a policy of stage 2 that has learnt them, as ActionVLA's."""
    out = tmp_path_factory.mktemp("made")
    label(packs[0], "ground_truth", out / "labels")
    labels, manifest = read_labels(out / "labels")
    pretrain(packs[0], labels, manifest, recipe, out / "latent", 0)
    return out


def replay(packs: tuple[Packed, Packed], made: Path, share: float = 0.5) -> Replay:
    return Replay(packs[0], *read_labels(made / "labels"), share)


def test_what_stage_2_taught_is_kept(
    packs: tuple[Packed, Packed], recipe: Recipe, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(packs[1], made / "latent", recipe, tmp_path / "alone", 0)
    finetune(packs[1], made / "latent", recipe, tmp_path / "both", 0, replay=replay(packs, made))
    assert "50% of the steps learn stage 2's labels of 12 videos again" in capsys.readouterr().err
    each, few = np.arange(12), (packs[1], np.arange(2))
    alone, both = (
        offline(Policy.from_pretrained(tmp_path / name), packs[0], each, few)["rows"]["policy"]["error"]
        for name in ("alone", "both")
    )
    assert both < alone


def of_codes(packs: tuple[Packed, Packed], share: float = 0.5) -> Replay:
    """Latent actions that can be learnt: in which of four quarters the motion of 0.2 s points."""
    actions, starts = packs[0].require_actions("test"), packs[0].starts
    count = np.diff(starts) - 1
    episode = np.repeat(np.arange(12), count)
    frame = np.concatenate([np.arange(n) for n in count])
    values = (actions[starts[episode] + frame] > 0) @ np.array([[1], [2]])
    manifest = {"fingerprint": packs[0].fingerprint, "classes": 4, "window_seconds": 0.2, "source": "quarters",
                "source_hash": "0", "method": "lapa"}  # fmt: skip
    return Replay(packs[0], Labels("codes", episode, frame, values.astype(np.int64)), manifest, share)


@pytest.fixture(scope="module")
def latent(packs: tuple[Packed, Packed], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of stage 2 that has learnt these, as LAPA's."""
    out, codes = tmp_path_factory.mktemp("latent"), of_codes(packs)
    pretrain(packs[0], codes.labels, codes.manifest, recipe, out, 0)
    return out


def test_latent_actions_go_on_being_learnt_beside_a_new_head(
    packs: tuple[Packed, Packed], recipe: Recipe, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, told = of_codes(packs, 0.8), []

    def finish(policy: VLA) -> None:
        """The loss of the latent head on the codes at the end."""
        policy.eval()
        rows = np.arange(0, len(codes.labels.values), 3)
        found = policy.again(codes.labels, packs[0], codes.manifest, Examples(rows, None, dropped=latent_head))
        batch = policy.batch(look(packs[0], found.frames[rows], policy.spec), found.targets[rows])
        told.append(policy.loss(batch)[0].item())
        end(policy)

    def grow(policy: VLA, space: Any) -> None:
        nonlocal latent_head
        latent_head = policy.head
        put(policy, space)

    latent_head: Any = None
    end, put = VLA.finish, VLA.grow
    monkeypatch.setattr(VLA, "finish", finish)
    monkeypatch.setattr(VLA, "grow", grow)
    for name, beside in (("alone", None), ("both", codes)):
        finetune(packs[1], latent, recipe, tmp_path / name, 0, replay=beside)
    assert told[1] < told[0]
    saved = load_artefact(tmp_path / "both", "policy")
    assert not any("latent" in name for name in saved.tensors)
    assert saved.config["provenance"]["parents"]["quarters"] == "0"
    assert Policy.from_pretrained(tmp_path / "both").dimensions == 2
    finetune(packs[1], latent, replace(recipe, head="new"), tmp_path / "new", 0, replay=codes)
    new = load_artefact(tmp_path / "new", "policy")
    assert all((new.tensors[name] == saved.tensors[name]).all() for name in new.tensors), "a latent head is always new"


def test_a_killed_run_goes_on(
    packs: tuple[Packed, Packed], recipe: Recipe, made: Path, latent: Path, tmp_path: Path
) -> None:
    four = replace(recipe, finetune=replace(recipe.finetune, steps=4))
    for name, policy, again in (("actions", made / "latent", replay(packs, made)), ("codes", latent, of_codes(packs))):
        resumed_equals_unbroken(lambda out, p=policy, a=again: finetune(packs[1], p, four, out, 7, replay=a),
                                tmp_path / name)  # fmt: skip


def test_codes_are_not_for_a_policy_of_actions(
    packs: tuple[Packed, Packed], recipe: Recipe, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(LapaError, match="These labels are codes"):
        finetune(packs[1], made / "latent", recipe, tmp_path, 0, replay=of_codes(packs))


def test_codes_mean_nothing_to_a_new_head_alone(
    packs: tuple[Packed, Packed], recipe: Recipe, latent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(packs[1], latent, replace(recipe, trainable="head"), tmp_path, 0, replay=of_codes(packs))
    assert "the new head alone is trained, which does not answer them" in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"state": None}, {"state_names": ("a", "b")}, {"camera": "other"}])
def test_videos_need_neither_the_state_nor_the_name_of_the_camera(
    packs: tuple[Packed, Packed], recipe: Recipe, latent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    other: dict[str, Any],
) -> None:  # fmt: skip
    videos, robot = replace(packs[0], spec=f"videos of another {[*other]}", **other), replace(packs[1], camera="top")
    finetune(robot, latent, recipe, tmp_path / "policy", 0, changes={"state": True},
             replay=replace(of_codes(packs), packed=videos))  # fmt: skip
    mean = "has no such state: of these videos the policy is shown the mean one" in capsys.readouterr().err
    assert mean == ("camera" not in other)
    spec = Policy.from_pretrained(tmp_path / "policy").spec
    assert spec.cameras == ("top",)
    assert packs[1].state is not None
    assert len(spec.state) == packs[1].state.shape[1]


def test_a_share_is_below_one(recipe: Recipe) -> None:
    with pytest.raises(LapaError, match="from 0 to below 1"):
        replace(recipe, replay=1.0)


def test_a_new_head_has_nothing_to_keep(
    packs: tuple[Packed, Packed], recipe: Recipe, made: Path, tmp_path: Path
) -> None:
    for case, (policy, how) in enumerate(((made / "latent", replace(recipe, head="new")), (None, recipe))):
        with pytest.raises(LapaError, match="this one begins anew"):
            finetune(packs[1], policy, how, tmp_path / str(case), 0, replay=replay(packs, made))


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latent, labels = str(made / "latent"), str(made / "labels")
    command = ["finetune", "--dataset", FEW, "--policy", latent, "--head", "own", "--trainable", "all", "--steps", "4"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--labels", labels, "--out", str(tmp_path / "wrong")])
    assert "--videos and --labels belong together" in capsys.readouterr().err
    reading = ["finetune", "--dataset", FEW, "--policy", latent, "--head", "linear"]
    with pytest.raises(SystemExit):
        cli.main([*reading, "--labels", labels, "--videos", VIDEOS, "--out", str(tmp_path / "wrong")])
    assert "--labels is for training; --head linear trains nothing" in capsys.readouterr().err
    other = "tabletop:sim,episodes=3,seed=5"
    with pytest.raises(SystemExit):
        cli.main([*command, "--labels", labels, "--videos", other, "--out", str(tmp_path / "wrong")])
    assert "These labels were made from" in capsys.readouterr().err
    cli.main([*command, "--labels", labels, "--videos", VIDEOS, "--out", str(tmp_path / "policy")])
    parents = load_artefact(tmp_path / "policy", "policy").config["provenance"]["parents"]
    assert "ground_truth" in parents
