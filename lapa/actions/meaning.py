"""What the numbers mean that a policy answers with, and actions relative to the present state.

Where an action says where to be (absolute) and the state is known in the same numbers, a policy learns how far that is
from here: the same motion is then the same target, wherever the robot is. What it answers with is in the robot's units
again, for the state of the observation is added back.
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


@dataclass(frozen=True)
class Meaning:
    """spec: of the actions in the robot's units. relative [A]: which of them are learnt relative to the present state.
    state: names of the numbers of that state; () where nothing is relative."""

    spec: ActionSpec
    relative: tuple[bool, ...]
    state: tuple[str, ...] = ()

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
        return Meaning(spec, absolute, data.state_names or spec.names)

    @staticmethod
    def from_json(content: Any, where: str = "meaning") -> Meaning | None:
        """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else, naming `where`."""
        if content is None:
            return None
        made = checked(Meaning, content, where)
        if len(made.relative) != len(made.spec) or (any(made.relative) and not len(made.state) == len(made.spec)):
            raise LapaError(
                f"{where}: relative and state do not have as many entries as the actions, {len(made.spec)}."
            )
        if made.spec.hz <= 0:
            raise LapaError(f"{where}.spec.hz is above 0, not {made.spec.hz:g}.")
        return made

    def targets(self, chunks: Array, state: Array | None) -> Array:
        """Actions float32 [N, chunk, A] in the robot's units at states float32 [N, S] -> as they are learnt."""
        return self._moved(chunks, state, -1)

    def robot(self, actions: Array, state: Array | None) -> Array:
        """The inverse of `targets`."""
        return self._moved(actions, state, 1)

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
