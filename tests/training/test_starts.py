"""Several starts of LAQ: the best goes on as if it had been alone, and a kill at any point changes nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lapa import stage1_latent_actions as stage1
from lapa.artefacts.folder import load_artefact, read_json
from lapa.contracts import LapaError
from lapa.data.pack import Packed, pack
from lapa.recipe import PRESETS, Recipe, override, preset
from lapa.stage1_latent_actions import fit_laq
from lapa.training import starts
from lapa.training.resume import STATE

SEED = 3
STARTS: tuple[dict[str, Any], ...] = ({}, {"warmup": 2}, {"attract": 0.5})


@pytest.fixture(scope="module")
def videos() -> Packed:
    return pack(["tabletop:sim,episodes=8,seed=9"], 24, quiet=True)


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return replace(tiny, quantize=replace(tiny.quantize, steps=8, learning_rate=0.03), starts=STARTS)


@pytest.fixture(scope="module")
def unbroken(videos: Packed, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("starts") / "laq"
    fit_laq(videos, recipe, out, SEED)
    return out


def same_bits(one: Path, two: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.mark.slow
def test_the_start_with_the_lowest_error_goes_on_as_if_it_had_been_alone(
    unbroken: Path, videos: Packed, recipe: Recipe, tmp_path: Path
) -> None:
    config = load_artefact(unbroken, "laq").config
    errors, chosen = config["starts"]["error_over_copy"], config["starts"]["chosen"]
    assert len(errors) == len(set(errors)) == len(STARTS)
    assert errors[chosen] == min(errors)
    assert config["model"]["quantizer_options"] == {**recipe.laq.quantizer_options, **STARTS[chosen]}
    assert not (unbroken / starts.FOLDER).exists()
    for number in range(len(STARTS)):
        alone = replace(recipe.start(number), starts=())
        fit_laq(videos, alone, tmp_path / str(number), SEED)
        early = read_json(tmp_path / str(number) / "checkpoints" / "best" / STATE, "checkpoint")
        assert same_bits(unbroken, tmp_path / str(number)) == (number == chosen)
        lines = (tmp_path / str(number) / "metrics.jsonl").read_text()
        assert f'"watched/choice_error": {errors[number]}' in lines.splitlines()[1], "of step 2, a quarter"
        assert ((unbroken / "metrics.jsonl").read_text() == lines) == (number == chosen)
        assert early["seed"] == SEED


@pytest.mark.parametrize("when", ["in a start", "between starts", "while it is copied", "after the choice"])
def test_a_killed_run_ends_with_the_same_bits(
    when: str, unbroken: Path, videos: Packed, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "laq"

    with monkeypatch.context() as patch:
        if when == "while it is copied":
            copy = shutil.copytree

            def torn(*args: Any, **kwargs: Any) -> None:
                copy(*args, **kwargs)
                raise KeyboardInterrupt

            patch.setattr(starts.shutil, "copytree", torn)
        else:
            train, count = stage1._train, {"in a start": 1, "between starts": 1, "after the choice": 3}[when]
            seen: list[str] = []

            def some(
                look: Any, sampler: Any, r: Recipe, folder: Path, seed: int, title: str, taught: Any, until: int = 0
            ) -> Any:
                if len(seen) == count:
                    if when == "in a start":
                        train(look, sampler, r, folder, seed, title, taught, until=1)
                    raise KeyboardInterrupt
                seen.append(title)
                return train(look, sampler, r, folder, seed, title, taught, until)

            patch.setattr(stage1, "_train", some)
        with pytest.raises(KeyboardInterrupt):
            fit_laq(videos, recipe, out, SEED)
    assert not (out / "config.json").exists()
    fit_laq(videos, recipe, out, SEED)
    assert same_bits(out, unbroken)
    assert (out / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()
    assert not [path for path in out.iterdir() if path.name.startswith(".") or path.name == starts.FOLDER]


def test_a_run_that_began_without_starts_goes_on_as_it_was(videos: Packed, recipe: Recipe, tmp_path: Path) -> None:
    plain = replace(recipe, starts=())
    fit_laq(videos, plain, tmp_path / "plain", SEED)
    shutil.copytree(tmp_path / "plain" / "checkpoints", tmp_path / "old" / "checkpoints", symlinks=True)
    fit_laq(videos, recipe, tmp_path / "old", SEED)
    assert same_bits(tmp_path / "old", tmp_path / "plain")
    assert "starts" not in load_artefact(tmp_path / "old", "laq").config


def test_a_start_that_cannot_be_is_refused_before_anything_is_trained(
    videos: Packed, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(LapaError, match=r"no option.*warmups"):
        fit_laq(videos, replace(recipe, starts=({}, {"warmups": 3})), tmp_path / "laq", SEED)
    assert not (tmp_path / "laq").exists()


def test_who_chooses_the_quantizer_has_no_starts() -> None:
    recipe = preset("laptop")
    assert len(recipe.starts) == 2
    assert not override(recipe, "laq.quantizer=fsq").starts
    assert not override(recipe, 'laq.quantizer_options={"balance":0.03}').starts
    assert override(recipe, "laq.codebook_size=32").starts == recipe.starts
    assert override(recipe, 'starts=[{"warmup":5}]').start(0).laq.quantizer_options["warmup"] == 5
    assert not PRESETS["paper"].starts
    assert not PRESETS["video"].starts
    with pytest.raises(LapaError, match=r"\bstarts\b"):
        override(recipe, "starts=[1]")


def test_a_finished_run_that_lost_its_config_knows_its_start(
    unbroken: Path, videos: Packed, recipe: Recipe, tmp_path: Path
) -> None:
    """The other starts are gone by then."""
    out = tmp_path / "laq"
    shutil.copytree(unbroken, out, symlinks=True)
    (out / "config.json").unlink()
    (out / "model.safetensors").unlink()
    fit_laq(videos, recipe, out, SEED)
    assert same_bits(out, unbroken)
    made, before = (load_artefact(folder, "laq").config for folder in (out, unbroken))
    assert made["starts"] == before["starts"]
    assert made["model"] == before["model"]
