"""Images as models take them: float32 [B, 3, H, W] in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from lapa.contracts import Array, LapaError

Images = Array | torch.Tensor  # uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1]


def as_pixels(images: Images, size: int, device: torch.device | str, name: str = "images") -> torch.Tensor:
    """uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1] -> float32 [B, 3, size, size] in [0, 1] on `device`.

    Other sizes are resized by area. Raises LapaError on any other shape, dtype or range."""
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images)  # torch takes no negative strides, such as those of BGR turned into RGB
    x = torch.as_tensor(images, device=device)
    if x.dtype == torch.uint8 and x.ndim == 4 and x.shape[-1] == 3:
        x = x.permute(0, 3, 1, 2).contiguous().float() / 255
    elif x.is_floating_point() and x.ndim == 4 and x.shape[1] == 3:
        x = x.float()
        low, high = x.aminmax() if x.numel() else (0, 0)
        if not 0 <= float(low) <= float(high) <= 1:  # false for NaN too
            raise LapaError(f"{name}: float images must lie in [0, 1]; got {low} to {high}.")
    else:
        raise LapaError(
            f"{name}: expected uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1], "
            f"not {dtype_name(x.dtype)} {list(x.shape)}."
        )
    if 0 in x.shape[2:]:
        raise LapaError(f"{name}: images of {x.shape[2]}x{x.shape[3]} pixels.")
    return x if x.shape[2:] == (size, size) else F.interpolate(x, size=(size, size), mode="area")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
