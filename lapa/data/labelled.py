"""Labels on disk: a folder with labels.parquet (one row per pair) and manifest.json (their origin)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lapa.contracts import Labels, LapaError
from lapa.data.folders import existing_folder, new_folder

TABLE, MANIFEST = "labels.parquet", "manifest.json"
COLUMNS = {"codes": ("codes", np.int64), "actions": ("action", np.float32)}  # kind -> column, dtype


def write_labels(path: str | Path, labels: Labels, manifest: dict[str, Any]) -> None:
    """Write labels into the new folder `path`, whole or not at all.

    The manifest (JSON values) is kept beside them. LapaError when `path` exists or the shapes disagree.
    """
    if labels.kind not in COLUMNS:
        raise LapaError(f'Labels are {" or ".join(COLUMNS)}, not "{labels.kind}".')
    if labels.values.ndim != 2 or not len(labels.values) == len(labels.episode) == len(labels.frame):
        shapes = [labels.episode.shape, labels.frame.shape, labels.values.shape]
        raise LapaError(f"{path}: episode, frame and values must be [N], [N] and [N, s], got {shapes}.")
    column, dtype = COLUMNS[labels.kind]
    values = pa.array(labels.values.astype(dtype).ravel())
    rows, width = labels.values.shape
    bounds = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    table = pa.table(
        {
            "episode": labels.episode.astype(np.int64),
            "frame": labels.frame.astype(np.int64),
            column: pa.ListArray.from_arrays(bounds, values),
        }
    )
    with new_folder(Path(path)) as work:
        pq.write_table(table, work / TABLE)
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_labels(path: str | Path) -> tuple[Labels, dict[str, Any]]:
    """Labels and manifest as written. Raises LapaError for a folder that is missing or holds no labels."""
    folder = existing_folder(path, "Labels")
    try:
        table = pq.read_table(folder / TABLE)
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        missing = TABLE if not (folder / TABLE).exists() else MANIFEST
        raise LapaError(f"{folder}: holds no labels, {missing} is missing. Write them with stage 2.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LapaError(f"{folder}: the labels cannot be read ({error}). Write them anew.") from None
    kinds = [kind for kind, (column, _) in COLUMNS.items() if column in table.column_names]
    if len(kinds) != 1 or not {"episode", "frame"} <= set(table.column_names):
        raise LapaError(
            f"{folder / TABLE}: needs the columns episode, frame and one of codes, action; "
            f"has {', '.join(table.column_names)}."
        )
    column, dtype = COLUMNS[kinds[0]]
    values = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype)
    if not table.num_rows or len(values) % table.num_rows:
        raise LapaError(f"{folder / TABLE}: {table.num_rows} rows do not share {len(values)} values evenly.")
    episode, frame = (table[name].to_numpy().astype(np.int64) for name in ("episode", "frame"))
    return Labels(kinds[0], episode, frame, values.reshape(table.num_rows, -1)), manifest
