"""What tells an episode from others, so that a policy is not judged by the episodes it was taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array
from lapa.data.index import Index, digest_of
from lapa.data.spec import Spec, parse, parted
from lapa.plugins import names


def keys_of(index: Index) -> frozenset[str]:
    """Keys of all episodes, to be kept with what was taught by them: hashes of what each says and does, and of where it
    lies. Neither depends on the size of the pictures, the camera or the state."""
    return frozenset((*_content(index, with_state=False), *filter(None, _places(index))))


def seen_among(index: Index, keys: frozenset[str] | set[str]) -> Array:
    """Which episodes have one of these keys, bool [E]: the same instruction and actions, or the same place (another
    rate has other actions). A lapa before 2026-12 has kept hashes of the state too."""
    each = zip(_content(index, with_state=False), _content(index, with_state=True), _places(index), strict=True)
    return np.array([bool(keys.intersection(some)) for some in each], bool)


def _content(index: Index, with_state: bool) -> list[str]:
    """A hash of the instruction and actions of each episode; with its state where that is wanted."""
    tables = [table for table in (index.actions, index.state if with_state else None) if table is not None]
    spans = [slice(int(a), int(b)) for a, b in zip(index.starts[:-1], index.starts[1:], strict=True)]
    return [
        digest_of(text.encode(), *(table[span].tobytes() for table in tables))
        for text, span in zip(index.instructions, spans, strict=True)
    ]


def _places(index: Index) -> list[str]:
    """A hash of dataset and id of each episode; "" where the dataset does not lie on the disk (one that is made while
    it is read)."""
    known = names("datasets")
    specs = [parse(text) for text in parted(index.spec) if text.partition(":")[0] in known]
    there = [
        json.dumps([each.name, str(Path(each.path).expanduser().absolute()), _told(each)])
        if Path(each.path).expanduser().exists() else ""
        for each in specs
    ]  # fmt: skip
    return [
        digest_of(there[source].encode(), name.encode()) if source < len(there) and there[source] else ""
        for source, name in zip(index.source.tolist(), index.ids, strict=True)
    ]


def _told(spec: Spec) -> list[tuple[str, Any]]:
    """The options that say which episodes there are: those of the dataset itself, but the camera."""
    return sorted((name, value) for name, value in spec.options.items() if name != "camera")
