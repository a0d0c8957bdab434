"""The first losses of every model on noise, as numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.contracts import FramePairs
from lapa.data.observations import Seen
from lapa.models.idm import InverseDynamics
from lapa.policies import configured
from lapa.recipe import Recipe
from lapa.training import loop

GOLDEN = {
    "laq": [0.170639, 0.167509, 0.168456],
    "idm": [1.348326, 0.858378, 0.890463],
    "codes": [1.486985, 1.379948, 1.514694],
    "actions": [0.938211, 0.937084, 0.911789],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses(name: str, tiny: Recipe, tmp_path: Path) -> None:
    """Three steps on noise. A change here is a change of the method: record it anew and say so in the commit."""
    loop.seed_everything(0)
    spaces = {"codes": CodeSpace(2, 4), "actions": ActionSpace(((0.0, 1.0, 2.0), (0.0, 1.0, 3.0, 9.0)), ("x", "y"), 2)}
    if name in spaces:
        model = configured(tiny).build()
        model.grow(spaces[name])
    else:
        model = tiny.laq.build() if name == "laq" else InverseDynamics(tiny.idm, 2)

    def draw(rng: np.random.Generator) -> np.ndarray:
        frames = rng.integers(0, 256, (2, 8, 24, 24, 3), np.uint8)
        answers = rng.integers(0, 2, (8, spaces[name].positions)) if name in spaces else rng.normal(size=(8, 2))
        return np.fromiter(zip(*frames, answers, strict=True), object)

    def load(drawn: np.ndarray) -> Any:
        now, later, answers = (np.stack(part) for part in zip(*drawn, strict=True))
        if name in spaces:
            return model.batch(Seen.of(now, ["push the red disc to the blue star"] * 8), answers)
        rows = np.arange(8)
        return FramePairs(now, later, rows, rows, rows + 1, answers.astype(np.float32))

    loop.fit(model, loop.Sampler(draw, load), replace(tiny.quantize, steps=3), tmp_path, seed=0, title=name)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(GOLDEN[name], abs=1e-3)
