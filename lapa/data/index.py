"""What there is in a dataset: episodes, their lengths, rates, instructions and actions. All but the frames.

Read either with the frames (data/pack.py) or alone and without decoding (data/stream.py), an index is the same tables:
.npy files and a JSON in a folder of the cache, whose name is a hash of where the data came from and of the listing of
the files there, so a dataset that changes is read anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lapa.actions.spec import assumed, by_names, described, over_window, told_by_data
from lapa.contracts import ActionKind, ActionSpec, Array, BadVideo, Dataset, Episode, LapaError
from lapa.data.images import Fit, blank
from lapa.data.spec import FORM, Spec, parse

META = "pack.json"
NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)  # not a slice of the frames: that would keep them in memory
THE_DATA = "the data"
VECTORS = {"actions": "action", "state": "state"}
APART = 1.1  # times: rates that are further apart are told of, where there are actions


@dataclass(frozen=True)
class Index:
    """Episodes behind one another: N frames in E episodes; episode e is the frames starts[e] : starts[e + 1].

    image_size is that of the frames when they are read. starts int64 [E + 1]; fps float64 [E]; sizes int64 [E, 2]
    (height and width at the source); actions float32 [N, A] or None (row i leads from frame i to i + 1); state float32
    [N, S] or None. `fingerprint` depends on the content alone, not on where the data lie. `bad` are the episodes that
    were skipped, each with its reason. `instructions_from` says of each episode where its instruction stands
    (contracts.Episode). `notes` are what the datasets chose and passed over (contracts.Dataset).

    action_spec says what the actions mean, None without them; kinds_from who says so. camera is the one that took the
    frames and cameras are all that the source has, as far as it names them. fit is how pictures that are no squares
    were made squares (data/images.py `resized`). notes are what the reader chose or passed over, for people.

    source int64 [E] counts the datasets that were read behind one another; embodiments are their robots, "" for
    unknown; widths are their action dimensions (0: no actions), which `actions` has only where all are the same, and so
    are the kinds; weights are their shares in training (data/mixture.py), or None.
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
    widths: tuple[int, ...]
    weights: tuple[float, ...] | None
    action_spec: ActionSpec | None
    kinds_from: str
    camera: str
    cameras: tuple[str, ...]
    embodiments: tuple[str, ...]
    fit: Fit
    instructions_from: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return len(self.ids)

    def acted(self, now: Array, later: Array) -> Array | None:
        """What the actions over the frames now : later mean (actions/spec.py `over_window`), float32 [B, A]; None
        without actions. now, later int64 [B], in the same episode."""
        if self.actions is None or self.action_spec is None:
            return None
        return over_window(self.action_spec.kinds, self.actions, self.state, now, later)

    def steps(self) -> Array | None:
        """What each action means as the motion of one step, float32 [N, A]; None without actions. An absolute target is
        the change of the state to the next frame (`acted`; in the last frame of an episode, that before it). Others
        are it themselves."""
        now, first, last = np.arange(len(self)), self.starts[:-1], self.starts[1:] - 1
        now[last] = np.maximum(last - 1, first)
        made = self.acted(now, np.minimum(now + 1, last[self.episode_of(now)]))
        if made is None or self.actions is None or self.action_spec is None:
            return None
        own = np.array(self.action_spec.kinds) != "absolute"
        made[:, own] = self.actions[:, own]
        return made

    def told(self) -> list[str]:
        """What was found and chosen, for people: on actions, camera, robot, what the reader notes, instructions."""
        lines = []
        if self.action_spec is not None and self.actions is not None:
            lines.append(f"action: {described(self.action_spec)}; kinds told by {self.kinds_from}")
            if self.fps.max() > APART * self.fps.min():
                span = f"{self.fps.min():.4g} to {self.fps.max():.4g}"
                lines.append(f"action: of {span} Hz, each for a step at its own rate")
        elif any(self.widths):
            lines.append(f"action: left out, for the datasets {self._why_no_actions()}")
        if self.camera and not any("camera: " in note for note in self.notes):
            others = [name for name in self.cameras if name != self.camera]
            lines.append(f"camera: {self.camera}" + (f", out of {', '.join(self.cameras)}" if others else ""))
        if robots := sorted({name for name in self.embodiments if name}):
            lines.append(f"robot: {', '.join(robots)}")
        return [*lines, *self.notes, f"instructions: {origins(self.instructions, self.instructions_from)}"]

    @cached_property
    def outline(self) -> str:
        """A fingerprint of all but the pixels, the same for a pack and for a stream of the same data."""
        texts = json.dumps([self.ids, self.instructions]).encode()
        return "outline-" + digest_of(self.starts.tobytes(), self.fps.tobytes(), texts)

    @cached_property
    def acts(self) -> str:
        """A fingerprint of the recorded actions, the same for a pack and for a stream of the same data; "" without."""
        return "" if self.actions is None else "actions-" + digest_of(self.actions.tobytes())

    def episode_of(self, index: Array) -> Array:
        """Frames int64 [B] -> their episodes int64 [B]."""
        return np.searchsorted(self.starts, index, side="right") - 1

    def listed(self, episode: int) -> Episode:
        """An episode with a stand-in for its frames."""
        span = slice(int(self.starts[episode]), int(self.starts[episode + 1]))
        height, width = self.sizes[episode].tolist()
        return Episode(
            id=self.ids[episode],
            frames=blank(span.stop - span.start, (height, width)),
            fps=float(self.fps[episode]),
            instruction=self.instructions[episode],
            actions=None if self.actions is None else self.actions[span],
            state=None if self.state is None else self.state[span],
            state_names=self.state_names,
            action_names=self.action_names,
            camera=self.camera,
            action_kinds=self.action_spec.kinds if self.action_spec else (),
            embodiment=self.embodiments[0] if len(self.embodiments) == 1 else "",
            instruction_from=self.instructions_from[episode],
        )

    def require_actions(self, purpose: str) -> Array:
        """float32 [N, A]. Raises LapaError naming the dataset and the purpose when there are none."""
        if self.actions is None:
            if not all(self.widths):
                lack = "do not all have actions" if any(self.widths) else "has no actions"
                raise LapaError(f"{self.spec} {lack}, and {purpose} needs them. Give a dataset with actions.")
            raise LapaError(f"{self.spec} {self._why_no_actions()}; {purpose} takes one robot at a time.")
        return self.actions

    def _why_no_actions(self) -> str:
        if not all(self.widths):
            return "do not all have actions"
        if len(set(self.widths)) > 1:
            return f"have actions of {' and '.join(map(str, self.widths))} dimensions"
        return "have actions of different kinds or in another order (if the kinds are wrong, say kinds=)"

    def subset(self, episodes: Array) -> Self:
        """The given episodes int64 [M], in that order. Raises LapaError out of range."""
        episodes = np.asarray(episodes, np.int64)
        if not len(episodes) or episodes.min() < 0 or episodes.max() >= self.episodes:
            raise LapaError(f"{self.spec} has {self.episodes} episodes; cannot take {episodes.tolist()[:8]} of them.")
        return self._only(episodes, np.concatenate([np.arange(self.starts[e], self.starts[e + 1]) for e in episodes]))

    def _only(self, episodes: Array, frames: Array) -> Self:
        """These episodes, and of all frames these: their own."""
        return replace(
            self,
            starts=cumulate(np.diff(self.starts)[episodes]),
            ids=tuple(self.ids[e] for e in episodes),
            instructions=tuple(self.instructions[e] for e in episodes),
            fps=self.fps[episodes],
            sizes=self.sizes[episodes],
            actions=None if self.actions is None else self.actions[frames],
            state=None if self.state is None else self.state[frames],
            fingerprint=digest_of(self.fingerprint.encode(), episodes.tobytes()),
            source=self.source[episodes],
            instructions_from=tuple(self.instructions_from[e] for e in episodes),
        )


