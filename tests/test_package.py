"""The public interface: `lapa.LAQ` and `lapa.Policy` as the README uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lapa
from lapa.contracts import LapaError
from lapa.data.pack import pack


def test_laq_as_the_readme_uses_it(chain: Path) -> None:
    laq = lapa.LAQ.from_pretrained(chain / "laq")
    rng = np.random.default_rng(0)
    now, later = rng.integers(0, 256, (2, 5, 24, 24, 3), np.uint8)
    codes = laq.encode(now, later)
    assert codes.dtype == torch.int64
    assert codes.shape == (5, 1)
    as_floats = [torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (now, later)]
    assert torch.equal(laq.encode(*as_floats), codes)
    future = laq.decode(now, codes, clamp=True)
    assert future.dtype == torch.float32
    assert future.shape == (5, 3, 24, 24)
    assert 0 <= future.min() <= future.max() <= 1
    assert torch.equal(laq.decode(now, codes, clamp=False).clamp(0, 1), future)


def test_policy_as_the_readme_uses_it(chain: Path, robot: Path) -> None:
    policy = lapa.Policy.from_pretrained(str(chain / "policy"))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    actions = policy.act({"image": image, "instruction": "push the red disc to the blue star"})
    assert actions.dtype == np.float32
    assert actions.shape == (3, 2)
    actual = pack([f"lerobot:{robot}"], 24, quiet=True).actions
    assert (actions >= actual.min(0)).all()
    assert (actions <= actual.max(0)).all()
    with pytest.raises(LapaError, match="picture"):
        policy.act({"picture": image, "instruction": "push"})
    latent = lapa.Policy.from_pretrained(chain / "latent")
    with pytest.raises(LapaError, match="finetune"):
        latent.act({"image": image, "instruction": "push"})


def test_the_package_lists_its_face() -> None:
    assert {"LAQ", "Policy", "LapaError", "__version__"} <= set(lapa.__all__)
    assert all(getattr(lapa, name) for name in lapa.__all__)
    with pytest.raises(AttributeError, match="Polcy"):
        lapa.Polcy  # noqa: B018
