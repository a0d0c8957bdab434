"""A bounded shuffle buffer: training from videos without a pack, at random and without a seek per frame.

Ticks count segments: tick k is a run of consecutive frames of one episode, drawn from a generator seeded with
(seed, k). At step n the buffer holds the segments of `slots` ticks in a row, the first of which moves on with n;
samples are drawn from those. So what a step sees is a function of (seed, n) alone, and a resumed run reads on as an
unbroken one would. Segments are decoded ahead by threads, each with one seek.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from lapa.contracts import Array, BadVideo, FramePairs, LapaError
from lapa.data.index import as_fields, cumulate, with_advice
from lapa.data.pack import Packed
from lapa.data.stream import Stream

SEGMENTS = 64  # that there should be in the buffer: they are what a batch is mixed from
FEWEST = 8  # that there must be
SHORTEST = 16  # samples in a segment, if that is what gives SEGMENTS
LONGEST = 256  # samples in a segment: longer ones gain little, however far it is from one key frame to the next
SHOWN = 64  # samples in a segment of an excerpt: many short ones show more
AHEAD = 8  # segments decoded before they are needed
SALT = 0x5E6  # apart from the generators of the steps
TRIES = 100  # damaged segments in a row


@dataclass(frozen=True)
class Segment:
    """Samples first : first + count of an episode, with the frames from `first` on, uint8 [n, size, size, 3]."""

    episode: int
    first: int
    count: int
    frames: Array


class Segments:
    """The segments that can be drawn from a stream. Sample t of episode e needs frames t and min(t + reach[e], last).

    counts int64 [E] says how many samples each episode has, beginning with frame 0; reach int64 [E] is in frames; a
    segment has at most `longest` samples. Every sample is as likely to be in the segment that is drawn, at any place of
    it, as any other; or datasets are drawn by their weights first, as data/mixture.py has it.
    """

    def __init__(self, stream: Stream, counts: Array, reach: Array, longest: int) -> None:
        """Raises LapaError when a dataset with a weight has no sample."""
        self.stream, self.counts, self.reach, self.longest = stream, counts, reach, longest
        self.last = np.diff(stream.starts) - 1
        self._until = np.cumsum(counts)
        self._datasets = [(0, int(self._until[-1]))]
        self._shares = [1.0]
        if stream.weights:
            ends = cumulate([counts[stream.source == nth].sum() for nth in range(len(stream.weights))])
            self._datasets = [(int(a), int(b)) for a, b in pairwise(ends)]
            self._shares = list(np.array(stream.weights) / np.sum(stream.weights))
        for number, (begin, end) in enumerate(self._datasets, 1):
            if begin == end:
                raise LapaError(
                    f"Dataset {number} of {stream.spec} has no episode to train on here: those that are too short and "
                    "those that are held out (hold_out) do not count. Give it more episodes, or no weight."
                )

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Episode, first sample and number of samples: a block of the grid of `longest`, shifted at random."""
        begin, end = self._datasets[int(rng.choice(len(self._shares), p=self._shares))]
        row, shift = int(rng.integers(begin, end)), int(rng.integers(self.longest))
        episode = int(np.searchsorted(self._until, row, side="right"))
        count = int(self.counts[episode])
        block = (row - int(self._until[episode]) + count + shift) // self.longest * self.longest - shift
        first = max(block, 0)
        return episode, first, min(block + self.longest, count) - first

    def read(self, episode: int, first: int, count: int, into: Array | None = None) -> Segment:
        """Decode a segment, into uint8 [at least n, size, size, 3] if given. Raises BadVideo when it is damaged."""
        stop = min(first + count - 1 + int(self.reach[episode]), int(self.last[episode])) + 1
        size, read = self.stream.image_size, 0
        into = np.empty((stop - first, size, size, 3), np.uint8) if into is None else into
        with closing(self.stream.frames(episode, first)) as frames:
            for read, frame in enumerate(islice(frames, stop - first), 1):
                into[read - 1] = frame
        return Segment(episode, first, count, into[:read])


