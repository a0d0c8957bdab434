"""A safetensors file written tensor by tensor, for models that do not fit into memory a second time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lapa.artefacts.folder import replacing

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}  # bytes of a number, by the format's names


@dataclass(frozen=True)
class Streamed:
    """A tensor to be written: `pieces()` gives its bytes in order, little-endian and C-contiguous."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[bytes]]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * SIZES[self.dtype]


def write_streamed(path: Path, tensors: Mapping[str, Streamed]) -> None:
    """Write safetensors whole or not at all, holding one piece of one tensor at a time."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, tensor in tensors.items():
                written = sum(file.write(piece) for piece in tensor.pieces())
                assert written == tensor.size, f"{name}: {written} bytes instead of {tensor.size}"
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
