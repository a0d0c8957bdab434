"""Settings that are read from JSON, which may come from anybody: checked by type, field by field, before anything is
made of them.

A field that is missing or unknown, or of another type, is a LapaError that names it. Numbers are finite, and whole
numbers no larger than MOST, so that nothing counts to them for hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lapa.contracts import LapaError
from lapa.plugins import suggest

T = TypeVar("T")
MOST = 2**31
DEEPEST = 20  # lists in lists
SHOWN = 60  # characters of a value
WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text",
                         dict: "an object", list: "a list", tuple: "a list", NoneType: "null"}  # fmt: skip


def checked(config: type[T], content: Any, where: str, defaults: bool = False) -> T:
    """The frozen dataclass `config` from its `asdict` after JSON; `where` is the place that messages name.

    A missing field takes its default with `defaults` alone. Raises LapaError naming the field, and what the dataclass
    itself raises.
    """
    if not isinstance(content, Mapping):
        raise _wrong(where, "an object", content)
    hints, known = get_type_hints(config), {field.name: field for field in fields(config)}  # type: ignore[arg-type]
    made = {}
    for name, value in content.items():
        if name not in known:
            raise LapaError(f"{where}.{_short(name)} is no setting of this version of lapa.{suggest(name, known)}")
        made[name] = typed_value(hints[name], value, f"{where}.{name}", defaults)
    for name, field in known.items():
        if name not in made and not (defaults and _has_default(field)):
            raise LapaError(f"{where}.{name} is missing.")
    return config(**made)


def typed_value(hint: Any, value: Any, where: str, defaults: bool = False) -> Any:
    """A value as the type `hint` has it: lists as tuples, objects as dataclasses. Raises LapaError naming `where`."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if is_dataclass(kind):
        return checked(kind, value, where, defaults)  # type: ignore[arg-type]
    if kind is Literal:
        if not any(value == part and type(value) is type(part) for part in parts):
            raise _wrong(where, f"one of {', '.join(map(str, parts))}", value)
        return value
    if kind in (Union, UnionType):
        some = [part for part in parts if part is not NoneType]
        if value is None and len(some) < len(parts):
            return None
        if len(some) != 1:
            return plain(value, where)
        return typed_value(some[0], value, where, defaults)
    if kind is float and type(value) in (int, float):
        return float(plain(value, where))
    if kind in WORDS and (type(value) is not kind and not (kind in (list, tuple) and isinstance(value, list | tuple))):
        raise _wrong(where, WORDS[kind], value)
    if kind is tuple and parts == (float, ...) and set(map(type, value)) <= {int, float} and all(map(_usual, value)):
        return tuple(map(float, value))  # there may be many
    if kind is tuple and parts:
        each = [parts[0]] * len(value) if parts[1:] == (...,) else list(parts)
        if len(each) != len(value):
            raise _wrong(where, f"a list of {len(each)}", value)
        return tuple(
            typed_value(h, v, f"{where}[{i}]", defaults) for i, (h, v) in enumerate(zip(each, value, strict=True))
        )
    return plain(value, where)


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A JSON value whose numbers are finite and not too large. Raises LapaError naming the place."""
    if depth > DEEPEST:
        raise LapaError(f"{where} is nested too deep.")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(where, "a finite number", value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST:
        raise _wrong(where, f"at most {MOST:,}", value)
    if isinstance(value, Mapping):
        for name, part in value.items():
            plain(part, f"{where}.{_short(str(name))}", depth + 1)
    if isinstance(value, list | tuple):
        for i, part in enumerate(value):
            plain(part, f"{where}[{i}]", depth + 1)
    return value


def object_at(value: Any, where: str) -> dict[str, Any]:
    """A JSON object. Raises LapaError for any other value."""
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    return value


def _usual(number: float) -> bool:
    return math.isfinite(number) and abs(number) <= MOST


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _wrong(where: str, wanted: str, value: Any) -> LapaError:
    return LapaError(f"{where} must be {wanted}, not {_short(repr(value))}.")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}.."