class Buffer:
    """What is held of the segments of a stream, see the module's docstring; `counts` and `reach` as for Segments.

    The frames held at any time, those that are being decoded included, take no more than `megabytes`.
    """

    def __init__(
        self, stream: Stream, counts: Array, reach: Array, *, seed: int, batch: int, megabytes: int, threads: int = 0
    ) -> None:
        """`threads` decode (0: one per core, up to AHEAD). Raises LapaError when the memory is too small, and as
        Segments."""
        furthest = int(reach[counts > 0].max(initial=0))
        room = megabytes * 2**20 // (3 * stream.image_size**2)
        longest = int(np.clip(room // (SEGMENTS + AHEAD) - furthest, SHORTEST, LONGEST))
        longest = min(longest, int(counts.max(initial=1)))
        self.slots = room // (longest + furthest) - AHEAD
        if self.slots < FEWEST:
            least = (FEWEST + AHEAD) * (longest + furthest) * 3 * stream.image_size**2
            raise LapaError(
                f"{megabytes} MB are too few to stream into: segments of {longest + furthest} frames of "
                f"{stream.image_size} pixels take at least {least / 2**20 + 1:.0f} MB. Give --stream a third more than "
                "that."
            )
        self.segments, self.seed = Segments(stream, counts, reach, longest), seed
        # Taken once: blocks of all sizes that come and go by the thousand would leave holes in the heap.
        self._frames = np.empty((self.slots + AHEAD, longest + furthest, *2 * (stream.image_size,), 3), np.uint8)
        # As many samples move on in a step as are drawn: each is drawn once, on average.
        mean = float((counts * np.minimum(counts, longest)).sum() / counts.sum())
        self.pace = min(batch / mean, float(self.slots))
        self._pool = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, AHEAD), "decoding")
        self._lock = threading.Lock()  # of what threads share: the table of what is held, and what was reported
        self._held: dict[int, Future[Segment]] = {}
        self._reported: set[str] = set()
        self._first = 0

    def begin(self, step: int) -> None:
        """Move on to a step (0, 1, ...), waiting for what is not decoded yet. Raises BadVideo for damage."""
        self._first = int(step * self.pace)
        last = self._first + self.slots
        with self._lock:
            past = [tick for tick in self._held if not self._first <= tick < last + AHEAD]
            gone = [self._held.pop(tick) for tick in past]
        for future in gone:
            if not future.cancel():
                future.exception()  # it writes where another will: let it end
        with self._lock:
            for tick in range(self._first, last + AHEAD):
                if tick not in self._held:
                    self._held[tick] = self._pool.submit(self._decoded, tick)
        for tick in range(self._first, last):
            self._segment(tick)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Samples int64 [count, 2] of the present step: tick, and place in the segment."""
        ticks = self._first + rng.integers(self.slots, size=count)
        sizes = np.array([self._segment(tick).count for tick in ticks.tolist()])
        return np.stack([ticks, (rng.random(count) * sizes).astype(np.int64)], 1)

    def places(self, samples: Array) -> tuple[Array, Array, Array]:
        """Samples int64 [B, 2] -> episodes, frames within them, and reach up to the last frame, int64 [B] each."""
        found = [(self._segment(tick), place) for tick, place in samples.tolist()]
        episode = np.array([segment.episode for segment, _ in found], np.int64)
        frame = np.array([segment.first + place for segment, place in found], np.int64)
        return episode, frame, np.minimum(self.segments.reach[episode], self.segments.last[episode] - frame)

    def gather(self, samples: Array, offset: Array) -> Array:
        """The frames `offset` int64 [B] after the samples' own, uint8 [B, size, size, 3]."""
        rows = zip(samples.tolist(), offset.tolist(), strict=True)
        return np.stack([self._segment(tick).frames[place + after] for (tick, place), after in rows])

    def pairs(self, samples: Array) -> FramePairs:
        """The samples int64 [B, 2] as pairs: their own frames, and those at their reach."""
        episode, frame, offset = self.places(samples)
        stream = self.segments.stream
        now = stream.starts[episode] + frame
        return FramePairs(
            now=self.gather(samples, np.zeros_like(offset)),
            later=self.gather(samples, offset),
            episode=episode,
            frame=frame,
            offset=offset,
            actions=stream.acted(now, now + offset),
        )

    @property
    def frames_held(self) -> int:
        """Frames in memory now. May be asked from any thread."""
        with self._lock:
            futures = list(self._held.values())
        done = [future for future in futures if future.done() and not future.cancelled()]
        return sum(len(future.result().frames) for future in done if future.exception() is None)

    def close(self) -> None:
        """Stop decoding and let the frames go."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._held.clear()

    def _segment(self, tick: int) -> Segment:
        with self._lock:
            future = self._held[tick]
        return future.result()

    def _decoded(self, tick: int) -> Segment:
        """The segment of a tick; where it is damaged and may be skipped, the next one that its generator draws."""
        rng = np.random.default_rng([self.seed, tick, SALT])
        for _ in range(TRIES):
            try:
                return self.segments.read(*self.segments.draw(rng), self._frames[tick % len(self._frames)])
            except BadVideo as error:
                if not self.segments.stream.skip_bad:
                    raise BadVideo(with_advice(str(error))) from None
                with self._lock:
                    new = str(error) not in self._reported
                    self._reported.add(str(error))
                if new:
                    print(f"skipped: {error}", file=sys.stderr)
        raise LapaError(
            f"{self.segments.stream.spec}: {TRIES} segments in a row are damaged. Look at what was skipped."
        )


def excerpt(stream: Stream, counts: Array, reach: Array, *, seed: int, samples: int, megabytes: int) -> Packed:
    """Segments of a stream with about so many samples as a pack in memory, for looking at: each is an episode of it.

    Fewer where there are not as many or they would take more than `megabytes`. Damage as in a Buffer.
    """
    segments = Segments(stream, counts, reach, SHOWN)
    rng = np.random.default_rng([seed, SALT])
    room = max(1, megabytes * 2**20 // (3 * stream.image_size**2))
    found: list[Segment] = []
    covered: set[tuple[int, int]] = set()
    for _ in range(max(TRIES, 4 * samples // SHOWN)):
        episode, first, _ = segments.draw(rng)
        block = first // SHOWN * SHOWN  # of a grid that is not shifted, so that no two overlap
        if (episode, block) in covered:
            continue
        covered.add((episode, block))
        try:
            found.append(segments.read(episode, block, min(SHOWN, int(counts[episode]) - block)))
        except BadVideo as error:
            if not stream.skip_bad:
                raise BadVideo(with_advice(str(error))) from None
        held = sum(len(segment.frames) for segment in found)
        if sum(segment.count for segment in found) >= samples or held + SHOWN + int(reach.max()) > room:
            break
    if not found:
        raise LapaError(f"{stream.spec}: none of the segments that were tried can be read.")
    part = stream.subset(np.array([segment.episode for segment in found]))
    lengths = [len(segment.frames) for segment in found]
    inside = np.concatenate([
        part.starts[i] + segment.first + np.arange(length)
        for i, (segment, length) in enumerate(zip(found, lengths, strict=True))
    ])  # fmt: skip
    fields = as_fields(part) | {
        "starts": cumulate(lengths),
        "actions": None if part.actions is None else part.actions[inside],
        "state": None if part.state is None else part.state[inside],
    }
    frames = np.concatenate([segment.frames for segment in found])
    return Packed(**fields, _maps=(frames,), _rows=np.arange(len(frames)))
