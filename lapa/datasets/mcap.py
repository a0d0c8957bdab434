"""Recordings of ROS 1 and ROS 2 in MCAP files: a camera's topic, and topics of joints for the state and the actions.

Frames are those of the camera, at even steps of its rate. The state of a frame is the message nearest to it in time.
Its action is the last command before the next frame; where no topic of commands is named, it is the next state. Times
are those of the messages' headers, or, where a topic has none, those of the recording.

A recording is a file, or a folder with metadata.yaml (rosbag2), whose files follow one another.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import ActionKind, Array, BadVideo, Episode, LapaError
from lapa.data import ros
from lapa.data.arrays import CHUNK, guarded
from lapa.data.cameras import best, camera
from lapa.data.folders import existing_folder, files_below, listing_hash, no_files, printable, readable
from lapa.data.images import LARGEST, blank, number_of, read_image, resized
from lapa.data.installed import needed
from lapa.data.notes import CHANGES, not_read
from lapa.data.video import even
from lapa.data.words import words
from lapa.plugins import choose

ENDING, OTHER = ".mcap", (".bag", ".db3")
PIXELS = {  # sensor_msgs/Image: encoding -> channels of 8 bits, and which of them are red, green, blue
    "rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)), "8UC1": (1, (0, 0, 0)), "8UC3": (3, (2, 1, 0)), "8UC4": (4, (2, 1, 0)),
}  # fmt: skip
PACKED = {"yuv422_yuy2": "yuyv422", "yuyv": "yuyv422", "YUYV": "yuyv422"}  # two pixels in four bytes
DEEP = re.compile(r"16|32|64|compressedDepth", re.IGNORECASE)  # encodings and formats of depth maps
FILMS = ("h264", "h265", "hevc", "av1", "vp9")
COMMANDS = re.compile(r"command|cmd|leader|master|target|action|goal|teleop", re.IGNORECASE)
READ = 2  # part of the signature: raise it when the same files are read as something else
FAR = 1.0  # seconds without a state; more is taken for a gap
CLOCKS = 60.0  # seconds that the clocks of headers and recording may differ by
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
        return Mcap(root, _bags(root, files), self, not_read(beside))


@dataclass(frozen=True)
class Bag:
    """A recording: its files, in order."""

    id: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Topic:
    """A topic of a recording: the type of its messages, their definitions, and how they are written. `problem` says
    why they cannot be read."""

    name: str
    type: str
    types: ros.Types = field(default_factory=dict)
    cdr: bool = True
    problem: str = ""

    def read(self, data: bytes, where: str) -> ros.Message:
        """A message. Raises BadVideo."""
        if self.problem:
            raise BadVideo(f"{where}: {self.name} {self.problem}")
        with guarded(f"{where}, {self.name}"):
            return ros.decoded(self.types, self.type, data, self.cdr)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(one.name for one in self.types.get(self.type, ()))

    @property
    def is_picture(self) -> bool:
        return "data" in self.fields and (
            {"encoding", "height", "width", "step"} <= self.fields or "format" in self.fields
        )


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
        outline, where = self._outline(bag), _where(bag)
        step = start
        messages = ((topic, data) for topic, _, data in _messages(bag) if topic.name == self.camera)
        for count, (topic, data) in enumerate(messages):
            if step >= len(outline.shown):
                return
            if outline.shown[step] != count:
                continue
            picture = _picture(topic.read(data, where), f"{where}, {self.camera}, message {count}")
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
                self._take(*_first_look(bag), _where(bag))
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
        about = [camera(name, flags={"is_depth": _is_deep(coding)}, channels=PIXELS.get(coding, (None,))[0])
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
                self._columns[part] = [name for name, _ in _vector_of(message, part[1], where)]
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
        where, topics = _where(bag), dict[str, Topic]()
        vectors = list(dict.fromkeys([*self._state, *self._action]))
        clock = _Clock()
        held = {part: _Series(part, where, self._columns.get(part, ())) for part in vectors}
        first, said = None, dict[str, None]()
        for topic, logged, data in _messages(bag):
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
        size = _picture(first, f"{where}, {self.camera}, message 0").shape[:2]
        if not self._said:
            said = {self._config.instruction or words(bag.id): None}
        outline = self._aligned(bag, clock, held, (size[0], size[1]), next(iter(said), ""))
        return replace(outline, notes=(*outline.notes, CHANGES)) if len(said) > 1 else outline

    def _aligned(
        self, bag: Bag, clock: _Clock, held: dict[tuple[str, str], _Series], size: tuple[int, int], said: str
    ) -> Outline:
        where = _where(bag)
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
        parts: Sequence[tuple[str, str]], held: dict[tuple[str, str], _Series], clock: _Clock, at: Array, where: str,
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


class _Clock:
    """When the messages of topics were sent: by their headers if all have them and they agree with the recording's
    clock, else by that."""

    def __init__(self) -> None:
        self._logged: dict[Any, list[float]] = {}
        self._stamped: dict[Any, list[float | None]] = {}

    def add(self, key: Any, logged: float, stamp: float | None) -> None:
        self._logged.setdefault(key, []).append(logged)
        self._stamped.setdefault(key, []).append(stamp)

    @property
    def _by_headers(self) -> bool:
        pairs = [(s, t) for key, own in self._stamped.items() for s, t in zip(own, self._logged[key], strict=True)]
        return all(s is not None and abs(s - t) < CLOCKS for s, t in pairs)

    @property
    def told(self) -> str:
        return "those in the messages' headers" if self._by_headers else "those of the recording (headers have none)"

    def times(self, key: Any) -> Array:
        """float64 [n], in the order of the messages."""
        chosen = self._stamped if self._by_headers else self._logged
        return np.array(chosen.get(key, []), np.float64)


class _Series:
    """The numbers of a topic's messages, in columns that the first message names; in the order `usual` where these are
    the same names, for recordings list joints in any order."""

    def __init__(self, part: tuple[str, str], where: str, usual: Sequence[str]) -> None:
        self._topic, self._inside = part
        self._where, self._usual = where, usual
        self._rows: list[list[float]] = []
        self._odd = 0
        self.places = False  # are they positions of joints?
        self.names: list[str] = []

    def add(self, message: ros.Message) -> bool:
        """Take a message, or False for one of other numbers than the first, such as another part's joints."""
        named = dict(_vector_of(message, self._inside, f"{self._where}, {self._topic}"))
        if not self.names:
            self.names = list(self._usual if named.keys() == set(self._usual) else named)
        if not named or named.keys() != set(self.names):
            self._odd += 1
            return False
        self._rows.append([named[name] for name in self.names])
        self.places = not self._inside and ("position" in message or "points" in message)
        return True

    def rows(self) -> Array:
        """float64 [n, D]."""
        return np.array(self._rows, np.float64)

    def notes(self) -> list[str]:
        """What was passed over."""
        return (
            [f"not taken: {self._odd} messages of {self._topic} with other numbers than the first"] if self._odd else []
        )


