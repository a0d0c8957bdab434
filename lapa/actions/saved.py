"""A space as JSON has it, opened again."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.numbers import NumberSpace
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.artefacts.settings import checked, object_at
from lapa.contracts import LapaError

Space = CodeSpace | ActionSpace | ActionCodebook  # of classes
AnySpace = Space | NumberSpace
KINDS: dict[str, type[AnySpace]] = {
    "codes": CodeSpace, "actions": ActionSpace, "codebook": ActionCodebook, "numbers": NumberSpace,
}  # fmt: skip


def space_from_json(content: Any) -> AnySpace:
    """Inverse of `dataclasses.asdict` after JSON; what has a default may be missing. Raises LapaError on anything else,
    naming what is wrong."""
    try:
        return _space(content)
    except LapaError as error:
        raise LapaError(f"The policy's space in config.json is not one lapa wrote ({error}).") from None


def _space(content: Any, where: str = "space") -> AnySpace:
    kind = object_at(content, where).get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise LapaError(f"{where}.kind is one of {', '.join(KINDS)}, not {kind!r}")
    space: AnySpace = checked(KINDS[kind], content, where, defaults=True)
    if isinstance(space, CodeSpace):
        faults = _codes(space)
    else:
        if isinstance(space, NumberSpace):
            faults = _numbers(space)
        else:
            faults = _bins(space) if isinstance(space, ActionSpace) else _codebook(space)
        faults["names"] = len(space.names) in (0, space.dimensions)
        faults["switches"] = len(space.switches) in (0, space.dimensions)
    if wrong := [name for name, right in faults.items() if not right]:
        raise LapaError(f"{where}.{wrong[0]} does not go with the rest of the {kind}.")
    return space


def _codes(space: CodeSpace) -> dict[str, bool]:
    """What is right, by field."""
    count = space.codes * space.classes
    return {"codes": space.codes > 0, "classes": space.classes > 0, "windows": space.windows > 0,
            "code_embeddings": not space.code_embeddings or _table(space.code_embeddings, count)}  # fmt: skip


def _bins(space: ActionSpace) -> dict[str, bool]:
    lengths = [len(edges) - 1 for edges in space.edges]
    return {
        "edges": min(lengths, default=0) > 0 and all((np.diff(edges) > 0).all() for edges in space.edges),
        "values": not space.values or [len(values) for values in space.values] == lengths,
        "chunk": space.chunk > 0,
        "width": space.width >= 0,
    }


def _numbers(space: NumberSpace) -> dict[str, bool]:
    count = len(space.low)
    right = len(space.high) == count and all(low <= high for low, high in zip(space.low, space.high, strict=True))
    steps = len(space.steps) in (0, space.chunk) and min(space.steps, default=1) > 0
    return {"low": count > 0, "high": right, "reach": _reach(space.reach, count), "chunk": space.chunk > 0,
            "steps": steps}  # fmt: skip


def _codebook(space: ActionCodebook) -> dict[str, bool]:
    count = space.positions * space.classes
    steps = len(space.squares[0]) if space.squares else 0
    made = {
        "positions": space.positions > 0,
        "classes": space.classes > 0,
        "unit": min(space.unit, default=0) > 0,
        "squares": _table(space.squares, count) and steps > 0,
        "means": _table(space.means, count, steps * len(space.unit)),
        "reach": _reach(space.reach, len(space.unit)),
        "absences": len(space.absences) in (0, count),
    }
    if space.absences and made["absences"]:
        made["absences"] = not space.absent().all(1).any()
    return made


def _reach(reach: Any, count: int) -> bool:
    return _table(reach, count, 2) and all(low <= high for low, high in reach)


def _table(rows: Any, count: int, width: int | None = None) -> bool:
    """Are there so many rows, all of the same width?"""
    widths = {len(row) for row in rows}
    return len(rows) == count and len(widths) == 1 and (width is None or widths == {width})
