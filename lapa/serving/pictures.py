"""A client's picture in any of the usual forms -> uint8 [H, W, 3], as a policy takes it.

Accepted are [H, W, 3] and [3, H, W], uint8 and floats in [0, 1] or [0, 255], without a batch axis. Anything else is
refused, because a policy acts wrongly on a picture that was read wrongly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lapa.contracts import Array
from lapa.serving import Fault
from lapa.serving.wire import LARGEST_SIDE

SLACK = 0.01  # a resized float picture may leave its range by a little


def as_picture(sent: Any, key: str) -> Array:
    """uint8 [H, W, 3]. Raises Fault, which names the key."""
    found = _array(sent, key)
    if found.ndim != 3 or 3 not in (found.shape[0], found.shape[2]):
        batch = " Send it without a batch axis." if found.ndim > 3 else ""
        raise Fault(f'The picture "{key}" has the shape {list(found.shape)}; it is [H, W, 3] or [3, H, W].{batch}')
    if found.shape[2] != 3:
        found = found.transpose(1, 2, 0)
    if not min(found.shape) >= 1 or max(found.shape) > LARGEST_SIDE:
        raise Fault(f'The picture "{key}" has the shape {list(found.shape)}; a side has 1 to {LARGEST_SIDE} pixels.')
    if found.dtype == np.uint8:
        return np.ascontiguousarray(found)
    low, high = float(found.min()), float(found.max())
    if not (low >= -SLACK and high <= 255 + SLACK):  # not a number as well
        raise Fault(f'The picture "{key}" is {found.dtype} from {low:g} to {high:g}; it is uint8, or float in [0, 1] '
                    "or [0, 255].")  # fmt: skip
    if found.dtype.kind != "f":
        return np.ascontiguousarray(found.astype(np.uint8))
    scaled = found.astype(np.float32) * (255 if high <= 1 + SLACK else 1)
    return np.ascontiguousarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def is_picture(value: Any) -> bool:
    """Could this be meant for a picture?"""
    return isinstance(value, np.ndarray) and value.ndim >= 3


def _array(sent: Any, key: str) -> Array:
    if isinstance(sent, list):  # of lists of numbers, as plain JSON has it
        try:
            sent = np.asarray(sent, np.float64)
        except (ValueError, TypeError, OverflowError):
            raise Fault(f'The picture "{key}" is a list that is no picture.') from None
        if sent.size and (sent == np.rint(sent)).all() and sent.max() > 1:
            sent = sent.astype(np.int64)
    if not isinstance(sent, np.ndarray):
        raise Fault(f'The picture "{key}" is {type(sent).__name__}; it is an array.')
    if sent.dtype.kind not in "uif":
        raise Fault(f'The picture "{key}" is {sent.dtype}; it is uint8, or float in [0, 1] or [0, 255].')
    return sent
