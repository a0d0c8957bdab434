"""Stage 2b: labels that do not belong to these videos are refused, whatever the size at which they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lapa import cli
from lapa.artefacts.folder import load_artefact
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.recipe import Recipe, override
from lapa.stage1_latent_actions import fit_idm, fit_laq
from lapa.stage2_label import label
from lapa.stage2_pretrain import check_labels, pretrain


def test_labels_of_other_data(chain: Path, tiny: Recipe, tmp_path: Path) -> None:
    other = pack(["tabletop:sim,episodes=12,seed=9"], 24, quiet=True)
    labels, manifest = read_labels(chain / "labels")
    with pytest.raises(LapaError, match=r"lerobot:.* tabletop:sim,episodes=12,seed=9.*lapa label"):
        pretrain(other, labels, manifest, tiny, tmp_path / "out", 0)


@pytest.mark.parametrize("size", [24, 32])
def test_labels_of_other_actions(robot: Path, packed: Packed, tiny: Recipe, tmp_path: Path, size: int) -> None:
    """Another recording of the same tasks and lengths, or one whose actions were mended, is known by its actions, where
    frames are read at another size and tell nothing."""
    manifest = label(packed, "ground_truth", tmp_path / "labels")
    labels, _ = read_labels(tmp_path / "labels")
    other = pack([f"lerobot:{robot}"], size, quiet=True)
    assert other.actions is not None
    check_labels(other, labels, manifest)
    changed = replace(other, actions=-other.actions)
    with pytest.raises(LapaError, match=r"other actions.*lapa label"):
        check_labels(changed, labels, manifest)
    check_labels(changed, labels, {**manifest, "acts": None})  # older labels do not know


def test_labels_of_another_laq(chain: Path, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    labels, manifest = read_labels(chain / "labels")
    own = load_artefact(chain / "laq", "laq").hash
    assert manifest["source_hash"] == own
    fit_laq(packed, tiny, tmp_path / "other", 1)
    other = load_artefact(tmp_path / "other", "laq").hash
    with pytest.raises(LapaError, match=rf"hash {own}.*\({other}\)"):
        pretrain(packed, labels, manifest, tiny, tmp_path / "out", 0, source_hash=other)


def test_labels_that_point_outside(chain: Path, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    labels, manifest = read_labels(chain / "labels")
    with pytest.raises(LapaError, match="point outside"):
        pretrain(packed, replace(labels, frame=labels.frame + 50), manifest, tiny, tmp_path / "out", 0)


@pytest.mark.parametrize("source", ["codes", "ground_truth"])
@pytest.mark.parametrize("clusters", [0, 4])
def test_a_chunk_that_no_episode_has_is_refused(
    source: str, clusters: int, chain: Path, packed: Packed, tiny: Recipe, tmp_path: Path
) -> None:
    """Nothing would teach its end."""
    if source == "ground_truth":
        label(packed, source, tmp_path / "labels")
    labels, manifest = read_labels(tmp_path / "labels" if source == "ground_truth" else chain / "labels")
    recipe = replace(tiny, clusters=clusters, chunk=1000, latent_chunk=1000)
    with pytest.raises(LapaError, match=r"no episode is .* 1000"):
        pretrain(packed, labels, manifest, recipe, tmp_path / "out", 0)


@pytest.mark.parametrize("source", ["laq", "ground_truth", "future_frames"])
def test_a_policy_that_sees_more_than_its_labels_source(
    source: str, robot: Path, small: list[str], chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage reads the videos at the size of its own model, and the labels still have to be of these videos."""
    data, labels, latent = ["--dataset", f"lerobot:{robot}"], str(tmp_path / "labels"), str(tmp_path / "latent")
    larger = [*(option.replace('{"image_size":24', '{"image_size":32') for option in small), "--steps", "2"]
    cli.main(["label", *data, "--source", str(chain / "laq") if source == "laq" else source, "--out", labels])
    with pytest.MonkeyPatch.context() as patch:
        seen = spy_on_packs(patch)
        cli.main(["pretrain", *data, "--labels", labels, "--out", latent, *larger])
        assert seen == [32]
        other = ["--dataset", "tabletop:sim,episodes=12,seed=9"]
        with pytest.raises(SystemExit):
            cli.main(["pretrain", *other, "--labels", labels, "--out", str(tmp_path / "other"), *larger])
        assert f"lerobot:{robot}" in capsys.readouterr().err
        del seen[:]
        idm = ["--idm", str(tmp_path / "idm")] if source == "future_frames" else []
        if idm:
            fit_idm(pack(data[1:], 24, quiet=True), tiny_of(small), tmp_path / "idm", 0)
        cli.main(["finetune", *data, "--policy", latent, *idm, "--out", str(tmp_path / "policy"), "--steps", "2",
                  "--head", "own"])  # fmt: skip
        assert seen == [32], "as the policy reads, whatever the preset says"


def spy_on_packs(patch: pytest.MonkeyPatch) -> list[int]:
    """Sizes that are packed from now on."""
    sizes: list[int] = []

    def spied(specs: Any, image_size: int, **others: Any) -> Packed:
        sizes.append(image_size)
        return pack(specs, image_size, **others)

    patch.setattr("lapa.data.pack.pack", spied)
    return sizes


def tiny_of(small: list[str]) -> Recipe:
    recipe = Recipe()
    for option in small[1::2]:
        recipe = override(recipe, option)
    return replace(recipe, fit_idm=replace(recipe.fit_idm, steps=2))
