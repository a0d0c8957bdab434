"""The folder is the registry: every file in lapa/<kind>/ that defines a `Config` is a plug-in of that name.

A plug-in's `Config` is a frozen dataclass whose `build()` returns the thing; heavy imports stay inside `build`, so
listing costs nothing. Adding a dataset, quantizer, backbone, head, label source, policy or benchmark is adding one
file. It need not lie in the package: the folders that the environment variable LAPA_PLUGINS names are searched
likewise, for FOLDER/<kind>/NAME.py.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lapa.contracts import LapaError

PACKAGE = Path(__file__).parent
OWN = "LAPA_PLUGINS"  # folders of one's own plug-ins, separated as in PATH
JSON: dict[Any, tuple[type, ...]] = {  # type of an option -> types of its value, as JSON has it
    **{kind: (kind,) for kind in (bool, int, str, dict, NoneType)},
    float: (int, float),
    **dict.fromkeys((list, tuple), (list, tuple)),
}
KINDS = ("datasets", "encoders", "quantizers", "backbones", "heads", "labels", "policies", "benchmarks")


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{near[0]}"?' if near else ""


def choose(name: str, known: Iterable[str], what: str, where: str = "") -> str:
    """Return `name` if it is known; raise LapaError with a suggestion if it is not. `where` is such as " in clips"."""
    known = list(known)
    if name not in known:
        raise LapaError(f'There is no {what} "{name}"{where}.{suggest(name, known)} Known: {", ".join(known)}.')
    return name


def names(kind: str) -> tuple[str, ...]:
    """Plug-in names of a kind, sorted."""
    return tuple(sorted(_files(kind, os.environ.get(OWN, ""))))


@cache
def _files(kind: str, own: str) -> dict[str, Path]:
    """Name -> file, of the package and of the folders `own`. Raises LapaError for a folder or a file that is none, and
    for a name that is taken."""
    choose(kind, KINDS, "kind of plug-in")
    found: dict[str, Path] = {}
    for folder in (PACKAGE, *(Path(part).expanduser() for part in own.split(os.pathsep) if part)):
        if not folder.is_dir():
            raise LapaError(f"{OWN} names {folder}, which is no folder. Mend or unset it.")
        for path in sorted((folder / kind).glob("*.py")):
            if path.stem != "__init__" and _has_config(path):
                if path.stem in found:
                    raise LapaError(f"{path}: there is a plug-in {path.stem} already, {found[path.stem]}. Rename it.")
                found[path.stem] = path
    return found


def _has_config(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise LapaError(f"{path}: is no Python that can be read ({error}).") from None
    return any(isinstance(node, ast.ClassDef) and node.name == "Config" for node in tree.body)


def file_of(kind: str, name: str) -> Path:
    """The file of a plug-in. Raises LapaError with a suggestion for an unknown name."""
    return _files(kind, os.environ.get(OWN, ""))[choose(name, names(kind), f"plug-in in lapa/{kind}")]


def source_hash(kind: str, name: str) -> str | None:
    """A hash of a plug-in of one's own, which may change any time; None for the package's, which have a version."""
    path = file_of(kind, name)
    return None if _packaged(path) else hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _packaged(path: Path) -> bool:
    return path.is_relative_to(PACKAGE)


def find(kind: str, name: str) -> Any:
    """The `Config` class of plug-in `name`. Raises LapaError with a suggestion for an unknown name."""
    path = file_of(kind, name)
    return importlib.import_module(f"lapa.{kind}.{name}").Config if _packaged(path) else _loaded(path).Config


@cache
def _loaded(path: Path) -> ModuleType:
    """A file outside the package as a module. Its own errors are not caught."""
    spec = importlib.util.spec_from_file_location(f"lapa_own_{path.parent.name}_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and get_type_hints look for it
    spec.loader.exec_module(module)
    return module


def name_of(config: Any) -> str:
    """The name of the plug-in whose `Config` this is, or an instance of it."""
    its = config if isinstance(config, type) else type(config)
    return Path(str(sys.modules[its.__module__].__file__)).stem


def configure(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """The `Config` of plug-in `name` with `options`. Raises LapaError for an option that it does not have or
    that is of another type."""
    config = find(kind, name)
    known, types = [field.name for field in fields(config)], get_type_hints(config)
    for option, value in options.items():
        hint = types[choose(option, known, f"option of lapa/{kind}/{name}")]
        if not _fits(value, hint):
            wanted = hint.__name__ if isinstance(hint, type) else str(hint)
            raise LapaError(f"The option {option} of lapa/{kind}/{name} is a {wanted}, not {value!r}.")
    return config(**options)


def parse(kind: str, text: str, more: Mapping[str, Any] | None = None) -> tuple[str, str | None, dict[str, Any]]:
    """NAME[:PATH][,option=value...] -> name, path (None where there is none) and options, of the types they have.

    The options are the fields of the plug-in's Config but `path`, and `more`, name -> type, where it has none of that
    name. Only a comma before NAME= separates, and none of a path that exists. Raises LapaError for an unknown name or
    option, for one that is given twice, and for a value that does not fit.
    """
    name, colon, rest = re.fullmatch(r"([^:,]*)(:?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    config = find(kind, name)
    parts = re.split(r",(?=[A-Za-z_]\w*=)", rest)
    # os.path takes a text that is too long for a file as one that is not there
    there = (n for n in range(len(parts), 1, -1) if colon and os.path.exists(Path(",".join(parts[:n])).expanduser()))
    count = next(there, 1)  # parts that belong to the path
    first, pairs = ",".join(parts[:count]), parts[count:]
    if not colon and first:
        raise LapaError(f"{text}: write {name}:PATH,option=value.")
    types = {**(more or {}), **{field.name: get_type_hints(config)[field.name] for field in fields(config)}}
    types.pop("path", None)
    options = {}
    for pair in pairs:
        option, _, value = pair.partition("=")
        choose(option, types, f"option of {name}")
        if option in options:
            raise LapaError(f"{text}: {option} is given twice.")
        options[option] = typed(value, types[option], option, text)
    return name, first if colon else None, options


WANTED = {int: "a whole number", float: "a finite number", bool: "true or false", dict: "an object in JSON"}


def typed(text: str, hint: Any, name: str, where: str, example: Any = None) -> Any:
    """The text of an option or a setting `name` as a value of the type `hint`: str as it is, a number, true or false,
    one of several words, or JSON. Of `KIND | None` it is KIND.

    Raises LapaError for a text that is none, with `where` it stands and an `example` of a value if there is one.
    """
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    kind = get_origin(hint) or hint
    if kind is Literal:
        return choose(text, get_args(hint), f"value of {name}", f" in {where}")
    try:
        value = kind(text) if kind in (str, int, float) else json.loads(text.lower() if kind is bool else text)
        if _fits(value, kind):  # what may be in a list or an object is for its user to say
            return tuple(value) if kind is tuple else value
    except ValueError:
        pass
    such = "" if example is None else f", such as {json.dumps(example)}"
    raise LapaError(f'{where}: {name} is {WANTED.get(kind, "a list")}{such}, not "{text}".')


def _fits(value: Any, hint: Any) -> bool:
    """Is this a value of the type, as far as JSON can tell? NaN and infinity are none."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind not in JSON:
        return True
    if not any(isinstance(value, one) for one in JSON[kind]) or (isinstance(value, bool) and kind is not bool):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind is tuple and parts:
        each = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(each) == len(value) and all(_fits(v, part) for v, part in zip(value, each, strict=True))
    return True


def missing(kind: str, name: str, given: Collection[str] = ()) -> str:
    """How to get what a plug-in needs, "" where all of it is there or `given` in another way. Its file says it as
    NEEDS, {module, or $VARIABLE that names a file or folder: how to get it}; read without being imported."""
    tree = ast.parse(file_of(kind, name).read_bytes())
    told = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NEEDS"
    ]
    needs: dict[str, str] = ast.literal_eval(told[0]) if told else {}
    return "; ".join(dict.fromkeys(how for need, how in needs.items() if need not in given and not _there(need)))


def _there(need: str) -> bool:
    return bool(os.environ.get(need[1:])) if need.startswith("$") else importlib.util.find_spec(need) is not None


def require(kind: str, name: str, given: Collection[str] = ()) -> None:
    """Raise LapaError, with how to get it, where a plug-in needs what is not there (see `missing`)."""
    if how := missing(kind, name, given):
        raise LapaError(f"{name} needs what is not there: {how}")


def describe(kind: str, name: str) -> str:
    """First line of the plug-in's docstring."""
    return (ast.get_docstring(ast.parse(file_of(kind, name).read_bytes())) or "").partition("\n")[0]
