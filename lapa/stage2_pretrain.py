"""Stage 2b, `lapa pretrain`: a policy learns to predict the labels from x_t and the instruction.

The policy (lapa/policies) says how it learns which labels: codes and actions as classes (LAPA, VPT, ActionVLA), or
frames, which are imagined (UniPi). The vision encoder is frozen, the language model is not (paper section 3.2).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import provenance, save_artefact
from lapa.contracts import Array, BadVideo, Labels, LapaError, Logs
from lapa.data.buffer import Buffer, Segments
from lapa.data.index import Index
from lapa.data.labelled import MANIFEST, read_manifest
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed
from lapa.data.stream import Stream
from lapa.policies import Examples, Policy, PolicyConfig, configured, look
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank, rank
from lapa.training.held_out import (
    FRAMES,
    LOOKS,
    LOSS,
    SLACK,
    Monitor,
    held_out_monitor,
    is_held_out,
    most_frequent,
    spread,
)
from lapa.training.logbook import Logbook
from lapa.training.loop import Optimisation, Sampler, fit, seed_everything

SEGMENT = 16  # frames that are read together of a held-out episode of a stream


def learner(labels: Path, recipe: Recipe) -> PolicyConfig:
    """The policy that learns the labels in this folder: what can be known of it before it is built. Raises LapaError
    where what it is made of is not installed."""
    manifest = labels / MANIFEST
    about = read_manifest(labels) if manifest.exists() else {"method": "lapa", "kind": "codes"}
    config = configured(recipe, str(about.get("method")))
    config.borrowed()  # what is not installed is told now, and not after minutes of reading videos
    config.require_pretrainable(str(about.get("kind")))
    return config


def check_labels(packed: Index, labels: Labels, manifest: dict[str, Any], laq_hash: str | None = None) -> Array:
    """Rows of the labels as global frame indices, int64 [N].

    A stream does not know its pixels, and frames of another size or fit have others: if one side was a stream, or was
    labelled at another size, all but the pixels is compared. So are the actions where both have some. Raises LapaError
    when the labels were made from other data, by another LAQ than `laq_hash`, or point outside.
    """
    made_from = manifest.get("fingerprint")
    other_pixels = packed.fingerprint == packed.outline or manifest.get("image_size") != packed.image_size
    other_pixels |= packed.fit != "squash"  # labels are made of whole frames
    if made_from not in (packed.fingerprint, packed.outline) and not (
        other_pixels and manifest.get("outline") == packed.outline
    ):
        raise LapaError(
            f"These labels were made from {manifest.get('dataset')} (fingerprint {made_from}), "
            f"not from {packed.spec} ({packed.fingerprint}). Label this dataset (lapa label) or give the one that was "
            "labelled."
        )
    if packed.acts and manifest.get("acts") not in (packed.acts, None, ""):
        raise LapaError(
            f"These labels were made from {manifest.get('dataset')} with other actions than {packed.spec} has: it is "
            "another recording, or its actions were changed since. Label it again (lapa label)."
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

    A stream is read through a shuffle buffer; its frames in memory take `megabytes` at most (data/buffer.py).

    Every `recipe.hold_out`th episode, if there are so many, is held out: the policy is watched on those, the weights of
    the step that is best on them are kept, and training ends once that step has clearly passed (`recipe.patience`)."""
    if isinstance(packed, Stream):
        packed = packed.without(manifest.get("left_out", []))
    check_labels(packed, labels, manifest, source_hash)
    seed_everything(seed)
    config = configured(recipe, manifest["method"])
    require_learns(config, labels)
    config.require_pretrainable(labels.kind)
    how: Optimisation = getattr(recipe, config.pretrained_by)
    policy = config.build()
    examples = policy.examples(labels, packed, manifest, recipe)
    held = is_held_out(labels.episode, recipe.hold_out)
    watch = Watch(policy, examples, np.flatnonzero(held), np.flatnonzero(~held), how, seed)
    patience = recipe.patience if held.any() else 0
    with ExitStack() as stack:
        if isinstance(packed, Stream):
            buffer = label_buffer(packed, labels, seed, how.batch_size, megabytes, held)
            sample = stream_sampler(policy, stack.enter_context(closing(buffer)), examples, how.batch_size, labels)
            watched = watch.of_stream(packed, labels) if held.any() else None
        else:
            sample = sampler(policy, packed, examples, how.batch_size, watch.trained if held.any() else None)
            watched = watch.of_pack(packed) if held.any() else None
        tell_of_instructions(packed, policy)
        monitor, every = _monitors(watched, examples.watch and examples.watch(out, seed), how.steps)
        logs = fit(policy, sample, how, out, seed=seed, title=f"pretraining on {manifest['method']} labels",
                   parameters=policy.trainable("all"), monitor=monitor, monitor_every=every,
                   best=LOSS if patience else "", patience=patience, slack=SLACK if patience else 0.0)  # fmt: skip
    results = {**logs, **watch.told(packed)}
    parents = {str(manifest["source"]): str(manifest["source_hash"])}
    taught = {"trained": sorted(manifest["taught"])} if manifest.get("taught") else None
    save_policy(policy, recipe, results, out, seed, packed, parents, manifest["method"], taught)
    return results


