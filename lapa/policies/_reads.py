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
