"""Stage 3 that goes on learning stage 2's labels beside the trajectories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from resuming import resumed_equals_unbroken

from lapa import cli
from lapa.artefacts.folder import load_artefact
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.measures.offline import offline
from lapa.policies import Policy
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


def test_a_killed_run_goes_on(packs: tuple[Packed, Packed], recipe: Recipe, made: Path, tmp_path: Path) -> None:
    four = replace(recipe, finetune=replace(recipe.finetune, steps=4))
    resumed_equals_unbroken(
        lambda out: finetune(packs[1], made / "latent", four, out, 7, replay=replay(packs, made)), tmp_path
    )


def test_a_share_is_below_one(recipe: Recipe) -> None:
    with pytest.raises(LapaError, match="from 0 to below 1"):
        replace(recipe, replay=1.0)


def test_a_new_head_has_nothing_to_keep(
    packs: tuple[Packed, Packed], recipe: Recipe, made: Path, tmp_path: Path
) -> None:
    for case, (policy, how) in enumerate(((made / "latent", replace(recipe, head="new")), (None, recipe))):
        with pytest.raises(LapaError, match="this policy gets a new one"):
            finetune(packs[1], policy, how, tmp_path / str(case), 0, replay=replay(packs, made))


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latent, labels = str(made / "latent"), str(made / "labels")
    command = ["finetune", "--dataset", FEW, "--policy", latent, "--head", "own", "--trainable", "all", "--steps", "4"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--labels", labels, "--out", str(tmp_path / "wrong")])
    assert "--videos and --labels belong together" in capsys.readouterr().err
    other = "tabletop:sim,episodes=3,seed=5"
    with pytest.raises(SystemExit):
        cli.main([*command, "--labels", labels, "--videos", other, "--out", str(tmp_path / "wrong")])
    assert "These labels were made from" in capsys.readouterr().err
    cli.main([*command, "--labels", labels, "--videos", VIDEOS, "--out", str(tmp_path / "policy")])
    parents = load_artefact(tmp_path / "policy", "policy").config["provenance"]["parents"]
    assert "ground_truth" in parents
