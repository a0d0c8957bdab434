"""Artefacts that lapa 0.1 wrote still open and say what they said then (tests/fixtures/README.md)."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lapa
from lapa import cli
from lapa.artefacts.folder import load_artefact, save_artefact
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.models.idm import InverseDynamics
from lapa.models.laq import LAQConfig

OLD = Path(__file__).parents[1] / "fixtures" / "lapa_0_1"
EXPECTED = load_file(OLD / "expected.safetensors")
NOW, LATER = EXPECTED["now"].numpy(), EXPECTED["later"].numpy()
TEXT = "push the red disc to the blue block"


def same(found: torch.Tensor | np.ndarray, name: str) -> None:
    torch.testing.assert_close(torch.as_tensor(found), EXPECTED[name], atol=2e-3, rtol=2e-3)


def test_laq() -> None:
    laq = lapa.LAQ.from_pretrained(OLD / "laq")
    assert laq.config.encoder_input == "contrast"
    assert torch.equal(laq.encode(NOW, LATER), EXPECTED["laq_codes"])
    same(laq.decode(NOW, EXPECTED["laq_codes"]), "laq_drawn")


def test_inverse_dynamics() -> None:
    same(InverseDynamics.from_pretrained(OLD / "idm").predict(NOW, LATER), "idm_actions")


def test_a_policy_that_names_codes() -> None:
    same(lapa.Policy.from_pretrained(OLD / "policy_codes").probabilities(NOW, [TEXT] * len(NOW)), "policy_codes")


@pytest.mark.parametrize("name", ["policy_actions", "policy_linear", "policy_bins", "policy_planner"])
def test_policies_that_act(name: str) -> None:
    policy = lapa.Policy.from_pretrained(OLD / name)
    same(policy.act_batch([{"image": image, "instruction": TEXT} for image in NOW]), name)


def test_backbone() -> None:
    assert load_artefact(OLD / "backbone", "backbone").config["domains"] == ["sim", "real", "hand"]


def test_labels() -> None:
    labels, manifest = read_labels(OLD / "labels")
    assert labels.kind == "codes"
    assert len(labels.frame) == manifest["pairs"]
    assert np.array(manifest["code_embeddings"]).shape[0] == 8


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """lapa 0.1 stopped after step 4 of 8. Its settings, under today's names, are those of today's command."""
    shutil.copytree(OLD / "laq_half", tmp_path / "laq")
    before = json.loads((OLD / "laq_half/run.json").read_text())["recipe"]
    options = [f"laq.{name}={before['laq'][name]}" for name in (
        "image_size", "patch_size", "dim", "spatial_depth", "temporal_depth", "heads", "dim_head", "codebook_size",
        "quant_dim", "unet_width",
    )]  # fmt: skip
    options += ["laq.encoder_input=contrast", "starts=[]", "quantize.batch_size=8", "quantize.keep=4"]
    command = ["quantize", "--dataset", "tabletop:sim,episodes=24,seed=8", "--steps", "8", "--resume"]
    command += [word for option in options for word in ("--set", option)]
    cli.main([*command, "--out", str(tmp_path / "laq")])
    logged = [json.loads(line)["step"] for line in (tmp_path / "laq/metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 9))
    assert lapa.LAQ.from_pretrained(tmp_path / "laq").config.encoder_input == "contrast"
    with pytest.raises(SystemExit):
        cli.main([*command, "--set", "laq.encoder_input=pixels", "--out", str(tmp_path / "laq")])
    assert "laq.encoder_input contrast -> pixels" in capsys.readouterr().err


@pytest.mark.parametrize("root_length", [False, True])
def test_a_setting_that_came_later(root_length: bool, tmp_path: Path) -> None:
    """A LAQ of before `root_length` and `flow` has none; what one has is kept, and no other setting may be missing."""
    config = LAQConfig(image_size=24, patch_size=6, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
                       codes=1, codebook_size=8, quant_dim=4, root_length=root_length)  # fmt: skip
    laq = config.build().eval()
    save_artefact(tmp_path, "laq", {"model": asdict(config)}, laq.state_dict())
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    saved.pop("sums", None)
    if not root_length:
        del saved["model"]["root_length"], saved["model"]["flow"]
    file.write_text(json.dumps(saved))
    opened = lapa.LAQ.from_pretrained(tmp_path)
    assert opened.config == config
    assert torch.equal(opened.encode(NOW, LATER), laq.encode(NOW, LATER))
    del saved["model"]["quant_dim"]
    file.write_text(json.dumps(saved))
    with pytest.raises(LapaError, match=r"model\.quant_dim"):
        lapa.LAQ.from_pretrained(tmp_path)
