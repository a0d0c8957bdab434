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
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lapa import __version__
from lapa.artefacts.borrowed import SHIPPED, joined, lender_of, parted
from lapa.artefacts.download import WITHIN, local
from lapa.artefacts.limits import no_larger_than, require_small_buffers
from lapa.artefacts.older import completed, upgraded, upgraded_weights
from lapa.artefacts.settings import checked, object_at, typed_value
from lapa.artefacts.sums import require_sums, with_sums
from lapa.contracts import LapaError

FORMAT = 2
OBJECTS_OF_PROVENANCE = {"versions", "data", "parents"}
OBJECTS = {"model", "recipe", "results", "provenance", "borrowed", "ended_early", "labelled", "tuning"}
NOTES = OBJECTS | {"kind", "format", "hash", "sums", "method"}  # what any artefact may have beside its description
READABLE = (1, 2)  # formats (artefacts/older.py)
WEIGHTS = "model.safetensors"
REHEARSAL = "held_out"  # in the folder of a run: what is learnt only to be measured, before what is kept (stage 3)
FINISH = "finish"  # in the folder of a run: end early, and keep what there is (training/stop.py)
T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)


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
        found = json.loads(path.read_text("utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair can be neither printed nor saved
    except FileNotFoundError:
        raise LapaError(f"{path.parent} holds no {what}: {path.name} is missing.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise LapaError(f"{path} is not readable JSON ({error}); {what} expected.") from None
    return found


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
    written: dict[str, Any]  # config.json under the names of the version that wrote it

    def settings(self, config: type[T], key: str = "model", defaults: bool = False) -> T:
        """The dataclass `config` from what config.json has under `key`. Raises LapaError naming a field that is
        missing, unknown or of another type. In what older versions wrote, and with `defaults`, a missing one takes its
        default."""
        with self._described():
            names = [field.name for field in fields(config)]  # type: ignore[arg-type]
            return checked(config, completed(self.config.get(key), names), key, defaults or self.old)

    def value(self, hint: type[T], *place: str) -> T:
        """The value of that type at a place, such as "recipe", "window". Raises LapaError where it is another."""
        with self._described():
            found: Any = self.config
            for depth, name in enumerate(place):
                found = object_at(found, ".".join(place[:depth]) or "it").get(name)
            made: T = typed_value(hint, found, ".".join(place))
            return made

    @property
    def old(self) -> bool:
        """Was it written by a version of lapa with another format?"""
        return bool(self.config["format"] != FORMAT)

    def build(self, make: Callable[[], M], own: bool = False) -> M:
        """What `make` makes, with the weights. It is made twice: first without memory, and compared with the weights
        (`fitting`) before anything is allocated. `own`: parts of it are somebody's own code, which may not bear that;
        it is made once then.

        Raises LapaError for settings that no model can be made of, and for weights of another.
        """
        model = self.fitting(make, "cpu" if own else "meta")
        made = model if own else make()
        made.load_state_dict(self.tensors)
        return made

    def fitting(self, make: Callable[[], M], where: str = "meta") -> M:
        """What `make` makes on the device `where`, by default torch's "meta", which takes no memory. Raises LapaError
        unless its weights have the names and shapes of these."""
        with self._described(), no_larger_than(self.tensors), torch.device(where):
            model = make()
            require_small_buffers(model, self.tensors)
        expected = model.state_dict()
        require_fit(expected, self.tensors, self.path)
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() != expected[name].is_floating_point():
                raise LapaError(f"{self.path}: {name} holds {tensor.dtype}, expected {expected[name].dtype}.")
        self.require_unchanged()
        return model

    def require_unchanged(self) -> None:
        """Raises LapaError when config.json has changed since it was written (artefacts/sums.py)."""
        require_sums(self.written, f"{self.path}/config.json")

    def require_weights(self) -> Path:
        """The file of its weights. Raises LapaError when it is missing or has changed since config.json was written."""
        file = weights_at(self.path)
        if not file.is_file():
            raise LapaError(f"{file} is missing.")
        if (content := file_hash(file)) != self.hash:
            raise LapaError(f"{file} does not match config.json (hash {content}, expected {self.hash}).")
        return file

    def require_known(self, names: Iterable[str]) -> None:
        """Raises LapaError when config.json has settings beside these and those of every artefact."""
        if unknown := sorted(self.config.keys() - {*names, *NOTES}):
            raise LapaError(f"{self.path}/config.json: {unknown[0]} is nothing that a {self.kind} of this lapa has.")

    @contextlib.contextmanager
    def _described(self) -> Iterator[None]:
        """Every error inside as a LapaError that names config.json."""
        try:
            yield
        except Exception as error:  # whatever making a model of arbitrary settings comes to
            if isinstance(error, LapaError) and str(self.path) in str(error):
                raise
            told = str(error).removesuffix(".") if isinstance(error, LapaError) else f"{type(error).__name__}: {error}"
            version = self.config.get("provenance", {}).get("versions", {}).get("lapa", "unknown")
            raise LapaError(
                f'{self.path}/config.json does not describe a "{self.kind}" of this lapa ({told}). Fetch or make it '
                f"again, or open it with the version that wrote it: {version}."
            ) from (None if isinstance(error, LapaError) else error)


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
    write_tensors(weights_at(path), tensors)
    return seal(path, kind, config)


def seal(path: Path, kind: str, config: Mapping[str, Any]) -> str:
    """Make an artefact of a folder whose weights are written: its config.json, the last file. Returns their hash."""
    config = {key: value for key, value in config.items() if key not in ("kind", "format", "hash")}
    content = file_hash(weights_at(path))
    early = {"ended_early": ended} if (ended := ended_early(path)) else {}
    write_json(path / "config.json", with_sums({"kind": kind, "format": FORMAT, "hash": content, **config, **early}))
    return content


def ended_early(path: Path) -> dict[str, int]:
    """{"step", "steps"} of the run in `path`, if it was ended before its last step; {} if not."""
    file = path / FINISH
    if not file.exists() or not file.stat().st_size:
        return {}
    return object_at(read_json(file, "end of the run"), str(file))


def load_artefact(path: Path | str, kind: str) -> Artefact:
    """Read an artefact of the given kind ("laq", "idm", "policy", "backbone"), from a folder or from user/name on the
    hub.

    Raises LapaError when the folder is missing, unfinished, damaged, of another kind or of another format.
    """
    found = describe(path, kind)
    file = weights_at(found.path)
    tensors, _ = read_tensors(file)
    found.require_weights()
    tensors = upgraded_weights(tensors)
    if "borrowed" in found.config:
        reference = found.config["borrowed"]
        lender = lender_of(reference, found.path)
        tensors = joined(tensors, reference, read_tensors(lender)[0], file_hash(lender), found.path)
    return replace(found, tensors=tensors)


def describe(path: Path | str, kind: str) -> Artefact:
    """The same without its weights: they are neither read nor checked."""
    path = local(path)
    path = path / WITHIN if (path / WITHIN / "config.json").exists() else path
    if not path.is_dir():
        raise LapaError(f"There is no folder {path}; a {kind} artefact was expected there.")
    config = read_config(path, f"finished {kind} artefact")
    if config.get("kind") != kind:
        raise LapaError(f'{path} holds a "{config.get("kind")}" artefact, not a "{kind}".')
    if config.get("format") not in READABLE or isinstance(config["format"], bool):
        known = " and ".join(map(str, READABLE))
        raise LapaError(f"{path} has artefact format {config.get('format')}; this lapa reads formats {known}.")
    content = typed_value(str, config.get("hash"), f"{path}/config.json: hash")
    return Artefact(path, kind, config if config["format"] == FORMAT else upgraded(config), {}, content, config)


def read_config(path: Path, what: str = "finished artefact") -> dict[str, Any]:
    """What the config.json in a folder says, under the names of the version that wrote it. Raises LapaError when it is
    missing or torn, or has something else in place of the objects that all artefacts have."""
    found, where = read_json(path / "config.json", what), f"{path}/config.json"
    config = found if isinstance(found, dict) else {}
    for name in OBJECTS & config.keys():
        object_at(config[name], f"{where}: {name}")
    for name in OBJECTS_OF_PROVENANCE & config.get("provenance", {}).keys():
        object_at(config["provenance"][name], f"{where}: provenance.{name}")
    return config


def weights_at(path: Path) -> Path:
    """The weights of the artefact in a folder: in it; of one within a checkpoint of another library, beside it."""
    return (path.parent if path.name == WITHIN else path) / WEIGHTS


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
