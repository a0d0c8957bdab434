"""Frozen encoders: as many numbers as they say, the same for the same picture, nothing trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lapa import plugins
from lapa.contracts import LapaError

OPTIONS: dict[str, dict[str, Any]] = {"pixels": {"side": 6}, "efficientnet": {"pool": 1}}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8,
         "image_size": 32}  # fmt: skip
OF_TRANSFORMERS = ("Dinov2", "CLIPVision", "SiglipVision", "ConvNext")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small vision encoders of transformers, of random weights, a folder each."""
    import transformers

    folder = tmp_path_factory.mktemp("hub")
    for name in OF_TRANSFORMERS:
        small = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4} if name == "ConvNext" else SMALL
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**small)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder / name)
    return folder


def configured(name: str, hub: Path) -> Any:
    return plugins.configure("encoders", name, {"model": str(hub / "Dinov2")} if name == "hub" else OPTIONS[name])


@pytest.mark.parametrize("name", plugins.names("encoders"))
def test_an_encoder_keeps_its_word(name: str, hub: Path) -> None:
    config = configured(name, hub)
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
def test_the_grid_of_an_encoder(name: str, hub: Path) -> None:
    """It has the shape that is told beforehand, and what is at its left was at the left of the picture."""
    config = configured(name, hub)
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


@pytest.mark.parametrize("size", [64, 112])
def test_efficientnet_sees_what_the_package_sees(size: int) -> None:
    """Folded convolutions against the package's own layers, up to what is kept: float16."""
    from efficientnet_lite_pytorch import EfficientNet

    from lapa.encoders.efficientnet import DEVIATION, MEAN, source

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(source().path, map_location="cpu", weights_only=True))
    net.eval()
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
        x = net._swish(net._bn0(net._conv_stem(x)))
        seen = [x := block(x) for block in net._blocks]
        encoder = plugins.configure("encoders", "efficientnet", {"pool": 1}).build()
        grid, vector = encoder.grid(images), encoder(images)
        alone = torch.cat([encoder.grid(each[None]) for each in images])
    cells = size // 16
    coarse = next(each for each in reversed(seen) if each.shape[1:] == (112, cells, cells))
    fine = next(each for each in reversed(seen) if each.shape[1:] == (40, 2 * cells, 2 * cells))
    torch.testing.assert_close(vector, coarse.flatten(1), rtol=2e-4, atol=1e-3)
    torch.testing.assert_close(grid[:, 160:], coarse, rtol=2e-4, atol=1e-3)
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(grid[:, :160], 2), fine, rtol=2e-4, atol=1e-3)
    torch.testing.assert_close(alone, grid, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
@pytest.mark.parametrize("size", [64, 96])
def test_encoders_of_transformers(name: str, size: int, hub: Path) -> None:
    """Of pictures of other sizes than their own, too; the tokens are those of the patches."""
    config = plugins.configure("encoders", "hub", {"model": str(hub / name), "pool": 1})
    cells = size // (32 if name == "ConvNext" else 8)
    assert config.grid(size) == (16, cells, cells)
    assert config.features(size) == 16 * cells * cells
    encoder, images = config.build().eval(), torch.rand(3, 3, size, size)
    with torch.no_grad():
        grid = encoder.grid(images)
        assert torch.equal(encoder(images), grid.flatten(1))
        torch.testing.assert_close(encoder.grid(images[1:2]), grid[1:2], rtol=1e-4, atol=1e-4)
    assert grid.shape == (3, 16, cells, cells)
    if name == "Dinov2":
        hidden = encoder.net(pixel_values=(images - encoder.mean) / encoder.deviation).last_hidden_state
        torch.testing.assert_close(grid.flatten(2).transpose(1, 2), hidden[:, 1:])


def test_an_encoder_that_changed_is_another(hub: Path) -> None:
    config = plugins.configure("encoders", "hub", {"model": str(hub / "ConvNext")})
    before, reference = config.weights(), config.borrowed()
    (hub / "ConvNext/preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert config.weights() != before
    assert reference == {"name": str(hub / "ConvNext"), "version": "", "hash": before}
    for model, message in (("", "model"), ("someone/model", "revision")):
        with pytest.raises(LapaError, match=message):
            plugins.configure("encoders", "hub", {"model": model}).grid(32)


def test_pictures_too_small_are_refused(hub: Path) -> None:
    with pytest.raises(LapaError, match="32"):
        plugins.configure("encoders", "efficientnet", {}).features(16)
    with pytest.raises(LapaError, match=r"16\b.* 100"):
        plugins.configure("encoders", "efficientnet", {}).grid(100)
    with pytest.raises(LapaError, match=r"ConvNext.* 16\b"):
        plugins.configure("encoders", "hub", {"model": str(hub / "ConvNext")}).grid(16)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from lapa.encoders import efficientnet

    monkeypatch.setattr(efficientnet, "WEIGHTS", "no_such_package_of_weights")
    with pytest.raises(LapaError, match=r"lapa\[pieces\]"):
        efficientnet.Config().weights()
