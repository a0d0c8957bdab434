"""The tiny backbone and the weights that lapa ships for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lapa.backbones.tiny import Config as TinyVLM
from lapa.contracts import LapaError
from lapa.data.observations import Seen
from lapa.tabletop.grounding import scenes


def test_shipped_weights_ground() -> None:
    """A linear probe of the readout finds the block that the sentence names, in all looks; random weights do not."""
    rng = np.random.default_rng(2024)
    batches = [scenes(rng, 50, 48) for _ in range(24)]
    targets = np.concatenate([points[:, 0] for _, _, points, _, _ in batches])

    def error(grounded: bool) -> float:
        torch.manual_seed(0)
        backbone = TinyVLM(grounded=grounded).build().eval()
        with torch.no_grad():
            seen = [backbone.prepare(Seen.of(images, texts)) for images, texts, *_ in batches]
            readout = torch.cat([backbone(inputs).readout for inputs in seen])
        x = np.concatenate([readout.double().numpy(), np.ones((len(readout), 1))], 1)
        fit, test = slice(0, 1000), slice(1000, 1200)
        found = np.linalg.solve(x[fit].T @ x[fit] + 0.1 * np.eye(x.shape[1]), x[fit].T @ targets[fit])
        return float(np.linalg.norm(x[test] @ found - targets[test], axis=1).mean())

    assert error(grounded=True) < 0.1
    assert error(grounded=False) > 0.2


def test_the_shipped_weights_have_one_size() -> None:
    with pytest.raises(LapaError, match=r"width 128\b.* width 64\b.* lapa ground"):
        TinyVLM(width=64).build()


def test_a_third_camera_keeps_what_two_have_learnt() -> None:
    backbone = TinyVLM(grounded=False).build()
    backbone.extend(("one", "two"), 0)
    assert backbone.camera is not None
    with torch.no_grad():
        backbone.camera.normal_()
    known = backbone.camera.detach().clone()
    backbone.extend(("one", "two", "three"), 0)
    assert backbone.camera.shape == (3, backbone.config.vision_width)
    assert backbone.camera[:2].equal(known)
    assert not backbone.camera[2].any()
    images = {name: np.zeros((2, 8, 8, 3), np.uint8) for name in ("one", "two", "three")}
    assert backbone(backbone.prepare(Seen(images, ["a", "b"]))).readout.isfinite().all()
