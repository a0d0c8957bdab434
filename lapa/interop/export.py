"""`lapa export`: labels go back beside the videos they were made from, in a format that others read.

lerobot   a LeRobot v3.0 dataset: frames, instructions, actions and state as they were, and a feature `latent_action`
jsonl     images and rows for the released LAPA training script

Frames without a label (the last ones of an episode have no later frame) hold NO_LABEL in every code of a LeRobot
dataset, where each frame has a row, and have no row in a jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lapa.actions.spec import described
from lapa.artefacts.folder import provenance
from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.folders import new_folder
from lapa.data.labelled import read_labels, require_told
from lapa.data.lerobot_format import LeRobotWriter, rate_in_words, whole_rate
from lapa.data.pack import Packed, pack
from lapa.data.select import even_steps, over_skipped
from lapa.data.spec import open_dataset, parted
from lapa.data.video import GOOD, Quality, coding_in_words, quality_for
from lapa.runtime.progress import Progress
from lapa.stage2_pretrain import check_labels

FEATURE, NO_LABEL = "latent_action", -1
ROWS, IMAGES, ORIGIN = "data.jsonl", "images", "lapa.json"
JPEG_QUALITY = 95
PROMPT = "<s> You are a helpful assistant. USER: What action should the robot take to `{}` ASSISTANT:"
FIELDS = "[instruction],[vision],delta"  # what the released code puts in brackets it does not train on


@dataclass(frozen=True)
class Labelled:
    """A dataset with the codes of its frames: int64 [N, s] over all frames of `packed`, NO_LABEL where there is none.
    `manifest` is that of the labels; `specs` name the dataset."""

    packed: Packed
    codes: Array
    manifest: dict[str, Any]
    specs: tuple[str, ...]

    @property
    def without(self) -> int:
        """Frames that have no label."""
        return int((self.codes == NO_LABEL).all(1).sum())

    def episodes(self, size: int | None) -> Iterator[tuple[Episode, Array]]:
        """Yield the labelled episodes with their codes int64 [T, s]; frames as the source has them, or size x size.

        What was skipped as bad when the labels were made is skipped again. Raises LapaError when an episode that was
        labelled is there no more.
        """
        packed, done = self.packed, 0
        every = ((place, e) for place, spec in enumerate(self.specs) for e in open_dataset(spec).episodes(size))
        for place, episode in every:
            if isinstance(episode, BadVideo) or done == packed.episodes:
                continue
            if (place, episode.id) != (packed.source[done], packed.ids[done]):  # datasets may have the same ids
                continue
            here = slice(packed.starts[done], packed.starts[done + 1])
            if len(episode.frames) != here.stop - here.start:
                break
            yield episode, self.codes[here]
            done += 1
        if done < packed.episodes:
            raise LapaError(f'{packed.spec}: episode "{packed.ids[done]}" changed while it was read. Label it again.')


def open_labelled(path: Path, dataset: Sequence[str] = ()) -> Labelled:
    """Labels of `lapa label` and the dataset that they were made from; `dataset` says where it is now if it moved.

    Raises LapaError when the labels are no codes, or the dataset is not, to the pixel, the one that was labelled.
    """
    labels, manifest = read_labels(path)
    if labels.kind != "codes":
        raise LapaError(
            f"{path} holds {labels.kind} ({manifest.get('method')}), not latent actions. Make labels with a LAQ: "
            "lapa label --source LAQ."
        )
    require_told(manifest, ("dataset", "image_size", "classes", "source_hash", "window_seconds", "fingerprint"), path)
    specs = tuple(dataset) or parted(str(manifest["dataset"]))
    packed = pack(specs, int(manifest["image_size"]), skip_bad=True)
    codes = np.full((len(packed), labels.values.shape[1]), NO_LABEL, np.int64)
    codes[check_labels(packed, labels, manifest)] = labels.values
    return Labelled(packed, codes, manifest, specs)


def export_lerobot(
    labelled: Labelled,
    out: Path,
    image_size: int | None = None,
    fps: float | None = None,
    quality: Quality = GOOD,
    robot: str = "",
) -> None:
    """Write a new LeRobot v3.0 dataset `out`: every frame, action and state, and `latent_action`; by default as
    browsers play it, with another `quality` (data/video.py VideoFile), or exactly (None). Says how.

    A LeRobot dataset has one size and one rate: `image_size` makes all frames squares; `fps` takes of each episode
    the frames nearest to even steps, and their codes with them (a window in seconds is the same at any rate). Over
    skipped frames deltas add up; absolute targets and binary values are the last ones. `robot` is the robot's name,
    where the source names none. Raises LapaError when sizes or rates differ and are not given.
    """
    packed, width = labelled.packed, labelled.codes.shape[1]
    _require_one_size(packed, image_size)
    rate = _require_one_rate(packed, fps)
    every = labelled.episodes(image_size)
    first = next(every)
    shape = (int(first[0].frames.shape[1]), int(first[0].frames.shape[2]))  # a dataset may say another
    kept, kinds = quality_for(quality, *shape), packed.action_spec.kinds if packed.action_spec else ()
    names = {key: _names(key, getattr(packed, f"{key}s" if key == "action" else key), getattr(packed, f"{key}_names"))
             for key in ("action", "state")}  # fmt: skip
    feature = {
        "shape": [width],
        "names": [f"code_{i}" for i in range(width)],
        "info": {"no_value": NO_LABEL, **_told(labelled.manifest)},
    }
    origin = {"sources": list(labelled.specs), "labels": labelled.manifest, **provenance(0, {}, {})}
    _say_rate(packed, rate)
    with (
        LeRobotWriter(
            out,
            rate,
            shape,
            names["action"],
            names["state"],
            origin,
            {FEATURE: feature},
            camera=packed.camera,
            robot_type=robot or _only(packed.embodiments),
            quality=kept,
            kinds=kinds,
        ) as writer,
        Progress("exporting", packed.episodes, unit="episodes") as progress,
    ):
        for number, (episode, codes) in enumerate(chain([first], every), 1):
            rows = np.arange(len(codes)) if _same(episode.fps, rate) else even_steps(len(codes), episode.fps, rate)
            state = None if episode.state is None else episode.state[rows]
            actions = None if episode.actions is None else over_skipped(kinds, episode.actions, rows)
            taken = replace(episode, frames=episode.frames[rows], fps=rate, state=state, actions=actions)
            writer.add(taken, None, **{FEATURE: codes[rows]})
            progress.update(number)
    print(coding_in_words(kept, *shape), flush=True)


def export_jsonl(labelled: Labelled, out: Path, image_size: int | None = None) -> int:
    """Write a new folder `out`: data.jsonl and images/episode_000000/img_00000.jpg. Returns the number of rows.

    A row is a labelled frame with the keys of the released code: id, image, instruction, delta, fields. The image
    tokens `vision` are not among them: they come from the released VQGAN (docs/export.md).
    """
    count = 0
    with (
        new_folder(out) as work,
        (work / ROWS).open("w") as file,
        Progress("exporting", labelled.packed.episodes, unit="episodes") as progress,
    ):
        for number, (episode, codes) in enumerate(labelled.episodes(image_size)):
            clip = f"{IMAGES}/episode_{number:06d}"
            (work / clip).mkdir(parents=True)
            for t, (frame, code) in enumerate(zip(episode.frames, codes, strict=True)):
                image = f"{clip}/img_{t:05d}.jpg"  # five digits: the released code counts on to the later frame
                Image.fromarray(frame).save(work / image, quality=JPEG_QUALITY, subsampling=0)
                if code[0] != NO_LABEL:
                    row = {"id": f"{clip}/step_{t}", "image": image, **_row(episode.instruction, code)}
                    file.write(json.dumps(row) + "\n")
                    count += 1
            progress.update(number + 1)
        origin = {"sources": list(labelled.specs), "episodes": list(labelled.packed.ids), "labels": labelled.manifest}
        (work / ORIGIN).write_text(json.dumps({**origin, **provenance(0, {}, {})}, indent=1) + "\n")
    return count


def _row(instruction: str, code: Array) -> dict[str, Any]:
    return {"instruction": PROMPT.format(instruction), "delta": [str(c) for c in code], "fields": FIELDS}


def _told(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the codes needs to know of them. Datasets with the same can be merged; the data that these
    labels were made from are told in meta/lapa.json."""
    return {
        "codebook_size": manifest["classes"],
        "laq_hash": manifest["source_hash"],
        "window_seconds": manifest["window_seconds"],
    }


