"""What older versions of lapa wrote, translated: names of settings, spaces and weights that have changed since.

Format 1 is that of lapa 0.1; today's is 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
KEYS = {"sees": "encoder_input", "places": "code_embeddings", "looks": "domains", "look": "domain"}
VALUES = {
    ("decoding", "full_length"): "norm_preserving",
    ("head", "read"): "linear",
    ("kind", "vocabulary"): "codebook",
}
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


def upgraded_weights(tensors: Mapping[str, T]) -> dict[str, T]:
    """Weights under today's names."""
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    for old, new in WEIGHTS.items():
        name = name.replace(old, new)
    return name
