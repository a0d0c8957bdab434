"""The window: seconds -> frames by each episode's rate, so that datasets of all rates can be mixed; and pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lapa.contracts import Array, FramePairs, LapaError
from lapa.data.index import Index
from lapa.data.observations import say_once
from lapa.runtime.distributed import rank

NEAR = 0.25  # of a window: how far the time between two frames may be off without a word


class Gathers(Protocol):
    """What a batch takes from a pack."""

    def gather(self, index: Array) -> Array: ...
    def acted(self, now: Array, later: Array) -> Array | None: ...


@dataclass(frozen=True)
class PairIndex:
    """Which pairs of frames there are, ordered by episode and frame; int64 [P] each.

    now, later  frames counted over the whole pack; episode; frame within the episode; offset = later - now,
    less than the window only where it was clipped to the last frame (0 for the last frame itself).
    """

    now: Array
    later: Array
    episode: Array
    frame: Array
    offset: Array
    seconds: float | None
    dropped: int  # episodes shorter than the window

    def __len__(self) -> int:
        return len(self.now)

    def batch(self, packed: Gathers, rows: Array) -> FramePairs:
        """The pairs int64 [B] with their frames and, where the pack has actions, what these mean over the window."""
        now, later = self.now[rows], self.later[rows]
        return FramePairs(
            now=packed.gather(now),
            later=packed.gather(later),
            episode=self.episode[rows],
            frame=self.frame[rows],
            offset=self.offset[rows],
            actions=packed.acted(now, later),
        )


def window_offsets(fps: Array, seconds: float | None) -> Array:
    """Rates [E] -> the window in frames, int64 [E], at least 1; seconds None: adjacent frames. Raises LapaError unless
    seconds > 0."""
    if seconds is None:
        return np.ones(len(fps), np.int64)
    if not (np.isfinite(seconds) and seconds > 0):
        raise LapaError(f"The window must be above 0 seconds, got {seconds}.")
    return np.clip(np.round(seconds * fps), 1, 2**40).astype(np.int64)


def pair_counts(packed: Index, seconds: float | None, end: Literal["drop", "clip"] = "drop") -> Array:
    """How many pairs each episode has, int64 [E]: none where it is no longer than the window.

    An episode whose frames lie so far apart that the window is nearer to none than to one of them has no pairs either.

    Raises LapaError when no episode is long enough, saying how long the longest is, or when no rate is high enough.
    """
    if end not in ("drop", "clip"):
        raise LapaError(f'The end of an episode is "drop" or "clip", not "{end}".')
    lengths = np.diff(packed.starts)
    offsets = window_offsets(packed.fps, seconds)
    slow = too_slow(packed.fps, seconds)
    if slow.all():
        raise LapaError(_too_slow(packed, seconds or 0.0))
    long = (lengths > offsets) & ~slow
    if not long.any():
        raise LapaError(_too_short(packed, lengths, seconds))
    return np.where(long, lengths if end == "clip" else lengths - offsets, 0)


def window_pairs(packed: Index, seconds: float | None, end: Literal["drop", "clip"] = "drop") -> PairIndex:
    """All pairs (t, t + window) of every episode that is longer than the window; seconds None: adjacent frames.

    Pairs that reach past the end are dropped, or end at the last frame with `end="clip"`. Raises LapaError
    when no episode is long enough, saying how long the longest is.
    """
    counts = pair_counts(packed, seconds, end)
    lengths = np.diff(packed.starts)
    offsets = window_offsets(packed.fps, seconds)
    episode = np.repeat(np.arange(len(lengths)), counts)
    frame = np.arange(len(episode)) - np.repeat(np.cumsum(counts) - counts, counts)
    now = packed.starts[episode] + frame
    later = np.minimum(now + offsets[episode], packed.starts[episode + 1] - 1)
    return PairIndex(now, later, episode, frame, later - now, seconds, int((counts == 0).sum()))


def too_slow(fps: Array, seconds: float | None) -> Array:
    """Rates [E] -> where the next frame is more than twice the window away, bool [E]: a pair of frames would be called
    what it is not. A window of adjacent frames (None) fits any rate."""
    return np.zeros(len(fps), bool) if seconds is None else seconds * fps < 0.5 - 1e-6


def window_notes(packed: Index, seconds: float | None, end: Literal["drop", "clip"] = "drop") -> list[str]:
    """What the user must know of the pairs, a sentence each: episodes that have none, and windows that are in truth
    another time, as the distance of frames is no part of them. Raises LapaError as `pair_counts` does."""
    counts, offsets = pair_counts(packed, seconds, end), window_offsets(packed.fps, seconds)
    if seconds is None:
        short = counts == 0
        return [f"{_some(packed, short)} one frame only, and no pair."] if short.any() else []
    slow, real = too_slow(packed.fps, seconds), offsets / packed.fps
    short, off = (counts == 0) & ~slow, (np.abs(real / seconds - 1) > NEAR) & (counts > 0)
    said = []
    if short.any():
        said.append(f"{_some(packed, short)} no frame that lies the window of {seconds:g} s later, and so no pair.")
    if slow.any():
        said.append(f"{_some(packed, slow)} no pair: the frames lie {1 / packed.fps[slow].max():.3g} s or more apart, "
                    f"and the window is {seconds:g} s (--window, for lapa quantize).")  # fmt: skip
    if off.any():
        least, most = real[off].min(), real[off].max()
        span = f"{least:.3g} s" if most - least < 1e-3 else f"{least:.3g} to {most:.3g} s"
        said.append(f"{_some(packed, off)} pairs that are {span} apart, not {seconds:g} s: at their rate no two frames "
                    "come nearer to it.")  # fmt: skip
    return said


def tell_of_window(packed: Index, seconds: float | None, end: Literal["drop", "clip"] = "drop") -> None:
    """Print `window_notes` once, from one process of many."""
    for sentence in window_notes(packed, seconds, end) if rank() == 0 else ():
        say_once(sentence)


def _some(packed: Index, which: Array) -> str:
    """ "2 of 9 episodes (a, b) have", to be followed by what they have."""
    named = [packed.ids[e] for e in np.flatnonzero(which)[:3]]
    rest = ", .." if which.sum() > len(named) else ""
    verb = "has" if which.sum() == 1 else "have"
    return f"{int(which.sum())} of {packed.episodes} episodes ({', '.join(named)}{rest}) {verb}"


def following(pairs: PairIndex) -> Array:
    """int64 [P]: for each pair the row of the pair that starts where it ends, -1 where there is none."""
    rows = np.arange(len(pairs))
    after = np.minimum(rows + pairs.offset, len(pairs) - 1)
    goes_on = (pairs.now[after] == pairs.later) & (pairs.episode[after] == pairs.episode) & (pairs.offset > 0)
    return np.where(goes_on, after, -1)


def _too_slow(packed: Index, seconds: float) -> str:
    best = int(np.argmax(packed.fps))
    return (
        f"{packed.spec}: the window of {seconds:g} s is shorter than the time from one frame to the next, which is "
        f'{1 / packed.fps[best]:.3g} s at the least (episode "{packed.ids[best]}"). Take videos of a higher rate, or a '
        f"window of {1 / packed.fps[best]:.3g} s or more (--window, for lapa quantize)."
    )


def _too_short(packed: Index, lengths: Array, seconds: float | None) -> str:
    spans = (lengths - 1) / packed.fps
    best = int(np.argmax(spans))
    if seconds is None or lengths[best] < 2:
        return f"{packed.spec}: no episode has two frames, so there are no pairs."
    return (
        f"{packed.spec}: no episode is longer than the window of {seconds:g} s. The longest, "
        f'"{packed.ids[best]}", has {lengths[best]} frames at {packed.fps[best]:g} fps; '
        f"a window of up to {spans[best]:.3g} s fits it."
    )
