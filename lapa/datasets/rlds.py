"""Robot datasets in RLDS (Open X-Embodiment, Bridge, Language Table): TFRecord shards, read without TensorFlow.

A record is an episode; its steps lie side by side, "steps/action" being the actions of all steps one after the other.
features.json has the names and shapes of the features, dataset_info.json the splits. RLDS does not store a frame rate:
`fps` has to say it, unless the dataset is one of FPS.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import ActionKind, Array, BadVideo, Episode, LapaError
from lapa.data.cameras import Camera, best, camera
from lapa.data.folders import existing_folder, listing_hash
from lapa.data.images import Clip, Source, frames_of, number_of, outline_of, read_frames
from lapa.data.json_files import parsed, read_foreign_json
from lapa.data.notes import CHANGES
from lapa.data.parts import ACTIONS, STATES, Parts, dimension_names, parts, taken
from lapa.data.tfrecord import Value, example, records_from
from lapa.plugins import choose

# Control rates as Open X-Embodiment's overview lists them, by how the name begins.
FPS = {"bridge": 5, "fractal20220817_data": 3, "kuka": 10, "language_table": 10, "taco_play": 15, "jaco_play": 10}
TEXTS = ("language_instruction", "natural_language_instruction", "instruction", "task_description", "task", "language",
         "caption", "prompt", "annotation", "text")  # fmt: skip
LONG = 16  # numbers that a tensor has, at least, if it is a text of code points
SHARD = re.compile(r"-(?P<split>[^-]+)\.tfrecord(-(?P<number>\d+)-of-\d+)?$")
VERSION = re.compile(r"\d+\.\d+\.\d+")
INFO, FEATURES = "dataset_info.json", "features.json"


@dataclass(frozen=True)
class Config:
    """`path` is the folder of features.json, or the one above it (then its newest version); `camera` an image feature,
    whole (observation/image_0) or its last word; `instruction` another feature than the usual ones, of a step or of the
    episode (episode_metadata/task); `action` and
    `state` the features to take, several as a+b (data/parts.py). An action of several parts is by default joined in the
    order of their names, without those that are no motion, such as terminate_episode."""

    path: str
    camera: str | None = None
    split: str = "train"
    fps: float | None = None
    action: str | None = None
    state: str | None = None
    instruction: str | None = None

    def build(self) -> Rlds:
        """Read the description. Raises LapaError for a folder without it, or features that are not there."""
        return Rlds(_versioned(existing_folder(self.path, "RLDS dataset")), self)


@dataclass(frozen=True)
class Feature:
    """What a record holds under a name: `kind` image, text or tensor; shape of one step, or of one in a list."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str
    listed: bool = False

    @property
    def is_text(self) -> bool:
        """A text, or a tensor of code points."""
        points = "int" in self.dtype and len(self.shape) == 1 and self.shape[0] >= LONG
        return self.kind == "text" or (self.kind == "tensor" and (points or self.dtype in ("string", "str", "object")))

    @property
    def is_picture(self) -> bool:
        """An image, or a tensor of pixels."""
        colour = len(self.shape) == 3 and (self.shape[-1] == 3 or (self.shape[0] == 3 and self.shape[-1] > 4))
        return self.kind == "image" or (self.kind == "tensor" and self.dtype == "uint8" and colour)


Read = Callable[[Sequence[Source], list[str]], Clip | None]  # None: all of it is blank
SHARD_BYTES = 1 << 44  # above the size of any shard


