"""Check sums of settings in JSON, so that what was changed after lapa wrote it is named and not believed.

The file has, under "sums", a few digits of the sha256 of each setting, one or two levels deep. Whoever means a change
removes "sums"; the settings are then checked by type and against the weights, as those of a file without any.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lapa.contracts import LapaError

KEY = "sums"
FREE = (
    "hash",
    "borrowed",
    "results",
    "provenance",
    "ended_early",
    "tuning",
    KEY,
)  # figures, notes, and what is checked otherwise
SHOWN = 3


def with_sums(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as JSON has it, with its sums."""
    written = json.loads(json.dumps({k: v for k, v in content.items() if k != KEY}, default=str))
    return {**written, KEY: {place: _sum(value) for place, value in _places(written).items()}}


def require_sums(content: Mapping[str, Any], where: str) -> None:
    """Raises LapaError naming what is not as it was written. Content without sums passes."""
    if KEY not in content:
        return
    told, found = content[KEY], _places(content)
    if not isinstance(told, dict):
        raise LapaError(f'{where}: "{KEY}" is no object. The file is spoilt; fetch or make it again.')
    faults = [f"{place} is missing" for place in told if place not in found]
    faults += [f"{place} was not there" for place in found if place not in told]
    faults += [f"{place} is {_shown(value)}" for place, value in found.items()
               if place in told and told[place] != _sum(value)]  # fmt: skip
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise LapaError(
            f"{where} has changed since lapa wrote it: {'; '.join(faults[:SHOWN])}{more}. Fetch or make it again. If "
            f'the change is meant, remove "{KEY}" from the file.'
        )


def _places(content: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by its place, such as "model.dim"."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key in FREE:
            continue
        found |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) and value else {
            key: value}  # fmt: skip
    return found


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}.."
