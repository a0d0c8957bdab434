"""LeRobot's pictures, floats in [0, 1] with the channels first, as lapa reads them."""

from __future__ import annotations

import numpy as np
import torch

FUZZY = 1e-3  # by which a float may be out of [0, 1]


def as_pictures(given: torch.Tensor, name: str) -> np.ndarray:
    """float or uint8 [B, 3, H, W], or [B, H, W, 3] -> uint8 [B, H, W, 3]. What LeRobot made of whole numbers becomes
    the same whole numbers. Raises ValueError for other shapes, and for floats that are not in [0, 1]."""
    if given.ndim != 4 or 3 not in (given.shape[1], given.shape[3]):
        raise ValueError(f"{name} is [B, 3, H, W]; got {given.dtype} {list(given.shape)}.")
    if given.shape[1] == 3:
        given = given.permute(0, 2, 3, 1)
    if given.dtype != torch.uint8:
        low, high = float(given.min()), float(given.max())
        if not -FUZZY <= low <= high <= 1 + FUZZY:
            raise ValueError(f"{name} is in [0, 1]; got {low:g} to {high:g}. Leave normalization_mapping as it is.")
        given = (given.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return given.cpu().contiguous().numpy()
