"""The one resize: packs, training and service show a model the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from lapa.contracts import Array, Episode, LapaError
from lapa.data.images import Fit, resized
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.pack import pack
from lapa.data.pixels import as_pixels
from lapa.data.stream import stream


def film(height: int, width: int, length: int = 5) -> Array:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (length, height // 8, width // 8, 3), np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2) ^ rng.integers(0, 8, (length, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Array]:
    """A LeRobot dataset of pictures of 320 x 240, losslessly, and its frames."""
    root, frames = tmp_path_factory.mktemp("wide") / "ds", film(240, 320)
    with LeRobotWriter(root, 10.0, (240, 320)) as writer:
        writer.add(Episode("a", frames, 10.0, "look"))
    return f"lerobot:{root}", frames


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [48, 96, 256])
def test_service_sees_what_training_saw_to_the_bit(wide: tuple[str, Array], size: int, fit: Fit) -> None:
    spec, raw = wide
    packed = pack([spec], size, fit=fit, quiet=True)
    trained = as_pixels(packed.gather(np.arange(len(raw))), size, "cpu")
    assert packed.fit == fit
    assert_array_equal(packed.sizes, [[240, 320]])
    assert torch.equal(as_pixels(raw, size, "cpu", fit=fit), trained)
    assert torch.equal(as_pixels(torch.from_numpy(raw), size, "cpu", fit=fit), trained)
    assert torch.equal(as_pixels(raw[2:3], size, "cpu", fit=fit)[0], trained[2])
    streamed = np.stack(list(stream([spec], size, fit=fit, quiet=True).frames(0, 1)))
    assert torch.equal(as_pixels(streamed, size, "cpu"), trained[1:])


def test_each_fit_is_another_picture(wide: tuple[str, Array]) -> None:
    frame = wide[1][0]
    squash, pad, crop = (resized(frame, 60, fit) for fit in ("squash", "pad", "crop"))
    assert not pad[:7].any()
    assert not pad[-7:].any()
    assert pad[8:-8].any()
    np.testing.assert_allclose(pad[8:52].mean(), frame.mean(), atol=2)  # the whole picture, rounded pixel by pixel
    assert_array_equal(crop, resized(frame[:, 40:280], 60))
    assert squash.shape == pad.shape == crop.shape == (60, 60, 3)


def test_a_picture_of_the_size_stays() -> None:
    frame = film(48, 48)[0]
    for fit in ("squash", "pad", "crop"):
        assert resized(frame, 48, fit) is frame
        assert resized(frame, None, fit) is frame


def test_float_pictures_are_not_padded() -> None:
    with pytest.raises(LapaError, match="no squares"):
        as_pixels(torch.rand(1, 3, 20, 30), 10, "cpu", fit="pad")
    assert as_pixels(torch.rand(1, 3, 20, 20), 10, "cpu", fit="pad").shape == (1, 3, 10, 10)


def test_no_pictures_are_no_pictures() -> None:
    assert as_pixels(np.empty((0, 30, 20, 3), np.uint8), 10, "cpu").shape == (0, 3, 10, 10)
