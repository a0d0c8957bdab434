"""Datasets are read once and packed: uint8 frames of one size, memory-mapped, shared by every later process.

A pack is a folder in the cache: frames.u8 (raw, C order), tables as .npy and pack.json. Its name is a hash of
where it came from and of the listing of the files there, so a dataset that changes is packed anew.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from lapa.contracts import Array, BadVideo, Dataset, Episode, LapaError
from lapa.data.folders import new_folder
from lapa.data.spec import FORM, Spec, parse
from lapa.data.video import squared

FORMAT = 2  # part of every key: raise it when what is packed changes
SPARE = 64 << 20  # bytes left free on the disk
META, FRAMES = "pack.json", "frames.u8"
NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)  # not a slice of the frames: that would keep them in memory
VECTORS = {"actions": "action", "state": "state"}


@dataclass(frozen=True)
class Packed:
    """Episodes behind one another: N frames in E episodes; episode e is the frames starts[e] : starts[e + 1].

    starts int64 [E + 1]; fps float64 [E]; sizes int64 [E, 2] (height and width at the source); actions float32 [N, A]
    or None (row i leads from frame i to i + 1); state float32 [N, S] or None. `fingerprint` depends on the content
    alone, not on where the data lie. `bad` are the episodes that were skipped, each with its reason.

    source int64 [E] counts the datasets that were packed behind one another; weights are their shares in training
    (data/mixture.py), or None.
    """

    spec: str
    image_size: int
    starts: Array
    ids: tuple[str, ...]
    instructions: tuple[str, ...]
    fps: Array
    sizes: Array
    actions: Array | None
    state: Array | None
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    fingerprint: str
    bad: tuple[str, ...]
    source: Array
    weights: tuple[float, ...] | None
    _maps: tuple[Array, ...]  # memory maps, uint8 [n, size, size, 3] each
    _rows: Array  # int64 [N]: where each frame lies, counted over all maps

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return len(self.ids)

    def gather(self, index: Array) -> Array:
        """Frames int64 [B] -> uint8 [B, size, size, 3], a copy."""
        rows = self._rows[index]
        if len(self._maps) == 1:
            return np.take(self._maps[0], rows, axis=0)
        frames = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        start = 0
        for part in self._maps:
            here = (rows >= start) & (rows < start + len(part))
            frames[here] = part[rows[here] - start]
            start += len(part)
        return frames

    def episode_of(self, index: Array) -> Array:
        """Frames int64 [B] -> their episodes int64 [B]."""
        return np.searchsorted(self.starts, index, side="right") - 1

    def require_actions(self, purpose: str) -> Array:
        """float32 [N, A]. Raises LapaError naming the dataset and the purpose when there are none."""
        if self.actions is None:
            lack = "has no actions" if self.source[-1] == 0 else "do not all have actions of the same dimensions"
            raise LapaError(f"{self.spec} {lack}, and {purpose} needs them. Give a dataset with actions.")
        return self.actions

    def subset(self, episodes: Array) -> Packed:
        """The given episodes int64 [M], in that order, over the same maps. Raises LapaError out of range."""
        episodes = np.asarray(episodes, np.int64)
        if not len(episodes) or episodes.min() < 0 or episodes.max() >= self.episodes:
            raise LapaError(f"{self.spec} has {self.episodes} episodes; cannot take {episodes.tolist()[:8]} of them.")
        spans = [np.arange(self.starts[e], self.starts[e + 1]) for e in episodes]
        frames = np.concatenate(spans)
        return replace(
            self,
            starts=_cumulate([len(span) for span in spans]),
            ids=tuple(self.ids[e] for e in episodes),
            instructions=tuple(self.instructions[e] for e in episodes),
            fps=self.fps[episodes],
            sizes=self.sizes[episodes],
            actions=None if self.actions is None else self.actions[frames],
            state=None if self.state is None else self.state[frames],
            fingerprint=_digest(self.fingerprint.encode(), episodes.tobytes()),
            source=self.source[episodes],
            _rows=self._rows[frames],
        )


def pack(
    specs: Sequence[str],
    image_size: int,
    *,
    skip_bad: bool = False,
    cache: Path | None = None,
    quiet: bool = False,
) -> Packed:
    """Datasets given as NAME:PATH[,option=value...], one behind the other, as frames of image_size x image_size.

    Whole frames are resized to the square by area, so nothing is cropped. What the cache (`cache`, else
    $LAPA_CACHE, else ~/.cache/lapa) has is not read again. Actions and states are kept when all the datasets
    have them with as many dimensions. Raises LapaError for anything that cannot be read, unless `skip_bad`
    leaves that episode out.
    """
    if not specs:
        raise LapaError(f"No dataset was given. {FORM}")
    if image_size < 1:
        raise LapaError(f"The image size must be at least 1 pixel, got {image_size}.")
    folder = cache or Path(os.environ.get("LAPA_CACHE") or "~/.cache/lapa").expanduser()
    parsed = [parse(spec) for spec in specs]
    weighted = {spec.weight is not None for spec in parsed}
    if len(weighted) > 1:
        raise LapaError(f"Give every dataset a weight or none: {' '.join(specs)}.")
    parts = zip(specs, parsed, strict=True)
    packed = _join([_pack_one(spec, one, image_size, skip_bad, folder, quiet) for spec, one in parts])
    return replace(packed, weights=tuple(spec.weight or 1.0 for spec in parsed)) if True in weighted else packed


def _pack_one(spec: str, parsed: Spec, size: int, skip_bad: bool, cache: Path, quiet: bool) -> Packed:
    dataset = parsed.build()
    key = _digest(json.dumps([FORMAT, parsed.key, dataset.signature(), size]).encode())
    entry = cache / f"{parsed.name}-{size}-{key}"
    if not (entry / META).exists():
        with new_folder(entry, twin_is_fine=True) as work:
            _write(work, dataset, spec, size, skip_bad, quiet)
    packed = _load(entry, spec)
    if packed.bad and not skip_bad:
        raise BadVideo(_bad_message(packed.bad[0]))
    return packed


def _bad_message(reason: str) -> str:
    return f"{reason} Mend or remove it, or skip what cannot be read with --skip-bad."


def _write(work: Path, dataset: Dataset, spec: str, size: int, skip_bad: bool, quiet: bool) -> None:
    """Read the dataset from front to back into the folder `work`."""
    digest = hashlib.blake2b(digest_size=16)
    lengths: list[int] = []
    kept: list[Episode] = []  # without their frames
    ids: set[str] = set()
    bad: list[str] = []
    with (work / FRAMES).open("wb") as file, _Bar(spec, operator.length_hint(dataset), quiet) as bar:
        for episode in dataset.episodes(size):
            try:
                if isinstance(episode, BadVideo):
                    raise episode
                if episode.id in ids:
                    raise BadVideo(f'{spec}: there is a second episode "{episode.id}".')
                _check(episode, kept, spec)
            except BadVideo as error:
                if not skip_bad:
                    raise BadVideo(_bad_message(str(error))) from None
                bad.append(str(error))
                continue
            frames = _resize(episode.frames, size)
            _append(file, frames, work, spec)
            digest.update(frames.data)
            ids.add(episode.id)
            lengths.append(len(frames))
            kept.append(replace(episode, frames=NO_FRAMES, size=episode.size or episode.frames.shape[1:3]))
            bar.step(len(frames))
        bar.done(len(kept), sum(lengths), len(bad))
    if not kept:
        raise LapaError(f"{spec} has no episode that can be read" + (f": {bad[0]}" if bad else "."))
    tables = {"starts": _cumulate(lengths), "fps": np.array([e.fps for e in kept], np.float64)}
    for key in VECTORS:
        if getattr(kept[0], key) is not None:
            tables[key] = np.concatenate([getattr(e, key) for e in kept]).astype(np.float32)
    for key, table in tables.items():
        np.save(work / f"{key}.npy", table, allow_pickle=False)
        digest.update(key.encode() + table.tobytes())
    np.save(work / "sizes.npy", np.array([e.size for e in kept], np.int64))  # told, not part of the content
    texts = {
        "ids": [e.id for e in kept],
        "instructions": [e.instruction for e in kept],
        "action_names": list(kept[0].action_names),
        "state_names": list(kept[0].state_names),
    }
    digest.update(json.dumps([size, texts]).encode())
    meta = {"format": FORMAT, "image_size": size, "fingerprint": digest.hexdigest(), "bad": bad, **texts}
    (work / META).write_text(json.dumps(meta))


def _load(entry: Path, spec: str) -> Packed:
    try:
        meta = json.loads((entry / META).read_text())
        tables = {p.stem: np.load(p, allow_pickle=False) for p in entry.glob("*.npy")}
        count, size = int(tables["starts"][-1]), meta["image_size"]
        frames = np.memmap(entry / FRAMES, np.uint8, "r", shape=(count, size, size, 3))
    except (OSError, ValueError, KeyError) as error:
        raise LapaError(f"The cache entry {entry} is damaged ({error}). Remove that folder and try again.") from None
    return Packed(
        spec=spec,
        image_size=size,
        starts=tables["starts"],
        ids=tuple(meta["ids"]),
        instructions=tuple(meta["instructions"]),
        fps=tables["fps"],
        sizes=tables["sizes"],
        actions=tables.get("actions"),
        state=tables.get("state"),
        action_names=tuple(meta["action_names"]),
        state_names=tuple(meta["state_names"]),
        fingerprint=meta["fingerprint"],
        bad=tuple(meta["bad"]),
        source=np.zeros(len(meta["ids"]), np.int64),
        weights=None,
        _maps=(np.asarray(frames),),  # a plain view: taking from it is faster and gives plain arrays
        _rows=np.arange(count),
    )


def _join(parts: list[Packed]) -> Packed:
    if len(parts) == 1:
        return parts[0]
    actions, state = (_join_vectors([getattr(p, key) for p in parts]) for key in VECTORS)
    return Packed(
        spec=" ".join(p.spec for p in parts),
        image_size=parts[0].image_size,
        starts=_cumulate(np.concatenate([np.diff(p.starts) for p in parts])),
        ids=tuple(i for p in parts for i in p.ids),
        instructions=tuple(i for p in parts for i in p.instructions),
        fps=np.concatenate([p.fps for p in parts]),
        sizes=np.concatenate([p.sizes for p in parts]),
        actions=actions,
        state=state,
        action_names=() if actions is None else parts[0].action_names,
        state_names=() if state is None else parts[0].state_names,
        fingerprint=_digest(*(p.fingerprint.encode() for p in parts)),
        bad=tuple(b for p in parts for b in p.bad),
        source=np.repeat(np.arange(len(parts)), [p.episodes for p in parts]),
        weights=None,
        _maps=tuple(m for p in parts for m in p._maps),
        _rows=np.arange(sum(len(p) for p in parts)),
    )


def _join_vectors(parts: list[Array | None]) -> Array | None:
    present = [p for p in parts if p is not None]
    same = len(present) == len(parts) and len({p.shape[1] for p in present}) == 1
    return np.concatenate(present) if same else None


def _check(episode: Episode, kept: list[Episode], spec: str) -> None:
    """Refuse an episode that would do harm later: BadVideo naming the dataset, the episode and the place."""
    where = f'{spec}: episode "{episode.id}"'
    shape = episode.frames.shape
    if episode.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not len(episode.frames):
        raise BadVideo(f"{where}: frames must be uint8 [T >= 1, H, W, 3], got {episode.frames.dtype} {shape}.")
    if not (np.isfinite(episode.fps) and episode.fps > 0):
        raise BadVideo(f"{where}: the frame rate must be above 0, got {episode.fps}.")
    try:
        (episode.id + episode.instruction).encode()
    except UnicodeEncodeError:
        raise BadVideo(f"{where}: its instruction holds what is no character.") from None
    first = kept[0] if kept else episode
    for key, word in VECTORS.items():
        _check_vector(getattr(episode, key), getattr(first, key), len(episode.frames), where, word)


def _check_vector(value: Array | None, first: Array | None, length: int, where: str, word: str) -> None:
    if value is None or first is None:
        if value is not first:
            has, had = ("no", "have one") if value is None else (f"a {word}, the", "have none")
            raise BadVideo(f"{where} has {has} {word if value is None else 'episodes before it'}; {had}.")
        return
    if value.ndim != 2 or len(value) != length:
        raise BadVideo(f"{where}: {word} has the shape {value.shape}, expected [{length}, dimensions].")
    if value.shape[1] != first.shape[1]:
        raise BadVideo(f"{where}: {word} has {value.shape[1]} dimensions, {first.shape[1]} in the first episode.")
    broken = np.argwhere(~np.isfinite(value))
    if len(broken):
        frame, dimension = broken[0]
        raise BadVideo(
            f"{where}: {word} is {value[frame, dimension]} at frame {frame}, dimension {dimension} "
            f"({len(broken)} such values in this episode)."
        )


def _resize(frames: Array, size: int) -> Array:
    """uint8 [T, H, W, 3] -> uint8 [T, size, size, 3], each new pixel the mean of the area it covers."""
    if frames.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames)
    return np.stack([squared(frame, size) for frame in frames])


def _append(file: BinaryIO, frames: Array, work: Path, spec: str) -> None:
    """Write frames unless they would fill the disk: a full disk hurts other processes too."""
    free = shutil.disk_usage(work).free
    if frames.nbytes + SPARE > free:
        raise LapaError(
            f"No room to pack {spec}: {file.tell() / 1e6:.0f} MB are written, {free / 1e6:.0f} MB left "
            f"in {work.parent}. Free some space or set LAPA_CACHE to a folder on a larger disk."
        )
    file.write(frames.data)


def _cumulate(lengths: Sequence[int] | Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


class _Bar:
    """Progress on stderr: a bar on a terminal, one line at the end elsewhere, nothing when quiet."""

    def __init__(self, spec: str, total: int, quiet: bool) -> None:
        self._console, self._spec, self._quiet = Console(stderr=True, highlight=False), spec, quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("packing {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("episodes, {task.fields[rate]:.0f} frames/s"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task(spec, total=total or None, rate=0.0)
        self._frames = 0

    def __enter__(self) -> _Bar:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def step(self, frames: int) -> None:
        self._frames += frames
        elapsed = self._progress.tasks[self._task].elapsed or 0.0
        self._progress.update(self._task, advance=1, rate=self._frames / max(elapsed, 1e-3))

    def done(self, episodes: int, frames: int, bad: int) -> None:
        if not self._quiet:
            skipped = f", {bad} skipped" if bad else ""
            line = f"packed {self._spec}: {episodes} episodes, {frames} frames{skipped}"
            self._console.print(line, markup=False, soft_wrap=True)
