"""A stage that is killed and goes on: what it leaves must be that of an unbroken run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lapa.stage3_finetune import HELD_OUT
from lapa.training import loop
from lapa.training.resume import Checkpoints

Stage = Callable[[Path], Any]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Of an artefact."""
    return load_file(path / "model.safetensors")


def steps_logged(path: Path) -> list[int]:
    """The steps in a run's metrics.jsonl."""
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def killed_after(steps: int, stage: Stage, out: Path, training: int = 0) -> None:
    """Run a stage with a checkpoint at every step and interrupt it in the middle of step number steps + 1.

    Stage 3 trains twice: first without a fifth of the episodes, to measure its error, in a folder of its own.
    `training` says in which of these it is interrupted.
    """
    reached = 0

    def seed(seed: int, step: int = 0) -> np.random.Generator:
        nonlocal reached
        reached += step == steps
        if step == steps and reached > training:
            raise KeyboardInterrupt
        return seed_everything(seed, step)

    seed_everything = loop.seed_everything
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "seed_everything", seed)
        patch.setitem(loop.fit.__kwdefaults__, "save_every", -1.0)
        with pytest.raises(KeyboardInterrupt):
            stage(out)
    assert not (out / "config.json").exists()
    assert not training or (out / HELD_OUT).exists(), "the training before it had ended"
    held_out = out / HELD_OUT.removesuffix(".json")
    killed = held_out if held_out.exists() else out
    assert Checkpoints(killed, 7, 2).steps()[-1] == steps
    with (killed / "metrics.jsonl").open("a") as file:  # a run is often killed some steps after its last checkpoint
        file.write('{"step": 3, "loss": 7}\n{"step": 4, "lo')


def resumed_equals_unbroken(stage: Stage, folder: Path, trainings: int = 1) -> Path:
    """Four steps at once, and two and two, in each of the stage's trainings: every weight, every bit, and the figures
    of what was held out. Returns the artefact."""
    stage(folder / "unbroken")
    for training in range(trainings):
        killed_after(2, stage, folder / "resumed", training)
    stage(folder / "resumed")
    one, two = weights(folder / "unbroken"), weights(folder / "resumed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert steps_logged(folder / "resumed") == [1, 2, 3, 4]
    if trainings == 2:
        held_out = [(folder / name / HELD_OUT).read_bytes() for name in ("unbroken", "resumed")]
        assert held_out[0] == held_out[1]
    return folder / "unbroken"