class Listing:
    """The tables of one dataset while its episodes are read; `save` writes them."""

    def __init__(self, spec: str, skip_bad: bool) -> None:
        self.spec, self._skip_bad = spec, skip_bad
        self.lengths: list[int] = []
        self.kept: list[Episode] = []  # without their frames
        self.bad: list[str] = []
        self._ids: set[str] = set()

    def take(self, episode: Episode | BadVideo) -> bool:
        """Enter an episode, or False for one that is bad. Raises BadVideo for it unless bad ones are to be skipped."""
        try:
            if isinstance(episode, BadVideo):
                raise episode
            if episode.id in self._ids:
                raise BadVideo(f'{self.spec}: there is a second episode "{episode.id}".')
            _check(episode, self.kept, self.spec)
        except BadVideo as error:
            if not self._skip_bad:
                raise BadVideo(with_advice(str(error))) from None
            self.bad.append(str(error))
            return False
        self._ids.add(episode.id)
        self.lengths.append(len(episode.frames))
        self.kept.append(replace(episode, frames=NO_FRAMES, size=episode.size or episode.frames.shape[1:3]))
        return True

    def save(self, work: Path, digest: Any, size: int, source: object, **about: Any) -> None:
        """Write the tables to the folder `work`; `digest` has seen the frames; `source` is the dataset or its index.
        Raises LapaError when there are no episodes."""
        kept = self.kept
        if not kept:
            raise LapaError(f"{self.spec} has no episode that can be read" + (f": {self.bad[0]}" if self.bad else "."))
        tables = {"starts": cumulate(self.lengths), "fps": np.array([e.fps for e in kept], np.float64)}
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
        kinds, kinds_from = _kinds(self.spec, kept[0], tables, source)
        if set(kinds) - {"delta"}:  # so that the fingerprints of deltas are those of lapa 0.1
            digest.update(json.dumps(kinds).encode())
        cameras = getattr(source, "cameras", ()) or tuple(filter(None, [kept[0].camera]))
        robots = {e.embodiment for e in kept if e.embodiment}
        told = {"kinds": kinds, "kinds_from": kinds_from, "camera": kept[0].camera, "cameras": cameras,
                "embodiment": robots.pop() if len(robots) == 1 else "", "dataset": self.spec,
                "instructions_from": [e.instruction_from for e in kept],
                "notes": _all_notes(source, kept, self._assumed(kinds, kinds_from, tables))}  # fmt: skip
        meta = {"image_size": size, "fingerprint": digest.hexdigest(), "bad": self.bad, **texts, **told, **about}
        (work / META).write_text(json.dumps(meta))

    def _assumed(self, kinds: Sequence[ActionKind], kinds_from: str, tables: dict[str, Array]) -> str:
        """A note where the data could not tell what they are asked to tell."""
        if kinds_from != THE_DATA and not kinds_from.startswith(f"{THE_DATA} ("):  # of how many episodes
            return ""
        state = by_names(tables.get("state"), self.kept[0].action_names, self.kept[0].state_names)
        return assumed(kinds, tables["actions"], state)


