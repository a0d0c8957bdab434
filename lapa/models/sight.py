"""What the frozen part of a vision-language model sees in a picture: computed from the picture, or kept from before.

A picture's features do not depend on the words around it in any family of models/vision_language.py, so they can be
computed once for each frame. Each picture is looked at alone and in float32, so that a kept look and a fresh one are
equal to the bit, whatever else is in the batch and whatever the arithmetic of the language model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LISTS = ("smolvlm", "idefics3", "llava_onevision", "qwen2_5_vl", "qwen3_vl")  # a picture's features each in a list
NUMBERS = 2  # of float16 that hold one of float32, bit by bit

_now = threading.local()  # .answer: what models of this thread see, in place of what they would
Look = Callable[..., Any]


def seeing(network: Any) -> None:
    """Let this model be told what it sees (`instead`). Its class becomes one of its own with another
    get_image_features."""
    kind: Any = type(network)

    def get_image_features(self: Any, *given: Any, **named: Any) -> Any:
        look: Look = kind.get_image_features.__get__(self)
        answer: Callable[[Look], Any] | None = getattr(_now, "answer", None)
        return look(*given, **named) if answer is None else answer(look)

    made = type(kind.__name__, (kind,), {"get_image_features": get_image_features, "__module__": kind.__module__})
    network.__class__ = made


@contextmanager
def instead(answer: Callable[[Look], Any] | None) -> Iterator[None]:
    """For the length of a with-block, in this thread, `answer(its own get_image_features)` is what a model sees."""
    _now.answer = answer
    try:
        yield
    finally:
        _now.answer = None


def alone(look: Look, pictures: Iterator[dict[str, Any]]) -> Tensor:
    """What a model sees in each of the pictures, which `look` takes one by one: float32 [n, parts, tokens, D]; parts
    are the layers of the language model that get features (one, but for Qwen3-VL)."""
    found = list[Tensor]()
    with torch.no_grad():
        for given in pictures:
            with torch.autocast(given["pixel_values"].device.type, enabled=False):
                seen = look(**given)
            parts = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
            one = [torch.cat(list(part)) if isinstance(part, (list, tuple)) else part.flatten(0, 1) for part in parts]
            found.append(torch.stack(one).float())
    return torch.stack(found)


def as_seen(features: Tensor, kind: str) -> Any:
    """float32 [n, parts, tokens, D] -> as a model of this kind gives it to its language model."""
    parts = [list(part) if kind in LISTS else part for part in features.unbind(1)]
    return SimpleNamespace(pooler_output=parts[0], deepstack_features=parts[1:])


def packed_bits(features: Tensor) -> Tensor:
    """float32 [n, ..] -> float16 [n, numbers], which hold the same bits."""
    return features.flatten(1).contiguous().view(torch.float16)


def from_bits(numbers: Tensor, parts: int, tokens: int) -> Tensor:
    """The inverse: float16 [.., numbers] -> float32 [.., parts, tokens, D]."""
    return numbers.contiguous().view(torch.float32).unflatten(-1, (parts, tokens, -1))
