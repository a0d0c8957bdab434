"""Options that every dataset has: which episodes, at which rate, what the actions are, how pictures become squares.

kinds=6delta+binary   what the actions are, against what the dataset or the data say (actions/spec.py)
episodes=0-9+20       these episodes alone, counted from 0 in the dataset's order (LeRobot: by episode_index)
without=0-9           all but these
stride=3              every third frame
fps=10                the frames nearest to even steps at this rate; where a dataset's own `fps` says what rate its
                      pictures were taken at, use stride

Over skipped frames deltas add up; absolute targets and binary values are the last ones.
"""

from __future__ import annotations

import math
import operator
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from lapa.actions.spec import by_names, over_window, parse_kinds, told_by_data
from lapa.contracts import ActionKind, Array, BadVideo, Dataset, Episode, LapaError, Seekable
from lapa.data.images import Fit, resized

LOOKED_AT = 20  # episodes that tell what the actions are, where skipped ones have to be joined
SMALL = 8  # pixels: frames that nobody looks at


@dataclass(frozen=True)
class Choice:
    """The options as they were given, None where they were not."""

    kinds: str | None = None
    episodes: str | None = None
    without: str | None = None
    stride: int | None = None
    fps: float | None = None

    def check(self, spec: str) -> None:
        """Raises LapaError for values that make no sense."""
        for text in (self.episodes, self.without):
            if text is not None:
                spans(text)
        if self.episodes is not None and self.without is not None:
            raise LapaError(f"{spec}: give episodes or without, not both.")
        if self.stride is not None and self.fps is not None:
            raise LapaError(f"{spec}: give stride or fps, not both.")
        if self.stride is not None and self.stride < 1:
            raise LapaError(f"{spec}: stride is at least 1, not {self.stride}.")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise LapaError(f"{spec}: fps is above 0, not {self.fps:g}.")

    def of(self, dataset: Dataset, where: str, fit: Fit = "squash") -> Dataset:
        """The dataset with the options applied; itself where there are none."""
        if self == Choice() and fit == "squash":
            return dataset
        if isinstance(dataset, Seekable):
            return ChosenSeekable(dataset, self, where, fit)
        return Chosen(dataset, self, where, fit)


