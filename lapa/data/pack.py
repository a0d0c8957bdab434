"""Datasets are read once and packed: uint8 frames of one size, memory-mapped, shared by every later process.

A pack is a folder in the cache: an index (data/index.py) and frames.u8 (raw, C order). `lapa cache` makes the same pack
with many processes (lapa/data/cache.py).
"""

from __future__ import annotations

import hashlib
import operator
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from lapa.contracts import Array, BadVideo, Dataset, LapaError
from lapa.data.cache_list import tell_if_much
from lapa.data.folders import new_folder
from lapa.data.images import Fit, resized
from lapa.data.index import (
    META,
    Bar,
    Index,
    Listing,
    as_fields,
    damaged,
    entry_of,
    load,
    parsed,
    weights_of,
    with_advice,
)
from lapa.data.joined import join
from lapa.data.spec import Spec, parse, with_camera
from lapa.plugins import choose

FORMAT = 5  # part of every key: raise it when what is packed changes
SPARE = 64 << 20  # bytes left free on the disk
FRAMES = "frames.u8"


@dataclass(frozen=True)
class Packed(Index):
    """An index with its frames at hand."""

    _maps: tuple[Array, ...]  # memory maps, uint8 [n, size, size, 3] each
    _rows: Array  # int64 [N]: where each frame lies, counted over all maps
    _views: tuple[Packed, ...] = ()  # the same frames as further cameras saw them

    def view(self, camera: str) -> Packed:
        """The same episodes as another camera saw them. Raises LapaError for a camera that was not packed."""
        there = {view.camera or "main": view for view in (self, *self._views)}
        return there[choose(camera, there, "camera", f" among those read of {self.spec}")]

    def gather(self, index: Array, camera: str | None = None) -> Array:
        """Frames int64 [B] -> uint8 [B, size, size, 3], a copy; of a further camera, if one is named."""
        if camera is not None:
            return self.view(camera).gather(index)
        rows = self._rows[index]
        if len(self._maps) == 1:
            return np.take(self._maps[0], rows, axis=0)
        frames = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        start = 0
        for part in self._maps:
            here = (rows >= start) & (rows < start + len(part))
            frames[here] = part[rows[here] - start]
            start += len(part)
        return frames

    @property
    def nbytes(self) -> int:
        """Of all frames."""
        return sum(part.nbytes for part in self._maps)

    def _only(self, episodes: Array, frames: Array) -> Self:
        views = tuple(view._only(episodes, frames) for view in self._views)
        return replace(super()._only(episodes, frames), _rows=self._rows[frames], _views=views)


def pack(
    specs: Sequence[str],
    image_size: int,
    *,
    skip_bad: bool = False,
    cache: Path | None = None,
    quiet: bool = False,
    fit: Fit = "squash",
    cameras: Sequence[str] = (),
) -> Packed:
    """Datasets given as NAME:PATH[,option=value...], one behind the other, as frames of image_size x image_size.

    Frames are resized to the square by area, what is no square as `fit` says (data/images.py). What the cache (`cache`,
    else $LAPA_CACHE, else ~/.cache/lapa) has is not read again. Actions and states are kept when all the datasets have
    them with as many dimensions, and actions of the same kinds. Raises LapaError for anything that cannot be read,
    unless `skip_bad` leaves that episode out.

    With `cameras` the pack's own frames are the first one's, and `view` and `gather` give the others'; every dataset
    has to have them all. An episode that is bad for one camera is bad for all.
    """
    if len(cameras) > 1 and (own := [spec for spec in specs if "camera" in parse(spec).options]):
        raise LapaError(f"{own[0]}: its camera is chosen, and {', '.join(cameras)} are asked for. Leave out camera=.")
    if len(cameras) > 1:
        return _with_views(
            [
                pack(with_camera(specs, one), image_size, skip_bad=skip_bad, cache=cache, quiet=quiet, fit=fit)
                for one in cameras
            ]
        )
    found = parsed(with_camera(specs, cameras[0]) if cameras else specs, image_size, fit)
    parts = zip(specs, found, strict=True)
    packed = _join([_pack_one(spec, one, image_size, skip_bad, cache, quiet) for spec, one in parts])
    return replace(packed, weights=weights_of(found))


