"""Tiny LAQs and a policy, made by hand: what the tests of the explorer open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lapa.actions.spaces import CodeSpace
from lapa.artefacts.folder import load_artefact, provenance, save_artefact
from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.explorer.opened import Explored, explored
from lapa.models.laq import LAQ, LAQConfig
from lapa.policies import configured
from lapa.recipe import Recipe

HAND = "tabletop:hand,episodes=4,seed=9,size=24"


def scattered(config: LAQConfig, packed: Packed) -> LAQ:
    """A LAQ that is not trained; its codes differ from pair to pair, and its decoder draws something by code."""
    torch.manual_seed(0)
    laq = config.build().eval()
    pairs = window_pairs(packed, 0.2)
    some = pairs.batch(packed, np.arange(len(pairs)))
    with torch.no_grad():
        difference = laq.difference(*laq.pixels(some.now, some.later)).flatten(0, 1)
        laq.norm.running_mean.copy_(difference.mean(0))  # type: ignore[union-attr, operator]
        laq.norm.running_var.copy_(difference.var(0))  # type: ignore[union-attr, operator]
        for weight in laq.decoder.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)
        laq.project_out.weight.mul_(20)
    return laq


@pytest.fixture(scope="session")
def folder(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """laq: one code of 8 kinds; latent: a policy of its codes; two: two codes of 5 kinds."""
    made, packed = tmp_path_factory.mktemp("explorer"), pack([HAND], 24, quiet=True)
    other = replace(tiny.laq, codes=2, codebook_size=5, quantizer_options={})
    for name, config in {"laq": tiny.laq, "two": other}.items():
        recipe = replace(tiny, laq=config).to_json()
        about: dict[str, Any] = {"model": recipe["laq"], "recipe": recipe, "results": {}}
        about["provenance"] = provenance(0, {packed.spec: packed.fingerprint}, {})
        save_artefact(made / name, "laq", about, scattered(config, packed).state_dict())
    policy: Any = configured(tiny).build()
    policy.grow(CodeSpace(1, 8))
    with torch.no_grad():  # so that it does not always name one code
        for weight in policy.head.parameters():
            weight.normal_(0, 1)
    parents = {str(made / "laq"): load_artefact(made / "laq", "laq").hash}
    about = {**policy.description(), "recipe": tiny.to_json(), "results": {}, "provenance": provenance(0, {}, parents)}
    save_artefact(made / "latent", "policy", about, policy.state_dict())
    return made


@pytest.fixture(scope="session")
def one(folder: Path) -> Explored:
    """The LAQ of one code, with its policy."""
    return explored([str(folder / "laq")], [HAND], [str(folder / "latent")])[0]


@pytest.fixture(scope="session")
def two(folder: Path) -> Explored:
    """The LAQ of two codes a pair."""
    return explored([str(folder / "two")], [HAND])[0]
