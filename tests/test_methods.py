"""Every method through all three stages on disk: resumed equals unbroken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import resumed_equals_unbroken, weights

from lapa.artefacts.folder import load_artefact
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed
from lapa.methods import METHODS
from lapa.models.laq import LAQ
from lapa.recipe import Recipe
from lapa.stage1_latent_actions import fit_idm, fit_laq
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import finetune


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_to_the_same_bits(
    name: str, trainable: Any, packed: Packed, tiny: Recipe, tmp_path: Path
) -> None:
    method, recipe = METHODS[name], replace(tiny, trainable=trainable, head="own")
    start = reader = None
    if method.source:
        source = method.source
        if method.fits:
            fit = fit_laq if method.fits == "laq" else fit_idm
            fitted = resumed_equals_unbroken(lambda out: fit(packed, recipe, out, 7), tmp_path / "fit")
            reader, source = (fitted, source) if method.read_by == "policy" else (None, str(fitted))
        manifest = label(packed, source, tmp_path / "labels")
        assert manifest["method"] == name
        labels, _ = read_labels(tmp_path / "labels")
        start = resumed_equals_unbroken(
            lambda out: pretrain(packed, labels, manifest, recipe, out, 7), tmp_path / "latent"
        )
        if name == "lapa":
            space = load_artefact(start, "policy").config["space"]
            assert (
                space["code_embeddings"]
                == manifest["code_embeddings"]
                == LAQ.from_pretrained(fitted).code_embeddings().tolist()
            )
    policy = resumed_equals_unbroken(
        lambda out: finetune(packed, start, recipe, out, 7, reader), tmp_path / "policy", trainings=2
    )
    config = load_artefact(policy, "policy").config
    assert config["method"] == name
    assert list(config["provenance"]["parents"]) == [str(path) for path in (start, reader) if path]
    assert config["provenance"]["data"] == {packed.spec: packed.fingerprint}
    if start:
        frozen = [
            k for k in weights(policy) if k.startswith("backbone." if trainable == "head" else "backbone.vision.")
        ]
        assert frozen
        assert all(torch.equal(weights(policy)[k], weights(start)[k]) for k in frozen)
