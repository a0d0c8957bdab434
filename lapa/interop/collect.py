"""`lapa collect`: any dataset -> a LeRobot v3.0 dataset on disk, the project's one format."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import provenance
from lapa.contracts import Array, BadVideo, Episode, LapaError, Seekable
from lapa.data.index import NO_FRAMES, notes_of, origins
from lapa.data.lerobot_format import LeRobotWriter, rate_in_words, whole_rate
from lapa.data.spec import Spec, cameras_of, parse
from lapa.data.video import Quality, coding_in_words, quality_for
from lapa.runtime.progress import Progress

# An episode, and the frames of its further cameras by name, uint8 [T, H, W, 3] each.
Take = tuple[Episode, Mapping[str, Array]]


def collect(
    specs: Sequence[str],
    out: Path,
    skip_bad: bool = False,
    without_actions: bool = False,
    cameras: Sequence[str] = (),
    quality: Quality = "auto",
    robot: str = "",
) -> dict[str, Any]:
    """Write the episodes of `specs` to the new folder `out`, with their actions or as mere video; returns counts.

    `cameras` are those to keep, the first one being the main one; by default all that the first episode has, or the one
    that a dataset's option `camera` names. `quality` and `robot` as in `write`. Raises LapaError when an episode cannot
    be read (unless `skip_bad`) or the episodes do not share sizes and fps.
    """
    datasets = [parse(spec) for spec in specs]
    takes = _readable(chain.from_iterable(_takes(spec, cameras) for spec in datasets), skip_bad)
    if without_actions:
        takes = mere_video(takes)
    total = sum(length_hint(spec.build()) for spec in datasets)
    return write(takes, out, {"sources": list(specs)}, total, quality, robot)


def mere_video(takes: Iterable[Take]) -> Iterator[Take]:
    """The episodes without their actions."""
    for episode, views in takes:
        yield replace(episode, actions=None, action_names=(), action_kinds=()), views


def write(
    takes: Iterable[Take],
    out: Path,
    origin: Mapping[str, Any],
    total: int = 0,
    quality: Quality = "auto",
    robot: str = "",
) -> dict[str, Any]:
    """Write episodes to the new LeRobot v3.0 folder `out`; `origin` says where they come from, `total` how many there
    will be, if that is known.

    Names, kinds and camera are those of the first episode, which the others must fit; its robot too, where `robot` does
    not name it. Pictures are kept exactly (None), or in less room with a `quality` (data/video.py VideoFile), by
    default as their size suggests (`quality_for`). Says how, and where a rate is written as the whole one beside it.
    Returns {"episodes", "frames", "with" or "without" actions, "cameras", "notes" of the episodes}. Raises LapaError
    for no episode and for one that does not fit; nothing is written then.
    """
    rest = iter(takes)
    first, views = next(rest, (None, {}))
    if first is None:
        raise LapaError(f"{', '.join(map(str, origin.get('sources', ['the source'])))}: no episode to write.")
    names = first.action_names or _numbered("action", first.actions)
    frames, seen, size, rate = 0, list[Episode](), _size(first.frames), whole_rate(first.fps)
    kept = quality_for(quality, *size)
    if told := rate_in_words(first.fps):
        print(told, file=sys.stderr)
    with (
        LeRobotWriter(
            out,
            rate,
            size,
            names,
            first.state_names or _numbered("state", first.state),
            {**origin, **provenance(0, {}, {})},
            camera=first.camera,
            views={name: _size(film) for name, film in views.items()},
            robot_type=robot or first.embodiment or None,
            kinds=first.action_kinds,
            quality=kept,
        ) as writer,
        Progress("collecting", max(total, 1), unit="episodes") as progress,
    ):
        for number, (episode, films) in enumerate(chain([(first, views)], rest), 1):
            _require_like(episode, first, robot)
            writer.add(replace(episode, fps=rate) if whole_rate(episode.fps) == rate else episode, films)
            frames += len(episode.frames)
            seen.append(replace(episode, frames=NO_FRAMES))
            progress.update(number)
    print(coding_in_words(kept, *size), flush=True)
    cameras = [first.camera or "main", *views]
    counts = {"episodes": number, "frames": frames, "with": "with" if names else "without", "cameras": cameras}
    told = f"instructions: {origins([e.instruction for e in seen], [e.instruction_from for e in seen])}"
    others = dict.fromkeys(e.camera for e in seen if e.camera not in ("", first.camera))
    told_too = [f"camera: {', '.join(others)} is written as {cameras[0]}, the first episode's"] if others else []
    return {**counts, "notes": [*notes_of(seen), *told_too, told]}


def _takes(spec: Spec, wanted: Sequence[str]) -> Iterator[Take | BadVideo]:
    """The episodes of a dataset, which is opened once per camera."""
    main, *others = cameras_of(spec, wanted)
    views = {str(other.options.get("camera")): _View(other) for other in others}
    left_out: set[str] | None = set() if wanted else None
    seen: set[str] = set()
    for episode in main.build().episodes():
        if isinstance(episode, BadVideo):
            yield episode
            continue
        if episode.id in seen:
            yield BadVideo(f'{spec.name}:{spec.path}: there is a second episode "{episode.id}".')
            continue
        seen.add(episode.id)
        if left_out is None:  # the first episode says which cameras there are, where nobody asked for some
            left_out = {name for name, view in views.items() if episode.id not in view.numbers}
            for name in sorted(left_out):
                print(f"left out: camera {name}, for {views[name].lacking(episode.id)}", file=sys.stderr)
        try:
            yield episode, {name: view.film(episode) for name, view in views.items() if name not in left_out}
        except BadVideo as bad:
            yield bad


class _View:
    """A dataset as a further camera saw it: its films by the id of their episode, for one camera may lack an episode
    that another has. Raises LapaError for a dataset that cannot open its episodes one by one."""

    def __init__(self, spec: Spec) -> None:
        self.camera, self._dataset = spec.options.get("camera"), spec.build()
        if not isinstance(self._dataset, Seekable):
            raise LapaError(f"{spec.name}:{spec.path} is read from front to back only: take one of its cameras.")
        self.numbers: dict[str, int] = {}
        self._bad: list[BadVideo] = []
        for number, episode in self._dataset.index():
            if isinstance(episode, BadVideo):
                self._bad.append(episode)
            else:
                self.numbers[episode.id] = number

    def lacking(self, episode: str) -> str:
        """Why it has no film of an episode, as far as it is known."""
        what = f'it has no film of episode "{episode}" that can be read'
        if len(self._bad) > 1:
            return f"{what}, and of {len(self._bad)} in all: {self._bad[0]}"
        return f"{what}: {self._bad[0]}" if self._bad else f"{what}."

    def film(self, main: Episode) -> Array:
        """The frames of an episode. Raises BadVideo where there are not as many as the main camera has."""
        assert isinstance(self._dataset, Seekable)
        if main.id not in self.numbers:
            raise BadVideo(f"Camera {self.camera}: {self.lacking(main.id)} Keep the cameras alone that all episodes "
                           "have, with --cameras.")  # fmt: skip
        frames = np.stack([np.array(frame) for frame in self._dataset.frames(self.numbers[main.id])])
        if len(frames) != len(main.frames):
            raise BadVideo(f'Episode "{main.id}": camera {self.camera} has {len(frames)} frames, not '
                           f"{len(main.frames)}. Keep the cameras alone that go together, with --cameras.")  # fmt: skip
        return frames


def _readable(stream: Iterable[Take | BadVideo], skip_bad: bool) -> Iterator[Take]:
    for take in stream:
        if isinstance(take, BadVideo):
            if not skip_bad:
                raise take
            print(f"skipped: {take}", file=sys.stderr)
        else:
            yield take


def _require_like(episode: Episode, first: Episode, robot: str) -> None:
    """Raises LapaError for an episode whose actions, state or robot are not what the first one's are: they would be
    left out, or written under other names."""
    where = f'Episode "{episode.id}"'
    for what, key in (("actions", "actions"), ("a state", "state")):
        if getattr(first, key) is None and getattr(episode, key) is not None:
            left = "with --without-actions" if key == "actions" else "with state=none"
            raise LapaError(f"{where} has {what}, and the first one has none. Collect them apart, or {left}.")
    for what, key in (
        ("action is", "action_names"),
        ("action is", "action_kinds"),
        ("state is", "state_names"),
        ("robot is", "embodiment"),
    ):
        its, firsts = getattr(episode, key), getattr(first, key)
        if its and firsts and its != firsts and not (robot and key == "embodiment"):
            shown = [one if isinstance(one, str) else ", ".join(one[:8]) for one in (its, firsts)]
            then = ", or give them one name with --robot" if key == "embodiment" else ""
            raise LapaError(f"{where}: its {what} {shown[0]}; {shown[1]} in the first one. Collect them apart{then}.")


def _size(frames: Array) -> tuple[int, int]:
    return int(frames.shape[1]), int(frames.shape[2])


def _numbered(name: str, values: Array | None) -> tuple[str, ...]:
    return () if values is None else tuple(f"{name}_{i}" for i in range(values.shape[1]))
