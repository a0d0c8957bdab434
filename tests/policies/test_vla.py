"""The vision-language-action policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lapa.actions.spaces import ActionSpace
from lapa.policies import configured
from lapa.recipe import Recipe


def test_the_decoding_is_chosen_by_name(tiny: Recipe) -> None:
    space = ActionSpace.fit(np.random.default_rng(0).normal(size=(200, 2)), bins=8)
    image = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    acted = {}
    for name in ("expectation", "norm_preserving", "centre"):
        torch.manual_seed(0)
        policy = configured(replace(tiny, policy=replace(tiny.policy, decoding=name))).build().eval()
        policy.grow(space)
        acted[name] = policy.act({"image": image, "instruction": "push the red disc left"})[0].astype(np.float64)
    mean, full = acted["expectation"], acted["norm_preserving"]
    assert np.linalg.norm(full) > 1.1 * np.linalg.norm(mean)  # an untrained policy wavers
    assert mean @ full == pytest.approx(np.linalg.norm(mean) * np.linalg.norm(full), rel=1e-4)
    assert all(np.isclose(space.centres()[d], acted["centre"][d]).any() for d in range(2))
