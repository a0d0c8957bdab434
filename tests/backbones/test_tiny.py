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
