"""Joint limits and largest steps: they hold whatever the policy answers.

    --limit elbow=-1.5:1.5     the number called elbow stays between the two
    --max-step elbow=0.05      it changes by no more than 0.05 from one action to the next
    --max-step 0.05            so does every number that is not binary

A limit bounds the number that is sent: for an absolute action a position, for a delta the distance of one step. A
largest step bounds a delta itself. For an absolute action it bounds the distance from the client's state or, if the
client sends no state, from the last action. It comes first: from outside a limit the robot goes back step by step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lapa.contracts import ActionSpec, Array, LapaError, PolicySpec
from lapa.plugins import choose
from lapa.serving import Fault

EVERY = "every"


@dataclass(frozen=True)
class Limits:
    """low, high, step: float [A], infinite where there is no limit. `places`: where each number of an action is in a
    state of `numbers` numbers, -1 where it is not there."""

    action: ActionSpec
    low: Array
    high: Array
    step: Array
    places: tuple[int, ...]
    numbers: int

    @property
    def some(self) -> bool:
        """Is anything limited?"""
        return bool(np.isfinite(np.concatenate([self.low, self.high, self.step])).any())

    def apply(self, actions: Array, state: Array | None, last: Array | None) -> tuple[Array, list[str]]:
        """Actions float32 [n, A] within the limits, and a sentence on each number that was changed.

        state: the client's state; last: the action [A] that was executed last, if it is known. Raises Fault for a
        number that is not finite.
        """
        if not np.isfinite(actions).all():
            raise Fault("The policy answered with a number that is not finite; it is not sent.", 500)
        if not self.some:
            return actions, []
        made = np.clip(actions.astype(np.float64), self.low, self.high)
        absolute = np.array([kind == "absolute" for kind in self.action.kinds])
        before = self._before(state, last)
        for i in range(len(made)):
            centre = np.where(absolute, before, 0.0)
            free = ~np.isfinite(centre)
            centre = np.where(free, made[i], centre)
            made[i] = np.clip(made[i], centre - self.step, centre + self.step)
            before = made[i]
        made = made.astype(np.float32)
        return made, self._told(actions, made)

    def unknown(self, state: Array | None) -> list[str]:
        """The names of the absolute numbers with a largest step that this state does not tell."""
        absolute = np.array([kind == "absolute" for kind in self.action.kinds])
        lost = absolute & np.isfinite(self.step) & ~np.isfinite(self._before(state, None))
        return [self.action.names[i] for i in np.flatnonzero(lost)]

    def lines(self) -> list[str]:
        """The limits, for the message at start."""
        found = []
        for i, name in enumerate(self.action.names):
            if np.isfinite(self.low[i]):
                found.append(f"{name} from {self.low[i]:g} to {self.high[i]:g}")
            if np.isfinite(self.step[i]):
                found.append(f"{name} by at most {self.step[i]:g} a step")
        return found

    def _before(self, state: Array | None, last: Array | None) -> Array:
        """The present value of each number; NaN where it is not known."""
        here = np.full(len(self.action), np.nan) if last is None else np.asarray(last, np.float64)
        if state is not None and len(state) == self.numbers:
            known = [i for i, place in enumerate(self.places) if place >= 0]
            here = here.copy()
            here[known] = np.asarray(state, np.float64)[[self.places[i] for i in known]]
        return here

    def _told(self, wanted: Array, made: Array) -> list[str]:
        found = []
        changed = np.abs(wanted - made) > 1e-6
        for i in np.flatnonzero(changed.any(0)):
            row = int(np.argmax(np.abs(wanted[:, i] - made[:, i])))
            found.append(f"{self.action.names[i]} {wanted[row, i]:.4g} to {made[row, i]:.4g}"
                         + (f" (and {changed[:, i].sum() - 1} more)" if changed[:, i].sum() > 1 else ""))  # fmt: skip
        return found


def limits_of(spec: PolicySpec, action: ActionSpec, limits: Sequence[str] = (), steps: Sequence[str] = ()) -> Limits:
    """From NAME=LOW:HIGH and NAME=STEP or STEP. Raises LapaError for a name that the policy's actions do not have, and
    for what are no numbers."""
    low, high, step = np.full(len(action), -np.inf), np.full(len(action), np.inf), np.full(len(action), np.inf)
    for told in limits:
        name, _, between = told.rpartition("=")
        ends = _numbers(between.split(":"), f"--limit {told}", "NAME=LOW:HIGH", 2)
        if ends[0] > ends[1]:
            raise LapaError(f"--limit {told}: {ends[0]:g} is above {ends[1]:g}.")
        for i in _which(name or EVERY, action, f"--limit {told}"):
            low[i], high[i] = ends
    for told in steps:
        name, _, size = told.rpartition("=")
        (most,) = _numbers([size], f"--max-step {told}", "STEP or NAME=STEP", 1)
        if most <= 0:
            raise LapaError(f"--max-step {told}: a step is above 0.")
        for i in _which(name or EVERY, action, f"--max-step {told}"):
            step[i] = most
    for i, name in enumerate(action.names):
        if action.kinds[i] == "delta" and (low[i] > step[i] or high[i] < -step[i]):
            raise LapaError(f"{name} is a step of at most {step[i]:g} by --max-step, and lies outside {low[i]:g} to "
                            f"{high[i]:g} by --limit. Change one of them.")  # fmt: skip
    return Limits(action, low, high, step, _places(spec, action), len(spec.state) or len(action))


def _which(name: str, action: ActionSpec, where: str) -> list[int]:
    if name == EVERY and EVERY not in action.names:
        return [i for i, kind in enumerate(action.kinds) if kind != "binary"]
    return [action.names.index(choose(name, action.names, "name of an action", f" in {where}"))]


def _numbers(texts: Sequence[str], where: str, form: str, count: int) -> list[float]:
    good = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
    if len(texts) != count or not all(good.fullmatch(text.strip()) for text in texts):
        raise LapaError(f"{where} is {form}.")
    return [float(text) for text in texts]


def _places(spec: PolicySpec, action: ActionSpec) -> tuple[int, ...]:
    """Where in the state each number of an action is: by name, else by place where there are as many."""
    if set(action.names) & set(spec.state):
        return tuple(spec.state.index(name) if name in spec.state else -1 for name in action.names)
    same = not spec.state or len(spec.state) == len(action)
    return tuple(range(len(action))) if same else (-1,) * len(action)
