"""What the numbers mean that a policy answers with, and actions relative to the present state.

Where an action says where to be (absolute) and the state is known in the same numbers, a policy learns how far that is
from here: the same motion is then the same target, wherever the robot is. What it answers with is in the robot's units
again, for the state of the observation is added back.

A robot is where an action told it to be some frames later, and not quite there (a Unitree G1: 0.2 s for the arms, 0.4 s
for the hands). Labels that are read off video are changes of the state: `behind` makes targets of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from lapa.artefacts.settings import checked
from lapa.contracts import ActionSpec, Array, LapaError

Given = Literal["auto", "relative", "given"]


class HasActions(Protocol):
    """What is needed of a dataset's index (data/index.py)."""

    @property
    def spec(self) -> str: ...
    @property
    def action_spec(self) -> ActionSpec | None: ...
    @property
    def state(self) -> Array | None: ...
    @property
    def state_names(self) -> tuple[str, ...]: ...
    @property
    def actions(self) -> Array | None: ...
    @property
    def starts(self) -> Array: ...


@dataclass(frozen=True)
class Meaning:
    """spec: of the actions in the robot's units. relative [A]: which of them are learnt relative to the present state.
    state: names of the numbers of that state; () where nothing is relative. lag, offset [A]: an absolute action is on
    average `offset` more than the state `lag` frames later; () where nothing is relative, or it was not looked at (then
    1 and 0)."""

    spec: ActionSpec
    relative: tuple[bool, ...]
    state: tuple[str, ...] = ()
    lag: tuple[int, ...] = ()
    offset: tuple[float, ...] = ()

    @staticmethod
    def of(data: HasActions, how: Given = "auto") -> Meaning | None:
        """The meaning of a dataset's actions, learnt as the recipe's `actions` says; None where it has none.

        auto: relative wherever an action is absolute and there is a state of as many numbers. Raises LapaError for
        "relative" where that cannot be.
        """
        spec = data.action_spec
        if spec is None:
            return None
        known = data.state is not None and data.state.shape[1] == len(spec)
        absolute = tuple(kind == "absolute" for kind in spec.kinds)
        if how == "relative" and not (known and any(absolute)):
            why = (
                "no action is absolute (say so with kinds=absolute)"
                if known
                else "there is no state of as many numbers"
            )
            raise LapaError(f"actions=relative: {data.spec} has {len(spec)} action dimensions, and {why}.")
        if how == "given" or not known or not any(absolute):
            return Meaning(spec, (False,) * len(spec))
        return Meaning(spec, absolute, data.state_names or spec.names, *_lag_of(data))

    @staticmethod
    def from_json(content: Any, where: str = "meaning") -> Meaning | None:
        """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else, naming `where`."""
        if content is None:
            return None
        made = checked(Meaning, content, where, defaults=True)
        if len(made.relative) != len(made.spec) or (any(made.relative) and not len(made.state) == len(made.spec)):
            raise LapaError(
                f"{where}: relative and state do not have as many entries as the actions, {len(made.spec)}."
            )
        if {len(made.lag), len(made.offset)} - {0, len(made.spec)} or min(made.lag, default=0) < 0:
            raise LapaError(f"{where}: lag and offset have no entry or as many as the actions, {len(made.spec)}; lag "
                            "is at least 0.")  # fmt: skip
        if made.spec.hz <= 0:
            raise LapaError(f"{where}.spec.hz is above 0, not {made.spec.hz:g}.")
        return made

    def targets(self, chunks: Array, state: Array | None) -> Array:
        """Actions float32 [N, chunk, A] in the robot's units at states float32 [N, S] -> as they are learnt."""
        return self._moved(chunks, state, -1)

    def robot(self, actions: Array, state: Array | None) -> Array:
        """The inverse of `targets`."""
        return self._moved(actions, state, 1)

    @property
    def longest(self) -> int:
        """The most frames of `lag`, at least 1."""
        lags = [lag for lag, relative in zip(self.lag, self.relative, strict=False) if relative]
        return max([1, *lags])

    def behind(self, steps: Array) -> Array:
        """Changes of the state from frame to frame, [N, chunk + longest - 1, A] -> chunks of actions as they are
        learnt, [N, chunk, A]. Actions that are not relative stay as they are."""
        chunk = steps.shape[1] - self.longest + 1
        made = np.array(steps[:, :chunk])
        for i in np.flatnonzero(self.relative):
            moved = np.cumsum(steps[..., i], 1)
            lag = self.lag[i] if self.lag else 1
            late = moved[:, lag - 1 : lag - 1 + chunk] if lag else np.hstack([0 * moved[:, :1], moved[:, : chunk - 1]])
            made[..., i] = late + (self.offset[i] if self.offset else 0.0)
        return made

    def along(self, steps: Array, state: Array | None) -> Array:
        """Changes from one step to the next, [N, chunk, A] -> actions in the robot's units: relative ones add up."""
        if not any(self.relative):
            return steps
        made = steps.copy()
        made[..., self._which] = np.cumsum(steps[..., self._which], 1)
        return self.robot(made, state)

    @property
    def _which(self) -> Array:
        return np.array(self.relative, bool)

    def _moved(self, actions: Array, state: Array | None, sign: int) -> Array:
        if not any(self.relative):
            return actions
        if state is None or state.shape[-1] != len(self.relative):
            raise LapaError(
                f"These actions are relative to a state of {len(self.relative)} numbers "
                f"({', '.join(self.state[:4])}, ..), and there is none."
            )
        made = np.array(actions, np.float32)
        made[..., self._which] += sign * state[:, None, self._which].astype(np.float32)
        return made

    def described_lag(self) -> str:
        """How late the robot is where an action told it to be, for people; "" where that is the next frame."""
        late = {lag for lag, relative in zip(self.lag, self.relative, strict=False) if relative}
        if late <= {1}:
            return ""
        span = " to ".join(f"{lag / self.spec.hz:.2g}" for lag in sorted({min(late), max(late)}))
        return f"The robot is where an action told it to be {span} s later, and the labels are read so."

    def described(self) -> str:
        """What is learnt, for people; "" where actions are learnt as they are."""
        names = [name for name, relative in zip(self.spec.names, self.relative, strict=True) if relative]
        if not names:
            return ""
        shown = ", ".join(names[:4]) + (", .." if len(names) > 4 else "")
        return (
            f"Actions are learnt relative to the present state in {len(names)} dimensions ({shown}); actions=given "
            "learns them as they are."
        )


