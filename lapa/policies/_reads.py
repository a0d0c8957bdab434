"""What a policy reads beside the instruction: its cameras, and the state, brought to one scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lapa.artefacts.settings import checked
from lapa.contracts import Array, LapaError
from lapa.data.index import Index
from lapa.data.observations import ONE, say_once

LEAST = 1e-3  # of the largest deviation: numbers of the state that vary less are taken to stand still


@dataclass(frozen=True)
class Reads:
    """Its inputs: cameras, and names of the numbers of the state with their mean and deviation in the data."""

    cameras: tuple[str, ...] = (ONE,)
    state: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @staticmethod
    def from_json(content: Any) -> Reads:
        """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else."""
        made = checked(Reads, content, "reads")
        if not made.cameras or len(set(made.cameras)) != len(made.cameras):
            raise LapaError("reads.cameras must be one camera or more, each once.")
        if not len(made.state) == len(made.mean) == len(made.deviation) or min(made.deviation, default=1) <= 0:
            raise LapaError("reads: state, mean and deviation do not go together.")
        return made

    def standardised(self, state: Array) -> Array:
        """float32 [B, S] in the robot's units -> as the backbone reads it."""
        return ((state - np.array(self.mean)) / np.array(self.deviation)).astype(np.float32)


def met(before: Reads, wanted: tuple[str, ...], state: bool, data: Index) -> Reads:
    """What a policy that read `before` reads of these data: the cameras `wanted` (none named: the one that the data
    give), and with `state` their state. Raises LapaError where that is less than before, or where they have no such
    camera or state."""
    cameras = wanted or (data.camera or ONE,)
    if set(before.cameras) <= set(cameras):  # each keeps its place, by which the backbone knows it
        cameras = (*before.cameras, *(name for name in cameras if name not in before.cameras))
    if len(cameras) < len(before.cameras) or (before.state and not state):
        read = ", ".join(before.cameras) + (" and the state" if before.state else "")
        raise LapaError(
            f"This policy was made to read {read}; it cannot do with less. Leave policy.cameras and policy.state out."
        )
    if missing := [name for name in cameras if name not in (ONE, data.camera, *data.cameras)]:
        there = ", ".join(data.cameras) or data.camera or "one without a name"
        raise LapaError(f'{data.spec} has no camera "{missing[0]}" (policy.cameras). Its cameras: {there}.')
    reads = replace(before, cameras=cameras)
    if state and not before.state:
        return with_state(reads, data)
    if before.state and (data.state is None or data.state.shape[1] != len(before.state)):
        has = "none" if data.state is None else f"{data.state.shape[1]} numbers"
        raise LapaError(f"This policy reads a state of {len(before.state)} numbers; {data.spec} has {has}.")
    if before.state and data.state_names and data.state_names != before.state:
        if sorted(data.state_names) == sorted(before.state):
            raise LapaError(f"This policy reads the state {_few(before.state)}; {data.spec} has the same numbers in "
                            f"another order, {_few(data.state_names)}.")  # fmt: skip
        say_once(f"In place of the state {_few(before.state)} the policy reads {_few(data.state_names)} from now on.")
        return replace(reads, state=data.state_names)
    return reads


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", .." if len(names) > 8 else "")


def with_state(reads: Reads, data: Index) -> Reads:
    """It reads the state of these data from now on. Raises LapaError where they have none."""
    if data.state is None:
        raise LapaError(f"policy.state=true: {data.spec} has no state. Leave it out.")
    count = data.state.shape[1]
    names = data.state_names or tuple(f"state_{i}" for i in range(count))
    deviation = data.state.std(0, dtype=np.float64)
    least = max(LEAST * float(deviation.max()), 1e-6)
    told = ", ".join(names[:4]) + (", .." if count > 4 else "")
    say_once(f"The policy reads the state: {count} numbers ({told}).")
    return replace(reads, state=names, mean=tuple(data.state.mean(0, dtype=np.float64).tolist()),
                   deviation=tuple(np.maximum(deviation, least).tolist()))  # fmt: skip
