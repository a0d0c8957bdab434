"""Frozen weights that ship with lapa are referred to and not stored again; what refers to others is not opened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lapa
from lapa.artefacts import borrowed
from lapa.artefacts.folder import describe, load_artefact, write_tensors
from lapa.contracts import LapaError
from lapa.data.pack import pack
from lapa.recipe import Recipe
from lapa.stage3_finetune import finetune


@pytest.fixture(scope="module")
def policy(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of all but the vision encoder, on the weights that ship with lapa."""
    recipe = replace(tiny, policy=replace(tiny.policy, backbone_options={}), trainable="all")
    recipe = replace(recipe, finetune=replace(recipe.finetune, steps=1))
    out = tmp_path_factory.mktemp("borrowed") / "policy"
    finetune(pack(["tabletop:sim,episodes=2"], 48, quiet=True), None, recipe, out, 0)
    return out


def test_the_vision_encoder_is_not_stored_again(policy: Path) -> None:
    stored, shipped = load_file(policy / "model.safetensors"), load_file(borrowed.SHIPPED["tiny"])
    assert stored
    assert not [name for name in stored if name.startswith("backbone.vision.")]
    opened = lapa.Policy.from_pretrained(policy).state_dict()
    vision = [name for name in shipped if name.startswith("vision.")]
    assert vision
    assert all(torch.equal(opened[f"backbone.{name}"].cpu(), shipped[name]) for name in vision)
    assert set(load_artefact(policy, "policy").tensors) == set(opened), "who reads the artefact has all of them"
    assert describe(policy, "policy").tensors == {}


def test_other_weights_than_those_it_was_made_with(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {name: tensor + 1 for name, tensor in load_file(borrowed.SHIPPED["tiny"]).items()}
    write_tensors(tmp_path / "other.safetensors", changed)
    monkeypatch.setitem(borrowed.SHIPPED, "tiny", tmp_path / "other.safetensors")
    with pytest.raises(LapaError, match=r"\btiny\b.* \(hash "):
        lapa.Policy.from_pretrained(policy)


def test_a_lender_that_is_not_known(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((policy / "model.safetensors").read_bytes())
    config = json.loads((policy / "config.json").read_text())
    config["borrowed"]["from"] = "huge"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LapaError, match=r"\(huge\)"):
        load_artefact(tmp_path, "policy")
