"""Stage 2b, `lapa pretrain`: a policy learns to predict the labels from x_t and the instruction, by cross-entropy.

Codes are classes as they are; actions (VPT, ActionVLA) are put into clusters or equal-mass bins first. Frames (UniPi)
are imagined, by video diffusion. The vision encoder is frozen, the language model is not (paper section 3.2).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lapa.actions.codebook import ActionCodebook
from lapa.actions.saved import Space
from lapa.actions.scales import Scales
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.artefacts.folder import provenance, read_json, save_artefact
from lapa.contracts import Array, Labels, LapaError, Logs
from lapa.data.buffer import Buffer
from lapa.data.futures import Futures, futures
from lapa.data.index import Index
from lapa.data.labelled import MANIFEST
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed
from lapa.data.pixels import as_pixels
from lapa.data.stream import Stream
from lapa.measures.probes import r2
from lapa.methods import METHODS
from lapa.plots.codes import future_frames
from lapa.policies.video_planner import VideoPlanner
from lapa.policies.vla import VLA, Batch
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank, rank
from lapa.training.logbook import Logbook
from lapa.training.loop import Optimisation, Sampler, device, fit, seed_everything

WATCHED = 256  # futures, fixed for the run, that a planner is judged by
SHOWN = 5  # of them in the picture
OPTIMISED = {"vla": "pretrain", "video_planner": "pretrain_planner"}  # policy -> setting of the recipe


def optimised_by(labels: Path) -> str:
    """The setting of the recipe that says how a policy for the labels in this folder is optimised."""
    manifest = labels / MANIFEST
    return _optimised_by(read_json(manifest, "labels") if manifest.exists() else {"method": "lapa"})


def _optimised_by(manifest: dict[str, Any]) -> str:
    return OPTIMISED[METHODS[manifest["method"]].policy]


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
    frames = check_labels(packed, labels, manifest, source_hash)
    seed_everything(seed)
    how: Optimisation = getattr(recipe, _optimised_by(manifest))
    policy: VLA | VideoPlanner
    monitor = None
    with ExitStack() as stack:
        if labels.kind != "frames":
            policy = recipe.policy.build()
            if recipe.scale == "each" and manifest["source"] == "ground_truth":  # others speak one robot's units
                source = packed.source[labels.episode]
                policy.scales = Scales.of(labels.values, source)
                labels = replace(labels, values=policy.scales.normalise(labels.values, source))
            space, targets = classes_of(labels, manifest, recipe)
            policy.adapt(space)
            if isinstance(packed, Stream):
                buffer = stack.enter_context(closing(label_buffer(packed, labels, seed, how.batch_size, megabytes)))
                sample = stream_sampler(buffer, targets, how.batch_size)
            else:
                sample = sampler(packed, frames, targets, how.batch_size)
        elif isinstance(packed, Stream):
            raise LapaError("A policy that imagines frames (UniPi) needs a pack of the videos; leave out --stream.")
        else:
            policy = recipe.video_planner.build()
            after = packed.starts[labels.episode] + labels.values[:, 0]
            films = futures(packed, frames, after, recipe.planner.frames)
            monitor = watcher(policy, films, frames, out, seed)
            sample = sampler(packed, frames, films, how.batch_size)
        _tell_of_instructions(packed, policy.backbone)
        results = fit(policy, sample, how, out, seed=seed, title=f"pretraining on {manifest['method']} labels",
                      parameters=policy.trainable("all"), monitor=monitor,
                      monitor_every=max(1, how.steps // 4))  # fmt: skip
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


def _tell_of_instructions(packed: Index, backbone: nn.Module) -> None:
    """Say, once, which instructions are missing or not read: the policy learns nothing from those."""
    if rank() > 0:
        return
    missing = sum(not text.strip() for text in packed.instructions)
    if missing:
        print(f"{missing} of {packed.episodes} episodes have no instruction.", flush=True)
    overlooked = getattr(backbone, "overlooked", None)
    for sentence in overlooked(packed.instructions) if overlooked else ():
        print(f"Warning: {sentence}", file=sys.stderr, flush=True)


def classes_of(labels: Labels, manifest: dict[str, Any], recipe: Recipe) -> tuple[Space, Array]:
    """What the head predicts, and the labels as classes int64 [N, positions]."""
    if labels.kind == "codes":
        embeddings = tuple(map(tuple, manifest.get("code_embeddings", ())))
        return CodeSpace(labels.values.shape[1], int(manifest["classes"]), code_embeddings=embeddings), labels.values
    return classes_of_actions(labels.values[:, None], recipe, tuple(manifest.get("action_names") or ()))


def classes_of_actions(
    actions: Array, recipe: Recipe, names: tuple[str, ...]
) -> tuple[ActionSpace | ActionCodebook, Array]:
    """A space for chunks of actions [N, chunk, A], clusters or bins as the recipe says, and the actions as classes
    int64 [N, positions]."""
    if recipe.clusters:
        words = ActionCodebook.clusters(actions, recipe.clusters, names)
        return words, words.encode(actions)
    chunk, dimensions = actions.shape[1:]
    bins = ActionSpace.fit(actions[:, 0], recipe.bins, chunk, names)
    return bins, bins.encode(actions).reshape(-1, chunk * dimensions)


def sampler(packed: Packed, frames: Array, targets: Array | Futures, size: int) -> Sampler:
    """Batches of random rows: frames int64 [N] (global), targets int64 [N, positions] or the frames to imagine."""
    episodes = packed.episode_of(frames)
    mixture = Mixture(packed, episodes)

    def draw(rng: np.random.Generator) -> Array:
        return mixture.draw(rng, size)

    def load(rows: Array) -> Batch:
        texts = [packed.instructions[e] for e in episodes[rows]]
        return Batch(packed.gather(frames[rows]), texts, targets[rows])

    return Sampler(draw, load)


def watcher(
    planner: VideoPlanner, real: Futures, frames: Array, out: Path, seed: int
) -> Callable[[int, Logbook], Logs]:
    """A monitor for `fit`: imagined futures beside the real ones, as a picture and in figures.

    error_over_copy is that of the imagined frames; action_agreement, once the planner reads actions, the R^2 of the
    true ones. Both are of training data: no video is held out from the policies.
    """
    rows = np.random.default_rng(seed).choice(len(frames), min(WATCHED, len(frames)), replace=False)
    packed = real.packed
    now, texts = packed.gather(frames[rows]), [packed.instructions[e] for e in packed.episode_of(frames[rows])]
    future = real[rows]

    def monitor(step: int, book: Logbook) -> Logs:
        film = planner.imagine(now, texts)
        begin, end = (as_pixels(x, planner.size, device()) for x in (now, future.reshape(-1, *now.shape[1:])))
        true = end.view_as(film)
        error, copy = (float((x - true).square().mean()) for x in (film, begin[:, None]))
        logs = {"watched/error_over_copy": error / max(copy, 1e-9)}
        if planner.reader is not None and packed.actions is not None:
            acted = packed.actions[np.column_stack([frames[rows], real.index[rows, :-1]])]  # [B, K, A]
            read = planner.read(begin, film).cpu().numpy()
            logs["watched/action_agreement"] = r2(read.reshape(len(read), -1), acted.reshape(len(read), -1))
        picture = out / "pictures" / "futures.png"
        title = f"The next frames, real and imagined; step {step}"
        future_frames(begin[:SHOWN], true[:SHOWN], film[:SHOWN], texts[:SHOWN], picture, title)
        book.picture("futures", picture)
        return logs

    return monitor


def label_buffer(stream: Stream, labels: Labels, seed: int, batch: int, megabytes: int) -> Buffer:
    """A shuffle buffer of the frames that have a label.

    Raises LapaError for labels that are not of the first frames of each episode, as `lapa label` writes them."""
    counts = np.bincount(labels.episode, minlength=stream.episodes)
    firsts = np.cumsum(counts) - counts
    if not np.array_equal(labels.frame, np.arange(len(labels.frame)) - firsts[labels.episode]):
        raise LapaError("These labels have gaps, so they need a pack of the videos; leave out --stream.")
    return Buffer(stream, counts, np.zeros_like(counts), seed=seed, batch=batch, megabytes=megabytes)


def stream_sampler(buffer: Buffer, targets: Array, size: int) -> Sampler:
    """Batches from a shuffle buffer of labelled frames; targets int64 [N, positions] in the order of the labels."""
    segments = buffer.segments
    firsts = np.cumsum(segments.counts) - segments.counts

    def load(samples: Array) -> Batch:
        episode, frame, none = buffer.places(samples)
        texts = [segments.stream.instructions[e] for e in episode]
        return Batch(buffer.gather(samples, none), texts, targets[firsts[episode] + frame])

    return Sampler(lambda rng: buffer.draw(rng, size), load, buffer.begin)


def save_policy(
    policy: VLA | VideoPlanner,
    recipe: Recipe,
    results: Logs,
    out: Path,
    seed: int,
    packed: Index,
    parents: dict[str, str],
    method: str,
) -> None:
    """Write a "policy" artefact."""
    parents = parents | getattr(policy.backbone, "origin", {})
    made = {
        **policy.description(),
        "method": method,
        "recipe": recipe.to_json(),
        "results": results,
        "provenance": provenance(seed, {packed.spec: packed.fingerprint}, parents),
    }
    on_first_rank(lambda: save_artefact(out, "policy", made, policy.state_dict()))
