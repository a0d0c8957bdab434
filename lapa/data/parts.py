"""Which of a source's numbers are the action and which the state: by their usual names, or as action=a+b and state=a+b
say. The same words for every reader that has actions.

A part is a feature by its whole name (observation.state, action/world_vector), by the end of it (world_vector), or all
that lie below a name (action). Several parts are put beside one another in the order in which they are named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lapa.contracts import LapaError
from lapa.plugins import choose

ACTIONS = ("action", "actions")
STATES = (
    "observation.state", "observation.states", "observation.proprio", "observation.robot_state", "state", "states",
    "observation.effector_translation", "robot_state", "proprio",
)  # fmt: skip
# Of all that lies below "action", these are no motions: they are taken where they are named, never by default.
NO_MOTION = re.compile(
    r"(is_|episode_)?(terminat\w*|terminal|done|first|last|pad|mask|valid|reward|discount|index|timestamp|time)"
    r"(_episode|_index)?"
)
# Words of a name that say in which way a motion is told, not what moves.
WAY = re.compile(
    r"abs|absolute|rel|relative|delta|target|goal|desired|raw"
    r"|(pos|position|qpos|vel|velocity|velocitie|qvel|acc|acceleration|torque|effort|current|force)s?"
)
JOINTS = re.compile(r"joints?|qpos")
HAND = re.compile(r"cartesian|eef|ee|tcp|end|endeffector|poses?|xyz")


@dataclass(frozen=True)
class Parts:
    """The features chosen, in order; those below the same name that were passed over; and whether somebody asked for
    them."""

    names: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    asked: bool = False

    def __str__(self) -> str:
        passed = f" (passed over: {', '.join(self.passed)})" if self.passed else ""
        return " + ".join(self.names) + passed


def parts(known: Sequence[str], usual: Sequence[str], wanted: str | None, what: str, where: str) -> Parts:
    """Of the features `known`, in the order of the source, those that are `what`, "action" or "state": as `wanted`
    says ("a+b", or "none"), else the first of the `usual` names that is there. Words of a name stand between dots or
    slashes.

    No names: there is none of the usual ones. Raises LapaError with `where` for a part that is not there, or is there
    twice.
    """
    if not wanted:
        found = (_below(name, known) for name in usual)
        return next((_moving(group) for group in found if group), Parts())
    if wanted == "none" and "none" not in known:
        return Parts(asked=True)
    groups = [_moving(_named(part.strip(), known, what, where)) for part in wanted.split("+")]
    names = [name for group in groups for name in group.names]
    if double := [name for name in names if names.count(name) > 1]:
        raise LapaError(f"{what}={wanted}{where}: takes {double[0]} twice.")
    return Parts(tuple(names), tuple(name for group in groups for name in group.passed), asked=True)


def are_rivals(names: Sequence[str]) -> bool:
    """Do features tell the same motion in several ways, as places and speeds or by the joints and by the hand, so that
    not all of them are the action?"""
    words = [[word for word in re.split(r"[^a-z0-9]+", name.lower()) if word] for name in names]
    movers = {tuple(word for word in one if not WAY.fullmatch(word)) for one in words}
    joints = [one for one in words if any(map(JOINTS.fullmatch, one))]
    return len(movers) < len(names) or (
        bool(joints) and any(one not in joints and any(map(HAND.fullmatch, one)) for one in words)
    )


def taken(action: Parts, state: Parts, numbers: Sequence[str]) -> str:
    """What was taken, for people; `numbers` are all features that could be."""
    said = []
    for what, chosen in (("action", action), ("state", state)):
        rest = [name for name in numbers if name not in (*action.names, *state.names)]
        can = f" (of {_some(rest)}, {what}= can take some)" if rest else ""
        said.append(f"{what} from {chosen}" if chosen.names else f"no {what}{can}")
    return "taken: " + ", ".join(said)


def dimension_names(widths: Mapping[str, int], named: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A name for each dimension of parts beside one another. `widths` are those of the parts, in order; `named` the
    names that the source has for their dimensions. () where it has none for the only part."""
    last = [_words(name)[-1] for name in widths]
    short = dict(zip(widths, last if len(set(last)) == len(last) else widths, strict=True))
    own = {name: tuple(named.get(name, ())) for name in widths}
    if len(widths) < 2:
        return next((own[name] for name, width in widths.items() if len(own[name]) == width), ())
    every = [
        own[name] if len(own[name]) == width else [f"{short[name]}_{i}" for i in range(width)]
        for name, width in widths.items()
    ]
    flat = [one for names in every for one in names]
    if len(set(flat)) == len(flat):
        return tuple(flat)
    return tuple(f"{short[name]}.{one}" for name, names in zip(widths, every, strict=True) for one in names)


def _named(part: str, known: Sequence[str], what: str, where: str) -> list[str]:
    if group := _below(part, known):
        return group
    wanted = _words(part)
    ends = {name: words for name in known if (words := _words(name))[-len(wanted) :] == wanted}
    above = dict.fromkeys("/".join(_words(name)[:n]) for name in known for n in range(1, len(_words(name))))
    groups = [name for name in above if _words(name)[-len(wanted) :] == wanted]
    if len(ends) + len(groups) == 1:
        return list(ends) or _below(groups[0], known)
    if len(ends) + len(groups) > 1:
        raise LapaError(f"{what}={part}{where}: may be any of {_some([*ends, *groups])}. Write the whole name.")
    return [choose(part, known, f"feature for the {what}", where)]


def _below(name: str, known: Sequence[str]) -> list[str]:
    """The feature of this name, or all whose names begin with it, in their order."""
    wanted = _words(name)
    return [one for one in known if _words(one) == wanted] or [
        one for one in known if _words(one)[: len(wanted)] == wanted
    ]


def _moving(group: Sequence[str]) -> Parts:
    passed = [name for name in group if len(group) > 1 and NO_MOTION.fullmatch(_words(name)[-1].lower())]
    return Parts(tuple(name for name in group if name not in passed), tuple(passed))


def _words(name: str) -> list[str]:
    return re.split(r"[./]", name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", .." if len(names) > 6 else "")
