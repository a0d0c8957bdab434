"""Labels on disk: a folder with labels.parquet, one row per pair of frames, and manifest.json, which says their origin.

labels.parquet is a folder of shards, as Spark writes tables and pandas, polars and DuckDB read them. Each shard appears
whole or not at all and has its hash in the manifest, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lapa.artefacts.folder import read_json, replacing
from lapa.artefacts.older import upgraded
from lapa.contracts import Labels, LapaError
from lapa.data.folders import existing_folder

TABLE, MANIFEST = "labels.parquet", "manifest.json"
BAD = b"lapa_damaged_episodes"  # in a shard's metadata, where there are some
COLUMNS = {  # kind -> column, dtype
    "codes": ("codes", np.int64),
    "actions": ("action", np.float32),
    "frames": ("next_frame", np.int64),
}


def write_shard(path: Path, labels: Labels, bad: dict[int, str] | None = None) -> None:
    """Write one shard, whole or not at all; `bad` are episodes that turned out to be damaged, with the reasons.

    Raises LapaError when the shapes disagree."""
    table = _table(labels, path)
    if bad:
        table = table.replace_schema_metadata({BAD: json.dumps({str(e): bad[e] for e in sorted(bad)})})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # renamed only once it is on the disk


def read_shard(path: Path) -> tuple[Labels, str, dict[int, str]]:
    """One shard, its hash (16 hex digits of the sha256), and the episodes that were damaged.

    Raises LapaError when it is missing or damaged itself."""
    try:
        content = path.read_bytes()
        # In this thread alone: one of Arrow's that lets go of `content` while Python ends would abort the process
        # (apache/arrow issue 34314).
        table = pq.read_table(pa.BufferReader(content), use_threads=False, pre_buffer=False)
    except FileNotFoundError:
        raise LapaError(f"{path} is missing. Remove {path.parent.parent} and label anew.") from None
    except (pa.ArrowException, OSError) as error:
        raise LapaError(f"{path}: the labels cannot be read ({error}). Write them anew.") from None
    bad = {int(e): str(why) for e, why in json.loads((table.schema.metadata or {}).get(BAD, b"{}")).items()}
    return _labels(table, path, bool(bad)), hashlib.sha256(content).hexdigest()[:16], bad


def read_labels(path: str | Path) -> tuple[Labels, dict[str, Any]]:
    """Labels and manifest as written, in the order of episodes and frames.

    Episodes are counted as a pack counts them: without those that turned out to be damaged, "left_out" in the manifest.
    Raises LapaError for a folder that is missing, unfinished or holds no labels, and for a shard that has changed.
    """
    folder = existing_folder(path, "Labels")
    if not (folder / TABLE).exists():
        if (folder / "config.json").exists():
            kind = read_json(folder / "config.json", "artefact").get("kind")
            raise LapaError(f'{folder} holds a "{kind}" artefact and no labels. Give a folder made by `lapa label`.')
        raise LapaError(f"{folder}: holds no labels, {TABLE} is missing. Write them with `lapa label`.")
    try:
        manifest = upgraded(json.loads((folder / MANIFEST).read_text()))
    except FileNotFoundError:
        raise LapaError(
            f"{folder}: the labels are not finished, {MANIFEST} is missing. Run the same lapa label again."
        ) from None
    except (OSError, ValueError) as error:
        raise LapaError(f"{folder / MANIFEST} cannot be read ({error}). Write the labels anew.") from None
    parts = []
    for shard in manifest.get("shards", []):
        part, content, _ = read_shard(folder / TABLE / shard["file"])
        if content != shard["hash"]:
            raise LapaError(
                f"{folder / TABLE / shard['file']} has changed since it was written. Write the labels anew."
            )
        parts.append(part)
    if not parts:
        raise LapaError(f"{folder / MANIFEST} names no shards. Write the labels anew.")
    labels, left_out = joined(parts), np.array(manifest.get("left_out", []), np.int64)
    return replace(labels, episode=labels.episode - np.searchsorted(left_out, labels.episode)), manifest


def joined(parts: list[Labels]) -> Labels:
    """Shards joined in order. They have one kind and width, except empty ones."""
    parts = [part for part in parts if len(part.episode)] or parts
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("episode", "frame", "values"))
    return Labels(parts[0].kind, *columns)


def _table(labels: Labels, path: str | Path) -> pa.Table:
    if labels.kind not in COLUMNS:
        raise LapaError(f'Labels are {" or ".join(COLUMNS)}, not "{labels.kind}".')
    if labels.values.ndim != 2 or not len(labels.values) == len(labels.episode) == len(labels.frame):
        shapes = [labels.episode.shape, labels.frame.shape, labels.values.shape]
        raise LapaError(f"{path}: episode, frame and values must be [N], [N] and [N, s], got {shapes}.")
    column, dtype = COLUMNS[labels.kind]
    rows, width = labels.values.shape
    bounds = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.table(
        {
            "episode": labels.episode.astype(np.int64),
            "frame": labels.frame.astype(np.int64),
            column: pa.ListArray.from_arrays(bounds, pa.array(labels.values.astype(dtype).ravel())),
        }
    )


def _labels(table: pa.Table, path: Path, may_be_empty: bool) -> Labels:
    kinds = [kind for kind, (column, _) in COLUMNS.items() if column in table.column_names]
    if len(kinds) != 1 or not {"episode", "frame"} <= set(table.column_names):
        raise LapaError(
            f"{path}: needs the columns episode, frame and one of {', '.join(name for name, _ in COLUMNS.values())}; "
            f"has {', '.join(table.column_names)}."
        )
    column, dtype = COLUMNS[kinds[0]]
    values = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype)
    if may_be_empty and not table.num_rows:
        return Labels(kinds[0], np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0), dtype))
    if not table.num_rows or len(values) % table.num_rows:
        raise LapaError(f"{path}: {table.num_rows} rows do not share {len(values)} values evenly.")
    episode, frame = (table[name].to_numpy().astype(np.int64) for name in ("episode", "frame"))
    return Labels(kinds[0], episode, frame, values.reshape(table.num_rows, -1))
