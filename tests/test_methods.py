"""Every method through all three stages on disk: resumed equals unbroken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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

FIRST = ("lapa", "vpt")  # the others are slow
OF_MOTIONS = ("read", "track")  # tests/test_label_read.py, tests/test_stage1_points.py: Tabletop's encoder is trained


@pytest.mark.parametrize(
    "name", [*FIRST, *(pytest.param(n, marks=pytest.mark.slow) for n in METHODS if n not in (*FIRST, *OF_MOTIONS))]
)
def test_every_method_resumes_to_the_same_bits(name: str, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    method, recipe = METHODS[name], replace(tiny, head="own")
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
    finetunes_to_the_same_bits(name, start, reader, packed, replace(recipe, trainable="head"), tmp_path / "head")
    finetunes_to_the_same_bits(name, start, reader, packed, replace(recipe, trainable="all"), tmp_path / "all")


def finetunes_to_the_same_bits(
    name: str, start: Path | None, reader: Path | None, packed: Packed, recipe: Recipe, folder: Path
) -> None:
    policy = resumed_equals_unbroken(lambda out: finetune(packed, start, recipe, out, 7, reader), folder, trainings=2)
    config = load_artefact(policy, "policy").config
    assert config["method"] == name
    assert list(config["provenance"]["parents"]) == [str(path) for path in (start, reader) if path]
    assert config["provenance"]["data"] == {packed.spec: packed.fingerprint}
    if start:
        kept = "backbone." if recipe.trainable == "head" else "backbone.vision."
        frozen = [key for key in weights(policy) if key.startswith(kept)]
        assert frozen
        assert all(torch.equal(weights(policy)[key], weights(start)[key]) for key in frozen)
