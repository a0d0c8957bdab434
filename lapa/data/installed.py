"""Packages that some kinds of data need and lapa does not: extras of pyproject.toml."""

from __future__ import annotations

from importlib.util import find_spec

from lapa.contracts import LapaError


def needed(module: str, extra: str) -> None:
    """Raises LapaError with the command that installs `extra` where `module` is not there."""
    if find_spec(module) is None:
        raise LapaError(f'This needs the package {module}, which is not installed: pip install "lapa[{extra}]"')
