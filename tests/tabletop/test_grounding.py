"""Stage 0, `lapa ground`: the weights that a backbone starts from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import weights

import lapa
from lapa import cli
from lapa.artefacts.folder import load_artefact
from lapa.backbones.tiny import Config as TinyVLM
from lapa.contracts import LapaError
from lapa.data.pack import pack
from lapa.data.pixels import as_pixels
from lapa.policies import configured
from lapa.recipe import Recipe
from lapa.stage3_finetune import finetune
from lapa.tabletop import grounding as stage0_grounding
from lapa.tabletop.grounding import Grounding, scenes
from lapa.tabletop.render import DOMAINS, render


def test_a_backbone_of_another_size_is_grounded_and_starts_a_policy(
    tiny: Recipe, robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ground"
    command = ["ground", "--steps", "2", "--batch-size", "4", "--depth", "1", "--out", str(out), "--width"]
    cli.main([*command, "32"])
    options = {"width": 32, "depth": 1, "weights": str(out)}
    assert json.dumps(options, separators=(",", ":")) in capsys.readouterr().out
    recipe = replace(tiny, policy=replace(tiny.policy, backbone_options=options))
    made = weights(out)
    start = configured(recipe).build().backbone.state_dict()
    assert start.keys() == made.keys()
    assert all(torch.equal(start[name], made[name]) for name in made)

    finetune(pack([f"lerobot:{robot}"], 48, quiet=True), None, recipe, tmp_path / "policy", 0)
    parents = load_artefact(tmp_path / "policy", "policy").config["provenance"]["parents"]
    assert parents == {str(out): load_artefact(out, "backbone").hash}
    with pytest.raises(LapaError, match=r"width 32, depth 1\b.* width 128, depth 3\b"):
        TinyVLM(weights=str(out)).build()
    with pytest.raises(SystemExit):
        cli.main([*command, "64", "--resume"])
    assert "other settings (width 32 -> 64)" in capsys.readouterr().err
    shutil.rmtree(out)
    assert lapa.Policy.from_pretrained(tmp_path / "policy"), "it has weights of its own"
    with pytest.raises(LapaError, match=r"folder .*ground"):
        configured(recipe).build()


def test_a_backbone_is_grounded_on_the_looks_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: set[str] = set()

    def watched(state: Any, look: str, size: int, tick: int = 0) -> Any:
        seen.add(look)
        return render(state, look, size, tick)

    monkeypatch.setattr(stage0_grounding, "render", watched)
    command = ["ground", "--steps", "8", "--batch-size", "4", "--width", "32", "--depth", "1", "--out"]
    cli.main([*command, str(tmp_path / "all")])
    assert seen == set(DOMAINS)
    seen.clear()
    cli.main([*command, str(tmp_path / "two"), "--domains", "sim,hand"])
    assert seen == {"sim", "hand"}
    assert json.loads((tmp_path / "two" / "config.json").read_text())["domains"] == ["sim", "hand"]
    with pytest.raises(SystemExit):
        cli.main([*command, str(tmp_path / "none"), "--domains", "sin"])
    assert '"sin"' in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_grounding_computes_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch comes on the CPU. The device "meta" stands for a GPU: it knows shapes alone and meets no other tensor."""
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: [0.0] * len(tensor))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: 0.0)
    images, texts, *answers = scenes(np.random.default_rng(0), 2, 48)
    model = Grounding(TinyVLM(grounded=False, width=32, depth=1).build()).to("meta")
    loss, _ = model.loss((as_pixels(images, 48, "cpu"), texts, *map(torch.from_numpy, answers)))
    assert loss.device.type == "meta"
