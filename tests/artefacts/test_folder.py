"""Artefacts that are damaged, of another kind or of another version are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resuming import weights
from safetensors.torch import save_file

import lapa
from lapa.contracts import LapaError


def damaged(chain: Path, tmp_path: Path, harm: Callable[[Path], object]) -> Path:
    path = tmp_path / "policy"
    shutil.copytree(chain / "policy", path)
    harm(path)
    return path


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        change(config)
        (path / "config.json").write_text(json.dumps(config))

    return apply


def without_a_key(path: Path) -> None:
    """Weights that match config.json but lack a tensor, as a run of another version may leave them."""
    tensors = weights(path)
    del tensors["head.0.bias"]
    save_file(tensors, path / "model.safetensors")
    edit(lambda c: c.update(hash=lapa.artefacts.folder.file_hash(path / "model.safetensors")))(path)


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def cut_short(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: (p / "config.json").unlink(), r"policy.*: config\.json"),
        (lambda p: (p / "model.safetensors").unlink(), r"model\.safetensors"),
        (lambda p: (p / "config.json").write_text("{"), r"config\.json .*JSON"),
        (lambda p: (p / "config.json").write_text("[]"), r'"None".* "policy"'),
        (edit(lambda c: c.update(kind="laq")), r'"laq".* "policy"'),
        (edit(lambda c: c.update(format=99)), r"format 99\b.* 1 and 2"),
        (edit(lambda c: c.update(policy="vlaa")), r'"vlaa".* "vla"'),
        (edit(lambda c: c.update(space={"kind": "actions"})), r"space.* config\.json"),
        (without_a_key, r"missing head\.0\.bias"),
        (
            edit(lambda c: c["model"].update(head_options={"width": 17})),
            r"head.0.weight is \(16, 32\), expected \(17, 32\)",
        ),
        (flip_a_bit, r"model\.safetensors .*config\.json \(hash"),
        (cut_short, r"model\.safetensors"),
        (shutil.rmtree, r"folder .*policy"),
    ],
)
def test_a_damaged_artefact_is_refused(chain: Path, tmp_path: Path, harm: Any, message: str) -> None:
    path = damaged(chain, tmp_path, harm)
    with pytest.raises(LapaError, match=message) as refused:
        lapa.Policy.from_pretrained(path)
    assert str(path) in str(refused.value) or "vlaa" in message or "space" in message


def test_a_setting_of_another_version_is_refused(chain: Path, tmp_path: Path) -> None:
    """A setting too many, or none at all: not a traceback."""
    for name, harm in {"none": lambda c: c.pop("model"), "flavour": lambda c: c["model"].update(flavour=1)}.items():
        path = damaged(chain, tmp_path / name, edit(harm))
        with pytest.raises(LapaError, match=rf'"policy" .*version .*: {re.escape(lapa.__version__)}'):
            lapa.Policy.from_pretrained(path)


def test_an_artefact_can_be_read_by_others(chain: Path) -> None:
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (chain / "laq").iterdir() if file.is_file())


def test_an_artefact_of_another_kind_is_refused(chain: Path) -> None:
    with pytest.raises(LapaError, match=r'policy .*"policy".* "laq"'):
        lapa.LAQ.from_pretrained(chain / "policy")
    with pytest.raises(LapaError, match=r'laq .*"laq".* "policy"'):
        lapa.Policy.from_pretrained(chain / "laq")
