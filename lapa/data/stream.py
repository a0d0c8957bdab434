"""Datasets read without a pack: the index comes from the cache, and frames are decoded when they are needed.

A stream replaces a pack where frames are read forward, as labelling does, or in segments (data/buffer.py). Nothing
but the index is written to disk.
"""

from __future__ import annotations

import hashlib
import operator
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np

from lapa.contracts import Array, BadVideo, FramePairs, LapaError, Seekable
from lapa.data.folders import new_folder
from lapa.data.images import Fit
from lapa.data.index import (
    META,
    Bar,
    Index,
    Listing,
    as_fields,
    entry_of,
    load,
    parsed,
    weights_of,
    with_advice,
)
from lapa.data.joined import join
from lapa.data.pairs import PairIndex
from lapa.data.spec import Spec

FORMAT = 4  # part of every key: raise it when the index changes
CHUNK = 64  # frames decoded by a thread at a time


@dataclass(frozen=True)
class Stream(Index):
    """An index whose frames are decoded when they are wanted. Its fingerprint is the outline: pixels are not known."""

    skip_bad: bool
    _numbers: Array  # int64 [E]: what the dataset calls each episode
    _datasets: tuple[Seekable, ...]

    def frames(self, episode: int, start: int = 0) -> Generator[Array, None, None]:
        """Frames of an episode from frame `start` on, uint8 [size, size, 3] each, to its end.

        Raises BadVideo on the way, also for a file that no longer is as long as the index says.
        """
        length = int(self.starts[episode + 1] - self.starts[episode])
        dataset, count = self._datasets[self.source[episode]], start
        for frame in dataset.frames(int(self._numbers[episode]), self.image_size, start):
            count += 1
            if count > length:
                break
            yield frame
        if count != length:
            raise BadVideo(f'{self.spec}: episode "{self.ids[episode]}" no longer has {length} frames.')

    def view(self, camera: str) -> Stream:
        """As Packed.view; a stream is of one camera. Raises LapaError for another."""
        if camera == (self.camera or "main"):
            return self
        raise LapaError(
            f"{self.spec}: without a pack one camera is read, {self.camera or 'main'}, and {camera} is asked for. "
            "Leave out --stream."
        )

    def without(self, episodes: Sequence[int]) -> Stream:
        """The stream without these episodes."""
        rest = self.subset(np.setdiff1d(np.arange(self.episodes), list(episodes))) if episodes else self
        return replace(rest, fingerprint=rest.outline)

    def _only(self, episodes: Array, frames: Array) -> Self:
        return replace(super()._only(episodes, frames), _numbers=self._numbers[episodes])


def stream(
    specs: Sequence[str],
    image_size: int,
    *,
    skip_bad: bool = False,
    cache: Path | None = None,
    quiet: bool = False,
    fit: Fit = "squash",
) -> Stream:
    """Datasets as `pack` takes them, to be read without a pack. Reads their index, if it is not in the cache.

    Raises LapaError as `pack` does, but for damage inside pictures, which shows when they are read; and for a dataset
    that cannot open its episodes one by one.
    """
    found = parsed(specs, image_size, fit)
    parts = [_one(spec, one, image_size, skip_bad, cache, quiet) for spec, one in zip(specs, found, strict=True)]
    fields = join(parts) if len(parts) > 1 else as_fields(parts[0])
    whole = Stream(
        **{**fields, "weights": weights_of(found)},
        skip_bad=skip_bad,
        _numbers=np.concatenate([part._numbers for part in parts]),
        _datasets=tuple(dataset for part in parts for dataset in part._datasets),
    )
    return replace(whole, fingerprint=whole.outline)


def _one(spec: str, parsed: Spec, size: int, skip_bad: bool, cache: Path | None, quiet: bool) -> Stream:
    dataset = parsed.build()
    if not isinstance(dataset, Seekable):
        raise LapaError(f"{spec}: this dataset is read from front to back only, so it has to be packed. "
                        "Leave out --stream.")  # fmt: skip
    entry = entry_of(cache, parsed, dataset, FORMAT, "index")
    if not (entry / META).exists():
        with new_folder(entry, twin_is_fine=True) as work:
            _write(work, dataset, spec, skip_bad, quiet)
    index, more = load(entry, spec)
    if index.bad and not skip_bad:
        raise BadVideo(with_advice(index.bad[0]))
    whole = Stream(**as_fields(index), skip_bad=skip_bad, _numbers=more["numbers"], _datasets=(dataset,))
    return replace(whole, image_size=size, fit=parsed.fit)


