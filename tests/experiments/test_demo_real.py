"""The demo in Meta-World: its plan, and films side by side. tests/worlds runs it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lapa import cli
from lapa.contracts import LapaError
from lapa.experiments.demo_real import SETTINGS, RealDemoSettings, demo_real_plan, side_by_side
from lapa.plots.codes import animation
from lapa.policies import configured
from lapa.recipe import overridden, preset


def test_the_plan_has_every_method_on_the_same_data(tmp_path: Path) -> None:
    steps = {step.name: step for step in demo_real_plan(RealDemoSettings(labels=6), tmp_path)}
    assert next(iter(steps)) == "data"
    for name in ("scratch", "vpt", "lapa", "actionvla"):
        assert f"lerobot:{tmp_path / 'data'},episodes=0-5" in steps[f"policy/{name}"].command
        assert steps[f"eval/{name}"].needs == (f"policy/{name}",)
    recipe = overridden(preset("video"), SETTINGS)
    assert configured(recipe).head_for("codes")[0] != configured(recipe).head_for("numbers")[0]
    configured(recipe).require_pretrainable("codes")
    assert {step.command[0] for step in steps.values()} <= set(cli.COMMANDS)
    defaults = {name: p.default for name, p in inspect.signature(cli.COMMANDS["demo-real"]).parameters.items()}
    given = RealDemoSettings()
    assert (given.videos, given.labels, given.episodes) == tuple(defaults[n] for n in ("videos", "labels", "episodes"))


def test_more_labels_than_videos_are_refused() -> None:
    with pytest.raises(LapaError, match="151"):
        RealDemoSettings(labels=151)


def test_a_film_of_two_methods(tmp_path: Path) -> None:
    """One that has ended waits for the other, and each says how it ended."""
    for name, length, value, success in (("lapa", 3, 200, True), ("vpt", 5, 50, False)):
        frames = np.full((length, 32, 40, 3), value, np.uint8)
        frames[:, :, :, 0] = np.arange(length)[:, None, None] * 40
        folder = tmp_path / "eval" / name
        animation(frames, folder / "episode_2.gif", 10)
        told = {"success": success, "steps": length, "stages": ["reached"]}
        (folder / "episode_2.json").write_text(json.dumps(told))
    path = side_by_side(tmp_path, 2, ("lapa", "vpt"))
    with Image.open(path) as film:
        assert film.n_frames == 5
        assert film.size == (80, 48)
        film.seek(4)
        last = np.asarray(film.convert("RGB")).astype(int)
    assert abs(last[30, 10, 0] - 80) < 30, "its last frame, the third"
    assert abs(last[30, 60, 0] - 160) < 30
    assert last[1, 1, 1] > last[1, 1, 0], "green: success"
    assert last[1, 41, 0] > last[1, 41, 1], "red: failed"
