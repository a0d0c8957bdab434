"""Stages 1 and 2a in one, `lapa track`: follow the hand through all videos, and label them with the robot's actions.

A few labelled episodes tell what the motion of the followed points means; the optical flow of all videos makes points
stay on what they are on (models/points.py). What actions the places tell is then read by ridge regression: motions from
the differences of places around a frame, a gripper from what the encoder sees at the keypoints, as a switch that is
seldom thrown (measures/switches.py). As VPT's, the labels are actions. With two cameras they hold in tasks that no
label shows (docs/world_table.md "What bounds it").
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lapa.actions.meaning import Meaning
from lapa.artefacts.folder import file_hash, provenance, seal, weights_at, write_tensors
from lapa.contracts import Array, Labels, LapaError
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.folders import new_folder
from lapa.data.labelled import MANIFEST, TABLE, read_manifest, read_shard, write_manifest, write_shard
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex, window_pairs
from lapa.measures.flow import flow_between, installed
from lapa.measures.linear import LinearFit
from lapa.measures.probes import r2
from lapa.measures.switches import Switch
from lapa.models.eyes import Eyes
from lapa.models.points import Points, PointsBatch
from lapa.plots.points import keypoints
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank
from lapa.runtime.progress import Progress
from lapa.training.loop import Sampler, fit, seed_everything

LABELS, PICTURE = "labels", "pictures/points.png"  # in the folder of the run
SHARD = "part-000000.parquet"
SPANS = (1, 2, 3)  # windows that motions are learnt over
AROUND = range(-2, 7)  # differences of adjacent frames that an action is read from, from two before it on
MOST = 8000  # pairs of video whose flow is computed: more take minutes, and tell hardly more
SHOWN = 8  # frames in the picture
AT_ONCE = 256


def track(packed: Packed, few: Packed, recipe: Recipe, out: Path, seed: int) -> dict[str, Any]:
    """Fit trackers to the labelled episodes `few` and the videos `packed`, and label the videos into out/labels.

    Both packs have the same cameras. Returns the manifest of the labels. Raises LapaError for actions that are no
    motions, and where optical flow is not installed.
    """
    motions, others = _split(few)
    if not installed():
        raise LapaError('lapa track follows the optical flow, which needs OpenCV: pip install "lapa[flow]".')
    seed_everything(seed)
    config = recipe.points
    eyes = Eyes(config.encoder, config.encoder_options, config.image_size)
    videos, labelled = (Cameras.of(each, eyes) for each in (packed, few))
    model = Points(config, eyes.shape, len(videos.features), len(motions))
    sample = _sampler(model, videos, labelled, recipe, motions, seed)
    fit(model, sample, recipe.fit_points, out, seed=seed, title="tracker")

    def finish() -> dict[str, Any]:
        model.eval()
        _picture(model, videos, out / PICTURE)
        actions, told = _read(model, videos, labelled, motions, others)
        meaning = Meaning.of(few, "given")
        made = {"model": asdict(config), "shape": list(eyes.shape), "cameras": list(videos.names),
                "motions": len(motions), "meaning": meaning and asdict(meaning), "recipe": recipe.to_json(),
                "results": told, "provenance": provenance(seed, {p.spec: p.fingerprint for p in (packed, few)}, {}),
                }  # fmt: skip
        write_tensors(weights_at(out), model.state_dict())
        manifest = _write(packed, few, actions, meaning, out, file_hash(weights_at(out)))
        seal(out, "points", made)
        return manifest

    return on_first_rank(finish)


@dataclass(frozen=True)
class Cameras:
    """A pack with what the encoder sees in every frame of each of its cameras."""

    packed: Packed
    names: tuple[str, ...]
    features: tuple[FrameFeatures, ...]
    shape: tuple[int, int, int]

    @staticmethod
    def of(packed: Packed, eyes: Eyes) -> Cameras:
        """Computed where the cache has it not."""
        views = (packed, *packed._views)
        found = tuple(frame_features(view, eyes, eyes.numbers, eyes.name, eyes.key) for view in views)
        return Cameras(packed, tuple(view.camera or "main" for view in views), found, eyes.shape)

    def take(self, frames: Array) -> list[torch.Tensor]:
        """float16 [B, C, rows, columns] of each camera."""
        return [torch.from_numpy(each[frames]).unflatten(1, self.shape) for each in self.features]


def _split(few: Packed) -> tuple[list[int], list[int]]:
    """Which actions are motions, and which are not: numbers of dimensions. Raises LapaError where one is absolute, and
    where none is a motion."""
    few.require_actions("lapa track (--labelled)")
    kinds = few.action_spec.kinds if few.action_spec else ()
    if "absolute" in kinds or "delta" not in kinds:
        raise LapaError(
            f"{few.spec}: lapa track reads motions, and these actions are {', '.join(dict.fromkeys(kinds))}. It needs "
            "actions of the kind delta (docs/datasets.md), beside which there may be binary ones. Use lapa fit instead."
        )
    return [i for i, kind in enumerate(kinds) if kind == "delta"], [
        i for i, kind in enumerate(kinds) if kind != "delta"
    ]


def _sampler(
    model: Points, videos: Cameras, labelled: Cameras, recipe: Recipe, motions: Sequence[int], seed: int
) -> Sampler:
    """Batches of labelled pairs of one, two and three windows, and as many pairs of video with their flow."""
    window, few = recipe.points.window, labelled.packed
    spans = [window_pairs(few, n * window) for n in SPANS if _fits(few, n * window)]
    if not spans:
        window_pairs(few, window)  # says why
    now, later, episode = (np.concatenate([getattr(p, name) for p in spans]) for name in ("now", "later", "episode"))
    acted = few.acted(now, later)
    assert acted is not None
    motion = torch.from_numpy(acted[:, list(motions)].astype(np.float32))
    pairs = window_pairs(videos.packed, window)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(pairs))[:MOST])
    flow = _flow(videos.packed, pairs, rows, model.shape[1:])
    some = rng.permutation(len(now))[:AT_ONCE]
    model.standardise(labelled.take(now[some]), motion[-len(spans[-1]) :])
    mixture, drawn = Mixture(few, episode), len(rows)

    def draw(rng: np.random.Generator) -> Array:
        size = recipe.fit_points.batch_size
        return np.stack([mixture.draw(rng, size), rng.integers(drawn, size=size)], 1)

    def load(some: Array) -> PointsBatch:
        own, other = some.T
        film = rows[other]
        return PointsBatch(
            labelled.take(now[own]), labelled.take(later[own]), motion[own],
            videos.take(pairs.now[film]), videos.take(pairs.later[film]), [each[other].float() for each in flow],
        )  # fmt: skip

    return Sampler(draw, load)


def _fits(few: Packed, seconds: float) -> bool:
    """Whether an episode is longer than that."""
    return bool((np.diff(few.starts) > np.round(seconds * few.fps)).any())


def _flow(packed: Packed, pairs: PairIndex, rows: Array, cells: Sequence[int]) -> list[torch.Tensor]:
    """Of each camera float16 [n, 2, cells], in halves of a picture."""
    views, made = (packed, *packed._views), []
    with Progress("optical flow", len(views) * len(rows), unit="pairs") as progress:
        for view in views:
            found = np.empty((len(rows), 2, *cells), np.float16)
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                both = zip(view.gather(pairs.now[some]), view.gather(pairs.later[some]), strict=True)
                found[start : start + len(some)] = [2 * flow_between(a, b, *cells) for a, b in both]
                progress.update(progress.done + len(some))
            made.append(torch.from_numpy(found).flatten(2))
    return made


def _read(
    model: Points, videos: Cameras, labelled: Cameras, motions: list[int], others: list[int]
) -> tuple[Array, dict[str, Any]]:
    """Actions float32 [N, A] of all frames of the videos, and how well those of the labelled ones are told."""
    known, both = labelled.packed.require_actions("lapa track (--labelled)"), (labelled, videos)
    episode, other = (each.packed.episode_of(np.arange(len(each.features[0]))) for each in both)
    (places, there), (its_places, its_there) = (_looked(model, each) for each in both)
    made = [np.empty((len(rows), known.shape[1]), np.float32) for rows in (episode, other)]
    moved = [_around(places, labelled.packed), _around(its_places, videos.packed)]
    reading = LinearFit.fit(moved[0], known[:, motions], episode)
    if len(np.unique(episode)) > 2:
        reading = reading.stretched(moved[0], known[:, motions], episode)
    for actions, around in zip(made, moved, strict=True):
        actions[:, motions] = reading(around)
    if others:
        middle, spread = its_there.mean(0), its_there.std(0) + 1e-6
        seen = [_now_and_ahead((at - middle) / spread, each.packed, model.config.window)
                for at, each in zip((there, its_there), both, strict=True)]  # fmt: skip
        for number in others:
            switch = Switch.fit(seen[0], known[:, number], episode)
            for actions, features, of in zip(made, seen, (episode, other), strict=True):
                actions[:, number] = switch(features, of)
    return np.clip(made[1], known.min(0), known.max(0)), {"train_r2": r2(made[0], known)}


def _looked(model: Points, cameras: Cameras) -> tuple[Array, Array]:
    """Places float32 [N, D] and what lies at the keypoints [N, F], of all frames."""
    count, found = len(cameras.features[0]), []
    with Progress("following", count, unit="frames") as progress:
        for start in range(0, count, AT_ONCE):
            frames = np.arange(start, min(start + AT_ONCE, count))
            found.append([each.cpu().numpy() for each in model.look(cameras.take(frames))])
            progress.update(int(frames[-1]) + 1)
    places, at = (np.concatenate(each) for each in zip(*found, strict=True))
    return places, at


def _picture(model: Points, videos: Cameras, path: Path) -> None:
    """Keypoints in frames of all the videos."""
    frames = np.linspace(0, len(videos.features[0]) - 1, SHOWN + 2).round().astype(int)[1:-1]
    found = [each.cpu().numpy() for each in model.points(videos.take(frames))]
    shown = [view.gather(frames) for view in (videos.packed, *videos.packed._views)]
    path.parent.mkdir(exist_ok=True)
    keypoints(shown, found, videos.names, "What is followed, in frames of the videos", path)


def _around(places: Array, packed: Packed) -> Array:
    """Differences of adjacent frames around each one, float32 [N, D * len(AROUND)]; past an end there is no motion."""
    frames = np.arange(len(places))
    episode = packed.episode_of(frames)
    first, last = packed.starts[episode], packed.starts[episode + 1] - 1
    return np.hstack(
        [places[np.clip(frames + n + 1, first, last)] - places[np.clip(frames + n, first, last)] for n in AROUND]
    )


def _now_and_ahead(seen: Array, packed: Packed, seconds: float) -> Array:
    """Float [N, F] of each frame -> [N, 2F]: of the frame and of that which lies so far behind it, or the episode's
    last."""
    frames = np.arange(packed.starts[-1])
    episode = packed.episode_of(frames)
    steps = np.maximum(np.round(seconds * packed.fps).astype(int), 1)
    return np.hstack([seen, seen[np.minimum(frames + steps[episode], packed.starts[episode + 1] - 1)]])


def _write(
    packed: Packed, few: Packed, actions: Array, meaning: Meaning | None, out: Path, source: str
) -> dict[str, Any]:
    """Write the labels; `source` is the hash of the trackers. Returns the manifest."""
    pairs = window_pairs(packed, None)
    labels = Labels("actions", pairs.episode, pairs.frame, actions[pairs.now])
    manifest: dict[str, Any] = {
        "method": "track", "source": str(out), "source_hash": source, "kind": "actions", "classes": 0,
        "window_seconds": None, "end": "drop",
        "dataset": packed.spec, "fingerprint": packed.fingerprint, "outline": packed.outline,
        "image_size": packed.image_size, "pairs": len(pairs), "action_names": list(few.action_names),
        "meaning": meaning and asdict(meaning), "skipped": list(packed.bad), "left_out": [],
    }  # fmt: skip
    if packed.actions is not None and packed.actions.shape[1] == actions.shape[1]:
        manifest["r2_of_true_actions"] = r2(labels.values, packed.actions[pairs.now])
    folder = out / LABELS
    if (folder / MANIFEST).exists():
        if (there := read_manifest(folder))["source_hash"] == source:  # it was killed between the labels and the end
            return there
        shutil.rmtree(folder)  # of fewer steps
    with new_folder(folder, twin_is_fine=True) as fresh:
        (fresh / TABLE).mkdir()
        write_shard(fresh / TABLE / SHARD, labels)
        _, content, _ = read_shard(fresh / TABLE / SHARD)
        write_manifest(fresh, {**manifest, "shards": [{"file": SHARD, "pairs": len(pairs), "hash": content}]})
    return manifest
