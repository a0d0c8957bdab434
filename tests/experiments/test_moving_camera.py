"""`lapa study camera`: crops that move, and what is done against them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lapa.contracts import Array, LapaError
from lapa.data.pack import pack
from lapa.data.pairs import window_pairs
from lapa.experiments import moving_camera
from lapa.experiments.moving_camera import Crops, moved_back, shift, study_camera
from lapa.recipe import PRESETS

DATA = "tabletop:sim,episodes=20,seed=3"


def _scene() -> Array:
    """A picture of smooth blobs, uint8 [64, 64, 3]."""
    rough = np.random.default_rng(0).normal(size=(64, 64, 3))
    smooth = np.sum([np.roll(rough, (i, j), (0, 1)) for i in range(4) for j in range(4)], 0)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


@pytest.mark.parametrize("way", [(5, 0), (0, -4), (-3, 6)])
def test_the_shift_of_a_crop_is_found_and_undone(way: tuple[int, int]) -> None:
    scene, (x, y) = _scene(), way
    now, later = scene[10:50, 10:50], scene[10 + y : 50 + y, 10 + x : 50 + x]
    assert shift(now, later).tolist() == [x, y]
    back = moved_back(now, later, np.array(way))
    assert np.array_equal(back, now)


def test_the_moving_crop_begins_where_the_still_one_is() -> None:
    packed = pack([DATA], 48)
    pairs = window_pairs(packed, 0.6)
    rows = np.arange(0, len(pairs), 5)
    crops = Crops.of(packed, pairs, rows, seed=0)
    assert crops.still[0].shape == (len(rows), 36, 36, 3)
    assert np.array_equal(crops.still[0], crops.moving[0])
    still = ~crops.camera.any(1)
    assert np.array_equal(crops.moving[2][still], crops.still[2][still])
    assert np.abs(crops.camera).max() <= moving_camera.REACH + 1 / 48
    assert (crops.camera.std(0) > moving_camera.REACH / 3).all()


def test_codes_of_moving_crops_tell_the_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    small = replace(PRESETS["video"].laq, encoder="pixels", quant_dim=8, codebook_size=8, image_size=48)
    monkeypatch.setitem(PRESETS, "video", replace(PRESETS["video"], laq=small))
    made = study_camera((DATA,), tmp_path, seeds=2)
    rows = made["rows"]
    assert len(rows["moving crop: codes"]["arm"]) == 2
    told = {name: np.mean(row["camera"]) for name, row in rows.items()}
    assert told["moving crop: shift by phase correlation"] > 0.2
    assert told["moving crop: difference of the features"] > told["still crop: difference of the features"] + 0.1
    assert told["moving crop: difference of the features"] > told["aligned: difference of the features"] + 0.1
    text = (tmp_path / "table.md").read_text()
    assert all(name in text for name in rows)


def test_too_few_episodes(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="episodes=2"):
        study_camera(("tabletop:sim,episodes=2,seed=3",), tmp_path)
