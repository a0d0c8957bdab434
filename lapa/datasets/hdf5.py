"""HDF5 demonstrations: robomimic and LIBERO (many episodes a file), ALOHA and ACT (one episode a file), or as told.

    robomimic, LIBERO   data/demo_0/{actions, obs/agentview_image, ..}; attributes of data: env_args (JSON) with the
                        rate, problem_info with the instruction; mask/NAME lists the episodes of a split
    ALOHA, ACT          action, observations/qpos, observations/images/cam_high; pictures may be JPEG, filled up with
                        zeros (attribute compress)
    anything else       arrays with a row for each frame, in a group for each episode (`group=`) or one episode a file

Links that lead to other files, and arrays kept in other files, are not followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import ActionKind, BadVideo, LapaError
from lapa.data.arrays import Recording, Rows, Turn, guarded, spans_of
from lapa.data.folders import existing_folder, files_below, listing_hash, no_files, printable, readable
from lapa.data.groups import beside_note, episodes_among, refuse_unclear
from lapa.data.images import number_of
from lapa.data.installed import needed
from lapa.data.notes import not_read
from lapa.data.recordings import ACTIONS, READ, TIMES, ArrayOptions, Place, Recordings, rate_in, usual
from lapa.data.words import words
from lapa.plugins import choose

ENDINGS = (".hdf5", ".h5", ".hdf", ".he5")
DEEP, MANY = 12, 20_000  # lists within lists of settings, and arrays of an episode; more is taken for damage
LISTED = 1_000_000  # entries of a list of episodes, likewise
TEXTS = ("language_instruction", "instruction", "task_description", "language", "prompt", "lang", "task")
RATES = ("fps", "control_freq", "control_frequency", "frequency", "hz")
ALOHA = 50.0  # Hz: DT = 0.02 in constants.py of ACT, whose files store no rate
SCENE = re.compile(r"^[A-Z_]+_SCENE\d+_")  # before the words in the names of LIBERO's files


@dataclass(frozen=True)
class Config(ArrayOptions):
    """`path` is a file, or a folder of them; `camera` an array of pictures, by its path in the episode or its last
    word; `action` and `state` other arrays than the usual ones, several joined with "+" (none: leave it out;
    action=next_state: the next state is the action); `instruction` an attribute or an array of text; `split` a filter
    of mask/; `fps` the rate, where the file does not say it; `group` where the episodes are, such as data/* or
    trials/*/robot; `rotate` (degrees clockwise), `flip` (rows, columns, none) and `colours` (rgb, bgr) where pictures
    are not upright or not RGB."""

    split: str | None = None
    group: str | None = None

    def build(self) -> Hdf5:
        """List the episodes of every file. Raises LapaError when there are none, or h5py is not installed."""
        needed("h5py", "hdf5")
        root = Path(self.path).expanduser()
        if root.is_file():
            return Hdf5(root.parent, [root], self)
        files = sorted(files_below(existing_folder(root, "HDF5 data"), ENDINGS), key=_by_folder)
        if not files:
            raise LapaError(f"{root}: holds no HDF5 file. Looked for {', '.join(ENDINGS)} in it and below.")
        rest = set(files_below(root, ("",))) - set(files)
        return Hdf5(root, files, self, not_read(sorted(rest)))


class Hdf5(Recordings):
    """File after file, and in a file the episodes in the order of their numbers."""

    def __init__(self, root: Path, files: list[Path], config: Config, notes: tuple[str, ...] = ()) -> None:
        self.root, self.files, self._config, self._beside = root, files, config, notes
        self._rest: dict[Path, str] = {}  # what a file holds beside its episodes
        self._single = set[Path]()  # files of one episode, kept in a group
        places: list[Place | BadVideo] = []
        for file in files:
            try:
                places += self._listed(file)
            except BadVideo as bad:
                places.append(bad)
        super().__init__(f"hdf5:{config.path}", places, config)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the files."""
        return f"{listing_hash(self.root, self.files)}{self.camera} {READ}"

    def _problems(self) -> Iterator[BadVideo]:
        yield from no_files(self.root, ENDINGS) if Path(self._config.path).expanduser().is_dir() else []

    def _advice(self) -> str:
        return "Files of robomimic without pictures get them by its dataset_states_to_obs.py; or say camera=."

    # --- files

    def _listed(self, file: Path) -> list[Place | BadVideo]:
        """The episodes of a file."""
        name = printable(file)
        within = file.relative_to(self.root).with_suffix("").as_posix()
        with _open(file) as opened, guarded(name):
            groups, beside = _groups(opened, self._config, name)
            self._rest[file] = beside_note(beside)
            if self._config.split:
                groups = _of_split(opened, groups, self._config.split, name)
            places: list[Place | BadVideo] = []
            if len(groups) == 1 and not groups[0].startswith("data/") and not self._config.group:
                self._single.add(file)
            short = [group.rpartition("/")[2] for group in groups]
            for group, last in zip(groups, short if len(set(short)) == len(short) else groups, strict=True):
                alone = Path(self._config.path).expanduser().is_file()
                own = within if not group else last if alone else f"{within}/{last}"
                places += _cut(Place(own, file, group), opened)
            return places

    @contextmanager
    def _opened(self, place: Place) -> Iterator[Recording]:
        where = printable(place.file) + (f", {place.group}" if place.group else "")
        with _open(place.file) as opened:
            with guarded(where):
                node, links = _at(opened, place.group), list[str]()
                if node is None:
                    raise BadVideo(f"{where}: is a link, which may lead to another file. Links are not followed.")
                arrays = dict(_arrays(node, where, links))
                notes = (f"links not followed: {', '.join(sorted(links)[:3])}",) if links else ()
                notes = (*notes, *filter(None, [self._rest.get(place.file)]), *self._beside)
                about = {**_texts(opened), **_attributes(opened), **_attributes(node.parent), **_attributes(node)}
            yield Recording(place.id, where, arrays, place.first, place.length, about, notes)

    # --- what files say of themselves

    def _told_rate(self, recording: Recording) -> tuple[float, str] | None:
        about = recording.about
        for source, holder in (("the attribute", about), ("env_args:", _environment(about))):
            for name in RATES:
                if rate := rate_in(holder.get(name)):
                    return rate, f"as {source} {name} says"
        return None

    def _usual_rate(self, recording: Recording) -> tuple[float, str] | None:
        if "observations/qpos" in recording.arrays and not usual(recording.arrays, TIMES):
            return ALOHA, "that of ALOHA and ACT, whose files do not store it; fps= says another"
        return None

    def _told_turn(self, about: Mapping[str, Any]) -> tuple[Turn, str]:
        """LIBERO keeps pictures as OpenGL gives them, the lowest row first, and says so. robomimic turns them."""
        if _text(about.get("macros_image_convention")) != "opengl":
            return Turn(), "as stored"
        turn = Turn(flip="rows")
        return (
            turn,
            f"{turn}, for the file says opengl: lowest row first (flip=none: as stored; rotate=180: as OpenVLA)",
        )

    def _told_kinds(self, recording: Recording, action: Sequence[str], width: int) -> tuple[ActionKind, ...]:
        """Those of robosuite, by its controller: an arm has six numbers and a gripper one."""
        deltas = set(_deltas(_environment(recording.about).get("controller_configs")))
        if tuple(action) != ("actions",) or len(deltas) != 1 or not width or width % 7:
            return ()
        arm: ActionKind = "delta" if deltas.pop() else "absolute"
        gripper: ActionKind = "binary"
        return ((arm,) * 6 + (gripper,)) * (width // 7)

    def _told_robot(self, about: Mapping[str, Any]) -> str:
        robots = _environment(about).get("robots")
        parts = robots if isinstance(robots, list) else [robots]
        named = " ".join(robot for robot in parts if isinstance(robot, str))
        return named or next((_text(about[key]) for key in ("robot_type", "robot") if _text(about.get(key))), "")

    def _told_instruction(self, place: Place, recording: Recording) -> tuple[list[str], str]:
        wanted, about = self._config.instruction, recording.about
        if wanted:
            texts = [_text(about.get(wanted))] if _text(about.get(wanted)) else _text_array(recording, wanted)
            if not texts:
                raise BadVideo(f"{recording.where}: {wanted} is no attribute and no array with text.")
            return texts, wanted
        for name in ("problem_info", "ep_meta"):
            inside = _json(about.get(name))
            if said := next((_text(inside[key]) for key in TEXTS if _text(inside.get(key))), ""):
                return [said], f"the attribute {name}"
        for name in TEXTS:
            if said := _text(about.get(name)):
                return [said], f"the attribute {name}"
            if texts := _text_array(recording, name):
                return texts, f"the array {name}"
        if _text(about.get("bddl_file_name")):  # LIBERO's files are named after the task
            return [words(SCENE.sub("", place.file.stem).removesuffix("_demo"))], "names of files"
        if (not place.group or place.file in self._single) and place.length is None:
            above = place.file.parent.name if place.file.parent != self.root else ""
            return [words(place.file.stem) or words(above)], "names of files"
        return [], ""


def _by_folder(file: Path) -> tuple[Path, tuple[int | str, ...]]:
    return file.parent, number_of(file)


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    import h5py

    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  (more compressions, where it is installed)
    with guarded(printable(file), "cannot be opened as HDF5"):
        opened = h5py.File(readable(file), "r", locking=False)
    try:
        yield opened
    finally:
        opened.close()


def _member(group: Any, name: str) -> Any:
    """A member of a group, None for none and for one that is a link: it may lead to any file."""
    import h5py

    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def _members(group: Any) -> Iterator[tuple[str, Any]]:
    """The members of a group in the order of their numbers, None for a link."""
    for name in sorted(group, key=number_of):
        yield name, _member(group, name)


def _arrays(group: Any, where: str, links: list[str], most: int = MANY) -> Iterator[tuple[str, Rows]]:
    """Arrays of a group and those below it, by path, that lie in this file. The others are entered in `links`."""
    import h5py

    seen, todo, count = set[int](), [("", group)], 0
    while todo:
        path, holder = todo.pop()
        address = h5py.h5o.get_info(holder.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name, member in _members(holder):
            count += 1
            if count > most:
                raise BadVideo(f"{where}: holds more than {most} arrays.")
            if isinstance(member, h5py.Group):
                todo.append((f"{path}{name}/", member))
            elif isinstance(member, h5py.Dataset) and member.shape is not None and not _elsewhere(member):
                yield f"{path}{name}", member
            elif member is None or isinstance(member, h5py.Dataset):
                links.append(f"{path}{name}")


def _at(opened: Any, path: str) -> Any:
    """The group or array at a path of names, None where there is none and where a link is on the way."""
    for part in path.split("/") if path else []:
        opened = _member(opened, part) if hasattr(opened, "keys") else None
    return opened


def _elsewhere(array: Any) -> bool:
    """Are the values of an array kept in other files?"""
    return array.is_virtual or bool(array.external)


def _groups(opened: Any, config: Config, where: str) -> tuple[list[str], list[str]]:
    """The groups that are episodes, [""] where the file is one; and what lies beside them. Raises BadVideo where that
    is not clear, LapaError where group= names none."""
    if config.group:
        return _matching(opened, config.group, where), []
    bases = [(base, members) for base in ("data", "") if (members := _below(opened, base))]
    for base, members in bases:  # as robomimic and ManiSkill have it: known without a look at every array
        rest = {name: _member(opened, name) for name in opened if base and name not in (base, "mask", *TEXTS)}
        others = any(hasattr(member, "keys") for member in rest.values())
        if not others and all(member is None or _is_sure(path, member) for path, member in members):
            return [path for path, _ in members], list(rest)
    if any(hasattr(_at(opened, name), "shape") for name in ACTIONS):
        return [""], []
    arrays = {name: rows for name, rows in _arrays(opened, where, [], LISTED) if not name.startswith("mask/")}
    if config.camera in arrays:
        return [""], []
    found, beside = episodes_among(arrays, where)
    if found:
        found = _with_alike(opened, found)
        return found, [path for path in beside if path not in (*found, *TEXTS)]
    for _, members in bases:
        if all(member is None or _is_numbered(path, member) for path, member in members):
            return [path for path, _ in members], []
        if len(members) > 1 and all(member is None or _has_actions(member) for _, member in members):
            return [path for path, _ in members], []
    refuse_unclear(arrays, where, "Say group={group} if each is an episode")
    return [""], []


def _matching(opened: Any, pattern: str, where: str) -> list[str]:
    """The groups that a pattern such as trials/*/robot names. Raises LapaError for none."""
    found = [""]
    for part in pattern.strip("/").split("/"):
        found = [
            path
            for one in found
            for path, member in _below(opened, one)
            if fnmatchcase(path.rpartition("/")[2], part) and not hasattr(member, "shape")
        ]
    if not found:
        raise LapaError(f"{where}: has no group {pattern}. It has {', '.join(opened) or 'nothing'}.")
    return found


def _with_alike(opened: Any, found: Sequence[str]) -> list[str]:
    """Episodes, and the groups and links beside them that are called alike but for a number, or have actions: what is
    wrong with them is told when they are read."""
    every = []
    alike = {_stem(path) for path in found}
    for holder in dict.fromkeys(path.rpartition("/")[0] for path in found):
        for path, member in _below(opened, holder):
            if path in found or (not hasattr(member, "shape") and (_stem(path) in alike or _has_actions(member))):
                every.append(path)
    return every


def _stem(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def _below(opened: Any, path: str) -> list[tuple[str, Any]]:
    """Path and member for each member of a group, None for a link; [] for what is no group."""
    group = _at(opened, path)
    return (
        [(f"{path}/{name}".lstrip("/"), member) for name, member in _members(group)] if hasattr(group, "keys") else []
    )


def _is_sure(path: str, member: Any) -> bool:
    """Is it a group that counts its rows as robomimic does, or is numbered, as demo_0 and traj_12 are, with actions?"""
    return hasattr(member, "keys") and ("num_samples" in member.attrs or (path[-1].isdigit() and _has_actions(member)))


def _is_numbered(path: str, member: Any) -> bool:
    return hasattr(member, "keys") and (path[-1].isdigit() or "num_samples" in member.attrs)


def _has_actions(member: Any) -> bool:
    return hasattr(member, "keys") and any(_at(member, name) is not None for name in ACTIONS)


def _of_split(opened: Any, groups: list[str], split: str, where: str) -> list[str]:
    """Those that the array mask/SPLIT names, as robomimic has it."""
    mask = _member(opened, "mask")
    known = dict(_members(mask)) if mask is not None else {}
    if not known:
        raise LapaError(f"{where}: has no splits (mask/), so split={split} names nothing. Say which with episodes=0-9.")
    names = known[choose(split, known, "split", f" in {where}")]
    if names is None or names.size > LISTED:
        raise BadVideo(f"{where}: mask/{split} is no list of episodes.")
    listed = {_text(name) for name in np.ravel(names[()])}
    found = [group for group in groups if group.rpartition("/")[2] in listed]
    if not found:
        raise LapaError(f"{where}: none of its episodes is in the split {split}.")
    return found


def _cut(place: Place, opened: Any) -> list[Place | BadVideo]:
    """An episode; or several, where an array says where they end, as Diffusion Policy keeps them."""
    if place.group:
        return [place]
    ends = next((e for e in (_at(opened, "meta/episode_ends"), _at(opened, "episode_ends")) if e is not None), None)
    if ends is None:
        return [place]
    where = f"{printable(place.file)}, episode_ends"
    if ends.size > LISTED:
        raise BadVideo(f"{where}: says that it has {ends.size} entries.")
    spans = spans_of(np.asarray(ends[()]), where)
    return [
        span if isinstance(span, BadVideo) else replace(place, id=f"{place.id}/{i}", first=span[0], length=span[1])
        for i, span in enumerate(spans)
    ]


# --- what attributes and texts say


def _attributes(node: Any) -> dict[str, Any]:
    """Attributes that are text, the first one of several texts, or single numbers."""
    found = {}
    for name in node.attrs:
        value = node.attrs[name]
        if isinstance(value, str | bytes | int | float | np.number):
            found[name] = value
        elif (
            isinstance(value, np.ndarray) and value.dtype.kind in ("SO" if value.size != 1 else "SOfiu") and value.size
        ):
            found[name] = value.ravel()[0]
    return found


def _texts(opened: Any) -> dict[str, Any]:
    """Texts that a file holds beside its groups, such as the instruction of all episodes."""
    held = {name: member for name in TEXTS if (member := _member(opened, name)) is not None}
    return {name: array[()] for name, array in held.items() if getattr(array, "shape", None) == ()}


def _text(value: Any) -> str:
    """A text of whatever type, "" for none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value.strip().strip('"').strip() if isinstance(value, str) else ""


def _text_array(recording: Recording, wanted: str) -> list[str]:
    """The first text of each row of an array, named by its path or its last word; [] where there is none."""
    for name, array in recording.arrays.items():
        if wanted in (name, name.rpartition("/")[2]) and array.dtype.kind in "SO" and len(array.shape) <= 2:
            with guarded(f"{recording.where}, {name}"):
                if not array.shape:
                    return [said for said in [_text(array[()])] if said]  # type: ignore[index]
                last = recording.first + min(recording.length or LISTED, LISTED)
                rows = (map(_text, np.ravel(row)) for row in array[recording.first : last])
                return [said for row in rows if (said := next(filter(None, row), ""))]
    return []


def _json(value: Any) -> dict[str, Any]:
    """The object that an attribute holds as JSON, {} for none."""
    try:
        found = json.loads(_text(value)) if _text(value) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _environment(about: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the simulation that robomimic and LIBERO keep, {} for none."""
    found = _json(about.get("env_args")).get("env_kwargs")
    return found if isinstance(found, dict) else {}


def _deltas(node: Any, deep: int = 0) -> Iterator[bool]:
    """Do the controllers that move an arm in space, anywhere below, take steps?"""
    inside = node if isinstance(node, list) else list(node.values()) if isinstance(node, dict) else []
    for child in inside if deep < DEEP else []:
        yield from _deltas(child, deep + 1)
    if isinstance(node, dict) and str(node.get("type", "")).startswith("OSC_POSE"):
        delta = node.get("control_delta", node["input_type"] == "delta" if "input_type" in node else None)
        if isinstance(delta, bool):
            yield delta
