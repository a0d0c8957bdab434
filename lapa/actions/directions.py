"""Directions in words, "move up and left", of chunks of actions: what a policy may say before it acts.

The paper's Language Table models say such a phrase first, after RT-H (Belkhale et al., 2024). Here it is a class for
each axis: the first word, none, or the second. An axis is one of the action's numbers, told by its name and kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.meaning import Meaning
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.actions.tables import typical_sizes
from lapa.contracts import ActionSpec, Array, LapaError

FIRST, NONE, SECOND = 0, 1, 2
SIDE = 0.414  # of the largest motion, tan(22.5 degrees): a smaller one is not said
STILL = 0.1  # of the usual motion: with less nothing is said
AXES = {"x": ("left", "right"), "y": ("up", "down")}  # of a table in a picture: x to the right, y downwards
AXES_3D = {"x": ("back", "forward"), "y": ("right", "left"), "z": ("down", "up")}  # of a robot's base (REP 103)
GRIPPER = ("close the gripper", "open the gripper")
TURNS = ("rot", "roll", "pitch", "yaw", "ang", "axis", "euler", "quat", "rx", "ry", "rz")
TO_SAY = """--set 'policy.head_options={"directions":true,"words":{"NAME":["left","right"]}}'"""


@dataclass(frozen=True)
class Axis:
    """One of the action's numbers, and the words for less and more of it. `grips`: words of a gripper, not of a way to
    move. `way`: what makes a motion of a chunk: "sum", "last" (relative to the state), "change" (first to last)."""

    number: int
    words: tuple[str, str]
    grips: bool
    way: str


@dataclass(frozen=True)
class Directions:
    """The axes that are spoken of, in this order."""

    axes: tuple[Axis, ...]

    @staticmethod
    def of(meaning: Meaning | None, words: Mapping[str, Sequence[str]], chunk: int) -> Directions:
        """By the names and kinds of the actions, or by `words`, {name: [word for less, word for more]}. Raises
        LapaError where nothing tells which way an action goes."""
        if meaning is None:
            raise LapaError("directions: nothing is known of what these actions mean, so there are no words for them.")
        spec = meaning.spec
        named = _given(spec, words) if words else _by_names(spec) or _by_place(spec)
        if not named:
            some = ", ".join(spec.names[:6]) + (", .." if len(spec) > 6 else "")
            raise LapaError(
                f"directions: the names of these actions ({some}) do not tell which way they go. Say it: "
                f"{TO_SAY}, first the word for less, then that for more."
            )
        axes = [_axis(meaning, i, said, grips, chunk) for i, (said, grips) in sorted(named.items())]
        if (found := tuple(axis for axis in axes if axis)) and not all(axis.grips for axis in found):
            return Directions(found)
        raise LapaError(
            f"directions: chunks of {chunk} actions tell of no motion in {', '.join(spec.names[i] for i in named)}: "
            "they say where to be, and where that is from here is not known. Let the policy see a state of as many "
            "numbers, or take a longer chunk."
        )

    def __len__(self) -> int:
        """k."""
        return len(self.axes)

    def told(self, spec: ActionSpec) -> str:
        """For people: what is said of which number."""
        said = "; ".join(f"{spec.names[axis.number]}: {axis.words[0]} / {axis.words[1]}" for axis in self.axes)
        return f"Directions are said before actions (less / more of a number): {said}. Other words: {TO_SAY}."

    def classes(self, space: ActionSpace | ActionCodebook, targets: Array) -> Array:
        """Of targets int64 [B, positions], -100 where there is none: int64 [B, k], each FIRST, NONE or SECOND; -100
        where there is no action at all."""
        chunks, there = _decoded(space, targets)
        some: Array = np.any(there, axis=1)
        usual, moved = _usual(space), np.stack([_motion(axis, chunks, there) for axis in self.axes], 1)
        grips = np.array([axis.grips for axis in self.axes])
        size = np.array([usual[axis.number] for axis in self.axes])
        least = np.where(grips, 0.5 * size, STILL * size[~grips].max())
        largest = np.abs(np.where(grips, 0, moved)).max(1, keepdims=True)
        enough = (np.abs(moved) > least) & (grips | (np.abs(moved) >= SIDE * largest))
        found = np.where(enough, np.where(moved > 0, SECOND, FIRST), NONE)
        return np.where(some[:, None], found, -100)

    def phrase(self, classes: Sequence[int]) -> str:
        """Classes [k] -> such as "move up and left, close the gripper"; "stay" where there is nothing to say."""
        said = [(axis, axis.words[0 if each == FIRST else 1])
                for axis, each in zip(self.axes, classes, strict=True) if each != NONE]  # fmt: skip
        ways = [word for axis, word in said if not axis.grips]
        # "up and left", as people say it: the height first
        ways.sort(key=lambda word: word not in ("up", "down"))
        move = ["move " + " and ".join(ways)] if ways else []
        return ", ".join([*move, *(word for axis, word in said if axis.grips)]) or "stay"


def _axis(meaning: Meaning, i: int, words: tuple[str, str], grips: bool, chunk: int) -> Axis | None:
    """None where a chunk tells no motion: one place alone."""
    kind = meaning.spec.kinds[i]
    way = "sum" if kind == "delta" else "last" if meaning.relative[i] else "change"
    return None if way == "change" and chunk == 1 else Axis(i, words, grips, way)


def _given(spec: ActionSpec, words: Mapping[str, Sequence[str]]) -> dict[int, tuple[tuple[str, str], bool]]:
    if wrong := [name for name in words if name not in spec.names]:
        raise LapaError(f'directions: no action is called "{wrong[0]}" (words); they are {", ".join(spec.names)}.')
    for name, pair in words.items():
        two = isinstance(pair, list | tuple) and len(pair) == 2
        if not two or not all(isinstance(word, str) and word for word in pair):
            raise LapaError(
                f'directions: words of "{name}" are two, for less and for more of it, such as ["left","right"].'
            )
    return {spec.names.index(name): ((a, b), "grip" in f"{name} {a} {b}".lower()) for name, (a, b) in words.items()}


def _by_names(spec: ActionSpec) -> dict[int, tuple[tuple[str, str], bool]]:
    """Of names such as dx, delta_y, action.z and gripper; {} where they do not tell, or tell of two arms."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(spec.names):
        if (letter := _letter(name)) is not None:
            found.setdefault(letter, []).append(i)
    ways = {letter: where for letter, where in found.items() if letter != "gripper"}
    if not ways or any(len(where) > 1 for where in ways.values()):
        return {}
    words = AXES_3D if "z" in ways else AXES
    named: dict[int, tuple[tuple[str, str], bool]] = {i: (words[a], False) for a, (i,) in ways.items()}
    grippers = found.get("gripper", [])
    if len(grippers) == 1:
        closes = "clos" in spec.names[grippers[0]].lower()
        named[grippers[0]] = (GRIPPER[::-1] if closes else GRIPPER, True)
    return named


