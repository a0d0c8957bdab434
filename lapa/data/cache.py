"""`lapa cache`: the packs that other commands would make, ahead of time, by many processes.

An index (data/index.py) says where each frame of the pack will lie, so processes decode different episodes and write
them into one file, each at its place. Each lot of episodes is noted when it is on the disk: a run that was killed goes
on from there. The finished pack is byte for byte the one that data/pack.py makes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import Array, BadVideo, LapaError, Seekable
from lapa.data.cache_list import tell_if_much
from lapa.data.folders import new_folder
from lapa.data.index import META, Index, Listing, cache_folder, entry_of, parsed, with_advice
from lapa.data.pack import FORMAT, FRAMES, SPARE, pack
from lapa.data.stream import Stream, stream
from lapa.runtime.progress import Progress
from lapa.runtime.workers import PARENT, end_with_parent, start, until_all_have_ended

LOT = 2000  # frames, about: what a process does again when it is killed
DONE = "done"  # folder of a JSON for each lot that is written


@dataclass(frozen=True)
class Estimate:
    """One pack of one dataset at one size; `there` when the cache holds it already. frames is None where the dataset
    cannot tell without being read."""

    spec: str
    image_size: int
    episodes: int
    frames: int | None
    entry: Path
    there: bool

    @property
    def bytes(self) -> int:
        """Frames x size^2 x 3."""
        return (self.frames or 0) * self.image_size**2 * 3


def estimate(spec: str, image_size: int, skip_bad: bool = False) -> Estimate:
    """What a pack would hold, from the dataset's index, without decoding. Raises LapaError as `stream` does."""
    (one,) = parsed([spec], image_size)
    dataset = one.build()
    entry = entry_of(None, one, dataset, FORMAT, image_size)
    there = (entry / META).exists()
    if not there and not isinstance(dataset, Seekable):
        return Estimate(spec, image_size, 0, None, entry, False)
    index: Index = (pack if there else stream)([spec], image_size, skip_bad=skip_bad)
    return Estimate(spec, image_size, index.episodes, len(index), entry, there)