def _vector_of(message: ros.Message, inside: str, where: str) -> list[tuple[str, float]]:
    """The numbers of a message, or of a field of it, with their names: joints by their own."""
    joints = message.get("name") or message.get("joint_names")
    value: Any = message
    for word in filter(None, inside.split(".")):
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, dict) or word not in value:
            raise BadVideo(f"{where}: has no field {inside}; it has {', '.join(message)}.")
        value = value[word]
    if not inside and isinstance(message.get("position"), np.ndarray):
        value = message["position"]
    if not inside and isinstance(points := message.get("points"), list):
        value = points[0].get("positions") if points and isinstance(points[0], dict) else []
    if isinstance(joints, list) and isinstance(value, np.ndarray) and len(joints) == len(value):
        return [(str(joint), float(one)) for joint, one in zip(joints, value, strict=True)]
    return list(ros.numbers_in(value))


def _picture(message: ros.Message, where: str) -> Array:
    """A message of pictures as uint8 [H, W, 3]. Raises BadVideo."""
    data = message.get("data")
    if not isinstance(data, np.ndarray):
        raise BadVideo(f"{where}: holds no picture; it has {', '.join(message)}.")
    coding = str(message.get("format", message.get("encoding", "")))
    if "format" in message:
        if _is_deep(coding):
            raise BadVideo(f"{where}: is a depth map ({coding:.40}).")
        if coding.lower() in FILMS:
            raise BadVideo(f"{where}: is a part of a film ({coding:.40}); topics of single pictures are read.")
        return read_image(data.tobytes(), where)
    height, width, step = (int(message.get(key, 0)) for key in ("height", "width", "step"))
    if not 0 < height * width <= LARGEST:
        raise BadVideo(f"{where}: says that it has {width} x {height} pixels.")
    channels, order = PIXELS.get(coding, (2, ())) if coding in PIXELS or coding in PACKED else (0, ())
    if not channels:
        what = "is a depth map" if _is_deep(coding) else "has pictures in a coding that is not read"
        raise BadVideo(f"{where}: {what} ({coding:.40}). Read are {', '.join([*PIXELS, *PACKED])}.")
    if step < width * channels or len(data) < step * height:
        raise BadVideo(f"{where}: has {len(data)} bytes for {height} rows of {step}.")
    rows = data[: step * height].reshape(height, step)[:, : width * channels]
    if coding in PACKED:
        import av

        with guarded(where):
            raw = np.ascontiguousarray(rows).reshape(height, width, 2)
            return av.VideoFrame.from_ndarray(raw, format=PACKED[coding]).to_ndarray(format="rgb24")
    return np.ascontiguousarray(rows.reshape(height, width, channels)[..., list(order)])


# --- files


