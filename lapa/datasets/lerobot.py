"""LeRobot datasets v3.x and v2.x, in a folder or on the hub: this project's own (collect) and anyone's.

The versions differ in where things are. v3 keeps many episodes in one parquet and one video file, and tables say where;
v2 has one file of each per episode. Both become a list of `Place`s. Everything after that is the same: the rows of a
place are put in order and paired with the frames of its film by time (data/pairing.py), and where the task changes, or
rows are missing in between, the episode becomes several.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from lapa.artefacts import hub
from lapa.contracts import ActionKind, Array, BadVideo, Episode, LapaError
from lapa.data.film import Film, film_times
from lapa.data.folders import existing_folder, listing_hash
from lapa.data.images import blank, resized
from lapa.data.json_files import read_lines
from lapa.data.lerobot_format import INFO, TASKS
from lapa.data.lerobot_meta import (
    TASKS_V2,
    about_camera,
    camera_features,
    chosen_camera,
    flattened,
    height_width,
    listed_tasks,
    major,
    names_of,
    rate_of,
    read_info,
    read_tasks,
    seconds,
    shape_of,
    split_of,
    whole_number,
)
from lapa.data.lerobot_tables import (
    Rows,
    column,
    leaves,
    number_type,
    numbers,
    picture,
    read_table,
    schema_of,
    text_of,
)
from lapa.data.pairing import FAR, SAME, Clock, Paired, clock, paired, pieces
from lapa.data.parts import ACTIONS, STATES, Parts, dimension_names, parts, taken
from lapa.data.several import Several
from lapa.plugins import choose

EPISODES_V2 = "meta/episodes.jsonl"
OF_ROWS = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # what LeRobot adds to every row
TEXTS = ("task", "language_instruction", "natural_language_instruction", "instruction", "language", "task_description")
LARGEST = 4096  # numbers of an action or a state
PIECES = 1 << 20  # above the number of episodes, and of pieces of one
BELOW = 3  # folders deep, where datasets below a folder are looked for


@dataclass(frozen=True)
class Config:
    """`path` is the folder that holds meta/info.json, or one above several of those, or user/name on the hub (at
    `revision`, by default the newest); `camera` a feature such as observation.images.main, or its last word, by default
    the first that films the scene in colour (data/cameras.py); `split` one of info.json's, such as train, by default
    all episodes; `action` and `state` the features to take, several as a+b (data/parts.py); `instruction` a feature
    that holds it, by default the tasks."""

    path: str
    camera: str | None = None
    revision: str | None = None
    split: str | None = None
    action: str | None = None
    state: str | None = None
    instruction: str | None = None

    def build(self) -> LeRobotDataset | Several:
        """Read the metadata; from the hub, fetch what one camera needs. Raises LapaError for anything that is no
        LeRobot dataset v2.x or v3.x."""
        if Path(self.path).expanduser().exists() or not hub.is_repo(self.path):
            root = existing_folder(self.path, "LeRobot dataset")
            if not (root / INFO).exists() and (root.parent / INFO).exists():
                raise LapaError(f"{root}: is a folder of the LeRobot dataset {root.parent}. Give that.")
            below = {} if (root / INFO).exists() else _below(root)
            if below:
                return Several(root, {name: LeRobotDataset(path, self) for name, path in below.items()}, PIECES << 20)
            return LeRobotDataset(root, self)
        root = hub.fetch(self.path, ["meta/**"], self.revision)
        files = ["meta/**", "data/**", f"videos/*{LeRobotDataset(root, self).camera}/*"]
        return LeRobotDataset(hub.fetch(self.path, files, self.revision), self)


@dataclass(frozen=True)
class Place:
    """Where an episode is: its rows in `data`, its frames in `video` from `start` to `stop` seconds; `tasks` are those
    that meta has for it."""

    index: int
    length: int
    data: Path
    video: Path | None = None
    start: float = 0.0
    stop: float = math.inf
    tasks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Piece:
    """An episode to be, all of a place or a part of it: its rows in the table of the place, in order, and the times of
    their frames in the film (None where the rows hold the pictures)."""

    id: str
    rows: Array
    times: Array | None
    fps: float
    text: str
    text_from: str
    notes: tuple[str, ...]


class LeRobotDataset:
    """Yields the episodes of one camera, file after file. A film is decoded forward, once, if its episodes follow one
    another."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        self._info = read_info(root)
        self._old = major(self._info) == "2"
        self._features = flattened(self._info["features"])
        self._cameras = camera_features(self._features, root)
        self.cameras = tuple(self._cameras)
        about = [replace(about_camera(name, self._features[name]), name=short) for short, name in self._cameras.items()]
        self.colour_cameras = tuple(one.name for one in about if not one.fault)
        self.camera, self._why = chosen_camera(self._cameras, about, config.camera, root)
        self._short = next(short for short, feature in self._cameras.items() if feature == self.camera)
        self.fps = rate_of(self._info["fps"], root)
        self._bad: list[BadVideo] = []  # what the metadata say of no episode
        self._is_video = self._features[self.camera].get("dtype") == "video"
        robot = self._info.get("robot_type")
        self.embodiment = robot if isinstance(robot, str) else ""
        self._tasks = read_tasks(root)
        self._places = self._places_v2() if self._old else self._places_v3()
        told, held = self._info.get("total_episodes"), len(self._places)
        if isinstance(told, int) and told > held and not self._bad:
            self._bad.append(BadVideo(f"{root / INFO}: tells of {told} episodes, meta/episodes of {held}."))
        if not self._places:
            raise LapaError(str(self._bad[0]) if self._bad else f"{root}: the dataset has no episode.")
        self._all_places = self._places  # also those of other splits: their frames are in the same films
        if config.split is not None:
            self._places = self._places_of(config.split)
        self.episode_indices = tuple(place.index for place in self._places)
        known = self._numbers()
        self._action = parts(known, ACTIONS, config.action, "action", f" in {root}")
        self._state = parts(known, STATES, config.state, "state", f" in {root}")
        self._notes = [f"camera: {self._short}, {self._why}"] if self._why else []
        self._notes.append(taken(self._action, self._state, known))
        self._text = self._texts_in(config.instruction)
        self._clocks = Rows(root, [*OF_ROWS, *([self._text] if self._text else TEXTS)])
        self._timing = lru_cache(64)(film_times)
        self._counted = lru_cache(1024)(self._is_counted)
        self._plan = lru_cache(1024)(self._pieces_of)

    def __len__(self) -> int:
        return len(self._places)

    def signature(self) -> str:
        """A hash of the names, sizes and times of all files, and of the camera."""
        listing = listing_hash(self.root, (p for p in self.root.rglob("*") if p.is_file()))
        return f"{listing}-{self.camera}"

    def episode_number(self, number: int) -> int:
        """See contracts.Dataset: its episode_index, also of a piece of it."""
        return self._places[number % PIECES].index

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield every episode, ordered as the frames are on disk; a BadVideo for missing, short or damaged files."""
        yield from self._bad
        rows, images = self._vectors(), Rows(self.root, [self.camera, "frame_index"])
        with Film() as film:
            for number, place in enumerate(self._places):
                try:
                    table = rows.of(place.index, place.length, place.data)[0]
                    for piece in self._plan(number):
                        if piece.times is None or place.video is None:
                            frames = self._images(place, piece, images, size)
                        else:
                            frames = film.at(place.video, piece.times, size)
                        yield self._episode(place, piece, np.stack(list(frames)), table)
                except LapaError as error:
                    yield BadVideo(str(error))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: of the tables and of the times in the films."""
        yield from ((-1, bad) for bad in self._bad)
        rows = self._vectors()
        for number, place in enumerate(self._places):
            try:
                table = rows.of(place.index, place.length, place.data)[0]
                for k, piece in enumerate(self._plan(number)):
                    frames = blank(len(piece.rows), self._size() or (0, 0))
                    yield k * PIECES + number, self._episode(place, piece, frames, table)
            except LapaError as error:
                yield number, BadVideo(str(error))

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        place, piece = self._places[number % PIECES], self._plan(number % PIECES)[number // PIECES]
        if place.video and piece.times is not None:
            with Film() as film:
                yield from film.at(place.video, piece.times[start:], size)
        else:
            yield from self._images(place, piece, Rows(self.root, [self.camera, "frame_index"]), size, start)

    # --- which rows and which frames

    def _pieces_of(self, number: int) -> list[Piece]:
        """The episodes that a place becomes. Raises LapaError for rows that cannot be put in order or paired."""
        place = self._places[number]
        table, notes = self._clocks.of(place.index, place.length, place.data)
        where = f"{place.video or place.data}: episode {place.index}"
        rows = clock(self._stamps(table, where), _counts(table), place.length, self.fps, where)
        texts, source = self._texts(table, place)
        at, times = np.arange(place.length), None
        notes = (*notes, *rows.notes)
        if place.video:
            film, whole, said = self._film(place)
            match = self._paired(rows, film - place.start, where, whole)
            at, times, notes = match.at, film[match.frames], (*notes, *said, *match.notes)
        kept = replace(rows, rows=rows.rows[at], times=rows.times[at], numbers=rows.numbers[at])
        in_order = [texts[i] for i in kept.rows.tolist()]
        spans, split = pieces(kept, in_order)
        name = f"episode_{place.index:06d}"
        notes = (*self._notes, *notes, *split)
        return [
            Piece(
                f"{name}.{k}" if len(spans) > 1 else name,
                kept.rows[first:last],
                None if times is None else times[first:last],
                rows.fps,
                in_order[first],
                source,
                notes,
            )
            for k, (first, last) in enumerate(spans)
        ]

    def _paired(self, rows: Clock, film: Array, where: str, whole: bool) -> Paired:
        try:
            return paired(rows, film, where, whole)
        except BadVideo as bad:
            others = [name for name in self.colour_cameras if name != self._short]
            if not others:
                raise
            raise BadVideo(f"{bad} Other cameras: camera={' or '.join(others)}.") from None

    def _film(self, place: Place) -> tuple[Array, bool, tuple[str, ...]]:
        """The times of the frames of an episode in its film, whether the film is whole, and what to say of it.

        They are those between the times that meta gives. Where these do not fit the film, and it has as many frames as
        its episodes have rows, they are counted."""
        assert place.video is not None
        times, whole = self._timing(place.video)
        if self._counted(place.video):
            here = self._in_film[place.video]
            first = sum(one.length for one in here[: here.index(place)])
            said = "frames: counted from the start of the film, for from_timestamp does not fit it"
            return times[first : first + place.length], whole, (said,)
        half = 0.5 * _step(times, self.fps)
        return times[(times > place.start - half) & (times < place.stop - half)], whole, ()

    def _is_counted(self, film: Path) -> bool:
        """Are the frames of a film to be counted, for meta does not say where its episodes are?"""
        here, times = self._in_film[film], self._timing(film)[0]
        filled = [one for one in here if one.length]
        return len(times) == sum(one.length for one in filled) and not _fit(filled, times, self.fps)

    @cached_property
    def _in_film(self) -> dict[Path | None, list[Place]]:
        found: dict[Path | None, list[Place]] = {}
        for place in self._all_places:
            found.setdefault(place.video, []).append(place)
        return found

    @staticmethod
    def _stamps(table: pa.Table, where: str) -> Array | None:
        values = column(table, "timestamp")
        if values is None or values.null_count == len(values):
            return None
        if pa.types.is_timestamp(values.type) or pa.types.is_duration(values.type):
            unit = values.type.unit
            return numbers(values.cast(pa.int64()), where, 1)[:, 0] / {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
        return numbers(values, f"{where}: timestamp", 1)[:, 0]

    # --- what is in a row

    def _size(self) -> tuple[int, int] | None:
        return height_width(shape_of(self._features[self.camera]))

    def _episode(self, place: Place, piece: Piece, frames: Array, table: pa.Table) -> Episode:
        table = table.take(piece.rows)
        actions, action_names = self._matrix(table, self._action, place)
        state, state_names = self._matrix(table, self._state, place)
        return Episode(
            id=piece.id,
            frames=frames,
            fps=piece.fps,
            instruction=piece.text,
            instruction_from=piece.text_from,
            actions=actions,
            state=state,
            state_names=state_names,
            action_names=action_names,
            size=self._size(),
            camera=self._short,
            action_kinds=self._kinds(action_names),
            embodiment=self.embodiment,
            notes=piece.notes,
        )

    def _numbers(self) -> list[str]:
        """The features that may be an action or a state: those of info.json, then those that the tables have beside;
        in place of one with fields, its fields."""
        types = self._types()
        found: dict[str, None] = {}
        for name, feature in self._features.items():
            fields = [one for one in types if one.startswith(f"{name}.")]
            width = math.prod(shape_of(feature) or (1,))
            plain = str(feature.get("dtype")).startswith(("float", "int", "uint", "bool")) and width <= LARGEST
            if name not in types and fields:
                found |= dict.fromkeys(one for one in fields if number_type(types[one]))
            elif plain and name not in self._cameras.values():
                found[name] = None
        found |= dict.fromkeys(one for one, kind in types.items() if number_type(kind) and one not in self._features)
        return [name for name in found if name not in OF_ROWS]

    def _types(self) -> dict[str, pa.DataType]:
        """The columns of a data file, as far as one can be read."""
        for place in self._places[:1]:
            try:
                return leaves(schema_of(place.data))
            except LapaError:
                pass  # reading its episodes says so
        return {}

    def _vectors(self) -> Rows:
        return Rows(self.root, [*self._action.names, *self._state.names])

    def _matrix(self, table: pa.Table, chosen: Parts, place: Place) -> tuple[Array | None, tuple[str, ...]]:
        """Features beside one another as float32 [T, D], with names; None where the dataset has none. Raises BadVideo
        for rows that info.json does not tell of: missing, of other widths, no numbers."""
        found: dict[str, Array] = {}
        for name in chosen.names:
            where, values = f"{place.data}: {name} of episode {place.index}", column(table, name)
            if values is None:
                raise BadVideo(f"{where} is missing, {INFO} lists it.")
            shape = shape_of(self._features.get(name))
            found[name] = numbers(values, where, math.prod(shape) if shape else None)
        if not found:
            return None, ()
        named = {name: names_of(self._features.get(name, {})) for name in found}
        names = dimension_names({name: values.shape[1] for name, values in found.items()}, named)
        return np.concatenate(list(found.values()), 1).astype(np.float32), names

    def _kinds(self, names: tuple[str, ...]) -> tuple[ActionKind, ...]:
        """What the dataset says its actions are, by the info of the features ("kinds", as lapa writes it) or by names
        such as delta_x and shoulder_pan.pos; () where that does not tell of each."""
        said: list[Any] = []
        for name in self._action.names:
            info = self._features.get(name, {}).get("info")
            kinds = info.get("kinds") if isinstance(info, dict) else None
            said += kinds if isinstance(kinds, list) else []
        if said and len(said) == len(names) and set(said) <= set(get_args(ActionKind)):
            return tuple(said)
        delta: ActionKind = "delta"
        absolute: ActionKind = "absolute"
        if names and all("delta" in name for name in names):
            return (delta,) * len(names)
        if names and all(name.endswith(".pos") for name in names):
            return (absolute,) * len(names)
        return ()

    def _images(self, place: Place, piece: Piece, rows: Rows, size: int | None, start: int = 0) -> Iterator[Array]:
        """The pictures of an episode that stores them in its rows, from `start` on."""
        where = f"{place.data}: {self.camera} of episode {place.index}, frame "
        table = rows.of(place.index, place.length, place.data)[0]
        cells, beside = column(table, self.camera), self.root / f"images/{self.camera}/episode_{place.index:06d}"
        if cells is None:  # where LeRobot keeps them until it puts them into the tables
            names = np.arange(len(table)) if (counts := _counts(table)) is None else counts
            cells = pa.array([f"frame_{name:06d}.png" for name in names.tolist()])
        if isinstance(cells.type, pa.ExtensionType):
            cells = cells.storage
        shape, first = shape_of(self._features[self.camera]), (0, 0)
        for t, row in enumerate(piece.rows.tolist()):
            if 0 < t < start:
                continue
            found = picture(cells[row].as_py(), shape, (self.root, beside), f"{where}{t}")
            height, width = found.shape[:2]
            first = first if t else (height, width)
            if (height, width) != first:
                raise BadVideo(f"{where}{t}: is {width} x {height}, the first is {first[1]} x {first[0]}.")
            if t >= start:
                yield resized(found, size)

    # --- instructions

    def _texts_in(self, wanted: str | None) -> str | None:
        """The feature that holds the instruction, where one was asked for."""
        if wanted is None:
            return None
        known = [*self._features, *(name for name in self._types() if name not in self._features)]
        return choose(wanted, known, "feature for the instruction", f" in {self.root}")

    def _texts(self, table: pa.Table, place: Place) -> tuple[list[str], str]:
        """The instruction of each row, and where they are from."""
        if self._text:
            return self._words(table, self._text, place), self._text
        tasks = column(table, "task_index")
        if tasks is not None and tasks.null_count < len(tasks) and self._tasks:
            return self._words(table, "task_index", place), "the tasks of meta"
        if own := [text for one in place.tasks if (text := text_of(self._tasks.get(one, one)))]:
            more = ", all of an episode, for its rows do not say which is when" if len(own) > 1 else ""
            return ["; ".join(own)] * place.length, f"meta/episodes{more}"
        beside = [name for name in TEXTS if column(table, name) is not None]
        if beside:
            return self._words(table, beside[0], place), beside[0]
        return [""] * place.length, ""

    def _words(self, table: pa.Table, name: str, place: Place) -> list[str]:
        """A column of texts, or of numbers of tasks, as texts."""
        values = column(table, name)
        if values is None:
            raise BadVideo(f"{place.data}: {name} of episode {place.index} is missing.")
        said: list[str] = []
        for row, value in enumerate(values.to_pylist()):
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, int):
                said.append(self._task(value, place))
            elif isinstance(value, str | list | bytes):
                said.append(text_of(value))
            elif value is None and not number_type(values.type):
                said.append(said[-1] if said else "")  # what is said once holds until something else is
            else:
                raise BadVideo(f"{place.data}: {name} of episode {place.index} is {value!r:.40} in row {row}, no task.")
        return said

    def _task(self, number: int, place: Place) -> str:
        if number in self._tasks:
            return self._tasks[number]
        if len(place.tasks) == 1 and isinstance(place.tasks[0], str):
            return text_of(place.tasks[0])
        lacking = self.root / (TASKS_V2 if self._old else TASKS)
        raise BadVideo(f"{place.data}: episode {place.index} has task {number}, which {lacking} lacks.")

    # --- where the episodes are

    def _places_v3(self) -> list[Place]:
        """From the episode tables, sorted by where the frames are."""
        files = sorted((self.root / "meta/episodes").rglob("*.parquet"))
        if not files:
            raise LapaError(f"{self.root}: meta/episodes holds no parquet file; the dataset is incomplete.")
        at = ("chunk_index", "file_index")
        wanted = ["episode_index", "length", *(f"data/{key}" for key in at)]
        if self._is_video:
            wanted += [f"videos/{self.camera}/{key}" for key in (*at, "from_timestamp")]
        until = f"videos/{self.camera}/to_timestamp"
        places = []
        for file in files:
            try:
                rows = read_table(file, wanted, ["tasks", until]).to_pylist()
            except LapaError as error:
                self._bad.append(BadVideo(str(error)))
                continue
            for row in rows:
                try:
                    places.append(self._place_v3(row, wanted, until, file))
                except BadVideo as bad:
                    self._bad.append(bad)
        return sorted(places, key=lambda place: (place.video or place.data, place.start, place.index))

    def _place_v3(self, row: dict[str, Any], wanted: list[str], until: str, file: Path) -> Place:
        index = whole_number(row, wanted[0], file)
        where = f"{file}: episode {index}"
        length, *at = (whole_number(row, name, where) for name in wanted[1:] if "timestamp" not in name)
        names = ("chunk_index", "file_index")
        data = self._path("data_path", **dict(zip(names, at[:2], strict=True)))
        place = Place(index, length, data, tasks=listed_tasks(row.get("tasks")))
        if not self._is_video:
            return place
        film = self._path("video_path", video_key=self.camera, **dict(zip(names, at[2:], strict=True)))
        start, stop = seconds(row[wanted[-1]], where), row.get(until)
        ends = isinstance(stop, int | float) and math.isfinite(stop) and stop > start
        return replace(place, video=film, start=start, stop=float(stop) if ends and stop is not None else math.inf)

    def _places_v2(self) -> list[Place]:
        """From meta/episodes.jsonl; the chunk follows from the number of the episode."""
        chunk = whole_number({"chunks_size": 1000} | self._info, "chunks_size", self.root / INFO)
        places = []
        table = self.root / EPISODES_V2
        if not table.exists():
            raise LapaError(f"{table}: is missing; the dataset is incomplete.")
        for number, row in read_lines(table):
            where = f"{table}, line {number}"
            try:
                if isinstance(row, BadVideo):
                    raise row
                index, length = (whole_number(row, key, where) for key in ("episode_index", "length"))
                at = {"episode_chunk": index // max(chunk, 1), "episode_index": index}
                video = self._path("video_path", video_key=self.camera, **at) if self._is_video else None
                tasks = listed_tasks(row.get("tasks", row.get("task")))
                places.append(Place(index, length, self._path("data_path", **at), video, tasks=tasks))
            except BadVideo as bad:
                self._bad.append(bad)
        return sorted(places, key=lambda place: place.index)

    def _places_of(self, split: str) -> list[Place]:
        inside = split_of(self._info.get("splits"), split, self.root)
        places = [place for place in self._places if any(place.index in span for span in inside)]
        if not places:
            raise LapaError(f"{self.root}: none of its episodes is in the split {split}.")
        return places

    def _path(self, template: str, **at: Any) -> Path:
        try:
            return self.root / str(self._info[template]).format(**at)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise LapaError(f"{self.root / INFO}: {template} cannot be followed ({error!r}).") from None


def _step(times: Array, fps: float) -> float:
    """Seconds from frame to frame."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 1 / fps


def _fit(places: Sequence[Place], times: Array, fps: float) -> bool:
    """Do the times that meta gives fit a film: episodes of several begin at frames of it, one after another, and the
    last ends where the film does?"""
    if len(places) < 2 or not len(times):
        return True
    starts, step = np.array([place.start for place in places]), _step(times, fps)
    after = np.clip(np.searchsorted(times, starts), 1, max(len(times) - 1, 1))
    away = np.minimum(np.abs(times[np.minimum(after, len(times) - 1)] - starts), np.abs(times[after - 1] - starts))
    stop = max(place.stop for place in places)
    ends = abs(step * fps - 1) < SAME if math.isinf(stop) else abs(stop - times[-1] - step) < 1.5 * step
    return bool((away < FAR * step).all() and (np.diff(starts) > 0).all() and ends)


def _counts(table: pa.Table) -> Array | None:
    """frame_index of each row, int64 [n], where it is whole numbers from 0 on."""
    values = column(table, "frame_index")
    if values is None or values.null_count or not number_type(values.type):
        return None
    found = numbers(values, "frame_index")
    whole = found.shape[1] == 1 and np.isfinite(found).all() and (found == found.round()).all() and (found >= 0).all()
    return found[:, 0].astype(np.int64) if whole else None


def _below(root: Path) -> dict[str, Path]:
    """The datasets in folders below, by their path from here."""
    found = {path.parent.parent for n in range(1, BELOW + 1) for path in root.glob("*/" * n + INFO)}
    return {path.relative_to(root).as_posix(): path for path in sorted(found)}
