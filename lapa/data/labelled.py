"""Labels on disk: a folder with labels.parquet, one row per pair of frames, and manifest.json, their origin.

labels.parquet is a folder of shards, as Spark writes tables and pandas, polars and DuckDB read them. Each shard appears
whole or not at all and has its hash in the manifest, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lapa.contracts import Labels, LapaError
from lapa.data.folders import existing_folder
from lapa.training.checkpoint import replacing

TABLE, MANIFEST = "labels.parquet", "manifest.json"
COLUMNS = {  # kind -> column, dtype
    "codes": ("codes", np.int64),
    "actions": ("action", np.float32),
    "frames": ("next_frame", np.int64),
}


def write_shard(path: Path, labels: Labels) -> None:
    """Write one shard, whole or not at all. Raises LapaError when the shapes disagree."""
    table = _table(labels, path)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # renamed only once it is on the disk


def read_shard(path: Path) -> tuple[Labels, str]:
    """One shard and its hash, 16 hex digits of the sha256. Raises LapaError when it is missing or damaged."""
    try:
        content = path.read_bytes()
        table = pq.read_table(pa.BufferReader(content))
    except FileNotFoundError:
        raise LapaError(f"{path} is missing. Remove {path.parent.parent} and label anew.") from None
    except (pa.ArrowException, OSError) as error:
        raise LapaError(f"{path}: the labels cannot be read ({error}). Write them anew.") from None
    return _labels(table, path), hashlib.sha256(content).hexdigest()[:16]


def read_labels(path: str | Path) -> tuple[Labels, dict[str, Any]]:
    """Labels and manifest as written, in the order of episodes and frames.

    Raises LapaError for a folder that is missing, unfinished or holds no labels, and for a shard that has changed.
    """
    folder = existing_folder(path, "Labels")
    if not (folder / TABLE).exists():
        raise LapaError(f"{folder}: holds no labels, {TABLE} is missing. Write them with stage 2.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise LapaError(
            f"{folder}: the labels are not finished, {MANIFEST} is missing. Run the same lapa label again."
        ) from None
    except (OSError, ValueError) as error:
        raise LapaError(f"{folder / MANIFEST} cannot be read ({error}). Write the labels anew.") from None
    parts = []
    for shard in manifest.get("shards", []):
        part, content = read_shard(folder / TABLE / shard["file"])
        if content != shard["hash"]:
            raise LapaError(
                f"{folder / TABLE / shard['file']} has changed since it was written. Write the labels anew."
            )
        parts.append(part)
    if not parts:
        raise LapaError(f"{folder / MANIFEST} names no shards. Write the labels anew.")
    return joined(parts), manifest


def joined(parts: list[Labels]) -> Labels:
    """Shards, one behind the other. They are of one kind and width."""
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


def _labels(table: pa.Table, path: Path) -> Labels:
    kinds = [kind for kind, (column, _) in COLUMNS.items() if column in table.column_names]
    if len(kinds) != 1 or not {"episode", "frame"} <= set(table.column_names):
        raise LapaError(
            f"{path}: needs the columns episode, frame and one of {', '.join(name for name, _ in COLUMNS.values())}; "
            f"has {', '.join(table.column_names)}."
        )
    column, dtype = COLUMNS[kinds[0]]
    values = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype)
    if not table.num_rows or len(values) % table.num_rows:
        raise LapaError(f"{path}: {table.num_rows} rows do not share {len(values)} values evenly.")
    episode, frame = (table[name].to_numpy().astype(np.int64) for name in ("episode", "frame"))
    return Labels(kinds[0], episode, frame, values.reshape(table.num_rows, -1))
