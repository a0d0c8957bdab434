"""Frozen encoders: as many numbers as they say, the same for the same picture, nothing trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lapa import plugins
from lapa.contracts import LapaError

OPTIONS: dict[str, dict[str, Any]] = {"pixels": {"side": 6}, "efficientnet": {"pool": 1}}


@pytest.mark.parametrize("name", plugins.names("encoders"))
def test_an_encoder_keeps_its_word(name: str) -> None:
    config = plugins.configure("encoders", name, OPTIONS[name])
    encoder = config.build().eval()
    images = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = encoder(images)
        again = encoder(images[2:4])
    assert found.shape == (5, config.features(48))
    assert found.dtype == torch.float32
    torch.testing.assert_close(again, found[2:4], rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.01
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert bool(config.weights()) == bool(config.borrowed())


@pytest.mark.parametrize("name", plugins.names("encoders"))
def test_the_grid_of_an_encoder(name: str) -> None:
    """It has the shape that is told beforehand, and what is at its left was at the left of the picture."""
    config = plugins.configure("encoders", name, OPTIONS[name])
    encoder = config.build().eval()
    images = torch.full((2, 3, 96, 96), 0.5)
    images[1, :, 32:64, 8:24] = torch.rand(3, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid = encoder.grid(images)
    channels, rows, columns = config.grid(96)
    assert grid.shape == (2, channels, rows, columns)
    assert grid.dtype == torch.float32
    change = (grid[1] - grid[0]).square().sum(0)
    assert change[:, : columns // 2].sum() > 2 * change[:, columns // 2 :].sum()
    assert change[rows // 4 : -(rows // 4)].sum() > change[: rows // 4].sum() + change[-(rows // 4) :].sum()


def test_efficientnet_sees_where_things_are() -> None:
    """A bright square that moves by a cell moves the features by a cell, and most of all there."""
    config = plugins.configure("encoders", "efficientnet", {"pool": 1})
    encoder = config.build().eval()
    images = torch.zeros(2, 3, 96, 96)
    images[0, :, 16:32, 16:32] = images[1, :, 64:80, 64:80] = 1
    with torch.no_grad():
        maps = encoder(images).reshape(2, 112, 6, 6)
    change = (maps[1] - maps[0]).square().sum(0)
    corner, middle = change[:3, :3].sum(), change[3:, 3:].sum()
    assert corner + middle > 2 * (change.sum() - corner - middle)


def test_pictures_too_small_are_refused() -> None:
    with pytest.raises(LapaError, match="32"):
        plugins.configure("encoders", "efficientnet", {}).features(16)
    with pytest.raises(LapaError, match=r"16\b.* 100"):
        plugins.configure("encoders", "efficientnet", {}).grid(100)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from lapa.encoders import efficientnet

    monkeypatch.setattr(efficientnet, "WEIGHTS", "no_such_package_of_weights")
    with pytest.raises(LapaError, match=r"lapa\[pieces\]"):
        efficientnet.Config().weights()
