"""`lapa convert lapa-official --reverse`: a policy or backbone becomes a `params` file that the released code loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.actions.tables import Decoding
from lapa.artefacts.folder import describe, read_json, replacing
from lapa.backbones import lwm
from lapa.contracts import LapaError
from lapa.interop.convert_bins import written_bins
from lapa.interop.convert_names import is_turned, layer_of, released_name
from lapa.interop.convert_params import CHUNK, write_array
from lapa.interop.convert_vqgan import released_vqgan_name, theirs_of, write_vqgan
from lapa.policies import saved_config
from lapa.policies.vla import VLA
from lapa.policies.vla import Config as PolicyConfig

MIDDLE = 1e-6  # from the middle of a bin to its meaning, with more it is told
NUMBERS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def to_lapa(source: Path, out: Path, vqgan: Path | None = None, tokenizer: Path | None = None,
            bins: Path | None = None, chunk: int = CHUNK) -> str:  # fmt: skip
    """Write the policy or backbone in the folder `source` as a `params` file that the released code loads, to the new
    file `out`; also its VQGAN, tokenizer and bins, where a path for them is given. Returns what was written.

    Raises LapaError where the released code has no such model."""
    for path in (out, vqgan, tokenizer, bins):
        if path is not None and path.exists():
            raise LapaError(f"{path} exists already. Remove it or choose another path.")
    weights, kind, space, decoding = _released_model(source)
    if bins is not None and not isinstance(space, ActionSpace):
        raise LapaError(f"{source} has no action bins. Leave --bins out.")
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
        groups: dict[str, list[str]] = {}
        for name in names:
            bare = name.removeprefix("backbone.")
            if not bare.startswith("vqgan.") and bare != "tokenizer":
                groups.setdefault(released_name(name, kind), []).append(name)
        with replacing(out) as temporary, temporary.open("wb") as target:
            for theirs, ours in sorted(groups.items()):
                _write_group(target, file, theirs, sorted(ours, key=lambda name: layer_of(name) or 0), chunk)
        before = "" if "tokenizer" in names else "backbone."
        if vqgan is not None:
            its = [name for name in names if name.startswith(f"{before}vqgan.")]
            arrays = {released_vqgan_name(name.removeprefix(f"{before}vqgan.")):
                      theirs_of(file.get_tensor(name).float().numpy()) for name in its}  # fmt: skip
            with replacing(vqgan) as temporary:
                write_vqgan(temporary, arrays)
        if tokenizer is not None:
            with replacing(tokenizer) as temporary:
                temporary.write_bytes(file.get_tensor(f"{before}tokenizer").numpy().tobytes())
    if bins is not None and isinstance(space, ActionSpace):
        with replacing(bins) as temporary:
            temporary.write_text(written_bins(space))
    written = [str(path) for path in (out, vqgan, tokenizer, bins) if path is not None]
    return " ".join([f"Written: {', '.join(written)}.", *_otherwise(space, decoding)])


def _otherwise(space: CodeSpace | ActionSpace | None, decoding: Decoding) -> list[str]:
    """Sentences on what the released code makes of the same weights otherwise."""
    if not isinstance(space, ActionSpace):
        return []
    told, mine, middles = [], space.centres(), replace(space, values=()).centres()
    apart = np.nanmax(np.abs(mine - middles), 1)
    if apart.max() > MIDDLE:
        i = int(apart.argmax())
        name = space.names[i] if space.names else f"action {i}"
        told.append(f"The released code answers with the middle of a bin, and this policy with the mean of the data in "
                    f"it: up to {apart[i]:.3g} apart in {name}.")  # fmt: skip
    if decoding != "centre":
        told.append(f"The released code takes the likeliest bin, and this policy has decoding={decoding}; try it with "
                    "policy.decoding=centre.")  # fmt: skip
    return told


def _released_model(source: Path) -> tuple[Path, str, CodeSpace | ActionSpace | None, Decoding]:
    """The weights of an artefact that the released code can have, the kind of its head's space, the space, and how the
    policy decodes."""
    path = Path(source)
    if path.is_dir() and read_json(path / "config.json", "artefact").get("kind") == "backbone":
        backbone = describe(path, "backbone")
        backbone.settings(lwm.Config)
        return backbone.require_weights(), "", None, "centre"
    artefact = describe(path, "policy")
    config = saved_config(artefact)
    if not isinstance(config, PolicyConfig) or config.backbone != "lwm" or config.head != "autoregressive":
        raise LapaError(f"{source} is no policy on the backbone lwm with the head autoregressive; the released code "
                        "has no other.")  # fmt: skip
    if not config.head_options.get("in_backbone"):
        raise LapaError(f'{source} has a decoder of its own ("in_backbone" is false); the released code has none.')
    artefact.require_unchanged()
    with torch.device("meta"):
        policy = config.build(pretrained=False)
        policy.restore(artefact.config)
    space = policy.space
    if policy.grown is not None and (policy.grown[0] != "autoregressive" or policy.grown[1].get("directions")):
        raise LapaError(f"{source} has the head {policy.grown[0]}, or says directions before it acts; the released "
                        "code has the head autoregressive alone, and says none.")  # fmt: skip
    if isinstance(space, ActionSpace) and space.chunk == 1:
        _require_as_given(policy, source)
        return artefact.require_weights(), "actions", space, config.decoding
    if isinstance(space, CodeSpace):
        return artefact.require_weights(), "codes", space, config.decoding
    raise LapaError(f"{source} predicts chunks or clusters of actions; the released code knows bins of one action.")


def _require_as_given(policy: VLA, source: Path) -> None:
    """Raises LapaError where the actions that it answers are not yet those of the robot: the released code would carry
    them out as they are."""
    if policy.meaning and any(policy.meaning.relative):
        raise LapaError(f"{source} answers actions relative to the robot's state, and the released code adds no state "
                        "to them. Finetune with --set actions=given.")  # fmt: skip
    if policy.scales:
        raise LapaError(f"{source} answers actions in a scale of their own for each robot (scale=each), and the "
                        "released code has one robot. Finetune with --set scale=joint.")  # fmt: skip


def _write_group(target: Any, file: Any, theirs: str, ours: list[str], chunk: int) -> None:
    """One array of the file, from the weight or from those of all layers."""
    slices = [file.get_slice(name) for name in ours]
    shape, dtype = slices[0].get_shape(), NUMBERS[slices[0].get_dtype()]
    turned = is_turned(ours[0])
    shape = shape[::-1] if turned else shape
    shape = [len(ours), *shape] if layer_of(ours[0]) is not None else shape

    def pieces() -> Iterator[bytes]:
        for name in ours:
            tensor = file.get_tensor(name)
            rows = max(1, tensor.shape[-1] // 16)
            for start in range(0, tensor.shape[-1], rows) if turned else (0,):
                part = tensor[:, start : start + rows].T if turned else tensor
                yield part.contiguous().view(torch.uint8).numpy().tobytes()

    write_array(target, theirs, dtype, shape, pieces(), chunk)