class Chosen:
    """A dataset with options applied. `where` names it in messages."""

    def __init__(self, dataset: Dataset, choice: Choice, where: str, fit: Fit) -> None:
        self._dataset, self._choice, self._where, self._fit = dataset, choice, where, fit
        self.cameras: tuple[str, ...] = getattr(dataset, "cameras", ())
        self.colour_cameras: tuple[str, ...] = getattr(dataset, "colour_cameras", self.cameras)
        self.camera: str = getattr(dataset, "camera", "")
        self._called: tuple[int, ...] | None = getattr(dataset, "episode_indices", None)
        self._lock = threading.Lock()
        self._first: tuple[ActionKind, ...] | None = None

    def __len__(self) -> int:
        total = operator.length_hint(self._dataset)
        if self._choice.episodes is None and self._choice.without is None:
            return total
        return sum(self._wanted(self._number(place)) for place in range(total))

    def signature(self) -> str:
        """That of the dataset, and the options."""
        return f"{self._dataset.signature()} {self._choice} {self._fit}"

    @property
    def kinds_from(self) -> str:
        """Who says what the actions are; "" where whoever reads them is to look."""
        if self._choice.kinds is not None:
            return "the option kinds"
        return "" if self._first is None else f"the data ({LOOKED_AT} episodes)"

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the dataset."""
        return getattr(self._dataset, "notes", ())

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield the chosen episodes."""
        for episode in self._selected(self._dataset.episodes(size if self._fit == "squash" else None)):
            made = episode if isinstance(episode, BadVideo) else self._changed(episode)
            yield made if isinstance(made, BadVideo) else self._sized(made, size)

    def _selected(self, found: Iterator[Episode | BadVideo]) -> Iterator[Episode | BadVideo]:
        place = -1
        for place, episode in enumerate(found):
            if self._wanted(self._number(place)):
                yield episode
            if self._past(place):
                return
        self._check_end([self._number(place) for place in range(place + 1)])

    def _sized(self, episode: Episode, size: int | None) -> Episode:
        shape = (episode.frames.shape[1], episode.frames.shape[2])
        if size is None or shape == (size, size):
            return episode
        frames = np.stack([resized(frame, size, self._fit) for frame in episode.frames])
        return replace(episode, frames=frames, size=episode.size or shape)

    # --- which episodes

    def _number(self, place: int) -> int:
        """What the episode at a place of the dataset's order is called."""
        return self._called[place] if self._called and place < len(self._called) else place

    def _wanted(self, number: int) -> bool:
        if self._choice.episodes is not None:
            return _inside(number, self._choice.episodes)
        return self._choice.without is None or not _inside(number, self._choice.without)

    def _past(self, place: int) -> bool:
        """Is there nothing more to come after this one? (Known where places are numbers.)"""
        text = self._choice.episodes
        return text is not None and not self._called and place >= max(last for _, last in spans(text))

    def _check_end(self, there: list[int]) -> None:
        """Raises LapaError when episodes were asked for that are not `there`."""
        text = self._choice.episodes or self._choice.without
        if text is None:
            return
        for first, last in spans(text):
            if last > max(there, default=-1) or not any(first <= number <= last for number in there):
                span = f", numbers {min(there)} to {max(there)}" if there else ""
                raise LapaError(f"{self._where}: has no episode {last}; it has {len(set(there))}{span}.")

    # --- what of them

    def _changed(self, episode: Episode) -> Episode | BadVideo:
        """An episode with its kinds, and at the wanted rate; a BadVideo for actions unlike those of the first."""
        episode = self._with_kinds(episode)
        rows = self._rows(len(episode.frames), episode.fps, episode.id)
        if rows is None:
            return episode
        try:
            return replace(self._at(episode, rows), frames=episode.frames[rows])
        except BadVideo as bad:
            return bad

    def _with_kinds(self, episode: Episode) -> Episode:
        if self._choice.kinds is None:
            return episode
        if episode.actions is None:
            raise LapaError(f"{self._where}: kinds={self._choice.kinds} is given, and there are no actions.")
        return replace(episode, action_kinds=parse_kinds(self._choice.kinds, episode.actions.shape[1]))

    def _at(self, episode: Episode, rows: Array) -> Episode:
        """All but the frames, at `rows`."""
        actions, kinds = episode.actions, episode.action_kinds
        if actions is not None:
            width = actions.shape[1]
            kinds = kinds or self._told(width)
            if len(kinds) != width:
                raise BadVideo(f'{self._where}: episode "{episode.id}": action has {width} dimensions, {len(kinds)} in '
                               "the first.")  # fmt: skip
            actions = over_skipped(kinds, actions, rows)
        state = None if episode.state is None else episode.state[rows]
        return replace(episode, actions=actions, action_kinds=kinds, state=state, fps=self._rate(episode.fps))

    def _told(self, width: int) -> tuple[ActionKind, ...]:
        """What the first episodes tell of the kinds; of `width` many where none of them can be used."""
        delta: ActionKind = "delta"
        with self._lock:
            if self._first is None:
                some = list(islice(self._like_the_first(), LOOKED_AT))
                states = [state for _, state in some if state is not None]
                self._first = (delta,) * width
                if some:
                    self._first = told_by_data(
                        np.concatenate([actions for actions, _ in some]),
                        np.concatenate(states) if len(states) == len(some) else None,
                    )
            return self._first

    def _like_the_first(self) -> Iterator[tuple[Array, Array | None]]:
        """Actions and state of the episodes that go with the first, as an index has them: of as many dimensions, and
        finite."""
        widths: list[int | None] | None = None
        for episode in self._tables():
            if isinstance(episode, BadVideo) or episode.actions is None:
                continue
            both = [episode.actions, episode.state]
            its = [None if one is None or one.ndim != 2 else one.shape[1] for one in both]
            widths = widths or its
            if its == widths and all(one is None or np.isfinite(one).all() for one in both):
                yield episode.actions, by_names(episode.state, episode.action_names, episode.state_names)

    def _tables(self) -> Iterator[Episode | BadVideo]:
        return self._dataset.episodes(SMALL)

    def _rate(self, source: float) -> float:
        if self._choice.stride is not None:
            return source / self._choice.stride
        return source if self._choice.fps is None else self._choice.fps

    def _rows(self, length: int, source: float, episode: str) -> Array | None:
        """The frames to take, int64; None for all."""
        rate = self._rate(source)
        if rate > source * (1 + 1e-6):
            raise LapaError(f"{self._where}: fps={rate:g} is more than the {source:g} fps of episode {episode}.")
        return None if rate >= source else even_steps(length, source, rate)


