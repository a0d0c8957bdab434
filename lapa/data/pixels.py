"""Images as models take them: float32 [B, 3, H, W] in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from lapa.contracts import Array, LapaError
from lapa.data.images import Fit, resized

Images = Array | torch.Tensor  # uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1]


def as_pixels(
    images: Images, size: int, device: torch.device | str, name: str = "images", fit: Fit = "squash"
) -> torch.Tensor:
    """uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1] -> float32 [B, 3, size, size] in [0, 1] on `device`.

    Pictures of other sizes are resized as packs resize them (data/images.py `resized`), to the bit: a policy sees in
    service what it saw in training. Floats, which models make, are resized by area; they have to be squares unless
    they are to be squashed. Raises LapaError on any other shape, dtype or range."""
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images)  # torch takes no negative strides, such as those of BGR turned into RGB
    x = torch.as_tensor(images)
    if x.dtype == torch.uint8 and x.ndim == 4 and x.shape[-1] == 3:
        _check_shape(x.shape[1:3], name)
        if x.shape[1:3] != (size, size):
            small = [resized(picture, size, fit) for picture in x.cpu().numpy()]
            x = torch.from_numpy(np.stack(small) if small else np.empty((0, size, size, 3), np.uint8))
        return x.to(device).permute(0, 3, 1, 2).contiguous().float() / 255
    if x.is_floating_point() and x.ndim == 4 and x.shape[1] == 3:
        x = x.to(device).float()
        low, high = x.aminmax() if x.numel() else (0, 0)
        if not 0 <= float(low) <= float(high) <= 1:  # false for NaN too
            raise LapaError(f"{name}: float images must lie in [0, 1]; got {low} to {high}.")
    else:
        raise LapaError(
            f"{name}: expected uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1], "
            f"not {dtype_name(x.dtype)} {list(x.shape)}."
        )
    _check_shape(x.shape[2:], name)
    if x.shape[2:] == (size, size):
        return x
    if fit != "squash" and x.shape[2] != x.shape[3]:
        raise LapaError(
            f"{name}: float images of {x.shape[2]}x{x.shape[3]} pixels are no squares. Give uint8 pictures."
        )
    return F.interpolate(x, size=(size, size), mode="area")


def _check_shape(shape: Sequence[int], name: str) -> None:
    if 0 in shape:
        raise LapaError(f"{name}: images of {shape[0]}x{shape[1]} pixels.")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