def _only(names: Sequence[str]) -> str | None:
    """The one name that all have, if they have."""
    return names[0] or None if len(set(names)) == 1 else None


def _names(key: str, values: Array | None, names: tuple[str, ...]) -> tuple[str, ...]:
    if values is None:
        return ()
    return names or tuple(f"{key}_{i}" for i in range(values.shape[1]))


def _require_one_size(packed: Packed, image_size: int | None) -> None:
    found = {(int(h), int(w)) for h, w in packed.sizes}
    if image_size is None and len(found) > 1:
        shown = ", ".join(f"{w} x {h}" for h, w in sorted(found)[:4])
        raise LapaError(
            f"{packed.spec} has pictures of {len(found)} sizes ({shown}), and a LeRobot dataset has one. "
            "Add --image-size, such as 256, for squares."
        )


def _require_one_rate(packed: Packed, fps: float | None) -> float:
    """The rate to write. Raises LapaError when there are several and none is given, and for one that is too high."""
    found = sorted({round(whole_rate(float(rate)), 4) for rate in packed.fps})
    if fps is None:
        if len(found) > 1:
            raise LapaError(
                f"{packed.spec} has {len(found)} frame rates (from {found[0]:g} to {found[-1]:g} fps), and a LeRobot "
                f"dataset has one. Add --fps, such as {found[0]:g}."
            )
        return whole_rate(float(packed.fps[0]))
    if not 0 < fps <= found[0]:
        raise LapaError(f"--fps is above 0 and at most {found[0]:g}, the slowest rate of {packed.spec}; got {fps:g}.")
    return fps


def _same(source: float, rate: float) -> bool:
    return abs(whole_rate(source) - rate) < 1e-6 * rate


def _say_rate(packed: Packed, rate: float) -> None:
    """Say what the rate does to frames and actions."""
    slowest, fastest = (float(some) for some in (packed.fps.min(), packed.fps.max()))
    if _same(slowest, rate) and _same(fastest, rate):
        told = rate_in_words(slowest)
    else:
        source = f"{slowest:g}" if slowest == fastest else f"{slowest:g} to {fastest:g}"
        told = f"Of {source} frames a second {rate:g} are kept."
        if packed.action_spec is not None:
            told += " Over skipped frames deltas add up; absolute targets and binary values are the last ones. "
            told += f"The actions: {described(packed.action_spec)}."
    if told:
        print(told, file=sys.stderr)
