"""Stage 2a with a few labelled episodes: the actions of all videos, read from where things are in every frame.

Motions are read from how places change around a frame (labels/_motions.py), and a gripper as a switch that is seldom
thrown (measures/switches.py). The places are those of LAQ's latent actions (`lapa label --labelled`), which all the
videos taught, or points that go with the hand (`lapa track`). The labels are actions, as VPT's are; but the inverse
dynamics of VPT sees the labelled episodes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lapa.actions.meaning import Meaning
from lapa.artefacts.folder import load_artefact
from lapa.contracts import Array, Labels, LapaError
from lapa.data.episode_keys import keys_of
from lapa.data.folders import new_folder
from lapa.data.index import APART
from lapa.data.labelled import MANIFEST, TABLE, read_manifest, read_shard, write_manifest, write_shard
from lapa.data.pack import Packed
from lapa.data.pairs import window_pairs
from lapa.labels._motions import MotionFit
from lapa.measures.probes import r2
from lapa.measures.switches import Switch
from lapa.models.laq import LAQ
from lapa.runtime.progress import Progress

SHARD = "part-000000.parquet"
AROUND = range(-2, 7)  # differences of adjacent frames that an action is read from, from two before it on
LOOKS = ((0, 1), (-2, 0, 1, 4))  # windows behind a frame at which is looked to read a gripper: a slow one needs more
AT_ONCE = 256


@dataclass(frozen=True)
class Followed:
    """A pack, and of all its frames: places float [N, D], which motions are read from, and seen float [N, F], which a
    gripper is read from."""

    packed: Packed
    places: Array
    seen: Array

    @property
    def episode(self) -> Array:
        """Of each frame, int64 [N]."""
        return self.packed.episode_of(np.arange(len(self.places)))

    def moved(self, seconds: float) -> Array:
        """What motions are read from: how places change around a frame, and where they are, float [N, ..]."""
        return np.hstack([self._around(), self._at(self.places, seconds, (0, 1))])

    @property
    def task(self) -> Array:
        """Of each frame, int64 [N]: frames with one instruction have one number."""
        return np.unique(self.packed.instructions, return_inverse=True)[1][self.episode]

    def shown(self, seconds: float, times: Sequence[int], middle: Array, spread: Array) -> Array:
        """What a gripper is read from, at times of LOOKS, standardised, float [N, F * len(times)]."""
        return self._at((self.seen - middle) / spread, seconds, times)

    def _around(self) -> Array:
        """Differences of adjacent frames around each one, [N, D * len(AROUND)]; past an end there is no motion."""
        first, last = self.packed.starts[self.episode], self.packed.starts[self.episode + 1] - 1
        at = [self.places[np.clip(np.arange(len(self.places)) + n, first, last)] for n in (*AROUND, AROUND.stop)]
        return np.hstack([later - now for now, later in pairwise(at)])

    def _at(self, values: Array, seconds: float, times: Sequence[int]) -> Array:
        """[N, F] -> [N, F * len(times)]: of the frames that lie `times` this many seconds behind each one; past an end
        the episode's first or last."""
        steps = np.maximum(np.round(seconds * self.packed.fps).astype(int), 1)[self.episode]
        first, last = self.packed.starts[self.episode], self.packed.starts[self.episode + 1] - 1
        return np.hstack([values[np.clip(np.arange(len(values)) + n * steps, first, last)] for n in times])


def motions_of(few: Packed, command: str) -> tuple[list[int], list[int]]:
    """Which actions are motions, and which are switches: numbers of dimensions. An absolute action is a motion where
    the state is known in the same numbers: the change of it. Raises LapaError where one is neither, and where none is
    a motion."""
    few.require_actions(f"{command} (--labelled)")
    meaning = Meaning.of(few)
    kinds = meaning.spec.kinds if meaning else ()
    motions = [i for i, kind in enumerate(kinds) if kind == "delta" or (meaning and meaning.relative[i])]
    switches = [i for i, kind in enumerate(kinds) if kind == "binary"]
    if not motions or len(motions) + len(switches) < len(kinds):
        raise LapaError(
            f"{few.spec}: {command} reads motions, and these actions are {', '.join(dict.fromkeys(kinds))}. It needs "
            "actions of the kind delta (docs/datasets.md), or absolute ones and a state of as many numbers; beside "
            "them there may be binary ones. Use lapa fit instead."
        )
    return motions, switches


def require_one_rate(packed: Packed, few: Packed, command: str) -> None:
    """Raises LapaError where videos and labelled episodes have other frames a second: a motion between two frames of
    the ones is then another one between two of the others."""
    if packed.fps.max() > APART * few.fps.min() or few.fps.max() > APART * packed.fps.min():
        raise LapaError(f"The videos have {packed.fps.min():.4g} to {packed.fps.max():.4g} frames a second and the "
                        f"labelled episodes {few.fps.min():.4g} to {few.fps.max():.4g}. {command} needs one rate: the "
                        "options fps= and stride= of --dataset and --labelled leave frames out.")  # fmt: skip