def _with_views(views: list[Packed]) -> Packed:
    """One pack of several cameras. Raises LapaError when they have not the same episodes."""
    names = [list(zip(view.source.tolist(), view.ids, strict=True)) for view in views]
    common = set(names[0]).intersection(*names[1:])
    if not common:
        raise LapaError(f"{views[0].spec}: no episode can be read from all cameras.")
    kept = [view.subset(np.array([i for i, one in enumerate(its) if one in common]))
            if len(its) > len(common) else view for view, its in zip(views, names, strict=True)]  # fmt: skip
    for view in kept[1:]:
        if view.ids != kept[0].ids or not np.array_equal(view.starts, kept[0].starts):
            raise LapaError(f"{view.spec}: camera {view.camera} has not the frames that {kept[0].camera} has.")
    bad = tuple(dict.fromkeys(reason for view in views for reason in view.bad))
    return replace(kept[0], bad=bad, _views=tuple(kept[1:]))


def _pack_one(spec: str, parsed: Spec, size: int, skip_bad: bool, cache: Path | None, quiet: bool) -> Packed:
    dataset = parsed.build()
    entry = entry_of(cache, parsed, dataset, FORMAT, size)
    if not (entry / META).exists():
        with new_folder(entry, twin_is_fine=True) as work:
            _write(work, dataset, spec, size, skip_bad, quiet, parsed.fit)
        if not quiet:
            tell_if_much()
    packed = _load(entry, spec)
    if packed.bad and not skip_bad:
        raise BadVideo(with_advice(packed.bad[0]))
    return packed


def _write(work: Path, dataset: Dataset, spec: str, size: int, skip_bad: bool, quiet: bool, fit: Fit) -> None:
    """Read the dataset from front to back into the folder `work`."""
    digest, listing = hashlib.blake2b(digest_size=16), Listing(spec, skip_bad)
    total = operator.length_hint(dataset)
    with (work / FRAMES).open("wb") as file, Bar("packing", "packed", spec, total, quiet) as bar:
        for episode in dataset.episodes(size):
            if not listing.take(episode) or isinstance(episode, BadVideo):
                continue
            frames = _resize(episode.frames, size, fit)
            _append(file, frames, work, spec)
            digest.update(frames.data)
            bar.step(len(frames))
        bar.done(len(listing.kept), sum(listing.lengths), len(listing.bad))
    listing.save(work, digest, size, dataset, format=FORMAT, fit=fit)


def _load(entry: Path, spec: str) -> Packed:
    index, _ = load(entry, spec)
    count, size = len(index), index.image_size
    try:
        frames = np.memmap(entry / FRAMES, np.uint8, "r", shape=(count, size, size, 3))
    except (OSError, ValueError) as error:
        raise damaged(entry, error) from None
    # A plain view: taking from it is faster and gives plain arrays.
    return Packed(**as_fields(index), _maps=(np.asarray(frames),), _rows=np.arange(count))


def _join(parts: list[Packed]) -> Packed:
    if len(parts) == 1:
        return parts[0]
    maps = tuple(m for p in parts for m in p._maps)
    return Packed(**join(parts), _maps=maps, _rows=np.arange(sum(len(p) for p in parts)))


def _resize(frames: Array, size: int, fit: Fit) -> Array:
    """uint8 [T, H, W, 3] -> uint8 [T, size, size, 3]: those of datasets that do not make them smaller as they read."""
    if frames.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames)
    return np.stack([resized(frame, size, fit) for frame in frames])


def _append(file: BinaryIO, frames: Array, work: Path, spec: str) -> None:
    """Write frames unless they would fill the disk: a full disk hurts other processes too."""
    free = shutil.disk_usage(work).free
    if frames.nbytes + SPARE > free:
        raise LapaError(
            f"No room to pack {spec}: {file.tell() / 1e6:.0f} MB are written, {free / 1e6:.0f} MB left "
            f"in {work.parent}. Free some space or set LAPA_CACHE to a folder on a larger disk."
        )
    file.write(frames.data)