@dataclass(frozen=True)
class Watch:
    """What a policy is watched on while it learns: rows int64 of the examples that are held out, and those that are
    trained on."""

    policy: Policy
    examples: Examples
    held: Array
    trained: Array
    how: Optimisation
    seed: int

    def of_pack(self, packed: Packed) -> Monitor:
        """On frames of a pack."""
        rows, features = spread(self.held, FRAMES, self.seed), self.policy.features(packed)

        def batches() -> Iterator[tuple[int, Any]]:
            for start in range(0, len(rows), self.how.batch_size):
                some = rows[start : start + self.how.batch_size]
                seen = look(packed, self.examples.frames[some], self.policy.spec, features=features)
                yield len(some), self.policy.batch(seen, self.examples.targets[some])

        return self._monitor(batches, rows)

    def of_stream(self, stream: Stream, labels: Labels) -> Monitor:
        """On some segments of the held-out episodes, which are decoded once and stay in memory."""
        counts = np.bincount(labels.episode[self.held], minlength=stream.episodes)
        segments = Segments(replace(stream, weights=None), counts, np.zeros_like(counts), SEGMENT)
        first = _first_rows(labels, stream.episodes)
        rng = np.random.default_rng(self.seed)
        found: dict[tuple[int, int], Array] = {}
        for _ in range(4 * FRAMES // SEGMENT):
            episode, begin, _ = segments.draw(rng)
            begin -= begin % SEGMENT
            if (episode, begin) in found or len(found) * SEGMENT >= FRAMES:
                continue
            try:
                read = segments.read(episode, begin, min(SEGMENT, int(counts[episode]) - begin))
            except BadVideo:
                if not stream.skip_bad:
                    raise
                continue
            found[episode, begin] = read.frames[: read.count]
        (camera,) = self.policy.spec.cameras
        rows = np.concatenate([first[e] + begin + np.arange(len(frames)) for (e, begin), frames in found.items()])

        def batches() -> Iterator[tuple[int, Any]]:
            for (episode, begin), frames in found.items():
                some = first[episode] + begin + np.arange(len(frames))
                at = int(stream.starts[episode]) + begin + np.arange(len(frames))
                seen = look(stream, at, self.policy.spec, {camera: frames})
                yield len(frames), self.policy.batch(seen, self.examples.targets[some])

        return self._monitor(batches, rows)

    def _monitor(self, batches: Callable[[], Iterator[tuple[int, Any]]], rows: Array) -> Monitor:
        usual = None
        if isinstance(self.examples.targets, np.ndarray):
            usual = most_frequent(self.examples.targets[self.trained], self.examples.targets[rows])
        return held_out_monitor(self.policy, batches, self.how, self.seed, usual)

    def told(self, packed: Index) -> dict[str, Any]:
        """For the results."""
        episodes = len(np.unique(packed.episode_of(self.examples.frames[self.held])))
        return {"watched_on": f"{episodes} held-out episodes" if episodes else "nothing: too few episodes to hold out"}


def _monitors(held: Monitor | None, own: Monitor | None, steps: int) -> tuple[Monitor | None, int]:
    """The monitor for `fit` and how often it runs: LOOKS times what is held out, four times the policy's own."""
    every, rarely = max(1, steps // LOOKS), max(1, steps // 4)
    if held is None:
        return own, rarely

    def both(step: int, book: Logbook) -> Logs:
        logs = held(step, book)
        if own and (step % rarely < every or step == steps):
            logs |= own(step, book)
        return logs

    return both, every


def require_learns(config: PolicyConfig, labels: Labels) -> None:
    """Raises LapaError for labels of a kind that the policy does not learn."""
    if labels.kind not in config.learns:
        raise LapaError(
            f"These labels are {labels.kind}, and this policy learns {' or '.join(config.learns)}. Leave policy.name "
            "out, or label with another source."
        )


def tell_of_instructions(packed: Index, policy: Policy) -> None:
    """Say which instructions are missing or not read: the policy learns nothing from those."""
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
    mixture, features = Mixture(packed, packed.episode_of(examples.frames[every])), policy.features(packed)

    def draw(rng: np.random.Generator) -> Array:
        return every[mixture.draw(rng, size)]

    def load(rows: Array) -> Any:
        seen = look(packed, examples.frames[rows], policy.spec, features=features)
        return policy.batch(seen, examples.targets[rows])

    return Sampler(draw, load)


def label_buffer(stream: Stream, labels: Labels, seed: int, batch: int, megabytes: int, held: Array) -> Buffer:
    """A shuffle buffer of the frames that have a label and are not held out, bool [N].

    Raises LapaError for labels that are not of the first frames of each episode, as `lapa label` writes them."""
    counts = np.bincount(labels.episode[~held], minlength=stream.episodes)
    firsts = _first_rows(labels, stream.episodes)
    if not np.array_equal(labels.frame, np.arange(len(labels.frame)) - firsts[labels.episode]):
        raise LapaError("These labels have gaps, so they need a pack of the videos; leave out --stream.")
    return Buffer(stream, counts, np.zeros_like(counts), seed=seed, batch=batch, megabytes=megabytes)


def _first_rows(labels: Labels, episodes: int) -> Array:
    """The row of the first label of each episode, int64 [E]."""
    counts = np.bincount(labels.episode, minlength=episodes)
    firsts: Array = np.cumsum(counts) - counts
    return firsts


def stream_sampler(policy: Policy, buffer: Buffer, examples: Examples, size: int, labels: Labels) -> Sampler:
    """Batches from a shuffle buffer of labelled frames; the examples are in the order of the labels."""
    segments = buffer.segments
    firsts = _first_rows(labels, segments.stream.episodes)
    if len(policy.spec.cameras) > 1:
        raise LapaError("A policy of several cameras needs a pack of the videos; leave out --stream.")
    (camera,) = policy.spec.cameras

    def load(samples: Array) -> Any:
        episode, frame, none = buffer.places(samples)
        at = segments.stream.starts[episode] + frame
        seen = look(segments.stream, at, policy.spec, {camera: buffer.gather(samples, none)})
        return policy.batch(seen, examples.targets[firsts[episode] + frame])

    return Sampler(lambda rng: buffer.draw(rng, size), load, buffer.begin)


def save_policy(
    policy: Policy,
    recipe: Recipe,
    results: dict[str, Any],
    out: Path,
    seed: int,
    packed: Index,
    parents: dict[str, str],
    method: str,
    labelled: dict[str, list[str]] | None = None,
) -> None:
    """Write a "policy" artefact. `labelled`: keys of the episodes whose actions it was taught."""
    made = {
        **policy.description(),
        "method": method,
        "recipe": recipe.to_json(),
        "results": results,
        "provenance": provenance(seed, {packed.spec: packed.fingerprint}, {**parents, **policy.origin}),
        **({"labelled": labelled} if labelled else {}),
    }
    on_first_rank(lambda: save_artefact(out, "policy", made, policy.state_dict(), *policy.lent()))
