"""Weights that do not train are in no checkpoint; a run goes on only with the very same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lapa.contracts import LapaError, Logs
from lapa.training.loop import Optimisation, Sampler, fit

HOW = Optimisation(steps=6, batch_size=8, learning_rate=1e-2, precision="float32")


class HalfFrozen(nn.Module):
    """Two layers; the first does not train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.layers[0].requires_grad_(False)

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, Logs]:
        return (self.layers[1](self.layers[0](batch)) - batch).square().mean(), {}


def trained(out: Path, model: HalfFrozen, until: int = 0) -> dict[str, torch.Tensor]:
    sampler = Sampler(lambda rng: rng.integers(100, size=8), rows_as_batch)
    fit(model, sampler, HOW, out, seed=3, title="half", parameters=model.layers[1].parameters(), until=until)
    return model.state_dict()


def rows_as_batch(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.outer(rows, np.arange(1, 5)) % 7).float() / 7


def test_they_are_not_saved_and_the_run_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    trained(tmp_path / "run", HalfFrozen(), until=3)
    saved = [name for file in (tmp_path / "run").rglob("*.safetensors") for name in load_file(file)]
    assert any(name.startswith("model.layers.1.") for name in saved)
    assert not [name for name in saved if name.startswith("model.layers.0.")]
    resumed, whole = trained(tmp_path / "run", HalfFrozen()), trained(tmp_path / "whole", HalfFrozen())
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_others_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, HalfFrozen(), until=3)
    other = HalfFrozen()
    with torch.no_grad():
        other.layers[0].weight.add_(1)
    with pytest.raises(LapaError, match="frozen"):
        trained(tmp_path, other)