def _bags(root: Path, files: Sequence[Path]) -> list[Bag]:
    """Files of one folder with a metadata.yaml are one recording, any other is one by itself."""
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        whole = (file.parent / "metadata.yaml").exists()
        by_folder.setdefault(file.parent if whole else file, []).append(file)
    bags = []
    for where, parts in sorted(by_folder.items(), key=lambda item: (item[0].parent, number_of(item[0]))):
        within = where.relative_to(root).as_posix()
        name = root.name if within == "." else within.removesuffix(ENDING)
        bags.append(Bag(name, tuple(sorted(parts, key=number_of))))
    return bags


def _where(bag: Bag) -> str:
    return printable(bag.files[0] if len(bag.files) == 1 else bag.files[0].parent)


def _records(file: Path) -> Iterator[Any]:
    """The records of a file, those in chunks too, to its end. Raises BadVideo where it is damaged or breaks off."""
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader, breakup_chunk

    where = printable(file)
    reason = "cannot be read as MCAP; mcap recover saves what is whole"
    with guarded(where, reason), readable(file).open("rb") as opened:
        size = file.stat().st_size
        reader = StreamReader(opened, emit_chunks=True, validate_crcs=True, record_size_limit=size)
        for record in reader.records:
            if not isinstance(record, Chunk):
                yield record
                continue
            if record.uncompressed_size > CHUNK or _zipped(record) > CHUNK:
                raise BadVideo(f"{where}: a chunk says that it has {record.uncompressed_size} bytes.")
            yield from breakup_chunk(record, validate_crc=True)


def _zipped(chunk: Any) -> int:
    """Bytes that a chunk says it unpacks to, in its own header."""
    if chunk.compression != "zstd":
        return 0
    import zstandard

    return int(zstandard.frame_content_size(chunk.data))


def _channels(bag: Bag) -> Iterator[tuple[dict[int, Topic], Any]]:
    """Records with the topics by number, as far as they are known."""
    for file in bag.files:
        schemas, topics = dict[int, Any](), dict[int, Topic]()
        for record in _records(file):
            kind = type(record).__name__
            if kind == "Schema":
                schemas[record.id] = record
            elif kind == "Channel":
                topics[record.id] = _topic(record, schemas.get(record.schema_id))
            yield topics, record


def _messages(bag: Bag) -> Iterator[tuple[Topic, float, bytes]]:
    """Topic, time of the recording in seconds and bytes of every message, in the order of the file."""
    for topics, record in _channels(bag):
        if type(record).__name__ == "Message":
            if record.channel_id not in topics:
                raise BadVideo(f"{_where(bag)}: a message is of no topic ({record.channel_id}).")
            yield topics[record.channel_id], record.log_time * 1e-9, record.data


def _first_look(bag: Bag) -> tuple[dict[str, Topic], dict[str, str], dict[str, bytes]]:
    """The topics of a recording that have messages, by name; how the first picture of each is coded; and the first
    message of each."""
    topics, codings, firsts = dict[str, Topic](), dict[str, str](), dict[str, bytes]()
    for topic, _, data in _messages(bag):
        if topic.name not in topics and topic.is_picture:
            message = topic.read(data, _where(bag))
            codings[topic.name] = str(message.get("format", message.get("encoding", "")))
        firsts.setdefault(topic.name, data)
        topics[topic.name] = topic
    return dict(sorted(topics.items())), codings, firsts


def _topic(channel: Any, schema: Any) -> Topic:
    kind = ros.short(schema.name) if schema else ""
    coding = f"{channel.message_encoding}, {schema.encoding if schema else 'without a definition'}"
    if schema is None or (channel.message_encoding, schema.encoding) not in (("cdr", "ros2msg"), ("ros1", "ros1msg")):
        return Topic(channel.topic, kind, problem=f"is kept as {coding}; read are ROS 1 and ROS 2 messages.")
    try:
        types = ros.definitions(schema.name, schema.data.decode())
    except (ValueError, struct.error) as error:
        return Topic(channel.topic, kind, problem=f"has a definition that cannot be read ({error}).")
    return Topic(channel.topic, kind, types, channel.message_encoding == "cdr")


def _named(wanted: str, topics: Sequence[str], what: str, where: str) -> str:
    """The topic of this name, or the one that ends so."""
    ends = [
        name for name in topics if name.split("/")[-len(wanted.strip("/").split("/")) :] == wanted.strip("/").split("/")
    ]
    if wanted in topics or len(ends) != 1:
        return choose(wanted, topics, what, f" in {where}")
    return ends[0]


def _is_deep(coding: str) -> bool:
    """Does an encoding or a format say that pictures are depth maps?"""
    return bool(DEEP.search(coding)) and "jpeg" not in coding


def _joined(parts: Sequence[tuple[str, str]]) -> str:
    return " + ".join(f"{name}.{inside}" if inside else name for name, inside in parts) or NONE


def _listed(topics: dict[str, Topic]) -> str:
    shown = [f"{name} ({topic.type or 'of no known type'})" for name, topic in topics.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") if shown else "no topic"


def _convert(file: Path) -> str:
    return f"Convert it with MCAP's command line: mcap convert {file.name} {file.stem}.mcap"
