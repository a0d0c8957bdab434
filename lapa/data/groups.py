"""Which groups of a file of arrays are episodes, where the file does not say it: by what lies in them, and by their
names. For HDF5 and zarr.

A group is an episode if there are pictures in it or below, and an action of its own or a name such as demo_0. Groups
without either may be cameras: such as top/rgb and side/rgb.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lapa.contracts import BadVideo
from lapa.data.arrays import Rows, coding, guarded
from lapa.data.images import number_of

EPISODE = re.compile(
    r"(?:(demo|demonstration|ep|episode|traj|trajectory|trial|rollout|run|recording|seq|sequence|clip|take)s?"
    r"[ _.-]*)?\d+",
    re.IGNORECASE,
)  # a number alone too, where the group has an action
CAMERA = re.compile(
    r"(^|[^a-z])([a-z]*cam|camera|view|sensor|image|rgb|colou?r|eye|kinect|realsense|zed|gopro|robot|arm|hand|wrist)s?"
    r"([^a-z]|$)",
    re.IGNORECASE,
)


def episodes_among(arrays: Mapping[str, Rows], where: str) -> tuple[list[str], list[str]]:
    """Arrays of a file by their paths -> the groups that are episodes, in the order of their numbers, and what lies
    beside them. No groups: the arrays are one recording."""
    pictures = _pictures(arrays, where)
    acting = {_actor(name) for name in arrays}
    inside = {name: next((one for one in _above(name) if one in acting or _is_called(one)), "") for name in pictures}
    found = sorted({group for group in inside.values() if group}, key=by_numbers)
    outside = [name for name in arrays if not set(found) & set(_above(name))]
    rows = {arrays[name].shape[:1] for name, group in inside.items() if group}
    sure = "" not in acting and any(group in acting and EPISODE.fullmatch(_last(group)) for group in found)
    if not sure and any(arrays[name].shape[:1] in rows for name in outside):
        return [], []  # frames of the same recording
    holders = {above for group in found for above in _above(group)}
    beside = (next(path for path in (*_above(name), name) if path not in holders) for name in outside)
    return found, list(dict.fromkeys(beside)) if found else []


def refuse_unclear(arrays: Mapping[str, Rows], where: str, advice: str) -> None:
    """Raises BadVideo where groups of the same form with pictures may be episodes as well as cameras of one: numbered,
    without actions, and with nothing beside them that has a row for each frame. `advice` says what to do, with {group}
    for their pattern."""
    inside = {
        name: next((one for one in _above(name) if one[-1].isdigit()), "") for name in sorted(_pictures(arrays, where))
    }
    groups = sorted(set(inside.values()) - {""}, key=by_numbers)
    rows = {arrays[name].shape[:1] for name, group in inside.items() if group}
    outside = (array for name, array in arrays.items() if not set(groups) & set(_above(name)))
    if len(groups) < 2 or any(map(CAMERA.search, groups)) or any(array.shape[:1] in rows for array in outside):
        return
    pattern = f"{groups[0].rpartition('/')[0]}/*".lstrip("/")
    shown = ", ".join(groups[:3]) + (", .." if len(groups) > 3 else "")
    camera = next(name for name, group in inside.items() if group)
    raise BadVideo(f"{where}: its groups {shown} may be episodes, or cameras of one. {advice.format(group=pattern)}, "
                   f"or camera={camera} if all is one episode.")  # fmt: skip


def by_numbers(path: str) -> list[tuple[int | str, ...]]:
    """A sort key for paths by the numbers in their words: ep_2/img comes before ep_10/img."""
    return [number_of(word) for word in path.split("/")]


def beside_note(beside: Sequence[str]) -> str:
    """What is said of what lies beside the episodes, "" for nothing."""
    shown = ", ".join(beside[:6]) + (", .." if len(beside) > 6 else "")
    return f"not read, for it is in no episode: {shown}" if beside else ""


def _pictures(arrays: Mapping[str, Rows], where: str) -> list[str]:
    return [name for name, array in arrays.items() if _is_pictures(array, where)]


def _is_pictures(array: Rows, where: str) -> bool:
    try:
        with guarded(where):
            return coding(array) is not None
    except BadVideo:
        return True  # damaged: whoever reads it is told


def _actor(name: str) -> str | None:
    """The group whose action an array is, or is a part of: "traj_0/actions/arm" -> "traj_0". A group "data" stands for
    the one that holds it."""
    words = name.split("/")
    at = next((i for i, word in enumerate(words) if word in ("action", "actions")), None)
    if at is None:
        return None
    return "/".join(words[: at - 1] if at and words[at - 1] == "data" else words[:at])


def _is_called(group: str) -> bool:
    """Is it called as episodes are, not by a number alone?"""
    named = EPISODE.fullmatch(_last(group))
    return bool(named and named[1])


def _above(name: str) -> list[str]:
    """The groups that hold an array or a group, the outermost first."""
    words = name.split("/")
    return ["/".join(words[:n]) for n in range(1, len(words))]


def _last(path: str) -> str:
    return path.rpartition("/")[2]
