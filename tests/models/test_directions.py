"""Directions whose change persists, and LAQ with a frozen encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import lapa
from lapa.artefacts.folder import read_config
from lapa.contracts import LapaError
from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.data.stream import stream
from lapa.labels.latent import Config
from lapa.models.directions import Directions, persistent, stretched
from lapa.models.kmeans import KMeans
from lapa.models.laq import LAQConfig
from lapa.models.laq_fit import encode_all
from lapa.recipe import Recipe
from lapa.stage1_latent_actions import fit_laq

FROZEN = LAQConfig(
    image_size=24, patch_size=6, dim=16, encoder="pixels", encoder_options={"side": 12}, quant_dim=4,
    codes=2, codebook_size=6, decoder="unet", unet_width=8,
)  # fmt: skip


def test_what_persists_is_found_and_flicker_is_not() -> None:
    """Features with two that move steadily and forty that flicker, with eight times the variance."""
    rng = np.random.default_rng(0)
    velocity = rng.normal(size=(2000, 2))
    start = rng.normal(size=(2000, 42)) * 2
    middle, end = (rng.normal(size=(2000, 42)) * 2 for _ in range(2))
    place = rng.normal(size=(2000, 2))
    for step, features in enumerate((start, middle, end)):
        features[:, :2] = place + step * velocity
    mixed = np.linalg.qr(rng.normal(size=(42, 42)))[0]
    axes, correlations = persistent(start @ mixed, middle @ mixed, end @ mixed, 4)
    assert correlations[1] > 0.9
    assert correlations[2] < 0.3
    d = (end - start) @ mixed @ axes
    told = np.linalg.lstsq(d[:, :2], velocity, rcond=None)[0]
    assert np.square(d[:, :2] @ told - velocity).mean() < 0.1
    assert d.std(0)[1] > 3 * d.std(0)[2]  # the codebook is to spend its codes on the first two


def test_more_features_than_windows() -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(size=(60, 300))
    velocity = rng.normal(size=(60, 300))
    axes, correlations = persistent(start, start + velocity, start + 2 * velocity, 5)
    assert axes.shape == (300, 5)
    assert correlations[0] > 0.9


def test_space_is_stretched_along_what_tells_the_labelled_motion() -> None:
    """Of eight directions that move alike, one tells the motion; another moves with it in one episode alone."""
    rng = np.random.default_rng(0)
    change, episode = rng.normal(size=(1200, 8)), np.repeat(np.arange(6), 200)
    moved = np.stack([3 * change[:, 2], -40 * change[:, 2]], 1) + 0.1 * rng.normal(size=(1200, 2))
    axes, share = stretched(np.eye(8, dtype=np.float32), change, moved, episode)
    assert share > 0.95
    length = np.linalg.norm(axes, axis=1)
    assert length.argmax() == 2
    assert length[2] > 3 * np.delete(length, 2).max()
    noise, share = stretched(np.eye(8, dtype=np.float32), change, rng.normal(size=(1200, 2)), episode)
    assert share < 0.1, "there is nothing to tell"
    assert np.linalg.norm(noise, axis=1).min() > 0.5, "and nothing is lost"


def test_labelled_episodes_are_named_or_refused(robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    few = pack([f"lerobot:{robot},episodes=0-3"], 24, quiet=True)
    fit_laq(pack([f"lerobot:{robot}"], 24, quiet=True), replace(tiny, laq=FROZEN), tmp_path / "laq", 0, labelled=few)
    made = read_config(tmp_path / "laq")
    assert few.spec in made["provenance"]["data"]
    plain = pack([f"lerobot:{robot},episodes=0-1"], 24, quiet=True)
    with pytest.raises(LapaError, match="episodes=0-1"):
        fit_laq(plain, replace(tiny, laq=FROZEN), tmp_path / "few", 0, labelled=plain)
    with pytest.raises(LapaError, match="labelled"):
        fit_laq(plain, tiny, tmp_path / "trained", 0, labelled=few)
    none = replace(few, actions=None, state=None)
    with pytest.raises(LapaError, match="motion"):
        fit_laq(plain, replace(tiny, laq=FROZEN), tmp_path / "none", 0, labelled=none)


def fit(kind: str, robot: Path, tiny: Recipe, out: Path) -> Path:
    data = (stream if "stream" in kind else pack)([f"lerobot:{robot}"], 24, quiet=True)
    fit_laq(data, replace(tiny, laq=replace(FROZEN, flow=0.5 * ("flow" in kind))), out, 0, megabytes=16)
    return out


@pytest.fixture(scope="module", params=["pack", "stream", "pack, flow", "stream, flow"])
def fitted(request: pytest.FixtureRequest, robot: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(request.param, robot, tiny, tmp_path_factory.mktemp(request.param.replace(", ", "_")) / "laq")


def test_labels_are_the_codes_of_training(fitted: Path, packed: Packed) -> None:
    """Label by label, frames alone or in pairs, from the cache or computed."""
    laq, pairs = lapa.LAQ.from_pretrained(fitted), window_pairs(packed, 0.2)
    rows = np.arange(0, len(pairs), 3)
    codes = encode_all(laq, packed, pairs, rows)
    some = pairs.batch(packed, rows)
    assert codes.shape == (len(rows), 2)
    assert len(np.unique(codes[:, 0])) > 3
    labelled = Config(path=str(fitted)).build().label(some)
    encoded = laq.encode(some.now, some.later).numpy()
    assert (labelled == codes).mean() > 0.99  # of pairs between two codes rounding may give the other one
    assert (encoded == codes).mean() > 0.99


def test_only_the_decoder_was_trained(fitted: Path) -> None:
    laq = lapa.LAQ.from_pretrained(fitted)
    names = {name for name, weight in laq.named_parameters() if weight.requires_grad}
    assert names
    assert all(name.startswith(("decoder.", "project_out.")) for name in names)
    assert not any("encoder" in name for name in laq.state_dict())


def test_a_pair_turned_round_gives_the_opposite_difference(fitted: Path, packed: Packed) -> None:
    laq, pairs = lapa.LAQ.from_pretrained(fitted), window_pairs(packed, 0.2)
    now, later = laq.pixels(packed.gather(pairs.now[:9]), packed.gather(pairs.later[:9]))
    forwards, backwards = laq.difference(now, later), laq.difference(later, now)
    own = laq.config.quant_dim  # the flow behind it is found anew, and does not turn round to the digit
    torch.testing.assert_close(forwards[..., :own], -backwards[..., :own])
    way = forwards[..., own:].norm(dim=-1)
    assert (forwards[..., own:] + backwards[..., own:]).norm() <= way.norm()


def test_the_same_again(fitted: Path, robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    """Same data, same seed, same directions and codebook: to the last bit on one machine."""
    fit(str(fitted), robot, tiny, tmp_path / "laq")
    one, two = (lapa.LAQ.from_pretrained(path).state_dict() for path in (fitted, tmp_path / "laq"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)


def moving(shift: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture, and the same after a square of a texture of its own went `shift` pixels right and down."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (96, 96, 3)).astype(np.uint8), (7, 7), 2)
    part = cv2.GaussianBlur(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8), (5, 5), 1)
    frames = []
    for right, down in ((0, 0), shift):
        frame = texture.copy()
        frame[28 + down : 68 + down, 28 + right : 68 + right] = part
        frames.append(frame)
    return frames[0], frames[1]


def test_the_main_flow_means_the_same_in_every_scene() -> None:
    """What moves right by five pixels of 96 does so whatever it looks like. `weigh` makes it as long as was asked."""
    directions = Directions("pixels", {}, 96, 4, flow=0.5)
    for shift in ((5, 0), (0, -5)):
        pairs = [moving(shift, seed) for seed in range(4)]
        now, later = (torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).float() / 255 for x in zip(*pairs, strict=True))
        np.testing.assert_allclose(directions.way(now, later), np.tile(np.divide(shift, 96), (4, 1)), atol=0.02)
        assert directions.between(now, later).shape == (4, 6)
    rng = np.random.default_rng(0)
    moved, way = rng.normal(size=(500, 4)) * 3, rng.normal(size=(500, 2)) * (0.01, 0.2)
    directions.weigh(moved, way)
    length = [np.sqrt(np.square(x).sum(1).mean()) for x in (way * directions.ways.numpy(), moved)]
    assert length[0] / length[1] == pytest.approx(0.5, rel=0.05)


def test_flow_without_its_library_or_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LapaError, match=r"laq\.flow"):
        replace(FROZEN, flow=0.5, encoder="", encoder_options={}).build()
    monkeypatch.setattr("lapa.models.laq.installed", lambda: False)
    replace(FROZEN, flow=0).build()
    with pytest.raises(LapaError, match=r"lapa\[flow\].*laq\.flow=0"):
        replace(FROZEN, flow=0.5).build()


def test_what_does_not_go_together_is_refused() -> None:
    for wrong in ({"quantizer": "fsq"}, {"decoder": "transformer"}, {"normalise": True}, {"symmetric": True}):
        with pytest.raises(LapaError):
            replace(FROZEN, **wrong).build()


def test_too_little_video_is_said(robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    data = pack([f"lerobot:{robot},episodes=0"], 24, quiet=True)
    with pytest.raises(LapaError, match="codebook_size="):
        fit_laq(data, replace(tiny, laq=replace(FROZEN, codebook_size=512)), tmp_path / "laq", 0)


def test_each_codebook_is_of_what_the_others_left() -> None:
    """Two levels of a grid: the first code says which of the far places, the second which of the near ones."""
    rng = np.random.default_rng(0)
    far, near = np.array([[-9.0, 0], [9, 0], [0, 9]]), np.array([[-1.0, 0], [1, 0], [0, 1]])
    which = rng.integers(0, 3, (400, 2))
    points = far[which[:, 0]] + near[which[:, 1]] - near.mean(0) + rng.normal(scale=0.02, size=(400, 2))
    quantizer = KMeans(2, 3, 2)
    quantizer.fit(points, 0)
    quantized = quantizer(torch.from_numpy(points).float()[:, None])
    assert len(np.unique(np.concatenate([quantized.codes.numpy(), which], 1), axis=0)) == 9
    assert (quantized.embedding[:, 0].numpy() - points).std() < 0.05
    torch.testing.assert_close(quantizer.lookup(quantized.codes), quantized.embedding)
