"""Datasets whose episodes are arrays (data/arrays.py): which array is the camera, the action and the state, the rate,
and which way up. What HDF5 and zarr files have in common; how files are opened and what they say of themselves, each
reader says.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import ActionKind, Array, BadVideo, Episode, LapaError
from lapa.data.arrays import (
    Colours,
    Flip,
    Part,
    Recording,
    Rows,
    Turn,
    channels,
    coding,
    guarded,
    is_numbers,
    length_of,
    numbers_of,
    picture_size,
    pictures_of,
)
from lapa.data.cameras import best, camera, fault_by_name
from lapa.data.folders import printable
from lapa.data.groups import by_numbers
from lapa.data.images import blank, number_of
from lapa.data.notes import CHANGES
from lapa.data.parts import NO_MOTION, are_rivals, dimension_names, parts
from lapa.plugins import choose

# In the path of what was recorded as an action, and not as what was seen of the one before.
ACTED = re.compile(r"(^|(?<!prev)(?<!previous)(?<!last)[/_.])actions?([/_.]|$)", re.IGNORECASE)
LATER = re.compile(r"(^|/)next_")  # the observation after an action: the same again, a row later

ACTIONS = ("actions", "action", "data/actions", "data/action")
_UMI = "robot{0}_eef_pos+robot{0}_eef_rot_axis_angle+robot{0}_gripper_width"
STATES = (  # joined with "+"; the first whose parts are all there
    "observations/qpos",
    "observations/state",
    "obs/robot0_eef_pos+obs/robot0_eef_quat+obs/robot0_gripper_qpos",
    "obs/ee_states+obs/gripper_states",
    "obs/joint_states+obs/gripper_states",
    "obs/agent/qpos",
    "obs/state",
    "observation/state",
    "state",
    "qpos",
    "robot_state",
    "agent_pos",
    "robot_eef_pose",
    f"{_UMI.format(0)}+{_UMI.format(1)}",
    _UMI.format(0),
)
TIMES = ("timestamp", "timestamps", "time", "obs/timestamp", "observations/timestamp")
PUSHT = {"img", "keypoint", "n_contacts", "state"}  # the arrays of Diffusion Policy's PushT
LOOKED_AT = 5  # episodes that tell which arrays there are
READ = 3  # part of signatures: raise it when the same files are read as something else
SLOW = 5.0  # seconds from frame to frame: such times may as well be milliseconds, and tell no rate
SCATTER = 0.1  # of a rate: what is measured differs by so much, and is one rate all the same
NEXT_STATE, NONE = "next_state", "none"  # instead of an array for the action; of either, for none


@dataclass(frozen=True)
class ArrayOptions:
    """What a user may say of arrays: see datasets/hdf5.py."""

    path: str
    camera: str | None = None
    action: str | None = None
    state: str | None = None
    instruction: str | None = None
    fps: float | None = None
    rotate: int | None = None
    flip: Flip | None = None
    colours: Colours = "rgb"


@dataclass(frozen=True)
class Place:
    """Where an episode is: the rows first : first + length (None: all) of the arrays in a group of a file."""

    id: str
    file: Path
    group: str = ""
    first: int = 0
    length: int | None = None


class Recordings(ABC):
    """A Seekable dataset of the episodes at `places`, in their order; a BadVideo stands in the place of one that
    cannot be listed.

    Raises LapaError when no episode can be read, and for options that do not fit the first that can.
    """

    def __init__(self, name: str, places: Sequence[Place | BadVideo], options: ArrayOptions) -> None:
        self._name, self._places, self._options = name, places, options
        self._choose()

    @abstractmethod
    def _opened(self, place: Place) -> AbstractContextManager[Recording]:
        """The episode at a place. Raises BadVideo."""

    def _told_rate(self, recording: Recording) -> tuple[float, str] | None:
        """Frames a second, and who says so, as far as the kind of file says it."""
        return None

    def _usual_rate(self, recording: Recording) -> tuple[float, str] | None:
        """The same of files that are known by their arrays and do not say it."""
        return None

    def _told_turn(self, about: Mapping[str, Any]) -> tuple[Turn, str]:
        """How to bring pictures upright, and who says so, as far as the kind of file says it."""
        return Turn(), "as stored"

    def _told_kinds(self, recording: Recording, action: Sequence[str], width: int) -> tuple[ActionKind, ...]:
        """What the kind of file says the actions are, () for nothing."""
        return ()

    def _told_robot(self, about: Mapping[str, Any]) -> str:
        """The robot's name, "" where nobody says it."""
        return ""

    def _told_instruction(self, place: Place, recording: Recording) -> tuple[list[str], str]:
        """The instructions of an episode, the first of which is taken for all of it, and where they are from."""
        return [], ""

    def _advice(self) -> str:
        """What to do with a file without pictures."""
        return ""

    def _problems(self) -> Iterator[BadVideo]:
        """What else cannot be read."""
        yield from ()

    def __len__(self) -> int:
        return len(self._places)

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield every episode, or a BadVideo in its place."""
        for number, episode in self._each():
            if isinstance(episode, BadVideo):
                yield episode
                continue
            try:
                yield replace(episode, frames=np.stack(list(self.frames(number, size))))
            except BadVideo as bad:
                yield bad

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: of the pictures the shape is read, or the first one."""
        return self._each()

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        place = self._places[number]
        if isinstance(place, BadVideo):
            raise place
        with self._opened(place) as recording:
            with guarded(recording.where):
                length = length_of(recording, self._fields(recording))
            yield from pictures_of(recording, self._path, length, self._upright(recording.about)[0], size, start)

    def _each(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        for number, place in enumerate(self._places):
            try:
                if isinstance(place, BadVideo):
                    raise place
                with self._opened(place) as recording, guarded(recording.where):
                    episode = self._episode(place, recording)
            except BadVideo as bad:
                yield number, bad
            else:
                yield number, episode
        yield from ((-1, bad) for bad in self._problems())

    def _episode(self, place: Place, recording: Recording) -> Episode:
        length = length_of(recording, self._fields(recording))
        turn, turned = self._upright(recording.about)
        fps, rate = self._rate_of(recording)
        size = picture_size(recording, self._path, turn)
        state = numbers_of(recording, self._state, length)
        actions = numbers_of(recording, self._action, length)
        if self._next_state and state is not None:
            actions = np.concatenate([state[1:], state[-1:]])
        texts, source = self._told_instruction(place, recording)
        texts = list(dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts))))
        changes = (CHANGES,) if len(texts) > 1 else ()
        return Episode(
            id=printable(place.id),
            frames=blank(length, size),
            fps=fps,
            instruction=next(iter(texts), ""),
            actions=actions,
            state=state,
            action_names=_names(recording, self._state if self._next_state else self._action),
            state_names=_names(recording, self._state),
            size=size,
            camera=self.camera,
            action_kinds=self._kinds_of(recording),
            embodiment=self._told_robot(recording.about),
            notes=(
                *self._why,
                f"pictures: {turned}",
                f"rate: {fps:g} Hz, {rate}",
                self._taken,
                *recording.notes,
                *changes,
            ),
            instruction_from=source if texts else "",
        )

    def _fields(self, recording: Recording) -> list[str]:
        """The arrays that are read, the camera's first. Raises BadVideo where one is missing."""
        names = [self._path, *(part.name for part in (*self._action, *self._state))]
        if missing := [name for name in names if name not in recording.arrays]:
            raise BadVideo(f"{recording.where}: has no {missing[0]}; it has {listed(recording.arrays)}.")
        return names

    # --- what is taken of an episode

    def _choose(self) -> None:
        """Look at some episodes, of several files where there are. Those with the arrays that most of them have tell
        what is taken: one may be damaged, or incomplete."""
        problem: BadVideo | None = None
        some: dict[frozenset[tuple[str, str, int]], list[Place]] = {}
        for place in self._some():
            try:
                if isinstance(place, BadVideo):
                    raise place
                with self._opened(place) as recording, guarded(recording.where):
                    kinds = ((name, array.dtype.kind, len(array.shape)) for name, array in recording.arrays.items())
                    some.setdefault(frozenset(kinds), []).append(place)
            except BadVideo as bad:
                problem = problem or bad
        for places in sorted(some.values(), key=len, reverse=True):
            for place in places:
                try:
                    with self._opened(place) as recording, guarded(recording.where):
                        self._take(recording)
                        return
                except BadVideo as bad:
                    problem = problem or bad
        raise LapaError(str(problem) if problem else f"{self._name}: holds no episode.")

    def _some(self) -> list[Place | BadVideo]:
        """The first episode of each of the first files, and the first episodes of all; all, where none of them can be
        read."""
        firsts = {place.file: place for place in reversed(self._places) if isinstance(place, Place)}
        some = list(dict.fromkeys([*list(reversed(firsts.values()))[:LOOKED_AT],
                                   *[p for p in self._places if isinstance(p, Place)][:LOOKED_AT]]))  # fmt: skip
        return [*some, *[place for place in self._places if isinstance(place, BadVideo)]]

    def _take(self, recording: Recording) -> None:
        options, arrays, where = self._options, recording.arrays, recording.where
        cameras = cameras_of(arrays)
        if options.camera in arrays and options.camera not in cameras.values():
            cameras[str(options.camera)] = str(options.camera)  # whatever it is called, it was asked for
        if not cameras:
            raise BadVideo(f"{where}: holds no colour pictures; it has {listed(arrays)}. {self._advice()}".rstrip())
        self.camera, why = chosen_camera(arrays, cameras, options.camera, where)
        self.cameras, self._path = tuple(cameras), cameras[self.camera]
        self.colour_cameras = tuple(name for name in cameras if not fault_by_name(name))
        self._state = self._parts(arrays, options.state, STATES, "state", where)
        if options.state is None and arrays.keys() >= PUSHT:  # the rest of its state is the block's
            self._state = (Part("state", 0, 2),)
        self._action = self._parts(arrays, options.action, ACTIONS, "action", where)
        passed, recorded = tuple[str, ...](), list[str]()
        if options.action is None and not self._action:
            self._action, passed, recorded = below_action(arrays, arrays[self._path].shape[0])
        self._next_state = options.action == NEXT_STATE or (
            options.action is None and not self._action and not recorded and bool(self._state)
        )
        if self._next_state and not self._state:
            raise LapaError(f"{where}: action={NEXT_STATE} is asked for, and no state is known. Say which: state=.")
        self.fps, self._rate_from = self._rate(recording)
        self._upright(recording.about)  # refuses angles that make no sense
        acted = f"the next state (action={NONE} leaves it out)" if self._next_state else _joined(self._action)
        acted += f" (passed over: {', '.join(passed)})" if passed else ""
        used = {self._path, *(part.name for part in (*self._action, *self._state))}
        rest = [name for name, array in arrays.items() if is_numbers(array) and name not in {*used, *cameras.values()}]
        can = f" (of {', '.join(rest[:6])}{', ..' if len(rest) > 6 else ''}, " if rest else ""
        acts = f"{can}action= can take some)" if can and acted == NONE and options.action is None else ""
        if recorded:
            acts = f" (there are {', '.join(recorded)}: action= says which; action={NEXT_STATE} takes the next state)"
        held = f"{can}state= can take some)" if can and not self._state and options.state is None else ""
        self._why = (f"camera: {self.camera}, {why}",) if why else ()
        self._taken = f"taken: action from {acted}{acts}, state from {_joined(self._state)}{held}"

    # --- what each episode says for itself, for files of one folder may differ

    def _kinds_of(self, recording: Recording) -> tuple[ActionKind, ...]:
        if not self._next_state:
            names = [str(part) for part in self._action]
            return self._told_kinds(recording, names, sum(part.width(recording.arrays) for part in self._action))
        absolute: ActionKind = "absolute"
        return (absolute,) * sum(part.width(recording.arrays) for part in self._state)

    def _rate_of(self, recording: Recording) -> tuple[float, str]:
        """Frames a second of an episode, and who says so: that of the first one looked at, unless it has another."""
        own = self._known_rate(recording)
        if own and abs(own[0] / self.fps - 1) > SCATTER:
            return own
        return self.fps, self._rate_from

    @staticmethod
    def _parts(
        arrays: Mapping[str, Rows], wanted: str | None, known: Sequence[str], what: str, where: str
    ) -> tuple[Part, ...]:
        if wanted in (NONE, NEXT_STATE):
            return ()
        return parts_of(arrays, wanted, what, where) if wanted else usual(arrays, known)

    def _rate(self, recording: Recording) -> tuple[float, str]:
        if self._options.fps is not None and not 0 < self._options.fps < math.inf:
            raise LapaError(f"{self._name}: fps is above 0, not {self._options.fps:g}.")
        if told := self._known_rate(recording) or self._usual_rate(recording):
            return told
        raise LapaError(f"{recording.where}: does not say its frame rate. Say it: {self._name},fps=20")

    def _known_rate(self, recording: Recording) -> tuple[float, str] | None:
        if self._options.fps is not None:
            return self._options.fps, "as fps= says"
        if told := self._told_rate(recording):
            return told
        timed = rate_of_times(recording)
        return (timed[0], f"by the array {timed[1]}") if timed else None

    def _upright(self, about: Mapping[str, Any]) -> tuple[Turn, str]:
        options = self._options
        if options.rotate is None and options.flip is None:
            turn, said = self._told_turn(about)
        else:
            turn = Turn(options.rotate or 0, options.flip or "none")
            said = f"{str(turn) or 'as stored'}, as rotate= and flip= say"
        swapped = ", blue and red exchanged" if options.colours == "bgr" else ""
        return replace(turn, colours=options.colours), said + swapped