def require_room(wanted: Sequence[Estimate]) -> int:
    """Bytes free where the cache is. Raises LapaError when what is not there yet does not fit."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_folder()).free
    need = sum(max(0, e.bytes - _written(e.entry)) for e in wanted if not e.there)
    if need + SPARE > free:
        raise LapaError(
            f"No room: {need / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free in {cache_folder()}. Free some "
            "space, set LAPA_CACHE to a folder on a larger disk, take fewer pixels, or do without a pack (--stream)."
        )
    return free


def make(wanted: Estimate, workers: int, skip_bad: bool = False) -> None:
    """Make a pack with so many processes (0: one per core), going on where an earlier call was killed.

    Raises LapaError for an episode that cannot be read, unless `skip_bad`, and when a process dies.
    """
    if wanted.frames is None:  # such a dataset is read from front to back, by one process
        pack([wanted.spec], wanted.image_size, skip_bad=skip_bad)
        return
    work = wanted.entry.parent / f".{wanted.entry.name}.part"
    (work / DONE).mkdir(parents=True, exist_ok=True)
    with _alone(work):
        if (wanted.entry / META).exists():  # made while we waited
            return
        whole = stream([wanted.spec], wanted.image_size, skip_bad=skip_bad, quiet=True)
        if not (work / FRAMES).exists():
            shutil.rmtree(work / DONE)
            (work / DONE).mkdir()
            with (work / FRAMES).open("wb") as file:
                file.truncate(wanted.bytes)
        bad = _fill(whole, wanted, work, workers or os.cpu_count() or 1, skip_bad)
        _finish(whole, wanted, work, bad, skip_bad)
        shutil.rmtree(work)
    tell_if_much()


def _written(entry: Path) -> int:
    part = entry.parent / f".{entry.name}.part" / FRAMES
    return part.stat().st_blocks * 512 if part.exists() else 0


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another process makes this pack; waiting for it.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the frames -----------------------------------------------------------------------------------


def _lots(whole: Stream) -> list[tuple[int, int]]:
    """Episodes first : last, a new lot for every LOT frames."""
    groups = whole.starts[:-1] // LOT
    firsts = np.flatnonzero(np.diff(groups, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], whole.episodes], strict=True))


def _fill(whole: Stream, wanted: Estimate, work: Path, workers: int, skip_bad: bool) -> dict[int, str]:
    """Decode all lots into the file of frames. Returns the episodes that are damaged, with the reasons."""
    lots, bad, done = _lots(whole), dict[int, str](), dict[str, int]()

    def look() -> int:
        """The frames that are done."""
        for name in {name for name in os.listdir(work / DONE) if name.startswith("lot-")} - set(done):
            first, last = lots[int(name[4:10])]
            done[name] = int(whole.starts[last] - whole.starts[first])
            bad.update({int(e): why for e, why in read_json(work / DONE / name, "note of a lot").items()})
            if bad and not skip_bad:
                raise BadVideo(with_advice(bad[min(bad)]))
        return sum(done.values())

    with Progress(f"packing {wanted.spec}", len(whole), done=look(), unit="frames") as progress:
        if len(done) < len(lots):
            count = min(workers, len(lots))
            if count == 1:
                _work(whole, work, 0, 1, lambda: progress.update(look()))
            else:
                _with_processes(wanted, work, count, lambda: progress.update(look()))
        progress.update(look())
    return bad


def _work(whole: Stream, work: Path, number: int, count: int, tell: Callable[[], None]) -> None:
    """Process `number` of `count`: its lots, in strides, but for those that are done."""
    size = whole.image_size**2 * 3
    for lot, (first, last) in list(enumerate(_lots(whole)))[number::count]:
        note, bad = work / DONE / f"lot-{lot:06d}.json", dict[str, str]()
        if note.exists():
            continue
        with (work / FRAMES).open("r+b") as file:
            for episode in range(first, last):
                file.seek(int(whole.starts[episode]) * size)
                try:
                    for frame in whole.frames(episode):
                        file.write(np.ascontiguousarray(frame).data)
                except BadVideo as error:
                    bad[str(episode)] = str(error)
            file.flush()
            os.fsync(file.fileno())
        write_json(note, bad)
        tell()


def _with_processes(wanted: Estimate, work: Path, workers: int, look: Callable[[], None]) -> None:
    environment = {**os.environ, PARENT: str(os.getpid())}
    told = (wanted.spec, str(wanted.image_size), str(work))
    processes = [
        start("lapa.data.cache", *told, str(number), str(workers), environment=environment) for number in range(workers)
    ]
    if failed := sum(map(bool, until_all_have_ended(processes, look))):
        raise LapaError(f"{failed} of {workers} processes ended early. What they had done is kept; run the same "
                        "command again.")  # fmt: skip


def _worker(spec: str, image_size: str, work: str, number: str, count: str) -> None:
    """`python -m lapa.data.cache SPEC SIZE WORK NUMBER COUNT`: one of the processes."""
    end_with_parent()
    # What the index calls bad is nobody's to decode; whether that is an error, the parent knows.
    _work(stream([spec], int(image_size), skip_bad=True, quiet=True), Path(work), int(number), int(count), lambda: None)


# --- the pack -------------------------------------------------------------------------------------


def _finish(whole: Stream, wanted: Estimate, work: Path, bad: dict[int, str], skip_bad: bool) -> None:
    """Tables and fingerprint, as data/pack.py writes them."""
    listing = Listing(wanted.spec, skip_bad)
    listing.bad.extend([*whole.bad, *(bad[episode] for episode in sorted(bad))])
    for number in range(whole.episodes):
        if number not in bad:
            listing.take(whole.listed(number))
    digest = hashlib.blake2b(digest_size=16)
    with new_folder(wanted.entry, twin_is_fine=True) as folder:
        with (folder / FRAMES).open("wb") if bad else open(os.devnull, "wb") as copy:
            for frames in _frames(whole, work, bad):
                digest.update(frames.data)
                copy.write(frames.data)
        listing.save(folder, digest, wanted.image_size, whole, format=FORMAT, fit=whole.fit)
        if not bad:
            os.rename(work / FRAMES, folder / FRAMES)


def _frames(whole: Stream, work: Path, bad: dict[int, str]) -> Iterator[Array]:
    """What was written of the good episodes, in order."""
    frames = np.asarray(np.memmap(work / FRAMES, np.uint8, "r")).reshape(len(whole), -1)
    for episode in range(whole.episodes):
        if episode not in bad:
            yield frames[whole.starts[episode] : whole.starts[episode + 1]]


if __name__ == "__main__":
    _worker(*sys.argv[1:])
