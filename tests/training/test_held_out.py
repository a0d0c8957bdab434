"""Stage 2 is watched on episodes that it is not trained on, keeps its best step and ends once that has passed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lapa import stage2_pretrain as stage2
from lapa.artefacts.folder import load_artefact
from lapa.contracts import Labels, LapaError
from lapa.data.buffer import Segments
from lapa.data.pack import Packed, pack
from lapa.data.stream import stream
from lapa.recipe import Recipe
from lapa.training.held_out import is_held_out, most_frequent, spread

ABOUT = {"method": "actionvla", "source": "ground_truth", "source_hash": "x", "action_names": ["dx", "dy"]}
SPEC = "tabletop:sim,episodes=12,seed=8"
HELD = {3, 5, 11}  # of twelve episodes, one in four


@pytest.fixture(scope="module")
def videos() -> Packed:
    return pack([SPEC], 24, quiet=True)


@pytest.fixture(scope="module")
def labels(videos: Packed) -> Labels:
    return labels_of(videos)


def labels_of(data: Packed) -> Labels:
    """The actions of every frame that has one."""
    frames = np.concatenate([np.arange(a, b - 1) for a, b in pairwise(data.starts)])
    episode = data.episode_of(frames)
    assert data.actions is not None
    return Labels("actions", episode, frames - data.starts[episode], data.actions[frames])


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return replace(tiny, hold_out=4, clusters=4, pretrain=replace(tiny.pretrain, steps=20, learning_rate=3e-3))


def about(data: Any) -> dict[str, Any]:
    return {**ABOUT, "fingerprint": data.fingerprint, "outline": data.outline, "image_size": 24}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_every_fourth_episode_is_watched_and_not_trained_on(
    videos: Packed, labels: Labels, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, shown = set[int](), set[int]()
    look = stage2.look

    def spy(data: Packed, frames: Any, spec: Any, **more: Any) -> Any:
        kind = set(videos.episode_of(frames).tolist())
        (shown if kind <= HELD else trained).update(kind)
        return look(data, frames, spec, **more)

    monkeypatch.setattr(stage2, "look", spy)
    results = stage2.pretrain(videos, labels, about(videos), recipe, tmp_path, 0)
    assert trained == set(range(12)) - HELD
    assert shown == HELD
    watched = [line for line in lines(tmp_path) if "watched/accuracy" in line]
    assert [line["step"] for line in watched] == list(range(2, 21, 2))[: len(watched)]
    assert len({line["watched/most_frequent"] for line in watched}) == 1
    lowest = min(line["watched/loss"] for line in watched)
    best = [line for line in watched if line["watched/loss"] <= 1.05 * lowest][-1]
    assert results["best_step"] == best["step"]
    assert results["watched/accuracy"] == best["watched/accuracy"]
    assert "3 held-out episodes" in results["watched_on"]
    config = load_artefact(tmp_path, "policy").config
    assert config["results"]["best_step"] == best["step"]


def test_training_ends_once_the_best_step_has_passed_and_resumes_to_the_same(
    videos: Packed, labels: Labels, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what is held out each motion means the opposite: the more is learnt, the more is wrong there."""
    opposite = np.where(np.isin(labels.episode, list(HELD))[:, None], -labels.values, labels.values)
    labels = replace(labels, values=opposite)
    rising = replace(recipe, pretrain=replace(recipe.pretrain, learning_rate=0.03, clip=1e9, schedule="constant"))
    results = stage2.pretrain(videos, labels, about(videos), rising, tmp_path / "whole", 0)
    best, last = int(results["best_step"]), lines(tmp_path / "whole")[-1]["step"]
    assert last == best + 3 * 2 < 20, "three looks, two steps apart"
    alone = replace(rising, pretrain=replace(rising.pretrain, steps=20))
    fit = stage2.fit

    def killed(*args: Any, **options: Any) -> Any:
        fit(*args, until=best + 3, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage2, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            stage2.pretrain(videos, labels, about(videos), alone, tmp_path / "parts", 0)
    again = stage2.pretrain(videos, labels, about(videos), alone, tmp_path / "parts", 0)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert again == results
    shutil.rmtree(tmp_path / "parts")
    to_the_end = stage2.pretrain(videos, labels, about(videos), replace(rising, patience=0), tmp_path / "end", 0)
    assert lines(tmp_path / "end")[-1]["step"] == 20
    assert "best_step" not in to_the_end


def test_too_few_episodes_hold_nothing_out(videos: Packed, labels: Labels, recipe: Recipe, tmp_path: Path) -> None:
    results = stage2.pretrain(videos, labels, about(videos), replace(recipe, hold_out=20), tmp_path, 0)
    assert "nothing" in results["watched_on"]
    assert not any("watched/loss" in line for line in lines(tmp_path))
    with pytest.raises(LapaError, match="hold_out=1 "):
        stage2.pretrain(videos, labels, about(videos), replace(recipe, hold_out=1), tmp_path / "none", 0)


@pytest.mark.slow
def test_a_stream_is_watched_on_the_same_episodes(
    robot: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, opened = pack([f"lerobot:{robot}"], 24, quiet=True), stream([f"lerobot:{robot}"], 24, quiet=True)
    monkeypatch.setattr(stage2, "FRAMES", 40)
    seen: list[int] = []
    read = Segments.read

    def spy(self: Segments, episode: int, *args: Any) -> Any:
        if self.longest == stage2.SEGMENT:
            seen.append(episode)
        return read(self, episode, *args)

    monkeypatch.setattr(Segments, "read", spy)
    short = replace(recipe, pretrain=replace(recipe.pretrain, steps=4))
    results = stage2.pretrain(opened, labels_of(packed), about(opened), short, tmp_path, 0, megabytes=64)
    assert "3 held-out episodes" in results["watched_on"]
    assert set(seen) <= HELD
    assert len(seen) == 3, "40 frames are three segments of 16"
    assert 0 <= results["watched/accuracy"] <= 1
    assert results["best_step"] >= 1


def test_the_most_frequent_class_is_counted_where_it_is_trained() -> None:
    trained, held = np.array([[0, 1], [0, 1], [2, -100]]), np.array([[0, 0], [2, 1], [-100, 1]])
    assert most_frequent(trained, held) == pytest.approx(3 / 5)
    assert most_frequent(trained.astype(float), held) is None
    assert most_frequent(object(), held) is None


def test_what_is_held_out() -> None:
    assert np.flatnonzero(is_held_out(np.arange(9), 3)).tolist() == [2, 4, 8]
    assert not is_held_out(np.arange(9), 10).any(), "with fewer episodes none is"
    for every in (5, 10, 20):  # one of each so many, and of every task, where tasks come in turn
        held = np.flatnonzero(is_held_out(np.arange(2000), every))
        assert (held // every).tolist() == list(range(2000 // every))
        assert np.bincount(held % 5, minlength=5).min() > 0.9 * len(held) / 5
    rows = np.arange(100) * 3
    assert spread(rows, 100, 0) is rows
    some = spread(rows, 10, 0)
    assert len(some) == 10
    assert (np.diff(some) > 0).all()
    assert (spread(rows, 10, 0) == some).all()
    assert set(some) <= set(rows)
