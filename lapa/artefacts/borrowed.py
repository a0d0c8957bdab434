"""Weights that an artefact does not hold because they are known: those that ship with lapa and never change.

config.json names them, and the file with its hash that they are in; they are read from there when the artefact is
opened, and it is not opened where that file is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lapa.contracts import LapaError
from lapa.plugins import PACKAGE

SHIPPED = {"tiny": PACKAGE / "backbones" / "weights" / "model.safetensors"}  # name -> file


def parted(
    tensors: Mapping[str, Tensor], lender: str, hash: str, known: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Which of `names` need not be saved, for `known` has the very same under a name that is theirs without its first
    part ("backbone.vision.norm.bias" -> "vision.norm.bias"). Returns the tensors that are left, and the reference."""
    lent = [name for name in names if _same(tensors[name], known.get(name.partition(".")[2]))]
    rest = {name: tensor for name, tensor in tensors.items() if name not in set(lent)}
    return rest, {"from": lender, "hash": hash, "names": lent} if lent else {}


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one.detach().cpu(), other)


def lender_of(reference: Mapping[str, Any], where: Path) -> Path:
    """The file that a reference means. Raises LapaError for one that this lapa does not ship."""
    name, hash, names = reference.get("from"), reference.get("hash"), reference.get("names")
    texts = [name, hash, *names] if isinstance(names, list) else [None]
    if reference.keys() != {"from", "hash", "names"} or not all(isinstance(text, str) for text in texts):
        raise LapaError(f'{where}/config.json: "borrowed" is not as lapa writes it, with from, hash and names.')
    if name not in SHIPPED:
        raise LapaError(f"{where} borrows weights that this lapa does not have ({name}).")
    return SHIPPED[name]


def joined(
    tensors: Mapping[str, Tensor], reference: Mapping[str, Any], known: Mapping[str, Tensor], hash: str, where: Path
) -> dict[str, Tensor]:
    """The inverse of `parted`. Raises LapaError where what is known has changed since."""
    if hash != reference["hash"] or (missing := [n for n in reference["names"] if n.partition(".")[2] not in known]):
        found = f"hash {hash}, expected {reference['hash']}" if hash != reference["hash"] else f"no {missing[0]}"
        raise LapaError(
            f"{where} was made with other weights of {reference['from']} than those that ship with this lapa "
            f"({found}). Open it with the version that wrote it."
        )
    if both := sorted(tensors.keys() & set(reference["names"])):
        raise LapaError(f"{where}: {both[0]} is both in model.safetensors and borrowed.")
    return {**tensors, **{name: known[name.partition(".")[2]] for name in reference["names"]}}
