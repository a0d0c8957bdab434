"""Damaged data, in more than a thousand ways: never a traceback, never silence about the file, nothing that hangs or
fills the memory, and the other episodes as if the damage were not there.

Every damage has a number and follows from it alone, and a failure says which one it was. Others than those of the
suite are tried by LAPA_FIRST_DAMAGE=1000.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import damage
import made
import made_robots
import numpy as np
import pytest

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.pack import Packed, pack
from lapa.data.stream import Stream, stream

SHARED = Path(__file__).parents[3] / "shared/data"
TIMES = 150  # damages of each kind of dataset
STREAMED = 50  # of each, with --stream
REAL = 60  # of each that is cut from real data, where there are such
FEW = 24  # of each of the formats that have a package of their own
MANY = int(os.environ.get("LAPA_DAMAGES", 0))  # so many of each instead: LAPA_DAMAGES=1000 is the thorough test
FIRST = int(os.environ.get("LAPA_FIRST_DAMAGE", 0))  # any other number gives other damages
SLOW, LARGE = 20, 1.5e9  # seconds and bytes that no damage may take: about a hundred times what it should


def clips(root: Path) -> Path:
    rows = ["file,instruction"]
    for name in ("a.mp4", "in/b.webm", "c.mkv", "d.avi", "e.gif", "f.mov"):
        made.video(root / name, made.pictures(8))
        rows.append(f"{name},lift {name}")
    (root / "captions.csv").write_text("\n".join(rows))
    return root


def lerobot_v3(root: Path) -> Path:
    with LeRobotWriter(root, 5, 16) as writer:
        for number in range(3):
            frames = made.pictures(5, 16, 16, seed=number)
            vectors = np.arange(10, dtype=np.float32).reshape(5, 2) + number
            writer.add(Episode(str(number), frames, 5.0, f"lift cup {number}", vectors, vectors))
    return root


def real_clips(root: Path) -> Path:
    """The first frames of three real videos, as they were encoded."""
    sources = sorted((SHARED / "real_clips/videos").glob("*.mp4"))[::20]
    root.mkdir(parents=True)
    (root / "captions.csv").write_text("\n".join(["file,text", *(f"{s.name},lift it" for s in sources)]))
    for source in sources:
        with av.open(str(source)) as old, av.open(str(root / source.name), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for number, packet in enumerate(old.demux(old.streams.video[0])):
                if number < 8 and packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
    return root


def real_bridge(root: Path) -> Path:
    """Three real episodes of Bridge in a shard each."""
    root.mkdir(parents=True)
    source = next((SHARED / "rlds_bridge_sample").iterdir())
    shard = next(source.glob("*.tfrecord*"))
    for number, record in enumerate(damage.unpacked(shard.read_bytes())[:3]):
        made.tfrecord(root / f"bridge_dataset-train.tfrecord-{number:05d}-of-00003", [record])
    shutil.copy(source / "features.json", root / "features.json")
    info = {"name": "bridge_dataset", "splits": [{"name": "train", "shardLengths": ["1", "1", "1"]}]}
    (root / "dataset_info.json").write_text(json.dumps(info))
    return root


def demos(root: Path) -> Path:
    for name in ("a", "b", "c"):
        made_robots.robomimic(root / f"{name}.hdf5", (3, 2))
    return root


def stores(root: Path) -> Path:
    for name, form in (("a", 2), ("b", 3), ("c", 2)):
        made_robots.diffusion_policy(root / f"{name}.zarr", (3, 4), form)
    return root


def zipped_stores(root: Path) -> Path:
    root.mkdir()
    for name in ("a", "b", "c"):
        made_robots.umi(root / f"{name}.zarr.zip", (3, 2))
    return root


def bags(root: Path) -> Path:
    for number in range(3):
        made_robots.ros2(root / f"run_{number}.mcap", made_robots.arm(4, seed=number))
    return root


Maker = Callable[[Path], Path]
Owner = Callable[[Path], str | None]
KINDS: dict[str, tuple[str, Maker, str, Owner, int]] = {
    # reader, made by, options, what the ids of a file's episodes begin with (None: any), damages
    "video_folder": (
        "video_folder", clips, "",
        lambda f: None if f.suffix == ".csv" else f"in/{f.name}" if f.stem == "b" else f.name, TIMES,
    ),
    "frame_folder": (
        "frame_folder", lambda root: made.frame_folders(root, ("lift_cup", "more/turn_lever", "push"), 4), ",fps=5",
        lambda f: {"turn_lever": "more/turn_lever"}.get(f.parent.name, f.parent.name), TIMES,
    ),
    "something_v2": (
        "something_v2", made.something, ",split=all", lambda f: f.stem if f.suffix == ".webm" else None, TIMES,
    ),
    "lapa_jsonl": (
        "lapa_jsonl", made.jsonl, ",fps=5", lambda f: f"demo/{f.parent.name}" if f.suffix == ".png" else None, TIMES,
    ),
    "rlds": (
        "rlds", lambda root: made.rlds(root, (4, 5, 4, 3), shards=3), "",
        lambda f: f.name if ".tfrecord" in f.name else None, TIMES,
    ),
    "lerobot_v2": (
        "lerobot", lambda root: made.lerobot_v21(root, (4, 5, 6)), "",
        lambda f: None if f.parent.name == "meta" else f.stem, TIMES,
    ),
    "lerobot_v3": ("lerobot", lerobot_v3, "", lambda f: None, TIMES),
    "demos": ("hdf5", demos, "", lambda f: f.stem, FEW),
    "aloha": ("hdf5", lambda root: made_robots.aloha(root, (4, 3, 3), coded=True), "", lambda f: f.stem, FEW),
    "zarr": ("zarr", stores, "", lambda f: next(p for p in f.parts if p.endswith(".zarr"))[:-5], FEW),
    "zipped_zarr": ("zarr", zipped_stores, "", lambda f: f.name.partition(".")[0], FEW),
    "mcap": ("mcap", bags, "", lambda f: f.stem, FEW),
    "tars": ("webdataset", made_robots.clips_in_tars, "", lambda f: f.stem, FEW),
    "real_clips": (
        "video_folder", real_clips, "", lambda f: None if f.suffix == ".csv" else f.name, REAL,
    ),
    "real_bridge": ("rlds", real_bridge, "", lambda f: f.name if ".tfrecord" in f.name else None, REAL),
}  # fmt: skip
UNREAD = (
    "README.md",
    "observation.images.wrist",
    "labels.json",
    "stats.json",
    "features.txt",
    "keypoint",
    "n_contacts",
)  # what no reader opens

Held = dict[str, tuple[object, ...]]


Read = Callable[..., Packed | Stream]


def held(read: Read, spec: str, cache: Path) -> tuple[Held, list[str]]:
    """What a command gets of a dataset, from a pack or a stream: episodes by id with all that is in them, and what it
    says of the others. Of a stream only what the files say of themselves is read before the frames are wanted."""
    try:
        found = read([spec], 16, skip_bad=True, cache=cache, quiet=True)
    except LapaError as error:
        return {}, [str(error)]
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    episodes, told = {}, list(found.bad)
    for number, name in enumerate(found.ids):
        rows = np.arange(found.starts[number], found.starts[number + 1])
        try:
            frames = found.gather(rows) if isinstance(found, Packed) else np.stack(list(found.frames(number)))
        except BadVideo as error:
            told.append(str(error))
            continue
        vectors = [None if v is None else v[rows].tobytes() for v in (found.actions, found.state)]
        about = (found.instructions[number], found.fps[number], tuple(found.sizes[number]))
        episodes[name] = (frames.tobytes(), *vectors, *about)
    return episodes, told


def test_a_thousand_damages() -> None:
    """Those that need no data beside the repository."""
    assert sum(times for name, (*_, times) in KINDS.items() if not name.startswith("real")) >= 1000


@pytest.mark.filterwarnings("ignore")  # Pillow's about damaged files
@pytest.mark.parametrize("read", [pack, stream])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("part", ["a fifth", pytest.param("the rest", marks=pytest.mark.slow)])
def test_damage_stays_where_it_is(part: str, name: str, read: Read, tmp_path: Path) -> None:
    reader, make, options, owner, times = KINDS[name]
    times = MANY or (times if read is pack else min(times // 2 if times < STREAMED else times, STREAMED))
    fifth = FIRST + times // 5
    if name.startswith("real") and not SHARED.exists():
        pytest.skip(f"{SHARED} is not on this machine")
    whole = tmp_path / "whole"
    inside = make(whole).relative_to(whole)
    files = sorted(f for f in whole.rglob("*") if f.is_file() and not set(f.parts) & set(UNREAD))
    clean, bad = held(read, f"{reader}:{whole / inside}{options}", tmp_path / "cache")
    assert len(clean) > 1
    assert not bad
    pairs = [(file, way) for file in files for way in damage.ways(file)] + [(whole, way) for way in damage.BESIDE]
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(pairs))
    failed = []
    for number in range(FIRST, fifth) if part == "a fifth" else range(fifth, FIRST + times):
        file, way = pairs[order[number % len(order)]]
        root = tmp_path / "damaged"
        shutil.copytree(whole, root, symlinks=True)
        where = root / file.relative_to(whole)
        must_tell = way(where, np.random.default_rng([zlib.crc32(name.encode()), number]))
        touched = "" if where == root else owner(where)
        problem = wrong(read, f"{reader}:{root / inside}{options}", root, clean, touched, must_tell and file.name)
        failed += [f"{number}, {way.__name__} of {file.relative_to(whole)}: {problem}"] if problem else []
        shutil.rmtree(root)
    assert not failed, "\n".join([f"{len(failed)} of {times} damages of {name}", *failed])


def wrong(read: Read, spec: str, root: Path, clean: Held, touched: str | None, must_name: str | bool) -> str:
    """What is wrong with how damage was met, or nothing.

    touched: what the ids of the episodes begin with that the damage may change ("": of none, None: of any); must_name:
    what a message has to name, if anything.
    """
    begun, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found, told = held(read, spec, root.parent / "cache")
    except Exception as error:
        return f"a traceback, {error!r} at {traceback.extract_tb(error.__traceback__)[-1]}"
    if time.perf_counter() - begun > SLOW:
        return "is too slow"
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 > LARGE:
        return "fills the memory"
    unsaid = [reason for reason in told if str(root) not in reason or not reason.isprintable()]
    if unsaid:
        return f"no path in {unsaid}"
    mine = {i for i in clean if touched is None or (touched and i.startswith(touched))}
    lost = clean.keys() - found.keys()
    if touched is not None and not lost <= mine:
        return f"lost {lost - mine}, which it did not touch: {told}"
    different = [i for i in clean.keys() - mine - lost if found[i] != clean[i]]
    if different:
        return f"changed {different}, which it did not touch"
    if (lost or must_name) and not told:
        return f"said nothing; lost {lost or 'nothing'}"
    if must_name and touched is not None and not any(str(must_name) in reason for reason in told):
        return f"does not name the file: {told}"
    return ""
