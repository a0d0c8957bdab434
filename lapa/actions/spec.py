"""What actions mean over time: kinds told by the data where nobody says them, and actions over a window.

delta     they add up
absolute  the change of the state, or the last target where no state is known
binary    the last value
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from lapa.contracts import ActionKind, ActionSpec, Array, LapaError

TWO_LEVELS = 0.05  # of its range: values of a binary dimension lie this near to one of the two ends
BETWEEN = 0.05  # of its values may lie elsewhere: a gripper on its way
NEARER = 0.5  # absolute targets lie at most this far from the state, of how far they lie from its next step
NOTHING = 1e-6  # numbers that are no more than this tell nothing


def told_by_data(actions: Array, state: Array | None) -> tuple[ActionKind, ...]:
    """The kind of each dimension of float [N, A]; state float [N, S] or None, of the same frames in their order.

    binary: two levels, within a tolerance (TWO_LEVELS, BETWEEN). absolute: there is a state of as many numbers (see
    `by_names`), and the targets lie near it, much nearer than to the step that it makes next (NEARER). A dimension at
    rest at zero, which tells nothing, goes with most of the others. delta: the rest.
    """
    told = [_told(column, i, state if _alike(actions, state) else None) for i, column in enumerate(actions.T)]
    decided = [kind for kind in told if kind in ("delta", "absolute")]
    usual: ActionKind = "absolute" if decided.count("absolute") > len(decided) / 2 else "delta"
    return tuple(kind or usual for kind in told)


def assumed(kinds: Sequence[ActionKind], actions: Array, state: Array | None) -> str:
    """What to tell people of kinds from `told_by_data` where nothing told delta from absolute, else ""."""
    if "delta" not in kinds or _alike(actions, state):
        return ""
    state_of = "" if state is None else f" of {actions.shape[1]} numbers"
    return f"action: delta is assumed, without a state{state_of} to tell by; if they are targets, say kinds=absolute"


def by_names(state: Array | None, actions: Sequence[str], names: Sequence[str]) -> Array | None:
    """Of a state float [N, S] with these names the numbers that have the names of the actions, in their order; where
    not all are there, the state as it is."""
    if state is None or not actions or not set(actions) <= set(names):
        return state
    return state[:, [list(names).index(name) for name in actions]]


def _alike(actions: Array, state: Array | None) -> bool:
    return state is not None and state.shape[1] == actions.shape[1]


def _told(column: Array, i: int, state: Array | None) -> ActionKind | None:
    """The kind of dimension i; None where its values tell nothing."""
    column = column.astype(np.float64)
    if two_levels(column):
        return "binary"
    if state is None or len(column) < 2:
        return "delta"
    where = state[:, i].astype(np.float64)
    place, step = np.abs(column - where)[:-1].mean(), np.abs(column[:-1] - np.diff(where)).mean()
    if max(place, step) < NOTHING:
        return None
    return "absolute" if place < NEARER * step else "delta"


def two_levels(column: Array) -> bool:
    """Do nearly all values of float [N] lie at one of two levels?"""
    low, high = float(column.min()), float(column.max())
    if high <= low:
        return False
    place = (column - low) / (high - low)
    away = np.minimum(place, 1 - place) > TWO_LEVELS
    return bool(away.mean() <= BETWEEN) and bool((place < 0.5).any()) and bool((place > 0.5).any())


def parse_kinds(text: str, dimensions: int) -> tuple[ActionKind, ...]:
    """ "absolute", "6delta+binary" or "delta+delta+binary" -> a kind for each of the dimensions. Raises LapaError."""
    kinds: list[Any] = []
    for part in text.split("+"):
        found = re.fullmatch(r"(\d*)([a-z]+)", part.strip())
        if not found or found[2] not in get_args(ActionKind):
            known = ", ".join(get_args(ActionKind))
            raise LapaError(f'kinds={text}: write {known} for all dimensions, or such as "6delta+binary".')
        kinds += [found[2]] * int(found[1] or 1)
    if len(kinds) == 1:
        kinds *= dimensions
    if len(kinds) != dimensions:
        raise LapaError(f"kinds={text} names {len(kinds)} dimensions; the actions have {dimensions}.")
    return tuple(kinds)


def described(spec: ActionSpec) -> str:
    """One line for people: "7 numbers at 10 Hz: 6 delta (dx, dy, ..), 1 binary (gripper)"."""
    parts = []
    for kind in get_args(ActionKind):
        names = [name for name, its in zip(spec.names, spec.kinds, strict=True) if its == kind]
        if names:
            shown = ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
            parts.append(f"{len(names)} {kind} ({shown})")
    return f"{len(spec)} numbers at {spec.hz:g} Hz: {', '.join(parts)}"


def over_window(kinds: Sequence[ActionKind], actions: Array, state: Array | None, now: Array, later: Array) -> Array:
    """What an action over the frames now : later means: float32 [B, A] of actions float32 [N, A] and state float32
    [N, S]; now, later int64 [B], in the same episode.

    Deltas add up; an absolute target gives the change of the state over the window where a state of as many numbers is
    known, else the last target; a binary one its last value. Clipped pairs (later == now) give 0, or the present value.
    """
    made = summed(actions, now, later - now)
    of = np.array(kinds)
    if (of == "delta").all():
        return made
    last = actions[np.maximum(later - 1, now)]
    if (absolute := of == "absolute").any():
        change = state[later] - state[now] if state is not None and _alike(actions, state) else last
        made[:, absolute] = change[:, absolute]
    made[:, of == "binary"] = last[:, of == "binary"]
    return made


def summed(actions: Array, now: Array, offset: Array) -> Array:
    """Sums of actions[now : now + offset]: float32 [N, A], int64 [B] each -> float32 [B, A]."""
    step = np.arange(max(int(offset.max(initial=0)), 1))
    inside = step < offset[:, None]
    rows = np.where(inside, now[:, None] + step, 0)
    return np.where(inside[..., None], actions[rows], 0).sum(1, dtype=np.float32)