class ChosenSeekable(Chosen):
    """The same for a dataset that opens any episode: those that are not wanted are not decoded."""

    _dataset: Seekable

    def __init__(self, dataset: Seekable, choice: Choice, where: str, fit: Fit) -> None:
        super().__init__(dataset, choice, where, fit)
        self._called_by_number: Callable[[int], int] | None = getattr(dataset, "episode_number", None)
        self._lengths: dict[int, tuple[int, float]] | None = None

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield the chosen episodes."""
        if self._choice.episodes is None and self._choice.without is None and self._fit == "squash":
            yield from super().episodes(size)
            return
        for number, episode in self.index():
            if isinstance(episode, BadVideo):
                yield episode
                continue
            try:
                rows = self._steps(number, 0)
                frames = [np.array(frame) for frame in self._picked(number, size, rows)]
                if len(frames) != len(episode.frames):
                    raise BadVideo(f'{self._where}: episode "{episode.id}" has {len(frames)} frames to be read, '
                                   f"of {len(episode.frames)}.")  # fmt: skip
            except BadVideo as bad:
                yield bad
            else:
                yield replace(episode, frames=np.stack(frames), size=episode.size or episode.frames.shape[1:3])

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable."""
        place, there = -1, list[int]()
        for number, episode in self._dataset.index():
            if number < 0:  # of no episode in particular
                if not isinstance(episode, BadVideo) or self._choice.episodes is None:
                    yield number, episode
                continue
            place += 1
            called = self._called_by_number(number) if self._called_by_number else self._number(place)
            there.append(called)
            if self._wanted(called):
                yield number, episode if isinstance(episode, BadVideo) else self._changed(episode)
            if self._past(place):
                return
        self._check_end(there)

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        return self._picked(number, size, self._steps(number, start))

    def _picked(self, number: int, size: int | None, rows: Iterator[int]) -> Iterator[Array]:
        wanted = next(rows, -1)
        if wanted < 0:
            return
        whole = self._dataset.frames(number, size if self._fit == "squash" else None, wanted)
        for row, frame in enumerate(whole, wanted):
            if row == wanted:
                yield resized(frame, size, self._fit)
                if (wanted := next(rows, -1)) < 0:
                    return

    def _steps(self, number: int, start: int) -> Iterator[int]:
        """The frames of an episode to take, from its step `start` on."""
        if self._choice.fps is None:
            stride, row = self._choice.stride or 1, start * (self._choice.stride or 1)
            while True:
                yield row
                row += stride
        with self._lock:
            if self._lengths is None:
                self._lengths = {
                    place: (len(episode.frames), episode.fps)
                    for place, episode in self._dataset.index()
                    if not isinstance(episode, BadVideo)
                }
        length, source = self._lengths[number]
        rows = self._rows(length, source, str(number))
        yield from (np.arange(length) if rows is None else rows)[start:].tolist()

    def _tables(self) -> Iterator[Episode | BadVideo]:
        return (episode for _, episode in self._dataset.index())


def spans(text: str) -> list[tuple[int, int]]:
    """ "0-9+20" -> [(0, 9), (20, 20)]. Raises LapaError for anything else."""
    found = []
    for part in text.split("+"):
        named = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if not named or (named[2] and int(named[2]) < int(named[1])):
            raise LapaError(f'"{text}" names no episodes. Write such as 0-9 or 0-9+20+30-39.')
        found.append((int(named[1]), int(named[2] or named[1])))
    return found


def _inside(number: int, text: str) -> bool:
    return any(first <= number <= last for first, last in spans(text))


def over_skipped(kinds: Sequence[ActionKind], actions: Array, rows: Array) -> Array:
    """Actions float32 [T, A] -> those from one of the frames `rows`, int64 [N], to the next, float32 [N, A]."""
    end = min(2 * rows[-1] - rows[-2] if len(rows) > 1 else len(actions), len(actions))
    return over_window(kinds, actions, None, rows, np.append(rows[1:], end))


def even_steps(length: int, source: float, rate: float) -> Array:
    """The frames of `length` at rate `source` that are nearest to even steps at `rate`, int64."""
    wanted = np.arange(int((length - 1) * rate / source + 1e-6) + 1) * (source / rate)
    return np.minimum(np.round(wanted).astype(np.int64), length - 1)
