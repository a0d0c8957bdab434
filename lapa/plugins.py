"""The folder is the registry: every file in lapa/<kind>/ that defines a `Config` is a plug-in of that name.

A plug-in's `Config` is a frozen dataclass whose `build()` returns the thing; heavy imports stay inside `build`, so
listing costs nothing. Adding a dataset, quantizer, backbone, label source, policy or benchmark is adding one file.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from lapa.contracts import LapaError

KINDS = ("datasets", "quantizers", "backbones", "labels", "policies", "benchmarks")


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{near[0]}"?' if near else ""


def choose(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is known; raise LapaError with a suggestion if it is not."""
    known = list(known)
    if name not in known:
        raise LapaError(f'There is no {what} "{name}".{suggest(name, known)} Known: {", ".join(known)}.')
    return name


@cache
def names(kind: str) -> tuple[str, ...]:
    """Plug-in names of a kind, sorted."""
    folder = Path(__file__).parent / choose(kind, KINDS, "kind of plug-in")
    return tuple(sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__" and _has_config(p)))


def _has_config(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return any(isinstance(node, ast.ClassDef) and node.name == "Config" for node in tree.body)


def find(kind: str, name: str) -> Any:
    """The `Config` class of plug-in `name`. Raises LapaError with a suggestion for an unknown name."""
    choose(name, names(kind), f"plug-in in lapa/{kind}")
    return importlib.import_module(f"lapa.{kind}.{name}").Config


def configure(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """The `Config` of plug-in `name` with `options`. Raises LapaError for an option that it does not have."""
    config = find(kind, name)
    known = [field.name for field in fields(config)]
    for option in options:
        choose(option, known, f"option of lapa/{kind}/{name}")
    return config(**options)


def describe(kind: str, name: str) -> str:
    """First line of the plug-in's docstring."""
    source = Path(__file__).parent / kind / f"{name}.py"
    return (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]
