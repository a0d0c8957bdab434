"""Features of all frames: computed once, kept on disk, and the same for a part of a pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lapa.contracts import Array, LapaError
from lapa.data import cache_list, features
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.pack import Packed, pack


class Encoder:
    """The mean colour of a picture, and of its upper half; counts the pictures that it is shown."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.shown += len(pixels)
        return torch.cat([pixels.mean((2, 3)), pixels[:, :, : pixels.shape[2] // 2].mean((2, 3))], 1)


def expected(packed: Packed, frames: Array) -> Array:
    pictures = packed.gather(frames).astype(np.float32) / 255
    half = pictures[:, : packed.image_size // 2]
    return np.concatenate([pictures.mean((1, 2)), half.mean((1, 2))], 1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAPA_CACHE", str(tmp_path))
    return tmp_path


def of(packed: Packed, encoder: Encoder, key: str = "") -> FrameFeatures:
    return frame_features(packed, encoder, 6, "colours", key)


def test_they_are_computed_once_and_are_those_of_the_frames(cache: Path) -> None:
    packed, encoder = pack(["tabletop:sim,episodes=5,seed=1"], 24, quiet=True), Encoder()
    found = of(packed, encoder)
    assert encoder.shown == len(packed) == len(found)
    frames = np.array([7, 0, len(packed) - 1, 7])
    np.testing.assert_allclose(found[frames], expected(packed, frames), atol=2e-3)
    assert found[frames].dtype == np.float16
    np.testing.assert_array_equal(found[2:9], found[np.arange(2, 9)])
    of(pack(["tabletop:sim,episodes=5,seed=1"], 24, quiet=True), encoder)
    assert encoder.shown == len(packed), "what is on disk is not computed again"
    of(packed, encoder, "other weights")
    assert encoder.shown == 2 * len(packed)
    entries = [entry for entry in cache_list.entries() if entry.what == "features"]
    assert len(entries) == 2
    assert {entry.dataset for entry in entries} == {packed.spec}


def test_a_part_and_a_whole_of_several_read_what_is_there(cache: Path) -> None:
    specs, encoder = ["tabletop:sim,episodes=4,seed=1", "tabletop:real,episodes=3,seed=2"], Encoder()
    first, both = pack(specs[:1], 24, quiet=True), pack(specs, 24, quiet=True)
    of(both, encoder)
    assert encoder.shown == len(both)
    for part in (first, both.subset(np.array([5, 0, 2])), first.subset(np.array([3])), both):
        rows = np.arange(len(part))[::3]
        np.testing.assert_allclose(of(part, encoder)[rows], expected(part, rows), atol=2e-3)
    assert encoder.shown == len(both)


def test_frames_in_memory_leave_nothing_on_the_disk(cache: Path) -> None:
    packed, encoder = pack(["tabletop:sim,episodes=2,seed=1"], 24, quiet=True), Encoder()
    before = sorted(cache.iterdir())
    held = replace(packed, _maps=tuple(np.array(part) for part in packed._maps))
    rows = np.arange(len(held))
    np.testing.assert_allclose(of(held, encoder)[rows], expected(held, rows), atol=2e-3)
    of(held, encoder)
    assert encoder.shown == len(held)
    assert sorted(cache.iterdir()) == before


def test_a_full_disk_is_told_before_anything_is_computed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, encoder = pack(["tabletop:sim,episodes=2,seed=1"], 24, quiet=True), Encoder()
    monkeypatch.setattr(features, "SPARE", 1 << 60)
    with pytest.raises(LapaError, match="LAPA_CACHE"):
        of(packed, encoder)
    assert encoder.shown == 0
    assert not [entry for entry in cache_list.entries() if entry.what in ("features", "unfinished")]


def test_a_computation_that_fails_leaves_nothing(cache: Path) -> None:
    packed = pack(["tabletop:sim,episodes=4,seed=1"], 24, quiet=True)

    class Broken(Encoder):
        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            if self.shown:
                raise RuntimeError("stopped")
            return super().__call__(pixels)

    with pytest.raises(RuntimeError, match="stopped"):
        of(packed, Broken())
    encoder = Encoder()
    np.testing.assert_allclose(of(packed, encoder)[:5], expected(packed, np.arange(5)), atol=2e-3)
    assert encoder.shown == len(packed)
