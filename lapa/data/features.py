"""What a frozen encoder sees in every frame of a pack: computed once, kept in the cache, memory-mapped.

An entry is a folder like that of a pack (`lapa cache --list` shows it): features.f16 and meta.json. It appears whole or
not at all. Its name holds a hash of the pack, of the encoder with its options and of its weights.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lapa.artefacts.folder import write_json
from lapa.contracts import Array
from lapa.data.folders import new_folder
from lapa.data.index import META, cache_folder, digest_of
from lapa.data.pack import Packed
from lapa.data.pixels import as_pixels
from lapa.runtime.progress import Progress

FORMAT = 1  # part of every key
FEATURES = "features.f16"
BATCH = 64

Encode = Callable[[torch.Tensor], torch.Tensor]  # float [B, 3, S, S] in [0, 1] -> float [B, F]


def frame_features(packed: Packed, encode: Encode, width: int, name: str, key: str) -> Array:
    """Features float16 [N, width] of all N frames of a pack. `name` of the encoder; `key`: its options and weights.

    What the cache has is not computed again. A pack that is held in memory (an excerpt of a stream) is not kept.
    """
    if not all(isinstance(part, np.memmap) for part in packed._maps):
        return _held(packed, encode, width, name, key)
    entry = _entry(packed, name, key)
    if not (entry / META).exists():
        with new_folder(entry, twin_is_fine=True) as work:
            made = np.memmap(work / FEATURES, np.float16, "w+", shape=(len(packed), width))
            _computed(packed, encode, made, name)
            made.flush()
            write_json(work / META, {"dataset": packed.spec, "features": [len(packed), width]})
    return np.memmap(entry / FEATURES, np.float16, "r", shape=(len(packed), width))


_LAST: list[tuple[weakref.ref[Array], str, Array]] = []  # of the pack in memory that was asked for last


def _held(packed: Packed, encode: Encode, width: int, name: str, key: str) -> Array:
    frames, wanted = packed._rows, f"{name} {key}"
    if not (_LAST and _LAST[0][0]() is frames and _LAST[0][1] == wanted):
        made = _computed(packed, encode, np.empty((len(packed), width), np.float16), name)
        _LAST[:] = [(weakref.ref(frames), wanted, made)]
    return _LAST[0][2]


def _entry(packed: Packed, name: str, key: str) -> Path:
    digest = digest_of(json.dumps([FORMAT, packed.fingerprint, packed.image_size, name, key]).encode())
    return cache_folder() / f"{name}-{packed.image_size}-{digest}"


def _computed(packed: Packed, encode: Encode, into: Array, name: str) -> Array:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Progress(f"features of {name}", len(packed), unit="frames") as progress:
        for start in range(0, len(packed), BATCH):
            frames = np.arange(start, min(start + BATCH, len(packed)))
            pixels = as_pixels(packed.gather(frames), packed.image_size, device)
            into[frames] = encode(pixels).cpu().numpy()
            progress.update(int(frames[-1]) + 1)
    return into
