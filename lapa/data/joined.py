"""Several datasets behind one another as one: whose numbers may stand below one another, and whose may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lapa.contracts import Array
from lapa.data.index import VECTORS, Index, cumulate, digest_of, named


def join(parts: Sequence[Index]) -> dict[str, Any]:
    """The fields of an Index of several, one behind another.

    Actions (or states) that differ in width, kinds or the order of their names are left out: None.
    """
    actions, state = (_join_vectors([getattr(p, key) for p in parts]) for key in VECTORS)
    if len({p.action_spec.kinds for p in parts if p.action_spec}) > 1 or _reordered([p.action_names for p in parts]):
        actions = None
    if _reordered([p.state_names for p in parts]):
        state = None
    cameras = {p.camera for p in parts}
    return {
        "spec": " ".join(p.spec for p in parts),
        "image_size": parts[0].image_size,
        "starts": cumulate(np.concatenate([np.diff(p.starts) for p in parts])),
        "ids": tuple(i for p in parts for i in p.ids),
        "instructions": tuple(i for p in parts for i in p.instructions),
        "fps": np.concatenate([p.fps for p in parts]),
        "sizes": np.concatenate([p.sizes for p in parts]),
        "actions": actions,
        "state": state,
        "action_names": () if actions is None else parts[0].action_names,
        "state_names": () if state is None else parts[0].state_names,
        "fingerprint": digest_of(*(p.fingerprint.encode() for p in parts)),
        "bad": tuple(b for p in parts for b in p.bad),
        "source": np.repeat(np.arange(len(parts)), [p.episodes for p in parts]),
        "widths": tuple(width for p in parts for width in p.widths),
        "weights": None,
        "action_spec": None if actions is None else parts[0].action_spec,
        "kinds_from": " and ".join(dict.fromkeys(p.kinds_from for p in parts)),
        "camera": parts[0].camera if len(cameras) == 1 else "",
        "cameras": tuple(name for name in parts[0].cameras if all(name in p.cameras for p in parts)),
        "embodiments": tuple(name for p in parts for name in p.embodiments),
        "fit": parts[0].fit,
        "instructions_from": tuple(name for p in parts for name in p.instructions_from),
        "notes": (
            *_other_names(parts, actions, state),
            *_no_state(parts, actions, state),
            *(f"{p.spec}: {note}" for p in parts for note in p.notes),
        ),
    }


def _join_vectors(parts: list[Array | None]) -> Array | None:
    present = [p for p in parts if p is not None]
    same = len(present) == len(parts) and len({p.shape[1] for p in present}) == 1
    return np.concatenate(present) if same else None


def _other_names(parts: Sequence[Index], actions: Array | None, state: Array | None) -> list[str]:
    """A note on numbers that the datasets name differently, and that are put below one another all the same."""
    told = []
    for word, values in (("action", actions), ("state", state)):
        found = dict.fromkeys(names for p in parts if (names := getattr(p, f"{word}_names")))
        if values is not None and len(found) > 1:
            each = "; ".join(named(names) for names in found)
            told.append(f"{word}: named differently by the datasets ({each}); taken as the same, in their order")
    return told


def _no_state(parts: Sequence[Index], actions: Array | None, state: Array | None) -> list[str]:
    """A note on a state that some have and the whole has not."""
    each = ["none" if p.state is None else f"{p.state.shape[1]} numbers" for p in parts]
    if state is not None or set(each) == {"none"}:
        return []
    spec = next((p.action_spec for p in parts if p.action_spec), None)
    more = "; absolute actions are not taken as changes of it" if actions is not None and spec and (
        "absolute" in spec.kinds) else ""  # fmt: skip
    other = " in another order" if len(set(each)) == 1 else ""
    return [f"state: left out, for the datasets have {', '.join(each)}{other}{more}"]


def _reordered(names: Sequence[tuple[str, ...]]) -> bool:
    """Do some have the names of the first in another order?"""
    return any(other != names[0] and sorted(other) == sorted(names[0]) for other in names)