class Rlds:
    """One episode per record, shard after shard; shards that were not downloaded are not reported."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        info = _read_object(root / INFO) if (root / INFO).exists() else {}
        every = _features(root / FEATURES)
        self._features = {
            n.removeprefix("steps/"): f for n, f in every.items() if n.startswith("steps/") and not f.listed
        }
        self._shards = _shards(root, config.split)
        self._lengths = _lengths(info, config.split, root / INFO)
        self.fps, rate = _rate(config.fps, str(info.get("name") or root.parent.name), root)
        known = {name: _described(name, f) for name, f in self._features.items() if f.is_picture}
        if not known:
            has = ", ".join(f"{name} ({f.kind} {list(f.shape)} {f.dtype})".replace(" )", ")")
                            for name, f in self._features.items())  # fmt: skip
            raise LapaError(f"{root}: a step has no colour image. It has {has}.")
        self.camera, self._why = _camera(known, config.camera, root)
        images = [name for name, one in known.items() if not one.fault or name == self.camera]
        self.cameras = tuple(_short(name, images) for name in sorted(images, key=number_of))
        self._camera = _short(self.camera, images)
        action = self._parts(ACTIONS, config.action, "action")
        state = self._parts(STATES, config.state, "state")
        self._actions, self._state = list(action.names), list(state.names)
        self._notes = [taken(action, state, [name for name in self._features if self._is_vector(name)])]
        self._notes += [f"camera: {self._camera}, {self._why}"] if self._why else []
        self._notes += [rate] if rate else []
        self._texts = _instructions(every, config.instruction, root)

    def __len__(self) -> int:
        return sum(self._lengths.get(_number(shard), 0) for shard in self._shards)

    def signature(self) -> str:
        """A hash of the names, sizes and times of the shards and of the descriptions."""
        described = [path for path in (self.root / INFO, self.root / FEATURES) if path.exists()]
        return listing_hash(self.root, [*self._shards, *described]) + self.camera

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield an Episode per record, a BadVideo in place of a damaged one and for records that a shard lacks."""

        def read(images: Sequence[Source], places: list[str]) -> Clip | None:
            clip = read_frames(images, places, self.fps, size)
            return None if _is_blank(clip.frames) else clip

        return (episode for _, episode in self._each(read))

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable: records are read, and the first image of each is decoded: the camera may be blank.
        An episode's number is that of its shard and the byte at which its record begins."""

        def read(images: Sequence[Source], places: list[str]) -> Clip | None:
            outline = outline_of(images, places, self.fps)
            return None if _is_blank(frames_of(images, places, outline.size, None)) else outline

        return self._each(read)

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        shard, at = self._shards[number // SHARD_BYTES], number % SHARD_BYTES
        _, record = next(records_from(shard, at), (at, BadVideo(f"{shard}: has no record at byte {at}.")))
        try:
            if isinstance(record, BadVideo):
                raise record
            images, places = self._images(example(record), f"{shard}: the record at byte {at}")
        except ValueError as error:
            raise BadVideo(f"{shard}: the record at byte {at} is no tf.train.Example ({error}).") from None
        yield from frames_of(images, places, outline_of(images, places, self.fps).size, size, start)

    def _each(self, read: Read) -> Iterator[tuple[int, Episode | BadVideo]]:
        for nth, shard in enumerate(self._shards):
            count, whole = 0, True
            for number, (at, record) in enumerate(records_from(shard)):
                count, whole = number + 1, not isinstance(record, BadVideo)
                place = nth * SHARD_BYTES + at
                try:
                    if isinstance(record, BadVideo):
                        raise record
                    yield (
                        place,
                        self._episode(example(record), f"{shard}: record {number}", f"{shard.name}:{number:05d}", read),
                    )
                except BadVideo as bad:
                    yield place, bad
                except ValueError as error:
                    yield place, BadVideo(f"{shard}: record {number} is no tf.train.Example ({error}).")
            expected = self._lengths.get(_number(shard), count)
            if whole and count != expected:
                yield -1, BadVideo(f"{shard}: has {count} records, {INFO} says {expected}. Copy the file again.")

    def _images(self, found: dict[str, Value], where: str) -> tuple[Sequence[Source], list[str]]:
        """The images of an episode, and what to call them in messages."""
        value, feature = found.get(f"steps/{self.camera}"), self._features[self.camera]
        if value is None or not len(value):
            raise BadVideo(f"{where}: has no {self.camera}.")
        try:
            images: Sequence[Source] = value if feature.kind == "image" and isinstance(value, list) else list(
                _pixels(value, feature))  # fmt: skip
        except (ValueError, zlib.error) as error:
            raise BadVideo(f"{where}: {self.camera} is no tensor of {list(feature.shape)} pixels ({error}).") from None
        return images, [f"{where}, {self.camera}, step {step}" for step in range(len(images))]

    def _episode(self, found: dict[str, Value], where: str, name: str, read: Read) -> Episode:
        images, places = self._images(found, where)
        clip = read(images, places)
        if clip is None:
            raise BadVideo(f"{where}: {self.camera} is blank; this episode was filmed by other cameras.")
        said, origin, more = self._said(found, where)
        return Episode(
            id=name,
            frames=clip.frames,
            fps=self.fps,
            instruction=said,
            instruction_from=origin,
            actions=self._vector(found, self._actions, len(images), where),
            state=self._vector(found, self._state, len(images), where),
            action_names=self._names(self._actions),
            state_names=self._names(self._state),
            size=clip.size,
            camera=self._camera,
            action_kinds=self._kinds(),
            notes=(*self._notes, *more),
        )

    def _kinds(self) -> tuple[ActionKind, ...]:
        """What the features say their numbers are: flags, or named as deltas. () where one says nothing."""
        kinds: list[ActionKind] = []
        for part in self._actions:
            feature, name = self._features[part], part.rpartition("/")[2]
            if feature.dtype == "bool":
                kind: ActionKind = "binary"
            elif "delta" in name or name == "world_vector":  # as the data of RT-1 call a step in space
                kind = "delta"
            else:
                return ()
            kinds += [kind] * int(np.prod(feature.shape))
        return tuple(kinds)

    def _vector(self, found: dict[str, Value], parts: list[str], steps: int, where: str) -> Array | None:
        """Features beside one another, float32 [steps, D]; None for none."""
        columns = []
        for part in parts:
            value, width = found.get(f"steps/{part}"), int(np.prod(self._features[part].shape))
            if isinstance(value, list) or value is None or len(value) != steps * width:
                has = "none" if value is None else f"{len(value)} values"
                raise BadVideo(f"{where}: {part} should be {steps} x {width} numbers, there are {has}.")
            columns.append(value.reshape(steps, width).astype(np.float32))
        return np.concatenate(columns, 1) if columns else None

    def _said(self, found: dict[str, Value], where: str) -> tuple[str, str, tuple[str, ...]]:
        """The first instruction that the features have, whose it is, and a note where it changes on the way."""
        for name, feature in self._texts.items():
            value = next((found[key] for key in (name, f"{name}/ragged_flat_values") if key in found), None)
            if value is None:
                continue
            try:
                rows = value if isinstance(value, list) else value.reshape(-1, int(np.prod(feature.shape)) or 1)
                texts = list(dict.fromkeys(filter(None, map(_text, rows))))
            except (ValueError, OverflowError, TypeError):
                raise BadVideo(f"{where}: {name.removeprefix('steps/')} is no text.") from None
            if texts:
                changes = len(texts) > 1 and name.startswith("steps/") and not feature.listed
                return texts[0], name.removeprefix("steps/"), (CHANGES,) if changes else ()
        return "", "", ()

    def _parts(self, usual: Sequence[str], wanted: str | None, what: str) -> Parts:
        """The features that are the action or the state. Raises LapaError for what is not there or is no numbers."""
        found = parts(sorted(self._features), usual, wanted, what, f" in {self.root}")
        odd = [name for name in found.names if not self._is_tensor(name)]
        if odd:
            raise LapaError(f"{self.root}: {', '.join(odd)} is no plain tensor, so it cannot be the {what}.")
        return found

    def _is_tensor(self, name: str) -> bool:
        return self._features[name].kind == "tensor" and self._features[name].encoding == "none"

    def _is_vector(self, name: str) -> bool:
        """May a feature be an action or a state: numbers, and no flag of the episode?"""
        feature = self._features[name]
        return self._is_tensor(name) and feature.dtype.startswith("float") and len(feature.shape) < 3

    def _names(self, parts: list[str]) -> tuple[str, ...]:
        """Names of the dimensions where the features tell them apart: an action of several parts."""
        return dimension_names({part: int(np.prod(self._features[part].shape)) for part in parts}, {})


def _instructions(every: dict[str, Feature], wanted: str | None, root: Path) -> dict[str, Feature]:
    """The features that may hold the instruction, by their names in a record, the first of them first: the usual names
    in the steps, in their observations, then in what the record says of the whole episode; each followed by its
    numbered fellows (language_instruction_2). Raises LapaError for one that is wanted and not there."""
    if wanted:
        short = {name.removeprefix("steps/"): name for name in every}
        name = short[choose(wanted, short, "feature for the instruction", f" in {root}")]
        return {name: every[name]}
    texts = [name for name, f in every.items() if f.is_text]
    places = ("steps/", "steps/observation/", "")

    def rank(name: str) -> tuple[int, int, str] | None:
        parts = name.rpartition("/")
        place = places.index(f"{parts[0]}/") if f"{parts[0]}/" in places else len(places) - (parts[0][:6] != "steps/")
        bare = re.sub(r"_?\d+$", "", parts[2]).removesuffix("s")
        known = [i for i, usual in enumerate(TEXTS) if bare == usual]
        return (place, known[0], parts[2]) if known else None

    ranks = {name: found for name in texts if (found := rank(name))}
    return {name: every[name] for name in sorted(ranks, key=lambda name: ranks[name])}


def _pixels(value: Value, feature: Feature) -> Array:
    """A tensor of pixels in a record -> uint8 [T, H, W, 3]. Raises ValueError where its size is another."""
    if isinstance(value, list):
        packed = [zlib.decompress(one) if feature.encoding == "zlib" else one for one in value]
        flat = np.frombuffer(b"".join(packed), np.uint8)
    else:
        flat = value.astype(np.uint8)
    pictures = flat.reshape(-1, *feature.shape)
    return pictures if feature.shape[-1] == 3 else pictures.transpose(0, 2, 3, 1)


def _described(name: str, feature: Feature) -> Camera:
    """What the features say of a camera."""
    channels = feature.shape[-1] if feature.shape and feature.kind == "image" else 3
    return camera(name, channels=channels, bits=16 if "16" in feature.dtype else 8)


def _is_blank(frames: Iterable[Array]) -> bool:
    """Has every pixel of every frame the same value? Looks no further than it must."""
    values: set[int] = set()
    for frame in frames:
        values |= {int(frame.min()), int(frame.max())}
        if len(values) > 1:
            return False
    return True


def _text(row: bytes | Array) -> str:
    """An instruction, from a string or from Language Table's int32 code points, padded with zeros."""
    if isinstance(row, bytes):
        return row.decode("utf-8", "replace").strip()
    codes = [int(code) for code in row if code]
    try:
        return bytes(codes).decode("utf-8").strip()  # it writes the bytes of the UTF-8 text
    except (ValueError, OverflowError):
        return "".join(map(chr, codes)).strip()


def _versioned(folder: Path) -> Path:
    """The folder of features.json: this one, or the newest version below it. Raises LapaError where there is none, and
    where there are several that are no versions."""
    if (folder / FEATURES).exists():
        return folder
    versions = sorted((path.parent for path in folder.glob(f"*/{FEATURES}")), key=number_of)
    below = [] if versions else sorted({path.parent.parent for path in folder.glob(f"*/*/{FEATURES}")})
    if below or (len(versions) > 1 and not all(VERSION.fullmatch(path.name) for path in versions)):
        named = [path.name for path in below or versions]
        told = ", ".join(named[:4]) + (", .." if len(named) > 4 else "")
        raise LapaError(f"{folder}: is a folder of datasets ({told}). Give each with a --dataset of its own.")
    if not versions:
        raise LapaError(
            f"{folder}: is no RLDS dataset, {FEATURES} is missing here and one folder below. Check the path."
        )
    return versions[-1]


def _features(path: Path) -> dict[str, Feature]:
    """features.json -> the features of a record by name, such as steps/observation/image_0."""
    try:
        found = dict(_leaves(_unwrapped(_read_object(path)), ""))
    except (BadVideo, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise LapaError(f"{path}: does not describe features as TFDS writes them ({error!r}).") from None
    if not any(name.startswith("steps/") for name in found):
        raise LapaError(f"{path}: describes no steps, so this is no dataset of episodes (RLDS).")
    return {name: leaf for name, leaf in found.items() if leaf is not None}


def _leaves(node: dict[str, Any], name: str, listed: bool = False) -> Iterator[tuple[str, Feature | None]]:
    """The named features below a node, `listed` those of a list. None stands for one that lapa has no use for."""
    if "featuresDict" in node:
        for key, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, f"{name}/{key}" if name else key, listed)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], name, listed or name != "steps")
    else:
        kind = next((kind for kind in ("image", "text", "tensor") if kind in node), None)
        if kind is None:
            yield name, None
            return
        about = node[kind] or {}
        shape = tuple(int(d) for d in about.get("shape", {}).get("dimensions", ()))
        yield name, Feature(kind, shape, about.get("dtype", ""), about.get("encoding") or "none", listed)