def _write(work: Path, dataset: Seekable, spec: str, skip_bad: bool, quiet: bool) -> None:
    """Read the index of a dataset into the folder `work`."""
    listing, numbers = Listing(spec, skip_bad), []
    with Bar("listing", "listed", spec, operator.length_hint(dataset), quiet) as bar:
        for number, episode in dataset.index():
            if listing.take(episode):
                numbers.append(number)
                bar.step(listing.lengths[-1])
        bar.done(len(listing.kept), sum(listing.lengths), len(listing.bad))
    np.save(work / "numbers.npy", np.array(numbers, np.int64))
    listing.save(work, hashlib.blake2b(digest_size=16), 0, dataset, format=FORMAT, fit="squash")


@dataclass(frozen=True)
class Held:
    """Some frames of an index, by their number: what PairIndex.batch needs of a pack."""

    held: dict[int, Array]
    index: Index

    def gather(self, index: Array) -> Array:
        """Frames int64 [B] -> uint8 [B, size, size, 3]."""
        return np.stack([self.held[int(i)] for i in index])

    def acted(self, now: Array, later: Array) -> Array | None:
        """As Index.acted."""
        return self.index.acted(now, later)


def forward(
    part: Stream, pairs: PairIndex, batches: Sequence[Array], threads: int, bad: dict[int, str]
) -> Iterator[tuple[Array, FramePairs]]:
    """Pairs in batches, in the order of the frames; each episode is decoded once, forward, ahead of the caller.

    `batches` are rows of `pairs`, ascending. Yields (rows, pairs): fewer than asked for where an episode is damaged,
    which is entered in `bad` with the reason; pairs of it that were yielded before are to be thrown away.
    Close the iterator to stop decoding.
    """
    wanted = np.unique(pairs.episode[np.concatenate(batches)])
    with _arriving(part, wanted, threads, bad) as arriving:
        held: dict[int, Array] = {}
        reached = -1
        for rows in batches:
            first, last = int(pairs.now[rows[0]]), int(pairs.later[rows[-1]])
            held = {number: frame for number, frame in held.items() if number >= first}
            while reached < last:
                reached, frames = next(arriving)
                held |= {reached + 1 - len(frames) + i: frame for i, frame in enumerate(frames)}
            good = rows[~np.isin(pairs.episode[rows], list(bad))]
            if len(good):
                yield good, pairs.batch(Held(held, part), good)


@contextmanager
def _arriving(
    part: Stream, episodes: Array, threads: int, bad: dict[int, str]
) -> Iterator[Iterator[tuple[int, list[Array]]]]:
    """Frames of episodes in order, as (number of the last one, some frames); `threads` episodes are decoded ahead.

    A damaged episode ends with its last number and no frames.
    """
    pool = ThreadPoolExecutor(threads, "decoding")
    opened: deque[tuple[int, Generator[Array, None, None], Future[list[Array]]]] = deque()
    rest = iter(episodes.tolist())

    def more(frames: Iterator[Array]) -> list[Array]:
        return list(islice(frames, CHUNK))

    def arriving() -> Iterator[tuple[int, list[Array]]]:
        while True:
            for episode in islice(rest, threads + 1 - len(opened)):
                frames = part.frames(episode)
                opened.append((episode, frames, pool.submit(more, frames)))
            if not opened:
                return
            episode, frames, future = opened.popleft()
            done, stop = int(part.starts[episode]), int(part.starts[episode + 1])
            try:
                while found := future.result():
                    future = pool.submit(more, frames)
                    done += len(found)
                    yield done - 1, found
            except BadVideo as error:
                if not part.skip_bad:
                    raise BadVideo(with_advice(str(error))) from None
                bad[episode] = str(error)
                yield stop - 1, []

    try:
        yield arriving()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
