"""Recordings of ROS 1 and ROS 2 in MCAP files: a camera's topic, and topics of joints for the state and the actions.

Frames are those of the camera, at even steps of its rate. The state of a frame is the message nearest to it in time.
Its action is the last command before the next frame; where no topic of commands is named, it is the next state. Times
are those of the messages' headers, or, where a topic has none, those of the recording.

A recording is a file, or a folder with metadata.yaml (rosbag2), whose files follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lapa.contracts import ActionKind, Array, BadVideo, Episode, LapaError
from lapa.data import ros
from lapa.data.cameras import best, camera
from lapa.data.folders import existing_folder, files_below, listing_hash, no_files, printable
from lapa.data.images import blank, resized
from lapa.data.installed import needed
from lapa.data.mcap_files import ENDING, Bag, Topic, first_look, messages, recordings
from lapa.data.notes import CHANGES, not_read
from lapa.data.ros_values import PIXELS, Clock, Series, is_deep, numbers_of, picture_of
from lapa.data.video import even
from lapa.data.words import words
from lapa.plugins import choose

OTHER = (".bag", ".db3")
COMMANDS = re.compile(r"command|cmd|leader|master|target|action|goal|teleop", re.IGNORECASE)
READ = 2  # part of the signature: raise it when the same files are read as something else
FAR = 1.0  # seconds without a state; more is taken for a gap
NEXT_STATE, NONE = "next_state", "none"


@dataclass(frozen=True)
class Config:
    """`path` is a file, a recording's folder, or a folder of them; `camera` a topic of pictures, whole or its end;
    `state` and `action` topics of numbers, several joined with "+", with a field where not all is wanted
    (/joint_states.velocity; a topic of joints gives their positions); action=next_state: the next state is the action,
    as where there is no `action`; none: leave it out; `instruction` a topic of texts, or the words themselves."""

    path: str
    camera: str | None = None
    state: str | None = None
    action: str | None = None
    instruction: str | None = None

    def build(self) -> Mcap:
        """List the recordings. Raises LapaError when there are none, or mcap is not installed."""
        needed("mcap", "mcap")
        root = Path(self.path).expanduser()
        if root.is_file():
            if root.suffix in OTHER:
                raise LapaError(f"{root}: is a bag of another kind. {_convert(root)}")
            return Mcap(root.parent, [Bag(root.stem, (root,))], self)
        every = files_below(existing_folder(root, "Recordings"), ("",))
        files = [file for file in every if file.suffix.lower() == ENDING]
        others = [file for file in every if file.suffix.lower() in OTHER]
        if not files:
            advice = f" {_convert(others[0])}" if others else ""
            raise LapaError(f"{root}: holds no {ENDING} file.{advice}")
        beside = [f for f in every if f not in files and f.name != "metadata.yaml"]
        return Mcap(root, recordings(root, files), self, not_read(beside))


@dataclass(frozen=True)
class Outline:
    """What there is in a recording but for the pictures: `shown` int64 [T] counts the camera's messages; vectors are
    float32 [T, D]."""

    shown: Array
    fps: float
    size: tuple[int, int]
    state: Array | None
    actions: Array | None
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    kinds: tuple[ActionKind, ...]
    instruction: str
    notes: tuple[str, ...]


class Mcap:
    """One episode a recording, in the order of their paths."""

    def __init__(self, root: Path, bags: list[Bag], config: Config, notes: tuple[str, ...] = ()) -> None:
        self.root, self._bags, self._config, self._beside = root, bags, config, notes
        self._outline = lru_cache(256)(self._read_outline)
        self._choose()

    def __len__(self) -> int:
        return len(self._bags)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the files, and of how many recordings they are."""
        files = listing_hash(self.root, [file for bag in self._bags for file in bag.files])
        return f"{files}{self.camera} {len(self._bags)} {READ}"

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield every episode, or a BadVideo in its place."""
        for number, bag in enumerate(self._bags):
            try:
                outline = self._outline(bag)
                frames = np.stack(list(self.frames(number, size)))
            except BadVideo as bad:
                yield bad
            else:
                yield self._episode(bag, outline, frames)
        yield from self._problems()

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: files are read to their ends, and their first picture is decoded."""
        for number, bag in enumerate(self._bags):
            try:
                outline = self._outline(bag)
            except BadVideo as bad:
                yield number, bad
            else:
                yield number, self._episode(bag, outline, blank(len(outline.shown), outline.size))
        yield from ((-1, bad) for bad in self._problems())

    def _problems(self) -> list[BadVideo]:
        return no_files(self.root, (ENDING,)) if Path(self._config.path).expanduser().is_dir() else []

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        bag = self._bags[number]
        outline, where = self._outline(bag), bag.where
        step = start
        shown = ((topic, data) for topic, _, data in messages(bag) if topic.name == self.camera)
        for count, (topic, data) in enumerate(shown):
            if step >= len(outline.shown):
                return
            if outline.shown[step] != count:
                continue
            picture = picture_of(topic.read(data, where), f"{where}, {self.camera}, message {count}")
            if picture.shape[:2] != outline.size:
                sizes = [f"{width} x {height}" for height, width in (picture.shape[:2], outline.size)]
                raise BadVideo(f"{where}, {self.camera}: message {count} is {sizes[0]}, the first {sizes[1]}.")
            small = resized(picture, size)
            while step < len(outline.shown) and outline.shown[step] == count:
                yield small
                step += 1

    def _episode(self, bag: Bag, outline: Outline, frames: Array) -> Episode:
        return Episode(
            id=printable(bag.id),
            frames=frames,
            fps=outline.fps,
            instruction=outline.instruction,
            actions=outline.actions,
            state=outline.state,
            action_names=outline.action_names,
            state_names=outline.state_names,
            size=outline.size,
            camera=self.camera,
            action_kinds=outline.kinds,
            notes=(*self._notes, *outline.notes, *self._beside),
            instruction_from=self._instruction_from if outline.instruction else "",
        )

    # --- which topics

    def _choose(self) -> None:
        """Look at the first recording that can be read. Raises LapaError when it has no camera."""
        problem: BadVideo | None = None
        for bag in self._bags:
            try:
                self._take(*first_look(bag), bag.where)
                return
            except BadVideo as bad:
                problem = problem or bad
        raise LapaError(str(problem))

    def _take(self, topics: dict[str, Topic], codings: dict[str, str], firsts: dict[str, bytes], where: str) -> None:
        config = self._config
        pictures = [name for name, topic in topics.items() if topic.is_picture]
        if not pictures and not config.camera:
            unread = [f"{name} {topic.problem}" for name, topic in topics.items() if topic.problem]
            raise BadVideo(
                f"{where}: has no topic of pictures; it has {_listed(topics)}. {' '.join(unread[:2])}".rstrip()
            )
        why = "as asked for"
        told = {name: codings.get(name, "") for name in pictures}
        about = [camera(name, flags={"is_depth": is_deep(coding)}, channels=PIXELS.get(coding, (None,))[0])
                 for name, coding in told.items()]  # fmt: skip
        if config.camera:
            self.camera = _named(config.camera, list(topics), "camera", where)
        else:
            self.camera, why = best(about, where)
        self.cameras = tuple(pictures)
        self.colour_cameras = tuple(one.name for one in about if not one.fault)
        self._state = self._parts(topics, config.state, "state", where)
        if config.state is None:
            joints = [name for name, topic in topics.items() if ros.short(topic.type) == "sensor_msgs/JointState"]
            usual = [name for name in joints if not COMMANDS.search(name)]
            usual = sorted(usual, key=lambda name: ("joint_states" not in name, len(name), name))
            self._state = [(name, "") for name in usual[:1]]
        self._action = self._parts(topics, config.action, "action", where)
        self._next_state = not self._action and config.action in (None, NEXT_STATE) and bool(self._state)
        if config.action == NEXT_STATE and not self._state:
            raise LapaError(
                f"{where}: action={NEXT_STATE} is asked for, and no state is known. Say which: state=TOPIC."
            )
        instruction = config.instruction or ""
        self._said = _named(instruction, list(topics), "topic of texts", where) if instruction.startswith("/") else ""
        self._instruction_from = f"the topic {self._said}" if self._said else "instruction=" if instruction else (
            "names of files")  # fmt: skip
        self._columns: dict[tuple[str, str], list[str]] = {}
        for part in (*self._state, *self._action):
            with suppress(BadVideo):  # whoever reads the recording says so
                message = topics[part[0]].read(firsts[part[0]], where)
                self._columns[part] = [name for name, _ in numbers_of(message, part[1], where)]
        commands = [name for name, topic in topics.items() if COMMANDS.search(name) and not topic.is_picture]
        may = (
            f" (may be commands: {', '.join(commands[:3])}; action= takes one)" if commands and self._next_state else ""
        )
        acted = "the next state" + may if self._next_state else _joined(self._action)
        self._notes = (
            *([f"camera: {self.camera}, {why}"] if why else []),
            f"taken: action from {acted}, state from {_joined(self._state)}",
        )

    def _parts(self, topics: dict[str, Topic], wanted: str | None, what: str, where: str) -> list[tuple[str, str]]:
        """ "/joint_states.velocity+/gripper" -> topics, and the field of each, "" for all."""
        found = []
        for part in (wanted or NONE).split("+"):
            if part not in (NONE, NEXT_STATE):
                name, _, inside = part.partition(".")
                found.append((_named(name, list(topics), f"topic for the {what}", where), inside))
        return found

    # --- a recording

    def _read_outline(self, bag: Bag) -> Outline:
        where, topics = bag.where, dict[str, Topic]()
        vectors = list(dict.fromkeys([*self._state, *self._action]))
        clock = Clock()
        held = {part: Series(part, where, self._columns.get(part, ())) for part in vectors}
        first, said = None, dict[str, None]()
        for topic, logged, data in messages(bag):
            topics[topic.name] = topic
            if topic.name == self.camera:
                message = topic.read(data, where)
                clock.add(self.camera, logged, ros.stamp_of(message))
                first = message if first is None else first
            for part in vectors:
                if part[0] == topic.name:
                    message = topic.read(data, where)
                    if held[part].add(message):
                        clock.add(part, logged, ros.stamp_of(message))
            if topic.name == self._said:
                found = topic.read(data, where).get("data")
                said |= dict.fromkeys([" ".join(found.split())] if isinstance(found, str) and found.strip() else [])
        missing = [name for name in (self.camera, *(name for name, _ in vectors)) if name not in topics]
        if missing or first is None:
            raise BadVideo(f"{where}: has no messages of {missing[0]}; it has {_listed(topics)}.")
        size = picture_of(first, f"{where}, {self.camera}, message 0").shape[:2]
        if not self._said:
            said = {self._config.instruction or words(bag.id): None}
        outline = self._aligned(bag, clock, held, (size[0], size[1]), next(iter(said), ""))
        return replace(outline, notes=(*outline.notes, CHANGES)) if len(said) > 1 else outline

    def _aligned(
        self, bag: Bag, clock: Clock, held: dict[tuple[str, str], Series], size: tuple[int, int], said: str
    ) -> Outline:
        where = bag.where
        times = clock.times(self.camera)
        if len(times) < 2:
            raise BadVideo(f"{where}: {self.camera} has {len(times)} messages; a pair of frames needs two.")
        fps, shown = even(times, None, f"{where}, {self.camera}")
        notes = [f"times: {clock.told}", *(note for series in held.values() for note in series.notes())]
        at = times[shown]
        inside = np.ones(len(at), bool)
        for part in held:
            own = np.sort(clock.times(part))
            if not len(own):
                raise BadVideo(f"{where}: {part[0]} has no message with numbers.")
            slack = max(1.5 / fps, 1.5 * float(np.median(np.diff(own))) if len(own) > 1 else 0.0)
            if part in self._state:
                inside &= (at >= own[0] - slack) & (at <= own[-1] + slack)
            if part in self._action:  # a command holds until the next one; before the first there is none
                inside &= at + 1 / fps > own[0]
        if inside.sum() < 2:
            others = _joined([*self._state, *self._action])
            raise BadVideo(f"{where}: {self.camera} and {others} do not run at the same time.")
        begin, end = (int(n) for n in np.flatnonzero(inside)[[0, -1]])
        if end - begin + 1 < len(at):
            count = len(at) - (end - begin + 1)
            notes.append(f"left out: {count} frames before the first and after the last state, or before any command")
        shown, at = shown[begin : end + 1], at[begin : end + 1]
        state, state_names = self._vector(self._state, held, clock, at, where, command=False)
        actions, names = self._vector(self._action, held, clock, at, where, command=True)
        if self._next_state and state is not None:
            actions, names = np.concatenate([state[1:], state[-1:]]), state_names
        absolute: ActionKind = "absolute"
        places = self._next_state or all(held[part].places for part in self._action)
        kinds = (absolute,) * actions.shape[1] if actions is not None and places else ()
        return Outline(shown, fps, size, state, actions, state_names, names, kinds, said, tuple(notes))

    @staticmethod
    def _vector(
        parts: Sequence[tuple[str, str]], held: dict[tuple[str, str], Series], clock: Clock, at: Array, where: str,
        command: bool,
    ) -> tuple[Array | None, tuple[str, ...]]:  # fmt: skip
        """The rows of topics at times float64 [T], float32 [T, D]: the nearest, or of a `command` the last one before
        the next frame."""
        columns, names = [], []
        for part in parts:
            order = np.argsort(clock.times(part), kind="stable")  # two senders of a topic may overtake one another
            times, rows = clock.times(part)[order], held[part].rows()[order]
            if command:
                until = np.append(at[1:], at[-1] + (at[-1] - at[-2]))
                index = np.maximum(np.searchsorted(times, until, side="left") - 1, 0)
            else:
                index = np.clip(np.searchsorted(times, at), 1, max(len(times) - 1, 1))
                index = np.where(
                    at - times[index - 1] <= times[np.minimum(index, len(times) - 1)] - at, index - 1, index
                )
                index = np.minimum(index, len(times) - 1)
                away = np.abs(times[index] - at)
                if away.max() > FAR:
                    raise BadVideo(f"{where}: {part[0]} has no message within {away.max():.1f} s of the frame at "
                                   f"{at[away.argmax()] - at[0]:.1f} s.")  # fmt: skip
            columns.append(rows[index])
            names += held[part].names
        if not columns:
            return None, ()
        unique = len(set(names)) == len(names)
        return np.concatenate(columns, 1).astype(np.float32), tuple(names) if unique else ()


def _named(wanted: str, topics: Sequence[str], what: str, where: str) -> str:
    """The topic of this name, or the one that ends so."""
    ends = [
        name for name in topics if name.split("/")[-len(wanted.strip("/").split("/")) :] == wanted.strip("/").split("/")
    ]
    if wanted in topics or len(ends) != 1:
        return choose(wanted, topics, what, f" in {where}")
    return ends[0]


def _joined(parts: Sequence[tuple[str, str]]) -> str:
    return " + ".join(f"{name}.{inside}" if inside else name for name, inside in parts) or NONE


def _listed(topics: dict[str, Topic]) -> str:
    shown = [f"{name} ({topic.type or 'of no known type'})" for name, topic in topics.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") if shown else "no topic"


def _convert(file: Path) -> str:
    return f"Convert it with MCAP's command line: mcap convert {file.name} {file.stem}.mcap"
