"""Labels on disk: a folder with labels.parquet, one row per pair of frames, and manifest.json, which says their origin.

labels.parquet is a folder of shards, as Spark writes tables and pandas, polars and DuckDB read them. Each shard appears
whole or not at all and has its hash in the manifest, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lapa.artefacts.folder import read_config, read_json, replacing, write_json
from lapa.artefacts.older import upgraded
from lapa.artefacts.settings import checked, object_at
from lapa.artefacts.sums import KEY as SUMS
from lapa.artefacts.sums import require_sums, with_sums
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
    Raises LapaError for a folder that is missing, unfinished or holds no labels, for a shard or a manifest that has
    changed, and for labels that do not go with their manifest.
    """
    folder = existing_folder(path, "Labels")
    if not (folder / TABLE).exists():
        if (folder / "config.json").exists():
            kind = read_config(folder).get("kind")
            raise LapaError(f'{folder} holds a "{kind}" artefact and no labels. Give a folder made by `lapa label`.')
        raise LapaError(f"{folder}: holds no labels, {TABLE} is missing. Write them with `lapa label`.")
    manifest = read_manifest(folder)
    parts = []
    for shard in manifest["shards"]:
        part, content, _ = read_shard(folder / TABLE / shard["file"])
        if content != shard["hash"]:
            raise LapaError(
                f"{folder / TABLE / shard['file']} has changed since it was written. Write the labels anew."
            )
        parts.append(part)
    labels, left_out = joined(parts), np.array(manifest.get("left_out", []), np.int64)
    _require_together(labels, manifest, folder / MANIFEST)
    return replace(labels, episode=labels.episode - np.searchsorted(left_out, labels.episode)), manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of labels that are whole, with sums of what it says (artefacts/sums.py)."""
    write_json(folder / MANIFEST, with_sums(manifest))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the labels in a folder, with today's names. Raises LapaError when it is missing or torn, has
    changed since it was written, or does not say what a manifest says."""
    file = folder / MANIFEST
    if not file.exists():
        raise LapaError(f"{folder}: the labels are not finished, {MANIFEST} is missing. Run the same lapa label again.")
    content = object_at(read_json(file, "labels"), str(file))
    require_sums(content, str(file))
    content = upgraded(content)
    known = {field.name for field in fields(_Manifest)}
    told = checked(_Manifest, {k: v for k, v in content.items() if k in known}, str(file), defaults=True)
    if not told.shards:
        raise LapaError(f"{file} names no shards. Write the labels anew.")
    for shard in told.shards:
        if Path(shard.file).name != shard.file or shard.file.startswith("."):
            raise LapaError(f"{file}: a shard is a file in {TABLE}, not {shard.file!r}.")
    if told.image_size < 1 or told.classes < 0 or (told.window_seconds is not None and told.window_seconds <= 0):
        raise LapaError(f"{file}: image_size, classes and window_seconds are above 0, not {told.image_size}, "
                        f"{told.classes} and {told.window_seconds}.")  # fmt: skip
    return {key: value for key, value in content.items() if key != SUMS}


def require_told(manifest: Mapping[str, Any], names: Iterable[str], where: str | Path) -> None:
    """Raises LapaError when a manifest does not say all of these."""
    if missing := [name for name in names if name not in manifest]:
        raise LapaError(f"{where}/{MANIFEST}: {missing[0]} is missing. Write the labels anew with `lapa label`.")


@dataclass(frozen=True)
class _Shard:
    file: str
    hash: str
    pairs: int | None = None


@dataclass(frozen=True)
class _Manifest:
    """What is read of a manifest, as far as it says it; whoever needs something asks for it (`require_told`)."""

    shards: tuple[_Shard, ...] = ()
    method: str = ""
    source: str = ""
    source_hash: str | None = None
    kind: Literal["codes", "actions", "frames"] | None = None
    classes: int = 0
    window_seconds: float | None = None
    end: str = "drop"
    dataset: str = ""
    fingerprint: str = ""
    outline: str = ""
    acts: str = ""
    image_size: int = 1
    pairs: int = 0
    action_names: tuple[str, ...] = ()
    meaning: dict[str, Any] | None = None
    skipped: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    code_counts: tuple[tuple[int, ...], ...] = ()
    code_embeddings: tuple[tuple[float, ...], ...] = ()


def _require_together(labels: Labels, manifest: Mapping[str, Any], where: Path) -> None:
    """Raises LapaError for labels that are not what the manifest says."""
    if not len(labels.values):
        raise LapaError(f"{where.parent} holds no label. Write the labels anew.")
    count, classes = len(labels.values), manifest.get("classes", 0)
    if labels.kind != manifest.get("kind", labels.kind) or count != manifest.get("pairs", count):
        raise LapaError(f"{where} tells of {manifest.get('pairs')} {manifest.get('kind')}, and {TABLE} holds "
                        f"{count} {labels.kind}. Write the labels anew.")  # fmt: skip
    if min(labels.episode.min(), labels.frame.min()) < 0:
        raise LapaError(f"{where.parent / TABLE}: an episode or a frame has a number below 0. Write the labels anew.")
    if labels.kind == "codes" and "classes" in manifest:
        if not 0 <= labels.values.min() <= labels.values.max() < classes:
            raise LapaError(f"{where} tells of {classes} kinds of codes, and {TABLE} holds {labels.values.min()} to "
                            f"{labels.values.max()}. Write the labels anew.")  # fmt: skip
        told, due = len(manifest.get("code_embeddings") or ()), labels.values.shape[1] * classes
        if told not in (0, due):
            raise LapaError(f"{where}: there are {told} code_embeddings; one for each code of each position is {due}.")
    if not np.isfinite(labels.values).all():
        raise LapaError(f"{where.parent / TABLE}: a label is not finite. Write the labels anew.")


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