SECONDS, SOME, BETTER = 1.0, 20_000, 0.95  # lags that are tried; frames that are looked at; how much another must be


def _lag_of(data: HasActions) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """lag and offset (see Meaning) of the actions of these data: the lag where the difference of action and state
    spreads least. It is 1 where episodes are too short to tell, or another one is hardly better."""
    actions, state, starts = data.actions, data.state, data.starts
    assert actions is not None
    assert state is not None
    assert data.action_spec is not None
    length = np.diff(starts)
    most = max(1, min(round(SECONDS * data.action_spec.hz), int(np.median(length)) // 2))
    room = np.repeat(length, length) - (np.arange(len(actions)) - np.repeat(starts[:-1], length)) > most
    frames = np.flatnonzero(room)
    if not len(frames):
        return (1,) * actions.shape[1], (0.0,) * actions.shape[1]
    frames = frames[np.linspace(0, len(frames) - 1, min(len(frames), SOME)).round().astype(int)]
    away = [actions[frames] - state[frames + lag] for lag in range(most + 1)]
    spread = np.array([each.std(0) for each in away])
    lag = spread.argmin(0)
    each = np.arange(len(lag))
    lag = np.where(spread[lag, each] < BETTER * spread[1], lag, 1)
    mean = np.array([each.mean(0) for each in away])[lag, each]
    return tuple(lag.tolist()), tuple(mean.astype(float).tolist())
