"""Which frame of a film belongs to which row of a table: by time, as LeRobot pairs them, and said where that fails.

A row says when it was (timestamp) and which of its episode it is (frame_index); a film says when its frames are shown.
The frame of a row is the nearest to its time, at most half a step away. Where the two clocks do not fit (a clock that
starts late, a film of another rate) and there are as many rows as frames, they are paired one to one. Anything else is
an error that names both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lapa.contracts import Array, BadVideo

APART = 0.5  # of a step: a row and its frame are at most so far from one another
GAP = 1.75  # steps: rows further apart than this are not consecutive
FAR = 0.1  # steps: frames further away are told of
SAME = 0.02  # rates that differ by less are one rate, measured in two ways
UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


@dataclass(frozen=True)
class Clock:
    """The rows of an episode in their order: `rows` int64 [n], their `times` float64 [n] in seconds, ascending, their
    `numbers` int64 [n] within the episode, ascending (`counted` here where no frame_index says them), and how many of
    them are in a second."""

    rows: Array
    times: Array
    numbers: Array
    fps: float
    counted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def even(self) -> bool:
        """Are there no gaps between the rows?"""
        return len(self.times) < 2 or bool(np.diff(self.times).max() * self.fps <= GAP)


@dataclass(frozen=True)
class Paired:
    """Rows and frames that belong together, in order: `at` int64 [n], places in the clock, `frames` int64 [n], frames
    of the film."""

    at: Array
    frames: Array
    notes: tuple[str, ...] = ()


def clock(stamps: Array | None, numbers: Array | None, length: int, fps: float, where: str) -> Clock:
    """The clock of an episode of `length` rows. `stamps` float64 [n] are their timestamps, `numbers` int64 [n] their
    frame_index, None where there is none; `fps` is the rate that the data set states.

    Raises BadVideo, which begins with `where`, for times that are no numbers, for rows of one time and for timestamps
    and numbers of different order.
    """
    notes: list[str] = []
    if stamps is not None:
        if not np.isfinite(stamps).all():
            raise BadVideo(f"{where} has the timestamp {stamps[~np.isfinite(stamps)][0]} in row "
                           f"{int(np.flatnonzero(~np.isfinite(stamps))[0])}.")  # fmt: skip
        stamps, notes = _in_seconds(stamps, fps)
    if numbers is not None and not _distinct(numbers):
        if stamps is None or not _distinct(stamps):
            first, second = _twins(numbers if stamps is None else stamps)
            raise BadVideo(f"{where}: rows {first} and {second} have the same frame_index and timestamp.")
        numbers = None
    if stamps is not None and not _distinct(stamps):
        if numbers is None and np.ptp(stamps):
            first, second = _twins(stamps)
            raise BadVideo(f"{where}: rows {first} and {second} have the same timestamp, {stamps[first]:g} s.")
        notes.append("rows: their timestamps repeat, so they are ordered by " + ("frame_index" if numbers is not None
                                                                               else "their place"))  # fmt: skip
        stamps = None
    if stamps is None:
        stamps = (np.arange(length) if numbers is None else numbers) / fps
    order = np.argsort(stamps, kind="stable")
    if numbers is not None and (np.diff(numbers[order]) < 0).any():
        raise BadVideo(f"{where}: timestamp and frame_index put the rows into different orders.")
    times = stamps[order]
    rate = _rate(times, fps)
    if rate != fps:
        notes.append(f"rate: the rows are at {rate:g} a second, info.json says {fps:g}; taken as {rate:g}")
    known = np.arange(length) if numbers is None else numbers[order]
    return Clock(order, times, known, rate, numbers is None, tuple(notes))


def paired(rows: Clock, film: Array, where: str, whole: bool = True) -> Paired:
    """The frames of the rows; `film` float64 [m] are the times of the episode's frames, ascending, on the rows' clock.
    Without `whole` the film is known to be damaged, and nothing is concluded from the number of its frames.

    Raises BadVideo, which begins with `where`, for rows that have no frame.
    """
    count, every = len(film), np.arange(len(rows.times))
    nearest, away = _nearest(rows, film)
    fits = away <= APART * (1 + 1e-3)
    if fits.all() and (np.diff(nearest) > 0).all():
        notes = []
        if away.max(initial=0) > FAR:
            notes.append("frames: nearest in time to their rows, some further away than a tenth of a step")
        if count > len(every) + 1:
            notes.append("frames: the film has more of them than there are rows; the others are left out")
        return Paired(every, nearest, tuple(notes))
    if whole and count and (rows.even or not rows.counted):
        alike = f"frames: paired with the rows one to one, for {_why(rows, film)}"
        first = rows.numbers - rows.numbers[0]
        for numbers in (rows.numbers, first):
            if numbers[0] >= 0 and numbers[-1] + 1 == count:
                return Paired(every, numbers, (alike,))
        last = "frames: the film has one frame fewer than there are rows; the last row is left out"
        after = (rows.times[-1] - film[-1]) * rows.fps <= GAP
        if fits[:-1].all() and len(fits) > 1 and after and (np.diff(nearest[:-1]) > 0).all():
            return Paired(every[:-1], nearest[:-1], (last,))
        for numbers in (rows.numbers, first):
            if numbers[0] >= 0 and numbers[-1] == count and count > 1:
                return Paired(every[:-1], numbers[:-1], (alike, last))
    raise BadVideo(f"{where} {_mismatch(rows, film, fits)}")


def pieces(rows: Clock, texts: list[str] | None = None) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """The stretches first : last of the clock that are of one task (`texts`, one a row) and have no gap in time; and
    what to say of them."""
    count = len(rows.times)
    steps = np.diff(rows.times) * rows.fps
    gaps = np.flatnonzero(steps > GAP) + 1
    notes = []
    if len(gaps) > max(1, count // 3):
        notes.append("rows: at uneven times; they are taken as if they were even")
        gaps = gaps[:0]
    elif len(gaps):
        notes.append("split: where rows are missing in between")
    changes = [i for i in range(1, count) if texts[i] != texts[i - 1]] if texts else []
    if changes:
        notes.append("split: where the task changes")
    cuts = sorted({0, count, *gaps.tolist(), *changes})
    return list(pairwise(cuts)), tuple(notes)


def _in_seconds(stamps: Array, fps: float) -> tuple[Array, list[str]]:
    step = float(np.median(np.diff(np.sort(stamps)))) * fps if len(stamps) > 1 else 1.0
    for name, unit in UNITS.items():
        if abs(step / unit - 1) < 0.1:
            return stamps / unit, [f"rows: their timestamps are {name}"]
    return stamps, []


def _rate(times: Array, fps: float) -> float:
    """Rows a second: the stated rate where theirs is the same."""
    steps = np.diff(times)
    if not len(steps):
        return fps
    usual = steps[steps < GAP * np.median(steps)]
    rate = 1 / float(usual.mean()) if len(usual) else fps
    return fps if abs(rate / fps - 1) < SAME else round(rate, 3 if rate > 1 else 6)


def _nearest(rows: Clock, film: Array) -> tuple[Array, Array]:
    """The nearest frame of each row, int64 [n], and how many steps away it is, float64 [n]."""
    if not len(film):
        return np.zeros(len(rows.times), np.int64), np.full(len(rows.times), np.inf)
    after = np.clip(np.searchsorted(film, rows.times), 1, max(len(film) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(film) - 1)
    nearest = np.where(rows.times - film[before] <= film[after] - rows.times, before, after)
    step = 1 / rows.fps
    if len(film) > 1:
        step = min(step, float(np.median(np.diff(film))))
    return nearest, np.abs(film[nearest] - rows.times) / max(step, 1e-9)


def _why(rows: Clock, film: Array) -> str:
    """Why their times do not say which belong together."""
    rate = _film_rate(film)
    if rate and abs(rate / rows.fps - 1) > 1e-4:
        return f"the film has {rate:.4g} frames a second and the rows are at {rows.fps:.4g}"
    return "their clocks do not start together"


def _film_rate(film: Array) -> float:
    return (len(film) - 1) / float(film[-1] - film[0]) if len(film) > 1 and film[-1] > film[0] else 0.0


def _mismatch(rows: Clock, film: Array, fits: Array) -> str:
    """What is wrong, for people."""
    if not len(film):
        return f"has {len(rows.times)} rows and no frame in the film."
    first = int(np.flatnonzero(~fits)[0]) if not fits.all() else 0
    said = (
        f"has {len(rows.times)} rows from {rows.times[0]:.3f} to {rows.times[-1]:.3f} s and {len(film)} frames from "
        f"{film[0]:.3f} to {film[-1]:.3f} s; row {first} has no frame at {rows.times[first]:.3f} s."
    )
    rate = _film_rate(film)
    if rate and abs(rate / rows.fps - 1) > SAME:
        return (f"{said} This camera films {rate:.4g} frames a second, the rows are at {rows.fps:.4g}: take another "
                "camera, or film and rows of one rate.")  # fmt: skip
    return f"{said} The film is cut short or belongs elsewhere; copy it again, or mend the timestamps."


def _distinct(values: Array) -> bool:
    return len(np.unique(values)) == len(values)


def _twins(values: Array) -> tuple[int, int]:
    """The first two rows of one value."""
    order = np.argsort(values, kind="stable")
    at = np.flatnonzero(np.diff(values[order]) == 0)
    first, second = sorted(order[at[0] : at[0] + 2].tolist()) if len(at) else (0, 0)
    return first, second