def _letter(name: str) -> str | None:
    """ "x", "y", "z" or "gripper", as a name says; None for another."""
    parts = re.findall(r"[a-z]+", name.lower())
    if any("grip" in part for part in parts):
        return "gripper"
    if any(part.startswith(TURNS) for part in parts):
        return None
    letters = {part[-1] for part in parts if re.fullmatch(r"(d|v|delta|vel)?[xyz]", part)}
    return letters.pop() if len(letters) == 1 else None


def _by_place(spec: ActionSpec) -> dict[int, tuple[tuple[str, str], bool]]:
    """Of two or three numbers without telling names that say how far to go, and perhaps a gripper of two values."""
    ways = [i for i, kind in enumerate(spec.kinds) if kind == "delta"]
    others = [kind for kind in spec.kinds if kind != "delta"]
    numbered = all(re.fullmatch(r"(action|a|motor)?[ _.]?\d+", name) for name in spec.names)
    if not numbered or len(ways) not in (2, 3) or others not in ([], ["binary"]):
        return {}
    words = AXES_3D if len(ways) == 3 else AXES
    named = {i: (words[a], False) for a, i in zip("xyz"[: len(ways)], ways, strict=True)}
    return named | {i: (GRIPPER, True) for i, kind in enumerate(spec.kinds) if kind == "binary"}


def _decoded(space: ActionSpace | ActionCodebook, targets: Array) -> tuple[Array, Array]:
    """The actions float [B, chunk, A] that targets mean, and bool [B, chunk]: which there are."""
    if isinstance(space, ActionCodebook):
        chunks = np.array(space.means)[np.maximum(targets[:, 0], 0)].reshape(len(targets), space.chunk, -1)
        return chunks, np.broadcast_to(targets >= 0, chunks.shape[:2])
    classes = targets.reshape(len(targets), space.chunk, space.dimensions)
    there: Array = np.all(classes >= 0, axis=2)
    return space.decode(np.maximum(classes, 0)), there


def _usual(space: ActionSpace | ActionCodebook) -> Array:
    """A usual size of each number, [A]: the root mean square of its bins, or of the data; of one with two values how
    far they are apart."""
    values = space.centres() if isinstance(space, ActionSpace) else np.array(space.reach)
    apart = np.nanmax(values, 1) - np.nanmin(values, 1)
    sizes = typical_sizes(values) if isinstance(space, ActionSpace) else np.array(space.unit)
    switches = np.array(space.switches or [False] * space.dimensions)
    return np.where(switches, apart, sizes)


def _motion(axis: Axis, chunks: Array, there: Array) -> Array:
    """How far a chunk goes along an axis, float [B], a step on average for sums: actions [B, chunk, A], there
    bool [B, chunk]."""
    values, count = chunks[..., axis.number], there.sum(1)
    if axis.way == "sum":
        return np.where(there, values, 0).sum(1) / np.maximum(count, 1)
    last = np.take_along_axis(values, np.maximum(count - 1, 0)[:, None], 1)[:, 0]
    return last if axis.way == "last" else last - values[:, 0]


def spoken(space: Any) -> ActionSpace | ActionCodebook:
    """The space, of which directions can be said. Raises LapaError for latent codes, which have none."""
    if isinstance(space, CodeSpace):
        raise LapaError(
            "directions: latent codes have no directions in words. Ask for them in stage 3: lapa finetune --head new "
            "--set policy.head=autoregressive " + TO_SAY + "."
        )
    found: ActionSpace | ActionCodebook = space
    return found
