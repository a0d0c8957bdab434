"""`lapa study transplant`: codes of one dataset applied to frames of another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from made import video

from lapa.contracts import Array, LapaError
from lapa.data.pack import pack
from lapa.experiments.transplant import same_way, same_way_by_cell, study_transplant
from lapa.models.laq import LAQConfig
from lapa.recipe import Recipe
from lapa.stage1_latent_actions import fit_laq


def _flow(degrees: Array, length: float = 0.1) -> Array:
    """One cell of a 6 x 8 grid moves: float [N, 2, 6, 8]."""
    made = np.zeros((len(degrees), 2, 6, 8))
    made[:, :, 2, 3] = length * np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)
    return made


def test_the_share_that_goes_the_same_way() -> None:
    source = _flow(np.array([0.0, 90, 180, 350]))
    made = _flow(np.array([20.0, 90, 140, 10]))
    assert same_way(source, made) == same_way_by_cell(source, made) == 0.75
    assert same_way(source, _flow(np.array([20.0, 90, 140, 10]), length=1e-6)) == 0  # nothing moves


def test_flows_that_move_in_other_places() -> None:
    source = _flow(np.zeros(3))
    elsewhere = np.roll(source, 3, 3)
    assert same_way(source, elsewhere) == 1
    assert same_way_by_cell(source, elsewhere) == 0


def clips(folder: Path, seed: int) -> str:
    """Ten clips of a robot: a square with a texture of its own goes here and there before a background of its own."""
    rng = np.random.default_rng(seed)
    scene, hand = (
        cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3)).astype(np.uint8), (5, 5), 1.5) for side in (48, 16)
    )
    for number in range(10):
        place, frames = np.array([16.0, 16]), []
        for when in range(40):
            if when % 4 == 0:
                angle = rng.uniform(0, 2 * np.pi)
                way = 3 * np.array([np.cos(angle), np.sin(angle)])
            way = np.where((place + way < 0) | (place + way > 32), -way, way)
            place = place + way
            frame, (x, y) = scene.copy(), place.round().astype(int)
            frame[y : y + 16, x : x + 16] = hand
            frames.append(frame)
        video(folder / f"{number}.mkv", np.stack(frames))
    return f"video_folder:{folder}"


def test_codes_with_the_main_flow_move_another_robot_the_same_way(tiny: Recipe, tmp_path: Path) -> None:
    both = (clips(tmp_path / "a", 1), clips(tmp_path / "b", 2))
    config = LAQConfig(
        image_size=48, patch_size=6, dim=16, encoder="pixels", encoder_options={"side": 6}, quant_dim=8, flow=1.0,
        codes=2, codebook_size=12, root_length=True, decoder="unet", unet_width=8,
    )  # fmt: skip
    fit_laq(pack(both, 48, quiet=True), replace(tiny, laq=config, window=0.1), tmp_path / "laq", 0)
    rows = study_transplant(str(tmp_path / "laq"), both, tmp_path / "out")["rows"]
    told = [row["flow_decoder"] for row in rows.values() if not row["same_scene"]]
    assert len(told) == 2
    for row in told:
        assert row["within"] > row["shuffled"] + 0.3, rows
    assert "decoder of flow" in (tmp_path / "out/table.md").read_text()


def test_one_dataset_is_no_transplant(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="two datasets"):
        study_transplant("runs/laq", ("tabletop:sim,episodes=2",), tmp_path)