def read_actions(few: Followed, videos: Followed, seconds: float, command: str) -> tuple[Array, float]:
    """Actions float32 [N, A] of all frames of the videos, absolute ones as changes of the state (Index.steps), and the
    R^2 of those of the labelled episodes themselves. seconds: how far ahead of a frame the later one lies. Raises
    LapaError as motions_of does."""
    motions, switches = motions_of(few.packed, command)
    known, both = few.packed.steps(), (few, videos)
    assert known is not None  # motions_of has seen them
    made = [np.empty((len(each.places), known.shape[1]), np.float32) for each in both]
    moved = few.moved(seconds)
    reading = MotionFit.fit(moved, known[:, motions], few.episode, few.task)
    assert few.packed.action_spec
    print(_told(reading, [few.packed.action_spec.names[i] for i in motions]))
    middle, spread = videos.seen.mean(0), videos.seen.std(0) + 1e-6
    for actions, each in zip(made, both, strict=True):
        actions[:, motions] = reading(each.moved(seconds))
    for number in switches:
        fitted = [Switch.fit(few.shown(seconds, at, middle, spread), known[:, number], few.episode) for at in LOOKS]
        best = int(np.argmin([each.variance for each in fitted]))
        print(f"{few.packed.action_spec.names[number]}: read from the frames at "
              f"{', '.join(f'{seconds * n:+.1f}' for n in LOOKS[best])} s, as episodes left out say.")  # fmt: skip
        for actions, each in zip(made, both, strict=True):
            actions[:, number] = fitted[best](each.shown(seconds, LOOKS[best], middle, spread), each.episode)
    return np.clip(made[1], known.min(0), known.max(0)), r2(made[0], known)


def _told(reading: MotionFit, names: Sequence[str]) -> str:
    """What is said of how motions are read."""
    if np.isnan(reading.r2).any():
        return "How well motions are read is told from three labelled episodes on, of which some are left out."
    well = ", ".join(f"{name} {right:.2f}" for name, right in zip(names, reading.r2, strict=True))
    by = ", ".join(f"{share:.0%}" for share in reading.share)
    return (f"R^2 of motions in labelled episodes that were left out: {well}. By networks {by}, the rest by ridge "
            "regression.")  # fmt: skip


def read_with_laq(packed: Packed, few: Packed, source: Path, out: Path) -> dict[str, Any]:
    """Label the videos with actions, read from the latent actions of the LAQ in the folder `source`, into the new
    folder `out`. Returns the manifest. Raises LapaError for a LAQ without a frozen encoder, and as motions_of and
    require_one_rate do."""
    motions_of(few, "lapa label --labelled")
    require_one_rate(packed, few, "lapa label --labelled")
    artefact = load_artefact(source, "laq")
    laq = LAQ.from_pretrained(source)
    if laq.directions is None:
        raise LapaError(f"{source}: with --labelled, lapa label reads what a frozen encoder sees in each frame, and "
                        "this LAQ has a trained one of pairs (laq.encoder). Leave --labelled out.")  # fmt: skip
    labelled, videos = (_with_laq(laq, each) for each in (few, packed))
    window = float(artefact.value(float, "recipe", "window"))
    actions, _ = read_actions(labelled, videos, window, "lapa label")
    return write_actions(packed, few, actions, out, "read", source, artefact.hash)


def _with_laq(laq: LAQ, packed: Packed) -> Followed:
    """Where the frames of a pack lie among LAQ's directions."""
    count = int(packed.starts[-1])
    places = np.empty((count, laq.config.quant_dim), np.float32)
    with Progress("looking", count, unit="frames") as progress:
        for start in range(0, count, AT_ONCE):
            frames = np.arange(start, min(start + AT_ONCE, count))
            places[frames] = laq.places(packed.gather(frames)).cpu().numpy()
            progress.update(int(frames[-1]) + 1)
    return Followed(packed, places, places)


def write_actions(
    packed: Packed, few: Packed, actions: Array, out: Path, method: str, source: Path, source_hash: str
) -> dict[str, Any]:
    """Write actions float32 [N, A] of all frames of the videos as labels into the folder `out`; those of the same
    source and data that are there are left as they are. Returns the manifest. Raises LapaError for others."""
    pairs = window_pairs(packed, None)
    labels = Labels("actions", pairs.episode, pairs.frame, actions[pairs.now])
    meaning = Meaning.of(few)
    manifest: dict[str, Any] = {
        "method": method, "source": str(source), "source_hash": source_hash, "kind": "actions", "classes": 0,
        "window_seconds": None, "end": "drop",
        "dataset": packed.spec, "fingerprint": packed.fingerprint, "outline": packed.outline,
        "acts": packed.acts,
        "image_size": packed.image_size, "pairs": len(pairs), "action_names": list(few.action_names),
        "meaning": meaning and asdict(meaning), "skipped": list(packed.bad), "left_out": [],
        "labelled": few.fingerprint, "taught": sorted(keys_of(few)),
    }  # fmt: skip
    if packed.actions is not None and packed.actions.shape[1] == actions.shape[1]:
        true = packed.acted(pairs.now, pairs.later)
        assert true is not None
        manifest["r2_of_true_actions"] = r2(labels.values, true)
    if (out / MANIFEST).exists():
        there = read_manifest(out)
        if all(there.get(name) == manifest[name] for name in ("source_hash", "fingerprint", "labelled")):
            return there
        raise LapaError(f"{out} exists already, with other labels. Remove it or choose another path.")
    with new_folder(out, twin_is_fine=True) as fresh:
        (fresh / TABLE).mkdir()
        write_shard(fresh / TABLE / SHARD, labels)
        _, content, _ = read_shard(fresh / TABLE / SHARD)
        manifest["shards"] = [{"file": SHARD, "pairs": len(pairs), "hash": content}]
        write_manifest(fresh, manifest)
    return manifest
