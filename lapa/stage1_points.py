"""Stages 1 and 2a in one, `lapa track`: follow the hand through all videos, and label them with the robot's actions.

A few labelled episodes tell what the motion of the followed points means; the optical flow of all videos makes points
stay on what they are on (models/points.py). What actions the points tell is then read from them, and a gripper from
what the encoder sees at the keypoints (labels/_read.py). With two cameras the labels hold in tasks that no labelled
episode shows (docs/world_table.md "What bounds it").
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
from lapa.contracts import Array, LapaError
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.labelled import MANIFEST, read_manifest
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex, window_pairs
from lapa.labels._read import AT_ONCE, Followed, motions_of, read_actions, write_actions
from lapa.measures.flow import flow_between, installed
from lapa.models.eyes import Eyes
from lapa.models.points import Points, PointsBatch
from lapa.plots.points import keypoints
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank
from lapa.runtime.progress import Progress
from lapa.training.loop import Sampler, fit, seed_everything

LABELS, PICTURE = "labels", "pictures/points.png"  # in the folder of the run
SPANS = (1, 2, 3)  # windows that motions are learnt over
MOST = 8000  # pairs of video whose flow is computed: more take minutes, and tell hardly more
SHOWN = 8  # frames in the picture


def track(packed: Packed, few: Packed, recipe: Recipe, out: Path, seed: int) -> dict[str, Any]:
    """Fit trackers to the labelled episodes `few` and the videos `packed`, and label the videos into out/labels.

    Both packs have the same cameras. Returns the manifest of the labels. Raises LapaError for actions that are no
    motions, and where optical flow is not installed.
    """
    motions, _ = motions_of(few, "lapa track")
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
        few_followed, followed = _followed(model, labelled), _followed(model, videos)
        actions, told = read_actions(few_followed, followed, config.window, "lapa track")
        meaning = Meaning.of(few)
        made = {"model": asdict(config), "shape": list(eyes.shape), "cameras": list(videos.names),
                "motions": len(motions), "meaning": meaning and asdict(meaning), "recipe": recipe.to_json(),
                "results": {"train_r2": told},
                "provenance": provenance(seed, {p.spec: p.fingerprint for p in (packed, few)}, {}),
                }  # fmt: skip
        write_tensors(weights_at(out), model.state_dict())
        source = file_hash(weights_at(out))
        if (out / LABELS / MANIFEST).exists() and read_manifest(out / LABELS)["source_hash"] != source:
            shutil.rmtree(out / LABELS)  # of fewer steps
        manifest = write_actions(packed, few, actions, out / LABELS, "track", out, source)
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


def _followed(model: Points, cameras: Cameras) -> Followed:
    """Where the keypoints of all cameras are, and what lies there, of all frames."""
    count, found = len(cameras.features[0]), []
    with Progress("following", count, unit="frames") as progress:
        for start in range(0, count, AT_ONCE):
            frames = np.arange(start, min(start + AT_ONCE, count))
            found.append([each.cpu().numpy() for each in model.look(cameras.take(frames))])
            progress.update(int(frames[-1]) + 1)
    places, at = (np.concatenate(each) for each in zip(*found, strict=True))
    return Followed(cameras.packed, places, at)


def _picture(model: Points, videos: Cameras, path: Path) -> None:
    """Keypoints in frames of all the videos."""
    frames = np.linspace(0, len(videos.features[0]) - 1, SHOWN + 2).round().astype(int)[1:-1]
    found = [each.cpu().numpy() for each in model.points(videos.take(frames))]
    shown = [view.gather(frames) for view in (videos.packed, *videos.packed._views)]
    path.parent.mkdir(exist_ok=True)
    keypoints(shown, found, videos.names, "What is followed, in frames of the videos", path)
