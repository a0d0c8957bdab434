"""No model is made that is larger than the weights that are to go into it.

What a config.json asks for is not known before a model of it is made: a depth of 10^6 fills the memory with layers,
even where none has weights. So a model is made under a guard first, which stops as soon as there are far more weights
than the file has, and without memory for any (torch's meta device).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules import module

from lapa.contracts import LapaError

PARTS = 1000  # modules, and buffers without weights, beside some for each that has any
BESIDE = 10_000_000  # numbers, beside some for each that is saved


_COUNTING = [True]


@contextmanager
def uncounted() -> Iterator[None]:
    """What is made inside counts for nothing: parts of a model that is installed here, whose size is no secret."""
    _COUNTING.append(False)
    try:
        yield
    finally:
        _COUNTING.pop()


@contextmanager
def no_larger_than(tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Raises LapaError inside as soon as modules get many more weights than there are, or far larger ones. (What is
    little off is named by comparing the shapes.)"""
    most, room = len(tensors), sum(tensor.numel() for tensor in tensors.values())
    count = dict.fromkeys(("weights", "numbers", "parts"), 0)

    def weight(_: Any, name: str, parameter: torch.Tensor | None) -> None:
        if parameter is None or not _COUNTING[-1]:
            return
        count["weights"] += 1
        count["numbers"] += parameter.numel()
        if count["weights"] > PARTS + 2 * most or count["numbers"] > BESIDE + 4 * room:
            raise LapaError(
                f"its settings ask for far more than the weights hold: those are {most:,} tensors, {room:,} numbers."
            )

    def part(*_: Any) -> None:
        count["parts"] += _COUNTING[-1]
        if count["parts"] > PARTS + 20 * most:
            raise LapaError(f"its settings ask for more parts than {most:,} tensors of weights can fill.")

    with ExitStack() as stack:
        for added in (
            module.register_module_parameter_registration_hook(weight),
            module.register_module_buffer_registration_hook(part),
            module.register_module_module_registration_hook(part),
        ):
            stack.callback(added.remove)
        yield


def require_small_buffers(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises LapaError for buffers out of all proportion to the weights: those that are not saved have no shape to be
    compared with."""
    room = BESIDE + 16 * sum(tensor.numel() for tensor in tensors.values())
    if (held := sum(buffer.numel() for buffer in model.buffers())) > room:
        raise LapaError(f"its settings ask for {held:,} numbers beside the weights.")
