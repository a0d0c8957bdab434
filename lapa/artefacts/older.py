"""What older versions of lapa wrote, translated: names of settings, spaces and weights that have changed since.

Format 1 is that of lapa 0.1; today's is 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
KEYS = {"sees": "encoder_input", "places": "code_embeddings", "looks": "domains", "look": "domain"}
VALUES = {
    ("decoding", "full_length"): "norm_preserving",
    ("head", "read"): "linear",
    ("kind", "vocabulary"): "codebook",
}
# Settings that format 2 has got since it was first written: what every artefact meant before. For those whose absence
# means one thing alone.
ADDED: dict[str, Any] = {"root_length": False, "flow": 0.0, "code_head": "", "execute": 0, "pixels": 0}
HEAD_WIDTH = 256  # of who did not choose one
WEIGHTS = {".steer.": ".film."}  # parts of names


def upgraded(content: Any) -> Any:
    """A config.json, run.json or manifest.json (JSON values) with today's names. Today's content stays as it is."""
    if isinstance(content, dict):
        renamed = {KEYS.get(key, key): (key, upgraded(value)) for key, value in content.items()}
        made = {new: _value(old, value) for new, (old, value) in renamed.items()}
        if "head_width" in made:  # of a policy: there was one kind of head
            width = made.pop("head_width")
            made |= {"head": "parallel", "head_options": {} if width == HEAD_WIDTH else {"width": width}}
        return made
    if isinstance(content, list):
        return [upgraded(value) for value in content]
    return content


def _value(key: str, value: Any) -> Any:
    return VALUES.get((key, value), value) if isinstance(value, str) else value


def completed(content: Any, names: Iterable[str]) -> Any:
    """Settings (a JSON object) with those of ADDED among `names` that they have not."""
    if not isinstance(content, Mapping):
        return content
    return {**{name: ADDED[name] for name in names if name in ADDED}, **content}


def upgraded_weights(tensors: Mapping[str, T]) -> dict[str, T]:
    """Weights under today's names."""
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    for old, new in WEIGHTS.items():
        name = name.replace(old, new)
    return name
