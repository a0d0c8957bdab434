"""Stage 2b, `lapa pretrain`: a policy learns to predict the labels from x_t and the instruction, by cross-entropy.

Codes are classes as they are; actions (VPT, ActionVLA) are put into equal-mass bins first. The vision encoder is
frozen, the language model is not (paper section 3.2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array, Labels, LapaError, Logs
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed
from lapa.data.transforms import ActionSpace, CodeSpace, Space
from lapa.policies.vla import VLA, Batch
from lapa.recipe import Recipe
from lapa.training.checkpoint import provenance, save_artefact
from lapa.training.distributed import on_first_rank
from lapa.training.loop import Sampler, fit, seed_everything


def check_labels(packed: Packed, labels: Labels, manifest: dict[str, Any], laq_hash: str | None = None) -> Array:
    """Rows of the labels as global frame indices, int64 [N].

    Raises LapaError when the labels were made from other data, by another LAQ than `laq_hash`, or point outside.
    """
    if manifest.get("fingerprint") != packed.fingerprint:
        raise LapaError(
            f"These labels were made from {manifest.get('dataset')} (fingerprint {manifest.get('fingerprint')}), "
            f"not from {packed.spec} ({packed.fingerprint}). Label this dataset (lapa label) or give the one that was "
            "labelled."
        )
    if laq_hash and manifest.get("source_hash") != laq_hash:
        raise LapaError(
            f"These labels come from a label source with hash {manifest.get('source_hash')}, not from the one expected "
            f"({laq_hash}). Label the dataset again with it."
        )
    lengths = np.diff(packed.starts)
    if (
        labels.episode.min() < 0
        or labels.episode.max() >= packed.episodes
        or (labels.frame >= lengths[labels.episode]).any()
    ):
        raise LapaError(f"The labels point outside {packed.spec}; label it again.")
    return packed.starts[labels.episode] + labels.frame


def pretrain(
    packed: Packed,
    labels: Labels,
    manifest: dict[str, Any],
    recipe: Recipe,
    out: Path,
    seed: int,
    source_hash: str | None = None,
) -> dict[str, Any]:
    """Train a policy on the labels and save it to `out`. Returns the results kept in its config.json."""
    frames = check_labels(packed, labels, manifest, source_hash)
    seed_everything(seed)
    policy = recipe.policy.build()
    space, targets = classes_of(labels, manifest, recipe)
    policy.adapt(space)
    sample = sampler(packed, frames, targets, recipe.pretrain.batch_size)
    results = fit(policy, sample, recipe.pretrain, out, seed=seed, title=f"pretraining on {manifest['method']} labels",
                  parameters=policy.trainable("all"))  # fmt: skip
    save_policy(
        policy,
        recipe,
        results,
        out,
        seed,
        packed,
        {str(manifest["source"]): str(manifest["source_hash"])},
        manifest["method"],
    )
    return results


def classes_of(labels: Labels, manifest: dict[str, Any], recipe: Recipe) -> tuple[Space, Array]:
    """What the head predicts, and the labels as classes int64 [N, positions]."""
    if labels.kind == "codes":
        return CodeSpace(labels.values.shape[1], int(manifest["classes"])), labels.values
    space = ActionSpace.fit(labels.values, recipe.bins, names=tuple(manifest.get("action_names") or ()))
    return space, space.encode(labels.values)


def sampler(packed: Packed, frames: Array, targets: Array, size: int) -> Sampler:
    """Batches of random rows: frames int64 [N] (global), targets int64 [N, positions]."""
    episodes = packed.episode_of(frames)
    mixture = Mixture(packed, episodes)

    def draw(rng: np.random.Generator) -> Array:
        return mixture.draw(rng, size)

    def load(rows: Array) -> Batch:
        texts = [packed.instructions[e] for e in episodes[rows]]
        return Batch(packed.gather(frames[rows]), texts, targets[rows])

    return Sampler(draw, load)


def save_policy(
    policy: VLA,
    recipe: Recipe,
    results: Logs,
    out: Path,
    seed: int,
    packed: Packed,
    parents: dict[str, str],
    method: str,
) -> None:
    """Write a "policy" artefact."""
    made = {
        **policy.description(),
        "method": method,
        "recipe": recipe.to_json(),
        "results": results,
        "provenance": provenance(seed, {packed.spec: packed.fingerprint}, parents),
    }
    on_first_rank(lambda: save_artefact(out, "policy", made, policy.state_dict()))
