"""What the page shows: one or two LAQs on the same videos, the codes of their pairs, and policies of these codes.

The codes of the pairs are read when the page is opened, MOST of them at most. Where something is missing (pairs, the
library for optical flow) the rest is shown, and `notes` say what is missing and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lapa.analysis.inspect import Run, read_run
from lapa.analysis.plans import Motion as Moving
from lapa.analysis.plans import OfEffector, OfPoint
from lapa.analysis.reading import Reading, Source, in_picture, open_laq, open_policy, short
from lapa.artefacts.download import local
from lapa.artefacts.folder import finished, read_config
from lapa.contracts import Array, LapaError
from lapa.data.index import tell
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, tell_of_window, too_slow, window_offsets, window_pairs
from lapa.data.spec import parted
from lapa.measures.flow import coarse_flow, installed, main_motion
from lapa.measures.linear import LinearFit
from lapa.measures.motion import Motion, motion
from lapa.models.laq import UNetDecoder
from lapa.plots.codes import Dreamer
from lapa.stage1_latent_actions import encode_all

MOST = 5000  # pairs whose codes are read
FLOWED = 1000  # pairs whose optical flow is computed
FEWEST = 8  # pairs to fit a probe on
RUNS = 2  # side by side

Code = tuple[int, ...]


@dataclass(frozen=True)
class Moved:
    """How things moved in some pairs: `rows` int64 [M] of the reading; `each` float64 [M, 2], x to the right and y
    down, in shares of the picture; `what` moved: "the effector" or "what moves in the picture"."""

    rows: Array
    each: Array
    what: str


@dataclass(frozen=True)
class Explored:
    """One run on the videos.

    reading  the pairs of the videos and their codes; it may have no rows
    rest     the code of a pair in which nothing moves: what stands at the positions that nobody has set
    moved    None where nothing tells how things moved
    way      turns codes into a way in the picture (analysis/plans.py), and flow into optical flow; None likewise
    did      what the robot did in each pair of the reading, where the data say it
    policy   a policy of stage 2 that predicts the codes of this LAQ, if one was given
    notes    what is missing, a sentence each
    """

    name: str
    run: Run
    source: Source
    reading: Reading
    rest: Code
    moved: Moved | None
    way: Moving | None
    flow: OfPoint | None
    did: Motion | None
    policy: Dreamer | None
    policy_name: str
    notes: tuple[str, ...]

    @property
    def packed(self) -> Packed:
        """The videos."""
        return self.reading.packed

    @property
    def positions(self) -> int:
        """Codes of a pair."""
        return int(self.source.laq.quantizer.positions)

    @property
    def size(self) -> int:
        """|C|: the kinds of a code."""
        return int(self.source.laq.quantizer.size)

    @cached_property
    def shares(self) -> Array:
        """How often each code occurs, float64 [positions, |C|], of all pairs of the reading; 0 without pairs."""
        counts = [np.bincount(self.reading.codes[:, p], minlength=self.size) for p in range(self.positions)]
        made: Array = np.stack(counts) / max(len(self.reading), 1)
        return made

    @cached_property
    def arrows(self) -> Array:
        """The mean motion of the pairs that have each code, float64 [positions, |C|, 2]; NaN where it is not known."""
        made = np.full((self.positions, self.size, 2), np.nan)
        for p in range(self.positions if self.moved else 0):
            assert self.moved
            column = self.reading.codes[self.moved.rows, p]
            for code in np.unique(column):
                made[p, code] = self.moved.each[column == code].mean(0)
        return made

    def having(self, code: Code, position: int | None = None) -> Array:
        """Rows of the reading whose pairs have this code; with `position`, only there: int64 [N]."""
        codes = self.reading.codes
        same = codes == np.array(code)
        return np.flatnonzero(same.all(1) if position is None else same[:, position])

    def later(self, frame: int) -> int | None:
        """The frame one window after a frame of the same video; None where the video has none."""
        episode = int(self.packed.episode_of(np.array([frame]))[0])
        fps = self.packed.fps[[episode]]
        there = frame + int(window_offsets(fps, self.source.window)[0])
        return None if there >= self.packed.starts[episode + 1] or too_slow(fps, self.source.window)[0] else there


def explored(
    runs: Sequence[str],
    specs: Sequence[str] = (),
    policies: Sequence[str] = (),
    most: int = MOST,
    skip_bad: bool = False,
    seed: int = 0,
) -> tuple[Explored, ...]:
    """Open one or two runs on the same videos (none: those of the first LAQ's training).

    A run is the folder of a LAQ, or of a policy that predicts the codes of one. Raises LapaError for other folders, for
    a policy whose LAQ is not found, and for videos that cannot be read.
    """
    found = [_opened(run) for run in [*runs, *policies]]
    laqs = {run.path: open_laq(run.path) for run in found if run.kind == "laq"}
    speakers: dict[str, Path] = {}  # hash of a LAQ -> its policy
    for run in (run for run in found if run.kind == "policy"):
        parents = run.about.get("provenance", {}).get("parents", {})
        hashes = [source.hash for source in laqs.values() if source.hash in parents.values()]
        if not hashes:
            path = _its_laq(run, parents)
            laqs[path] = open_laq(path)
            hashes = [laqs[path].hash]
        if hashes[0] in speakers:
            raise LapaError(f"{run.path} and {speakers[hashes[0]]} are two policies of one LAQ; give one of them.")
        speakers[hashes[0]] = run.path
    if len(laqs) > RUNS:
        raise LapaError(f"{len(laqs)} LAQs were given ({', '.join(map(str, laqs))}); the page shows {RUNS} at most.")
    if not specs:
        trained = read_run(next(iter(laqs))).about.get("provenance", {}).get("data", {})
        specs = [spec for joined in trained for spec in parted(joined)]
        if not specs:
            raise LapaError(f"{next(iter(laqs))} does not say what it was trained on: give --dataset NAME:PATH.")
        print(f"No --dataset: the videos are those that {next(iter(laqs))} was trained on.")
    names = _names(list(laqs))
    return tuple(
        _explored(name, path, source, specs, speakers.get(source.hash), most, skip_bad, seed)
        for name, (path, source) in zip(names, laqs.items(), strict=True)
    )


def _opened(path: str) -> Run:
    """A finished LAQ, or a policy that predicts codes. Raises LapaError for anything else."""
    run = read_run(local(path))
    what = {"laq": "a LAQ", "policy": "a policy"}.get(run.kind)
    if what is None:
        raise LapaError(
            f'{path} is of kind "{run.kind}"; lapa explore takes a LAQ (lapa quantize) or a policy of its codes.'
        )
    if not run.finished:
        raise LapaError(f"{path} is {what} that is not finished. Wait for it, or end it now: lapa stop {path}.")
    if run.kind == "policy" and (run.about.get("space") or {}).get("kind") != "codes":
        raise LapaError(
            f"{path} is a policy that does not predict codes any more. Give the policy of stage 2, made by lapa "
            "pretrain from the labels of a LAQ."
        )
    return run


def _its_laq(run: Run, parents: dict[str, str]) -> Path:
    """The LAQ whose codes a policy predicts, by its hash: where it was, or as near the policy as it was."""
    for name, wanted in parents.items():
        tails = [Path(*Path(name).parts[i:]) for i in range(len(Path(name).parts))]
        for path in (Path(name), *(above / tail for above in run.path.resolve().parents for tail in tails)):
            if (path / "model.safetensors").is_file() and finished(path):
                found = read_config(path)
                if found.get("kind") == "laq" and found.get("hash") == wanted:
                    return path
    known = ", ".join(parents) or "config.json names none"
    raise LapaError(
        f"The LAQ of {run.path} is not where it was ({known}). Give it too: lapa explore LAQ --policy {run.path}."
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The folder's name; the whole path where two would be the same."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _explored(
    name: str,
    path: Path,
    source: Source,
    specs: Sequence[str],
    policy: Path | None,
    most: int,
    skip_bad: bool,
    seed: int,
) -> Explored:
    laq = source.laq
    packed = pack(specs, laq.config.image_size, skip_bad=skip_bad)
    tell(packed)
    notes = []
    if isinstance(laq.decoder, UNetDecoder) and not bool(laq.decoder.out.weight.any()):
        notes.append("The decoder of this LAQ has not been trained: every code shows the frame unchanged.")
    print(f"Reading the codes and the motion of the pairs for {name} ..", flush=True)
    reading, why = read_codes(source, packed, " + ".join(map(short, specs)), most, seed)
    moved, flow, unknown = how_moved(reading)
    notes += [note for note in (why, unknown) if note]
    first = packed.gather(np.array([0]))
    way: Moving | None = flow
    if in_picture(packed):
        way = OfEffector(LinearFit.fit(reading.features, reading.moved)) if len(reading) >= FEWEST else None
    return Explored(
        name=name,
        run=read_run(path),
        source=source,
        reading=reading,
        rest=tuple(laq.encode(first, first)[0].tolist()),
        moved=moved,
        way=way,
        flow=flow,
        did=motion(packed, reading.pairs, reading.rows) if len(reading) else None,
        policy=open_policy(policy, source) if policy else None,
        policy_name=policy.name if policy else "",
        notes=tuple(notes),
    )


def read_codes(source: Source, packed: Packed, name: str, most: int, seed: int = 0) -> tuple[Reading, str]:
    """The codes of up to `most` pairs at random, in order; and why there are none, "" where there are some."""
    laq, why = source.laq, ""
    try:
        pairs = window_pairs(packed, source.window)
        tell_of_window(packed, source.window)
    except LapaError as error:  # the rest of the page needs no pairs
        nothing = np.zeros(0, np.int64)
        pairs = PairIndex(nothing, nothing, nothing, nothing, nothing, source.window, packed.episodes)
        why = str(error)
    rows = np.arange(len(pairs))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        print(f"{name}: the codes of {most:,} of {len(pairs):,} pairs are read (--pairs).")
    codes = np.zeros((0, laq.quantizer.positions), np.int64)
    if len(rows):
        codes = encode_all(laq, packed, pairs, rows, batch=256)
    return Reading(name, packed, pairs, rows, codes, laq.quantizer.size), why


def how_moved(reading: Reading) -> tuple[Moved | None, OfPoint | None, str]:
    """How things moved in the pairs: the effector, where the state says where it is in the picture; else the picture,
    by its optical flow. Then what turns codes into optical flow, fitted to up to FLOWED pairs. And why either is not
    known; "" where it is."""
    moved = None
    if len(reading) and in_picture(reading.packed):
        moved = Moved(np.arange(len(reading)), reading.moved, "the effector")
    if not len(reading):
        return moved, None, ""
    if not installed():
        return moved, None, 'How the picture moves is not known: that takes optical flow (pip install "lapa[flow]").'
    rows = np.sort(np.random.default_rng(0).permutation(len(reading))[:FLOWED])
    some = reading.some(rows)
    flow = coarse_flow(reading.packed, reading.pairs, some.rows)
    moved = moved or Moved(rows, main_motion(flow).astype(np.float64), "what moves in the picture")
    if len(rows) < FEWEST:
        return moved, None, ""
    return moved, OfPoint(LinearFit.fit(some.features, flow.reshape(len(rows), -1), some.episode)), ""