def _unwrapped(described: dict[str, Any]) -> dict[str, Any]:
    """Older files keep the tree under "content", as JSON or as text of JSON."""
    content = described.get("content")
    if content is None:
        return described
    content = parsed(content, "content") if isinstance(content, str) else content
    return {"featuresDict": content}


def _shards(root: Path, split: str) -> list[Path]:
    by_split: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        named = SHARD.search(path.name)
        if named:
            by_split.setdefault(named["split"], []).append(path)
    if not by_split:
        raise LapaError(f"{root}: holds no shard (NAME-SPLIT.tfrecord-00000-of-00001). lapa reads TFRecord files only.")
    found = by_split[choose(split, by_split, "split", f" in {root}")]
    sets = sorted({re.sub(r"-\d+-of-", "-*-of-", path.name) for path in found})
    if len(sets) > 1:
        raise LapaError(f"{root}: holds the shards of {len(sets)} sets, {' and '.join(sets[:3])}. Keep those of one.")
    return found


def _lengths(info: dict[str, Any], split: str, path: Path) -> dict[int, int]:
    """Number of the shard -> its records, as far as dataset_info.json tells."""
    try:
        about: dict[str, Any] = next((s for s in info.get("splits") or [] if s["name"] == split), {})
        counts = {number: int(count) for number, count in enumerate(about.get("shardLengths") or [])}
        if not all(0 <= count < 2**40 for count in counts.values()):
            raise ValueError(f"shards of {sorted(counts.values())} records")
        return counts
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise LapaError(f"{path}: does not describe splits as TFDS writes them ({error!r}).") from None


