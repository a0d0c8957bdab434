"""What the data of Tabletop tell: which domain a dataset shows, and where the effector is in the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lapa.contracts import Array, LapaError
from lapa.data.pack import Packed
from lapa.data.spec import parse

EFFECTOR = ("effector_x", "effector_y")  # names of a state that says where the effector is in the picture


def in_picture(packed: Packed) -> bool:
    """Does the state say where the effector is as a share of the picture, x to the right and y down?"""
    if packed.state is None or not set(EFFECTOR) <= set(packed.state_names):
        return False
    where = effector(packed)
    return bool(where.min() >= 0 and where.max() <= 1)


def effector(packed: Packed) -> Array:
    """float64 [N, 2] of every frame, as `in_picture` has it."""
    assert packed.state is not None
    return packed.state[:, [packed.state_names.index(name) for name in EFFECTOR]].astype(np.float64)


def domains_of(specs: Sequence[str], purpose: str) -> list[str]:
    """The domain of each spec. Raises LapaError unless all are Tabletop's: the simulator must know them."""
    parsed = [parse(spec) for spec in specs]
    if any(spec.name != "tabletop" for spec in parsed):
        raise LapaError(f"{purpose} needs datasets tabletop:DOMAIN, such as tabletop:real,episodes=300,seed=9.")
    return [spec.path for spec in parsed]
