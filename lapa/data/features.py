"""What a frozen encoder sees in every frame of a pack: computed once, kept in the cache, memory-mapped.

Each dataset of a pack has an entry of its own, a folder like that of its frames (`lapa cache --list` shows it):
features.f16 and pack.json. It appears whole or not at all. Its name holds a hash of the frames, of the encoder with its
options and of its weights, so a part of a pack, or a pack of several datasets, reads what was computed for the whole.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import Array, LapaError
from lapa.data.folders import new_folder
from lapa.data.index import META, digest_of
from lapa.data.pack import SPARE, Packed
from lapa.data.pixels import as_pixels
from lapa.runtime.progress import Progress

FORMAT = 2  # part of every key
FEATURES = "features.f16"
BATCH = 64

Encode = Callable[[torch.Tensor], torch.Tensor]  # float [B, 3, S, S] in [0, 1] -> float [B, F]


@dataclass(frozen=True)
class FrameFeatures:
    """Features of the N frames of a pack: features[frames] is float16 [B, F] for frames int64 [B] or a slice."""

    _maps: tuple[Array, ...]  # of each dataset, float16 [n, F]
    _rows: Array  # int64 [N]: where each frame lies, counted over all maps

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """F."""
        return int(self._maps[0].shape[1])

    def __getitem__(self, index: Array | slice) -> Array:
        rows = self._rows[index]
        if len(self._maps) == 1:
            return np.take(self._maps[0], rows, axis=0)
        found, start = np.empty((len(rows), self.width), np.float16), 0
        for part in self._maps:
            here = (rows >= start) & (rows < start + len(part))
            found[here] = part[rows[here] - start]
            start += len(part)
        return found


def frame_features(packed: Packed, encode: Encode, width: int, name: str, key: str, hint: str = "") -> FrameFeatures:
    """Features of all frames of a pack, `width` numbers each. `name` of the encoder; `key`: its options and weights;
    `hint`: what else to do where there is no room.

    What the cache has is not computed again. Frames that are held in memory (an excerpt of a stream) have no entry
    there. Raises LapaError where there is no room on the disk.
    """
    parts = []
    for frames in packed._maps:
        file = getattr(frames.base, "filename", None)
        if file is None:
            parts.append(_held(frames, encode, width, name, key))
        else:
            parts.append(_kept(Path(file).parent, frames, encode, width, name, key, hint))
    return FrameFeatures(tuple(parts), packed._rows)


def _kept(pack: Path, frames: Array, encode: Encode, width: int, name: str, key: str, hint: str) -> Array:
    """Of the frames in the folder `pack` of the cache."""
    about = read_json(pack / META, "pack")
    shape, size = (len(frames), width), frames.shape[1]
    digest = digest_of(json.dumps([FORMAT, about["fingerprint"], *shape, size, name, key]).encode())
    entry = pack.parent / f"{name}-{size}-{digest}"
    if not (entry / META).exists():
        with new_folder(entry, twin_is_fine=True) as work:
            _require_room(work, 2 * len(frames) * width, about["dataset"], hint)
            made = np.memmap(work / FEATURES, np.float16, "w+", shape=shape)
            _computed(frames, encode, made, name)
            made.flush()
            write_json(work / META, {"dataset": about["dataset"], "features": shape})
    with suppress(OSError):  # as of a pack
        os.utime(entry / META)
    return np.asarray(np.memmap(entry / FEATURES, np.float16, "r", shape=shape))


def _require_room(work: Path, size: int, dataset: str, hint: str) -> None:
    free = shutil.disk_usage(work).free
    if size + SPARE > free:
        raise LapaError(
            f"No room for the features of {dataset}: they take {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are left "
            f"in {work.parent}. Free some space or set LAPA_CACHE to a folder on a larger disk. {hint}".rstrip()
        )


_LAST: list[tuple[weakref.ref[Array], str, Array]] = []  # of the frames in memory that were asked for last


def _held(frames: Array, encode: Encode, width: int, name: str, key: str) -> Array:
    wanted = f"{name} {key}"
    if not (_LAST and _LAST[0][0]() is frames and _LAST[0][1] == wanted):
        made = _computed(frames, encode, np.empty((len(frames), width), np.float16), name)
        _LAST[:] = [(weakref.ref(frames), wanted, made)]
    return _LAST[0][2]


def _computed(frames: Array, encode: Encode, into: Array, name: str) -> Array:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Progress(f"features of {name}", len(frames), unit="frames") as progress, torch.no_grad():
        for start in range(0, len(frames), BATCH):
            some = slice(start, min(start + BATCH, len(frames)))
            pixels = as_pixels(np.array(frames[some]), frames.shape[1], device)
            into[some] = encode(pixels).cpu().numpy()
            progress.update(some.stop)
    return into
