"""Stage 2b, `lapa pretrain`: a policy learns to predict the labels from x_t and the instruction.

What it learns of which labels is the policy's own (lapa/policies): codes and actions as classes (LAPA, VPT, ActionVLA),
or frames, which are imagined (UniPi). The vision encoder is frozen, the language model is not (paper section 3.2).
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import provenance, read_json, save_artefact
from lapa.contracts import Array, Labels, LapaError, Logs
from lapa.data.buffer import Buffer
from lapa.data.index import Index
from lapa.data.labelled import MANIFEST
from lapa.data.mixture import Mixture
from lapa.data.observations import Seen
from lapa.data.pack import Packed
from lapa.data.stream import Stream
from lapa.policies import Examples, Policy, PolicyConfig, configured, look
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank, rank
from lapa.training.loop import Optimisation, Sampler, fit, seed_everything


def learner(labels: Path, recipe: Recipe) -> PolicyConfig:
    """The policy that learns the labels in this folder: what can be known of it before it is built."""
    manifest = labels / MANIFEST
    return configured(recipe, read_json(manifest, "labels")["method"] if manifest.exists() else "lapa")


def check_labels(packed: Index, labels: Labels, manifest: dict[str, Any], laq_hash: str | None = None) -> Array:
    """Rows of the labels as global frame indices, int64 [N].

    A stream does not know its pixels, and frames of another size have others: if one side was a stream, or was labelled
    at another size, all but the pixels is compared. Raises LapaError when the labels were made from other data, by
    another LAQ than `laq_hash`, or point outside.
    """
    made_from = manifest.get("fingerprint")
    other_pixels = packed.fingerprint == packed.outline or manifest.get("image_size") != packed.image_size
    if made_from not in (packed.fingerprint, packed.outline) and not (
        other_pixels and manifest.get("outline") == packed.outline
    ):
        raise LapaError(
            f"These labels were made from {manifest.get('dataset')} (fingerprint {made_from}), "
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
    packed: Packed | Stream,
    labels: Labels,
    manifest: dict[str, Any],
    recipe: Recipe,
    out: Path,
    seed: int,
    source_hash: str | None = None,
    megabytes: int = 1024,
) -> dict[str, Any]:
    """Train a policy on the labels and save it to `out`. Returns the results kept in its config.json.

    A stream is read through a shuffle buffer; its frames in memory take `megabytes` at most (data/buffer.py)."""
    if isinstance(packed, Stream):
        packed = packed.without(manifest.get("left_out", []))
    check_labels(packed, labels, manifest, source_hash)
    seed_everything(seed)
    config = configured(recipe, manifest["method"])
    require_learns(config, labels)
    how: Optimisation = getattr(recipe, config.pretrained_by)
    policy = config.build()
    examples = policy.examples(labels, packed, manifest, recipe)
    with ExitStack() as stack:
        if isinstance(packed, Stream):
            buffer = stack.enter_context(closing(label_buffer(packed, labels, seed, how.batch_size, megabytes)))
            sample = stream_sampler(policy, buffer, examples, how.batch_size)
        else:
            sample = sampler(policy, packed, examples, how.batch_size)
        _tell_of_instructions(packed, policy)
        results = fit(policy, sample, how, out, seed=seed, title=f"pretraining on {manifest['method']} labels",
                      parameters=policy.trainable("all"), monitor=examples.watch and examples.watch(out, seed),
                      monitor_every=max(1, how.steps // 4))  # fmt: skip
    parents = {str(manifest["source"]): str(manifest["source_hash"])}
    save_policy(policy, recipe, results, out, seed, packed, parents, manifest["method"])
    return results


def require_learns(config: PolicyConfig, labels: Labels) -> None:
    """Raises LapaError for labels of a kind that the policy does not learn."""
    if labels.kind not in config.learns:
        raise LapaError(
            f"These labels are {labels.kind}, and this policy learns {' or '.join(config.learns)}. Leave policy.name "
            "out, or label with another source."
        )


def _tell_of_instructions(packed: Index, policy: Policy) -> None:
    """Say, once, which instructions are missing or not read: the policy learns nothing from those."""
    if rank() > 0:
        return
    missing = sum(not text.strip() for text in packed.instructions)
    if missing:
        print(f"{missing} of {packed.episodes} episodes have no instruction.", flush=True)
    for sentence in policy.overlooked(packed.instructions):
        print(f"Warning: {sentence}", file=sys.stderr, flush=True)


def sampler(policy: Policy, packed: Packed, examples: Examples, size: int, rows: Array | None = None) -> Sampler:
    """Batches of random examples of those in `rows` (None: of all)."""
    every = np.arange(len(examples.frames)) if rows is None else rows
    mixture = Mixture(packed, packed.episode_of(examples.frames[every]))

    def draw(rng: np.random.Generator) -> Array:
        return every[mixture.draw(rng, size)]

    def load(rows: Array) -> Any:
        return policy.batch(look(packed, examples.frames[rows], policy.spec), examples.targets[rows])

    return Sampler(draw, load)


def label_buffer(stream: Stream, labels: Labels, seed: int, batch: int, megabytes: int) -> Buffer:
    """A shuffle buffer of the frames that have a label.

    Raises LapaError for labels that are not of the first frames of each episode, as `lapa label` writes them."""
    counts = np.bincount(labels.episode, minlength=stream.episodes)
    firsts = np.cumsum(counts) - counts
    if not np.array_equal(labels.frame, np.arange(len(labels.frame)) - firsts[labels.episode]):
        raise LapaError("These labels have gaps, so they need a pack of the videos; leave out --stream.")
    return Buffer(stream, counts, np.zeros_like(counts), seed=seed, batch=batch, megabytes=megabytes)


def stream_sampler(policy: Policy, buffer: Buffer, examples: Examples, size: int) -> Sampler:
    """Batches from a shuffle buffer of labelled frames; the examples are in the order of the labels."""
    segments = buffer.segments
    firsts = np.cumsum(segments.counts) - segments.counts
    (camera,) = policy.spec.cameras

    def load(samples: Array) -> Any:
        episode, frame, none = buffer.places(samples)
        texts = [segments.stream.instructions[e] for e in episode]
        seen = Seen({camera: buffer.gather(samples, none)}, texts)
        return policy.batch(seen, examples.targets[firsts[episode] + frame])

    return Sampler(lambda rng: buffer.draw(rng, size), load, buffer.begin)


def save_policy(
    policy: Policy,
    recipe: Recipe,
    results: Logs,
    out: Path,
    seed: int,
    packed: Index,
    parents: dict[str, str],
    method: str,
) -> None:
    """Write a "policy" artefact."""
    made = {
        **policy.description(),
        "method": method,
        "recipe": recipe.to_json(),
        "results": results,
        "provenance": provenance(seed, {packed.spec: packed.fingerprint}, {**parents, **policy.origin}),
    }
    on_first_rank(lambda: save_artefact(out, "policy", made, policy.state_dict()))
