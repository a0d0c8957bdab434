"""The inverse dynamics model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lapa.contracts import LapaError
from lapa.models.idm import IDMConfig, InverseDynamics, shifted
from lapa.runtime.distributed import Share, working_on


def test_both_frames_of_a_pair_are_shifted_alike() -> None:
    """Whole pixels, a way of its own for each pair, edges repeated; a part of the batch is moved as in the whole."""
    torch.manual_seed(0)
    images = torch.rand(40, 6, 9, 7)
    state = torch.get_rng_state()
    moved = shifted(images, 2)
    found = set()
    for image, result in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(image[None], (2, 2, 2, 2), mode="replicate")[0]
        ways = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 9, x : x + 7], result)]
        assert ways
        found |= set(ways)
    assert len(found) > 15, "of 25"
    torch.set_rng_state(state)
    with working_on(Share(10, 5, 40)):
        assert torch.equal(shifted(images[10:15], 2), moved[10:15])


def test_a_width_that_cannot_be_is_refused_at_once() -> None:
    IDMConfig(width=3, blocks=0)
    with pytest.raises(LapaError, match="width is even where there are blocks, not 3"):
        IDMConfig(width=3)


def test_actions_are_standardised_however_few_and_equal_they_are() -> None:
    """One pair has no spread, and many equal numbers have themselves as their mean."""
    model = InverseDynamics(IDMConfig(image_size=8, width=4, blocks=1), 2)
    for actions in (np.float32([[350.1, 2]]), np.tile(np.float32([[350.1, 2]]), (5000, 1))):
        model.standardise(actions)
        assert torch.equal((torch.from_numpy(actions) - model.mean) / model.scale, torch.zeros(actions.shape))
