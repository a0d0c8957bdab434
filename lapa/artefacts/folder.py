"""Artefacts: folders with `config.json`, `model.safetensors` and where they came from; loaded strictly or not at all.

Every file is written under a temporary name and renamed, and `config.json` is written last, so a folder that has it
is whole. Nothing here unpickles: weights are safetensors, everything else is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lapa import __version__
from lapa.artefacts.borrowed import SHIPPED, joined, lender_of, parted
from lapa.artefacts.hub import local
from lapa.artefacts.older import upgraded, upgraded_weights
from lapa.contracts import LapaError

FORMAT = 2
READABLE = (1, 2)  # formats (artefacts/older.py)
FINISH = "finish"  # in the folder of a run: end early, and keep what there is (training/stop.py)
T = TypeVar("T")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers on several machines, writing to one disk, may have the same process id.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read JSON; LapaError naming `what` when the file is missing or torn."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise LapaError(f"{path.parent} holds no {what}: {path.name} is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LapaError(f"{path} is not readable JSON ({error}); {what} expected.") from None


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None, flush: bool = True
) -> None:
    """Write safetensors whole or not at all; with `flush`, also if the power goes."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in whole.items():  # the format has no shared memory; what is tied is written twice
        if tensor.untyped_storage().data_ptr() in seen:
            whole[name] = tensor.clone()
        seen.add(whole[name].untyped_storage().data_ptr())
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
            temporary.chmod(0o644)  # safetensors makes it private; what is shared should be readable
            if flush:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())  # renamed only once it is on the disk
        except SafetensorError as error:  # it tells of a full disk in words; the command line asks for the number
            if found := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
            raise


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read safetensors with their metadata. Raises LapaError on a missing or damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise LapaError(f"{path} is missing.") from None
    except SafetensorError as error:
        raise LapaError(f"{path} is not a whole safetensors file ({error}); make it again.") from None


def file_hash(path: Path) -> str:
    """sha256 of a file, the first 16 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Artefact:
    """A finished folder on disk: what it is, how it was made, its weights."""

    path: Path
    kind: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    hash: str

    def settings(self, make: Callable[..., T], key: str | None = "model") -> T:
        """`make(**settings)` of what config.json has under `key` (None: `make()`, which reads it itself). LapaError
        when some are missing or unknown."""
        try:
            return make(**self.config[key]) if key is not None else make()
        except (KeyError, TypeError) as error:
            raise LapaError(
                f'{self.path}/config.json does not describe a "{self.kind}" of this lapa ("{key}": {error}). '
                f"Make it again, or open it with the version that wrote it: "
                f"{self.config.get('provenance', {}).get('versions', {}).get('lapa', 'unknown')}."
            ) from None


def finished(path: Path) -> bool:
    """Is there a whole artefact at `path`?"""
    return (path / "config.json").exists()


def provenance(seed: int, data: Mapping[str, str], parents: Mapping[str, str]) -> dict[str, Any]:
    """Where an artefact comes from: versions, seed, data fingerprints by dataset, parent artefacts by path."""
    return {
        "command": " ".join(["lapa", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "lapa": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "seed": seed,
        "data": dict(data),
        "parents": dict(parents),
    }


def save_artefact(
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    lender: str = "",
    lent: Iterable[str] = (),
) -> str:
    """Write an artefact and return its content hash (of the weights). Of the tensors `lent` those that `lender` has are
    not written, but referred to (artefacts/borrowed.py). That of a run which was ended early says so."""
    config = {key: value for key, value in config.items() if key != "borrowed"}
    if lender:
        file = SHIPPED[lender]
        tensors, reference = parted(tensors, lender, file_hash(file), read_tensors(file)[0], lent)
        config |= {"borrowed": reference} if reference else {}
    write_tensors(path / "model.safetensors", tensors)
    content = file_hash(path / "model.safetensors")
    early = {"ended_early": ended} if (ended := ended_early(path)) else {}
    write_json(path / "config.json", {"kind": kind, "format": FORMAT, "hash": content, **config, **early})
    return content


def ended_early(path: Path) -> dict[str, int]:
    """{"step", "steps"} of the run in `path`, if it was ended before its last step; {} if not."""
    file = path / FINISH
    return dict(read_json(file, "end of the run")) if file.exists() and file.stat().st_size else {}


def load_artefact(path: Path | str, kind: str) -> Artefact:
    """Read an artefact of the given kind ("laq", "idm", "policy", "backbone"), from a folder or from user/name on the
    hub.

    Raises LapaError when the folder is missing, unfinished, damaged, of another kind or of another format.
    """
    found = describe(path, kind)
    tensors, _ = read_tensors(found.path / "model.safetensors")
    content = file_hash(found.path / "model.safetensors")
    if content != found.hash:
        raise LapaError(
            f"{found.path}/model.safetensors does not match config.json (hash {content}, expected {found.hash})."
        )
    tensors = upgraded_weights(tensors)
    if reference := found.config.get("borrowed"):
        lender = lender_of(reference, found.path)
        tensors = joined(tensors, reference, read_tensors(lender)[0], file_hash(lender), found.path)
    return replace(found, tensors=tensors)


def describe(path: Path | str, kind: str) -> Artefact:
    """The same without its weights: they are neither read nor checked."""
    path = local(path)
    if not path.is_dir():
        raise LapaError(f"There is no folder {path}; a {kind} artefact was expected there.")
    config = read_json(path / "config.json", f"finished {kind} artefact")
    found = config.get("kind") if isinstance(config, dict) else None
    if found != kind:
        raise LapaError(f'{path} holds a "{found}" artefact, not a "{kind}".')
    if config.get("format") not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise LapaError(f"{path} has artefact format {config.get('format')}; this lapa reads formats {known}.")
    return Artefact(path, kind, config if config["format"] == FORMAT else upgraded(config), {}, str(config.get("hash")))


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Load weights; every key must be there with its shape and no other. Raises LapaError naming the first offences."""
    require_fit(module.state_dict(), tensors, where)
    module.load_state_dict(tensors)


def require_fit(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Raises LapaError, naming the first offences, unless both have the same keys with the same shapes."""
    faults = [f"missing {k}" for k in expected if k not in tensors]
    faults += [f"unexpected {k}" for k in tensors if k not in expected]
    faults += [
        f"{k} is {tuple(tensors[k].shape)}, expected {tuple(v.shape)}"
        for k, v in expected.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise LapaError(f"The weights in {where} do not fit the model: {'; '.join(faults[:4])}{more}.")