def load(entry: Path, spec: str) -> tuple[Index, dict[str, Array]]:
    """The index that is saved in a folder, and tables that are not part of every index. Raises LapaError when it is
    damaged."""
    try:
        meta = json.loads((entry / META).read_text())
        with suppress(OSError):  # a cache that others share, or its disk, may be read only
            os.utime(entry / META)  # last used: `lapa cache --list`
        tables = {p.stem: np.load(p, allow_pickle=False) for p in entry.glob("*.npy")}
        actions, fps = tables.pop("actions", None), tables.pop("fps")
        names = tuple(meta["action_names"]) or _numbered(actions)
        index = Index(
            spec=spec,
            image_size=int(meta["image_size"]),
            starts=tables.pop("starts"),
            ids=tuple(meta["ids"]),
            instructions=tuple(meta["instructions"]),
            fps=fps,
            sizes=tables.pop("sizes"),
            actions=actions,
            state=tables.pop("state", None),
            action_names=tuple(meta["action_names"]),
            state_names=tuple(meta["state_names"]),
            fingerprint=meta["fingerprint"],
            bad=tuple(meta["bad"]),
            source=np.zeros(len(meta["ids"]), np.int64),
            widths=(actions.shape[1] if actions is not None else 0,),
            weights=None,
            action_spec=None if actions is None else ActionSpec(names, tuple(meta["kinds"]), _most_common(fps)),
            kinds_from=meta["kinds_from"],
            camera=meta["camera"],
            cameras=tuple(meta["cameras"]),
            embodiments=(meta["embodiment"],),
            fit=meta["fit"],
            instructions_from=tuple(meta["instructions_from"]),
            notes=tuple(meta["notes"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise damaged(entry, error) from None
    return index, tables


def damaged(entry: Path, error: Exception) -> LapaError:
    """What to say of a folder of the cache that cannot be read."""
    return LapaError(f"The cache entry {entry} is damaged ({error}). Remove that folder and try again.")


def as_fields(index: Index) -> dict[str, Any]:
    """The fields of an Index by name, for what is an Index and more."""
    return {field.name: getattr(index, field.name) for field in fields(Index)}


def tell(found: Index) -> None:
    """Print what was read and chosen; on stderr what was skipped."""
    for reason in found.bad:
        print(f"skipped: {reason}", file=sys.stderr)
    bad = f", {len(found.bad)} skipped" if found.bad else ""
    print(f"{found.spec}: {counted(found.episodes, 'episode')}, {counted(len(found), 'frame')}{bad}.")
    for line in found.told():
        print(f"  {line}")


def parsed(specs: Sequence[str], image_size: int, fit: Fit = "squash") -> list[Spec]:
    """Datasets given as NAME:PATH[,option=value...]. Raises LapaError for none, and for weights of some only."""
    if not specs:
        raise LapaError(f"No dataset was given. {FORM}")
    if image_size < 1:
        raise LapaError(f"The image size must be at least 1 pixel, got {image_size}.")
    found = [replace(parse(spec), fit=fit) for spec in specs]
    if len({spec.weight is not None for spec in found}) > 1:
        raise LapaError(f"Give every dataset a weight or none: {' '.join(specs)}.")
    return found


def weights_of(specs: Sequence[Spec]) -> tuple[float, ...] | None:
    """Their shares in training, if they have some."""
    given = [spec.weight for spec in specs if spec.weight is not None]
    return tuple(given) if given else None


def entry_of(cache: Path | None, spec: Spec, dataset: Dataset, form: int, size: int | str) -> Path:
    """The folder in the cache (`cache`, else $LAPA_CACHE, else ~/.cache/lapa) that holds this dataset in this way."""
    folder = cache or cache_folder()
    key = digest_of(json.dumps([form, spec.key, dataset.signature(), size]).encode())
    return folder / f"{spec.name}-{size}-{key}"


def cache_folder() -> Path:
    """$LAPA_CACHE, else ~/.cache/lapa."""
    return Path(os.environ.get("LAPA_CACHE") or "~/.cache/lapa").expanduser()


def with_advice(reason: str) -> str:
    """What to do about an episode that cannot be read."""
    return f"{reason} Mend or remove it, or skip what cannot be read with --skip-bad."


def cumulate(lengths: Sequence[int] | Array) -> Array:
    """Lengths [E] -> where each begins and the last ends, int64 [E + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def digest_of(*parts: bytes) -> str:
    """32 hex digits."""
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def counted(number: int, thing: str) -> str:
    """ "1 episode", "2 episodes"."""
    return f"{number} {thing}{'s' * (number != 1)}"


def named(names: Sequence[str]) -> str:
    """The first eight of them."""
    return ", ".join(names[:8]) + (", .." if len(names) > 8 else "")


def origins(instructions: Sequence[str], places: Sequence[str]) -> str:
    """How many instructions came from where; of names of files also one, for these are taken as words."""
    found: dict[str, list[str]] = {}
    for text, origin in zip(instructions, places, strict=True):
        found.setdefault((origin or "the dataset") if text else "", []).append(text)
    missing = len(found.pop("", ()))
    told = [f"{len(texts)} from {origin}" + (f', such as "{texts[0]}"' if origin.startswith("names of") else "")
            for origin, texts in found.items()]  # fmt: skip
    return "; ".join([*told, *([f"{missing} missing"] if missing else [])])


def _kinds(spec: str, first: Episode, tables: dict[str, Array], source: object) -> tuple[tuple[ActionKind, ...], str]:
    """The kinds of the actions, and who tells them. Raises LapaError for absolute ones in another order than the
    state's."""
    if "actions" not in tables:
        return (), ""
    says = getattr(source, "kinds_from", "")
    if first.action_kinds and says != THE_DATA:
        kinds, told = first.action_kinds, says or "the dataset"
    else:
        state = by_names(tables.get("state"), first.action_names, first.state_names)
        kinds, told = told_by_data(tables["actions"], state), THE_DATA
    mixed = first.action_names != first.state_names and set(first.action_names) == set(first.state_names)
    if mixed and "absolute" in kinds:
        raise LapaError(f"{spec}: actions are compared with the state number by number, and the state has the same "
                        f"numbers in another order: {named(first.action_names)}; {named(first.state_names)}. Write "
                        "both in one order, or leave the state out (state=none).")  # fmt: skip
    return kinds, told


def _all_notes(source: object, kept: Sequence[Episode], more: str = "") -> list[str]:
    """Those of a dataset and of its episodes, one more, and its robots where there are several; an index has them
    already."""
    own = list(getattr(source, "notes", ()))
    if isinstance(source, Index):
        return own
    robots = Counter(episode.embodiment for episode in kept if episode.embodiment)
    several = [f"robot: {', '.join(f'{name} ({n})' for name, n in robots.items())}; taken together without a name"]
    return [*notes_of(kept), *own, *(several if len(robots) > 1 else []), *filter(None, [more])]


def notes_of(kept: Sequence[Episode]) -> list[str]:
    """The notes of episodes, each once; which episodes they are of, where it is not all."""
    whose: dict[str, list[str]] = {}
    for episode in kept:
        for note in dict.fromkeys(episode.notes):
            whose.setdefault(note, []).append(episode.id)
    return [note if len(of) == len(kept) else f"{note} ({_episodes(of, len(kept))})" for note, of in whose.items()]


def _episodes(names: Sequence[str], total: int) -> str:
    some = ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
    return f"{counted(len(names), 'episode')} of {total}: {some}"


def _numbered(values: Array | None) -> tuple[str, ...]:
    return () if values is None else tuple(f"action_{i}" for i in range(values.shape[1]))


def _most_common(fps: Array) -> float:
    rates, counts = np.unique(fps, return_counts=True)
    return float(rates[counts.argmax()])


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
        its, names = getattr(episode, f"{word}_names"), getattr(first, f"{word}_names")
        if its and names and its != names:
            raise BadVideo(f"{where}: {word} is {named(its)}; {named(names)} in the first episode. As a --dataset of "
                           "its own it can be read too.")  # fmt: skip
    if episode.action_kinds and first.action_kinds and episode.action_kinds != first.action_kinds:
        its, names = episode.action_kinds, first.action_kinds
        raise BadVideo(f"{where}: action is {named(its)} (kinds= says otherwise); {named(names)} in the first one.")


def _check_vector(value: Array | None, first: Array | None, length: int, where: str, word: str) -> None:
    if value is None or first is None:
        if value is not first:
            has, had = ("no", "have one") if value is None else ("an" if word == "action" else "a", "have none")
            raise BadVideo(f"{where} has {has} {word}; the episodes before it {had}.")
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


class Bar:
    """Progress on stderr: a bar on a terminal, one line at the end elsewhere, nothing when quiet."""

    def __init__(self, doing: str, done: str, spec: str, total: int, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._done, self._quiet = f"{done} {spec}", quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn(f"{doing} {{task.description}}", markup=False),
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

    def __enter__(self) -> Bar:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def step(self, frames: int) -> None:
        """One more episode, of so many frames."""
        self._frames += frames
        elapsed = self._progress.tasks[self._task].elapsed or 0.0
        self._progress.update(self._task, advance=1, rate=self._frames / max(elapsed, 1e-3))

    def done(self, episodes: int, frames: int, bad: int) -> None:
        """Say what came out."""
        if not self._quiet:
            skipped = f", {bad} skipped" if bad else ""
            line = f"{self._done}: {counted(episodes, 'episode')}, {counted(frames, 'frame')}{skipped}"
            self._console.print(line, markup=False, soft_wrap=True)
