"""Stage 2a, `lapa label`: dataset x label source -> labels on disk, one row per frame that has a later frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lapa import plugins
from lapa.contracts import Labels, LapaError
from lapa.data.labelled import write_labels
from lapa.data.pack import Packed
from lapa.data.pairs import window_pairs
from lapa.methods import METHODS
from lapa.recipe import Recipe
from lapa.training.checkpoint import read_json
from lapa.training.distributed import gather, on_first_rank, rank, ranks
from lapa.training.memory import keep_freed_memory
from lapa.training.metrics import r2
from lapa.training.progress import Progress

BATCH = 64  # pairs labelled at once: larger batches leave the cache and are a third slower on a CPU
KINDS = {"laq": "lapa", "idm": "vpt"}  # kind of artefact -> the method whose labels it gives


def method_of(source: str) -> str:
    """Which method's labels `--source` gives: a folder made by stage 1, or the word "ground_truth".

    Raises LapaError for anything else.
    """
    if source == "ground_truth":
        return "actionvla"
    path = Path(source)
    if not path.is_dir():
        raise LapaError(
            f'There is no folder {source}. --source is a folder made by `lapa quantize`, or "ground_truth".'
        )
    kind = str(read_json(path / "config.json", "finished label source (lapa quantize makes one)").get("kind"))
    if kind not in KINDS:
        raise LapaError(
            f'{source} holds a "{kind}" artefact; labels come from a laq or an idm (lapa quantize makes them).'
        )
    return KINDS[kind]


def source_image_size(source: str) -> int:
    """Pixels a side that the source labels at. Raises LapaError for anything that is not a label source."""
    if method_of(source) == "actionvla":
        return Recipe().policy_image_size
    return int(read_json(Path(source) / "config.json", "finished label source")["model"]["image_size"])


def label(packed: Packed, source: str, out: Path, end: str = "drop", precision: str = "float32") -> dict[str, Any]:
    """Label every pair of the source's window and write `out`. Returns the manifest. Ranks share the work.

    precision is the arithmetic of a LAQ: "float32", or "bfloat16" (labels/latent.py). Raises LapaError when the source
    does not fit the data (no actions for ground truth, say) or has no choice of precision.
    """
    method = METHODS[method_of(source)]
    keep_freed_memory()
    options = {"path": source}
    if method.source == "latent":
        options["precision"] = precision
    elif precision != "float32":
        raise LapaError(f"--precision {precision} is for the codes of a LAQ; {source} is not one. Leave it out.")
    labeller = plugins.find("labels", str(method.source))(**options).build()
    pairs = window_pairs(packed, labeller.window or 1e-9, end)  # type: ignore[arg-type]
    # Whole batches go to one process: what is computed is the same, to the bit, however many there are.
    batches = np.split(np.arange(len(pairs)), range(BATCH, len(pairs), BATCH))
    mine = [batches[i] for i in np.array_split(np.arange(len(batches)), ranks())[rank()]]
    values = []
    with Progress("labelling", sum(map(len, mine)), unit="frames", quiet=rank() > 0) as progress:
        for rows in mine:
            values.append(labeller.label(pairs.batch(packed, rows)))
            progress.update(int(rows[-1]) + 1)
    parts = gather(np.concatenate(values) if values else None)
    found = np.concatenate([part for part in parts if part is not None])
    labels = Labels(labeller.kind, pairs.episode, pairs.frame, found)
    manifest = {
        "method": method.name,
        "source": source,
        "source_hash": labeller.hash,
        "kind": labels.kind,
        "classes": labeller.classes,
        "precision": precision,
        "window_seconds": labeller.window,
        "end": end,
        "dataset": packed.spec,
        "fingerprint": packed.fingerprint,
        "image_size": packed.image_size,
        "pairs": len(pairs),
        "episodes_too_short": pairs.dropped,
        "action_names": list(packed.action_names),
    }
    if labels.kind == "actions" and packed.actions is not None:
        manifest["r2_of_true_actions"] = r2(labels.values, packed.actions[pairs.now])
    on_first_rank(lambda: write_labels(out, labels, manifest))
    return manifest