def _joined(chosen: Sequence[Part]) -> str:
    return " + ".join(map(str, chosen)) or NONE


def _names(recording: Recording, chosen: Sequence[Part]) -> tuple[str, ...]:
    """Names of the dimensions, where there are several arrays that tell them apart."""
    return dimension_names({str(part): part.width(recording.arrays) for part in chosen}, {})


def listed(arrays: Mapping[str, Rows]) -> str:
    """For a message: names and shapes."""
    shown = [f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") if shown else "no array"


def cameras_of(arrays: Mapping[str, Rows]) -> dict[str, str]:
    """Name of each camera -> its array. The name is the last word of the array's path, where that tells them apart."""
    found = sorted((name for name in arrays if not LATER.search(name) and coding(arrays[name])), key=number_of)
    last = [name.rpartition("/")[2] for name in found]
    return dict(zip(last if len(set(last)) == len(last) else found, found, strict=True))


def chosen_camera(
    arrays: Mapping[str, Rows], cameras: Mapping[str, str], wanted: str | None, where: str
) -> tuple[str, str]:
    """The name of the camera `wanted`, by its name or its array's path, else of the best (data/cameras.py); and why."""
    if wanted:
        by_path = {path: name for name, path in cameras.items()}
        return by_path.get(wanted) or choose(wanted, cameras, "camera", f" in {where}"), "as asked for"
    return best([camera(name, channels=channels(arrays[path])) for name, path in cameras.items()], where)


def parts_of(arrays: Mapping[str, Rows], wanted: str, what: str, where: str) -> tuple[Part, ...]:
    """ "obs/joint_states+gripper_states[0:1]" -> arrays of numbers, named as data/parts.py has it, and columns of them.
    Raises LapaError for one that is not there."""
    numbers = [name for name, array in arrays.items() if is_numbers(array) and not LATER.search(name)]
    found: list[Part] = []
    for text in wanted.split("+"):
        named = re.fullmatch(r"(.*?)(?:\[(\d*):(\d*)\])?", text.strip())
        assert named  # anything fits
        names = parts(numbers, (), named[1], what, f" in {where}").names
        if named[2] is not None and len(names) > 1:
            raise LapaError(f"{what}={text} in {where}: is {len(names)} arrays; columns can be taken of one.")
        found += [Part(name, int(named[2] or 0), int(named[3]) if named[3] else None) for name in names]
    return tuple(found)


def usual(arrays: Mapping[str, Rows], names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of the first of `names` that is there, () for none."""
    numbers = {name for name, array in arrays.items() if is_numbers(array)}
    found = next((one.split("+") for one in names if numbers.issuperset(one.split("+"))), [])
    return tuple(Part(name) for name in found)


def below_action(arrays: Mapping[str, Rows], rows: int) -> tuple[tuple[Part, ...], tuple[str, ...], list[str]]:
    """The action of `rows` frames as the arrays below that name; those of them that are passed over, being no motion;
    and, where it is not clear what the action is, the arrays that were recorded as actions."""
    numbers = [n for n in sorted(arrays, key=by_numbers) if is_numbers(arrays[n]) and not LATER.search(n)]
    acted = [n for n in numbers if ACTED.search(n) and 0 <= rows - arrays[n].shape[0] <= 1]
    group = parts(numbers, ACTIONS, None, "action", "")
    if set(acted) & set(group.names) and not are_rivals(group.names):
        return tuple(map(Part, group.names)), group.passed, []
    return (), (), [n for n in acted if not NO_MOTION.fullmatch(re.split(r"[/.]|actions?_", n.lower())[-1])]


def rate_in(value: Any) -> float | None:
    """A rate in frames a second that an attribute says, as a number or as text; None where it says none."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    try:
        rate = float(text) if isinstance(text, str | int | float | np.number) and not isinstance(text, bool) else 0.0
    except ValueError:
        return None
    return rate if 0 < rate < 1e6 else None


def rate_of_times(recording: Recording) -> tuple[float, str] | None:
    """Frames a second by an array of times in seconds, and which array; None where there is none."""
    for name in (part.name for part in usual(recording.arrays, TIMES)):
        array = recording.arrays[name]
        if len(array.shape) > 2 or math.prod(array.shape[1:]) != 1:
            continue
        count = int(recording.length if recording.length is not None else array.shape[0])
        with guarded(f"{recording.where}, {name}"):
            rows = array[recording.first : recording.first + min(count, 10_000)]
        gaps = np.diff(np.asarray(rows, np.float64).ravel())
        if len(gaps) and np.isfinite(gaps).all() and (gaps > 0).all() and 1e-3 < np.median(gaps) < SLOW:
            return round(float(1 / np.median(gaps)), 3), name
    return None