def _number(shard: Path) -> int:
    named = SHARD.search(shard.name)
    return int(named["number"] or 0) if named else 0


def _rate(fps: float | None, name: str, root: Path) -> tuple[float, str]:
    """The rate, and a note where it is taken from the name of the dataset. Raises LapaError where nobody knows it."""
    usual = next((rate for start, rate in FPS.items() if name.startswith(start)), None)
    known = usual if fps is None else fps
    if known is None or known <= 0:
        raise LapaError(f"{root}: RLDS stores no frame rate. Say it: rlds:PATH,fps=5 (the robot's control rate).")
    told = "" if fps else f"rate: {known:g} fps, as {name} has by its name, for RLDS stores none (fps= says another)"
    return float(known), told


def _camera(known: dict[str, Camera], wanted: str | None, root: Path) -> tuple[str, str]:
    """The image feature named `wanted`, whole or its last word, or the best one (data/cameras.py); and why."""
    images = sorted(known, key=number_of)
    if wanted:
        last = [name for name in images if name.rpartition("/")[2] == wanted]
        return last[0] if len(last) == 1 else choose(wanted, images, "camera", f" in {root}"), "as asked for"
    return best([known[name] for name in images], str(root))


def _short(name: str, images: list[str]) -> str:
    """A camera's name: the feature's last word, where that tells them apart."""
    last = [other.rpartition("/")[2] for other in images]
    return name.rpartition("/")[2] if len(set(last)) == len(last) else name


def _read_object(path: Path) -> dict[str, Any]:
    found = read_foreign_json(path)
    if not isinstance(found, dict):
        raise LapaError(f"{path}: is no JSON object.")
    return found
