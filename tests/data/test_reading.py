"""Reading without a pack, and `lapa cache`: what is read is what a pack holds, whoever reads it and however often it is
interrupted."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
import pytest
from made import encoded, frame_folders, jsonl, lerobot_v21, rlds, something, video

from lapa import cli
from lapa.contracts import BadVideo, Episode, LapaError, Seekable
from lapa.data import cache as lapa_cache
from lapa.data.buffer import Buffer, Segments
from lapa.data.labelled import TABLE, read_labels
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import Stream, stream


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Frames that differ all over, and that no codec foresees."""
    return np.random.default_rng(seed).integers(0, 255, (count, 24, 32, 3), np.uint8)


def clips(root: Path) -> Path:
    """Every container, a varying rate, a phone held upright, and a film of three groups of pictures."""
    for number, name in enumerate(("a.mp4", "b.webm", "c.mkv", "d.avi", "e.gif", "more/f.mov")):
        video(root / name, noise(14 + number, number))
    video(root / "g.mkv", noise(9), 50, [0, 0.02, 0.04, 0.14, 0.16, 0.18, 0.2, 0.4, 0.42])
    video(root / "h.mp4", noise(9), 50, [0, 0.02, 0.04, 0.14, 0.16, 0.18, 0.2, 0.4, 0.42], turned=90)
    video(root / "i.mp4", noise(600))
    return root


MAKERS: dict[str, Callable[[Path], str]] = {
    "video_folder": lambda root: f"video_folder:{clips(root)}",
    "rlds": lambda root: f"rlds:{rlds(root)}",
    "lerobot": lambda root: f"lerobot:{lerobot_v21(root)}",
    "something_v2": lambda root: f"something_v2:{something(root)},split=all",
    "frame_folder": lambda root: f"frame_folder:{frame_folders(root)},fps=5",
    "lapa_jsonl": lambda root: f"lapa_jsonl:{jsonl(root)},fps=5",
}


@pytest.fixture(scope="module", params=MAKERS)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "data")


# --- any episode at any frame ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 16])
def test_an_index_is_what_the_episodes_are(spec: str, size: int | None) -> None:
    dataset = open_dataset(spec)
    assert isinstance(dataset, Seekable)
    whole, index = list(dataset.episodes(size)), list(dataset.index())
    assert len(whole) == len(index) >= 2
    for there, (number, listed) in zip(whole, index, strict=True):
        assert isinstance(there, Episode)
        assert isinstance(listed, Episode)
        for key in ("id", "fps", "instruction", "size", "action_names", "state_names"):
            assert getattr(there, key) == getattr(listed, key)
        for key in ("actions", "state"):
            np.testing.assert_array_equal(getattr(there, key), getattr(listed, key))
        assert listed.frames.shape[0] == len(there.frames)
        for start in (0, 1, len(there.frames) // 2, len(there.frames) - 1):
            read = np.stack(list(dataset.frames(number, size, start)))
            np.testing.assert_array_equal(read, there.frames[start:])


def test_episodes_of_one_video_file(robot: Path) -> None:
    """LeRobot v3.0 keeps many episodes in a file."""
    dataset = open_dataset(f"lerobot:{robot}")
    assert isinstance(dataset, Seekable)
    for (number, _), episode in zip(dataset.index(), dataset.episodes(16), strict=True):
        assert isinstance(episode, Episode)
        np.testing.assert_array_equal(np.stack(list(dataset.frames(number, 16, 2))), episode.frames[2:])


def test_a_stream_is_a_pack_without_frames(spec: str) -> None:
    streamed, packed = stream([spec], 16, quiet=True), pack([spec], 16, quiet=True)
    assert streamed.outline == packed.outline == streamed.fingerprint
    for key in ("starts", "fps", "sizes", "actions", "state", "source"):
        np.testing.assert_array_equal(getattr(streamed, key), getattr(packed, key))
    for episode in range(packed.episodes):
        expected = packed.gather(np.arange(packed.starts[episode] + 1, packed.starts[episode + 1]))
        np.testing.assert_array_equal(np.stack(list(streamed.frames(episode, 1))), expected)


def test_what_cannot_be_streamed() -> None:
    with pytest.raises(LapaError, match=r"tabletop:sim.*--stream"):
        stream(["tabletop:sim,episodes=2"], 16)


def test_a_file_that_changed_after_it_was_listed(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", noise(12))
    streamed = stream([f"video_folder:{tmp_path}"], 16, quiet=True)
    video(path, noise(20))
    with pytest.raises(BadVideo, match=r"a\.mp4.* 1\.200 s .*has changed"):
        list(streamed.frames(0))


# --- labels ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laq(small: list[str], robot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("laq") / "laq"
    run("quantize", "--dataset", f"lerobot:{robot}", "--steps", 1, *small, "--out", out)
    return out


def run(*arguments: object) -> None:
    cli.main([str(a) for a in arguments])


@contextmanager
def ends(code: int) -> Iterator[None]:
    """The command ends with this exit code: 1, an error that the user can mend; 130, interrupted."""
    with pytest.raises(SystemExit) as stopped:
        yield
    assert stopped.value.code == code


def shards(out: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (out / TABLE).iterdir()}


@pytest.mark.parametrize(
    "options", [[], ["--end", "clip"], pytest.param(["--workers", 2], marks=pytest.mark.slow)], ids=str
)
def test_labels_of_a_stream_are_those_of_a_pack(laq: Path, robot: Path, tmp_path: Path, options: list[Any]) -> None:
    """Of two datasets, one of them with films longer than what is decoded at once. A stream of two processes is
    compared with the pack of one: that processes change nothing for a pack is tested in tests/test_stage2_label.py."""
    data = ("--dataset", f"lerobot:{robot}", "--dataset", f"video_folder:{clips(tmp_path / 'clips')}")
    command = ("label", *data, "--source", laq, "--shard", 100)
    run(*command, *(options if "--workers" not in options else ()), "--out", tmp_path / "packed")
    run(*command, *options, "--out", tmp_path / "streamed", "--stream")
    assert len(shards(tmp_path / "packed")) >= 5
    assert shards(tmp_path / "streamed") == shards(tmp_path / "packed")


def test_labels_of_a_stream_go_with_a_pack(
    laq: Path, robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--dataset", f"lerobot:{robot}")
    run("label", *data, "--source", laq, "--out", tmp_path / "labels", "--stream")
    run("pretrain", *data, "--labels", tmp_path / "labels", "--steps", 1, *small, "--out", tmp_path / "latent")
    other = ("--dataset", f"video_folder:{clips(tmp_path / 'clips')}")
    with ends(1):
        run("pretrain", *other, "--labels", tmp_path / "labels", "--steps", 1, *small, "--out", tmp_path / "other")
    said = capsys.readouterr().err
    assert f"lerobot:{robot}" in said
    assert str(other[1]) in said, "what the labels are of, and what was given"


def spoil(path: Path) -> None:
    """Damage the pictures of a video; its timestamps stay readable.

    A quarter of the file says that a picture is 4 GB long: no decoder shows that as a picture, whatever
    bytes this machine's encoder wrote.
    """
    data = bytearray(path.read_bytes())
    start, end = len(data) // 4, len(data) // 2
    data[start:end] = b"\xff" * (end - start)
    path.write_bytes(data)


def test_damage_inside_pictures(
    laq: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows only while labelling. Whoever reads the labels later counts episodes as a pack does."""
    for number, name in enumerate("abcde"):
        video(tmp_path / f"clips/{name}.mp4", noise(40, number + 2))
    spoil(tmp_path / "clips/b.mp4")
    spoil(tmp_path / "clips/d.mp4")
    data = ("--dataset", f"video_folder:{tmp_path / 'clips'}")
    command = ("label", *data, "--source", laq, "--shard", 30)
    with ends(1):
        run(*command, "--out", tmp_path / "streamed", "--stream")
    said = capsys.readouterr().err
    assert "b.mp4: " in said or "d.mp4: " in said, "whichever thread meets its damage first"
    assert "--skip-bad" in said
    run(*command, "--out", tmp_path / "streamed", "--stream", "--skip-bad")
    run(*command, "--out", tmp_path / "packed", "--skip-bad")
    streamed, manifest = read_labels(tmp_path / "streamed")
    packed, other = read_labels(tmp_path / "packed")
    for key in ("episode", "frame", "values"):
        np.testing.assert_array_equal(getattr(streamed, key), getattr(packed, key))
    assert manifest["left_out"] == [1, 3]
    assert [Path(reason.partition(": ")[0]).name for reason in manifest["skipped"]] == ["b.mp4", "d.mp4"]
    assert {k: manifest[k] for k in ("pairs", "code_counts", "outline")} == {
        k: other[k] for k in ("pairs", "code_counts", "outline")
    }
    run("pretrain", *data, "--skip-bad", "--labels", tmp_path / "streamed", "--steps", 1, *small,
        "--out", tmp_path / "latent")  # fmt: skip


# --- lapa cache -----------------------------------------------------------------------------------


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Use an empty cache of this name from here on."""

    def use(name: str) -> Path:
        monkeypatch.setenv("LAPA_CACHE", str(tmp_path / name))
        return tmp_path / name

    return use


def files(folder: Path, without: str = "") -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file() and (not without or without not in f.name)
    }


def packs(cache: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(cache).items() if "-index-" not in name}


@pytest.mark.parametrize("workers", [1, 3])
def test_cache_makes_the_pack_of_other_commands(
    spec: str, workers: int, caches: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    if workers > 1 and not spec.startswith(("video_folder", "rlds")):
        pytest.skip("two kinds are enough for several processes")
    expected = caches("expected")
    packed = pack([spec], 16, quiet=True)
    made = caches("made")
    run("cache", "--dataset", spec, "--image-size", 16, "--workers", workers)
    assert packs(made) == packs(expected), "byte for byte, and nothing is left over"
    said = capsys.readouterr().out
    size = len(packed) * 16 * 16 * 3
    assert f"{len(packed):,} frames, {size / 1e6:,.1f} MB" in said
    assert size == sum(f.stat().st_size for f in made.rglob("frames.u8")), "the estimate is what it takes"
    before = {file: file.stat().st_mtime_ns for file in made.rglob("frames.u8")}
    run("cache", "--dataset", spec, "--image-size", 16)
    after = {file: file.stat().st_mtime_ns for file in before}
    assert after == before, "it is there already"


def test_cache_says_which_sizes_a_preset_needs(
    caches: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = caches("cache")
    spec = f"frame_folder:{frame_folders(tmp_path / 'data')},fps=5"
    run("cache", "--dataset", spec, "--preset", "video", "--estimate")
    said = capsys.readouterr().out
    assert f"{spec} at 96 pixels: 24 frames, {24 * 96 * 96 * 3 / 1e6:.1f} MB" in said
    assert f"{spec} at 128 pixels" in said
    assert not list(folder.rglob("frames.u8")), "an estimate writes no frames"


def test_cache_refuses_what_does_not_fit(
    caches: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = caches("cache")
    spec = f"frame_folder:{frame_folders(tmp_path / 'data')},fps=5"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=70 << 20))
    run("cache", "--dataset", spec, "--image-size", 64, "--estimate")
    with ends(1):
        run("cache", "--dataset", spec, "--image-size", 512)
    said = capsys.readouterr().err
    assert re.search(r"\b0\.02 GB .*\b0\.07 GB ", said), "64 MB stay free"
    assert not list(folder.rglob("frames.u8"))


def test_cache_goes_on_after_a_kill(
    caches: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a lot, with half a frame written: the lots before it are not decoded again."""
    spec = f"video_folder:{clips(tmp_path / 'data')}"
    expected = caches("expected")
    pack([spec], 16, quiet=True)
    made, decoded = caches("made"), []
    monkeypatch.setattr(lapa_cache, "LOT", 40)
    frames = Stream.frames

    def until(stop: int) -> Callable[..., Any]:
        def counted(self: Stream, episode: int, start: int = 0) -> Any:
            for frame in frames(self, episode, start):
                if len(decoded) == stop:
                    raise KeyboardInterrupt
                decoded.append(episode)
                yield frame

        return counted

    monkeypatch.setattr(Stream, "frames", until(100))
    with ends(130):
        run("cache", "--dataset", spec, "--image-size", 16, "--workers", 1)
    assert not packs(made) or not any("frames.u8" in name and ".part" not in name for name in packs(made))
    monkeypatch.setattr(Stream, "frames", until(10**9))
    run("cache", "--dataset", spec, "--image-size", 16, "--workers", 1)
    assert packs(made) == packs(expected)
    total = pack([spec], 16).starts[-1]
    assert total < len(decoded) <= total + 60, "only the lot that broke off was read twice"


def test_cache_of_damaged_videos(
    caches: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate("abc"):
        video(tmp_path / f"clips/{name}.mp4", noise(40, number + 2))
    spoil(tmp_path / "clips/b.mp4")
    (tmp_path / "clips/d.mp4").write_bytes(b"nothing")
    spec = f"video_folder:{tmp_path / 'clips'}"
    expected = caches("expected")
    packed = pack([spec], 16, skip_bad=True, quiet=True)
    made = caches("made")
    command = ("cache", "--dataset", spec, "--image-size", 16, "--workers", 1)
    with ends(1):
        run(*command)
    assert "d.mp4: " in capsys.readouterr().err
    run(*command, "--skip-bad")
    assert pack([spec], 16, skip_bad=True).fingerprint == packed.fingerprint
    assert sorted(pack([spec], 16, skip_bad=True).bad) == sorted(packed.bad)
    (frames,), (others,) = made.rglob("frames.u8"), expected.rglob("frames.u8")
    assert frames.read_bytes() == others.read_bytes()
    capsys.readouterr()
    with ends(1):
        run(*command)
    assert "d.mp4" in capsys.readouterr().err, "what a command with --skip-bad has left does not hide it"


def test_cache_of_a_dataset_that_cannot_be_opened_anywhere(
    caches: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = "tabletop:sim,episodes=3"
    expected = caches("expected")
    pack([spec], 16, quiet=True)
    made = caches("made")
    run("cache", "--dataset", spec, "--image-size", 16)
    assert packs(made) == packs(expected)


# --- the shuffle buffer ---------------------------------------------------------------------------


def films(root: Path, lengths: tuple[int, ...] = (300, 40, 90)) -> Stream:
    """Frame t of every film is as bright as t % 200 says, so a frame tells where it comes from."""
    for number, length in enumerate(lengths):
        frames = np.zeros((length, 16, 16, 3), np.uint8) + (np.arange(length) % 200)[:, None, None, None].astype(
            np.uint8
        )
        (root / str(number)).mkdir(parents=True)
        for t, frame in enumerate(frames):
            (root / f"{number}/{t}.png").write_bytes(encoded(frame))
    return stream([f"frame_folder:{root},fps=10"], 16, quiet=True)


def buffer_of(streamed: Stream, kilobytes: int = 1024, **options: Any) -> Buffer:
    """Pairs half a second apart."""
    counts, reach = np.maximum(np.diff(streamed.starts) - 5, 0), np.full(streamed.episodes, 5)
    return Buffer(streamed, counts, reach, **{"seed": 3, "batch": 32, "megabytes": kilobytes // 1024, **options})


def batches_of(buffer: Buffer, steps: range) -> list[tuple[np.ndarray, ...]]:
    found = []
    with closing(buffer):
        for step in steps:
            buffer.begin(step)
            pairs = buffer.pairs(buffer.draw(np.random.default_rng([3, step]), 32))
            found.append((pairs.now, pairs.later, pairs.episode, pairs.frame, pairs.offset))
    return found


def test_a_step_sees_what_seed_and_step_say(tmp_path: Path) -> None:
    """However it was reached, and however many threads decode."""
    streamed = films(tmp_path)
    unbroken = batches_of(buffer_of(streamed), range(30))
    for first, threads in ((0, 1), (11, 2), (29, 4)):
        resumed = batches_of(buffer_of(streamed, threads=threads), range(first, 30))
        for one, other in zip(unbroken[first:], resumed, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    other_seed = batches_of(buffer_of(streamed, seed=4), range(1))
    assert any((a != b).any() for a, b in zip(unbroken[0], other_seed[0], strict=True))


def test_pairs_are_frames_of_their_episode(tmp_path: Path) -> None:
    for now, later, _, frame, offset in batches_of(buffer_of(films(tmp_path)), range(20)):
        np.testing.assert_array_equal(now[:, 0, 0, 0], frame % 200)
        np.testing.assert_array_equal(later[:, 5, 5, 2], (frame + 5) % 200)
        assert (offset == 5).all()


def test_every_pair_is_as_likely(tmp_path: Path) -> None:
    """At the ends of films and in short ones too: counts over many segments against the uniform distribution."""
    streamed = films(tmp_path, (70, 12, 31))
    segments = Segments(streamed, np.diff(streamed.starts) - 5, np.full(3, 5), 16)
    rng, chance = np.random.default_rng(0), np.zeros(len(streamed))
    draws = 6000
    for _ in range(draws):
        episode, first, count = segments.draw(rng)
        assert 1 <= count <= 16
        assert first >= 0
        assert first + count <= segments.counts[episode]
        chance[streamed.starts[episode] + first + np.arange(count)] += 1 / count
    real = np.concatenate([np.arange(a, b - 5) for a, b in itertools.pairwise(streamed.starts)])
    assert chance.sum() == pytest.approx(chance[real].sum()), "only of pairs that there are"
    expected = draws / len(real)
    assert np.abs(chance[real] / expected - 1).max() < 0.3, "four standard deviations of the rarest"


def test_datasets_are_drawn_by_their_weights(tmp_path: Path) -> None:
    films(tmp_path / "long", (200,))
    films(tmp_path / "short", (20,))
    specs = [f"frame_folder:{tmp_path / name},fps=10,weight={w}" for name, w in (("long", 1), ("short", 3))]
    streamed = stream(specs, 16, quiet=True)
    segments = Segments(streamed, np.diff(streamed.starts) - 5, np.full(2, 5), 16)
    rng = np.random.default_rng(0)
    assert np.mean([segments.draw(rng)[0] for _ in range(1000)]) == pytest.approx(0.75, abs=0.05)


@pytest.mark.slow
def test_what_is_held_may_be_asked_at_any_time(tmp_path: Path) -> None:
    """Another thread asks without a pause while the buffer moves on, in steps that turn much of it over."""
    buffer, asked, failed, over = buffer_of(films(tmp_path), 2048), [0], list[Exception](), Event()

    def ask() -> None:
        try:
            while not over.is_set():
                assert 0 <= buffer.frames_held <= buffer._frames.shape[0] * buffer._frames.shape[1]
                asked[0] += 1
        except Exception as error:  # told below: one raised in a thread would be lost
            failed.append(error)

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for step in range(0, 300, 3):
            buffer.begin(step)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        buffer.close()
    assert not failed
    assert asked[0] > 100


@pytest.mark.parametrize("kilobytes", [1024, 2048, 6 * 1024])
def test_the_memory_bound_holds(tmp_path: Path, kilobytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at every read: frames that are held, and those being decoded."""
    streamed = films(tmp_path)
    buffer = buffer_of(streamed, kilobytes)
    most, reading, lock, read = [0], [0], Lock(), Segments.read

    def counted(self: Segments, episode: int, first: int, count: int, into: np.ndarray) -> Any:
        with lock:
            reading[0] += count + 5
            most[0] = max(most[0], buffer.frames_held + reading[0])
        try:
            return read(self, episode, first, count, into)
        finally:
            with lock:
                reading[0] -= count + 5

    monkeypatch.setattr(Segments, "read", counted)
    held = buffer._frames
    batches_of(buffer, range(20))
    bound = kilobytes * 1024 // (16 * 16 * 3)
    assert most[0] <= bound
    assert held.nbytes <= kilobytes * 1024
    assert all(np.shares_memory(held, future.result().frames) for future in buffer._held.values()), "taken once"
    assert most[0] > bound / 4, "and it is made use of"


def test_too_little_memory(tmp_path: Path) -> None:
    streamed = films(tmp_path)
    with pytest.raises(LapaError, match=r"\b1 MB .*\b\d+ MB"):
        buffer_of(replace(streamed, image_size=256))


def test_damage_in_a_buffer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told with its path, once, and another segment takes its place: the same one whenever it is drawn."""
    films(tmp_path)
    (tmp_path / "1/20.png").write_bytes(b"nothing")
    spec = f"frame_folder:{tmp_path},fps=10"
    with pytest.raises(BadVideo, match=r"1/20\.png.*--skip-bad"):
        batches_of(buffer_of(stream([spec], 16, quiet=True)), range(10))
    streamed = stream([spec], 16, skip_bad=True, quiet=True)
    unbroken = batches_of(buffer_of(streamed), range(12))
    assert capsys.readouterr().err.count(f"skipped: {tmp_path}/1/20.png") == 1
    for one, other in zip(unbroken[7:], batches_of(buffer_of(streamed), range(7, 12)), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


# --- training -------------------------------------------------------------------------------------


def weights_in(out: Path) -> bytes:
    return next(out.glob("*.safetensors")).read_bytes()


@pytest.mark.parametrize("stage", ["quantize", "pretrain"])
def test_training_from_a_stream_resumes(
    stage: str, laq: Path, robot: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off in the middle, it ends with the bits of an unbroken run."""
    data = ("--dataset", f"lerobot:{robot}")
    if stage == "pretrain":
        run("label", *data, "--source", laq, "--out", tmp_path / "labels", "--stream")
        data = (*data, "--labels", tmp_path / "labels")
    command = (stage, *data, "--stream", 2, "--steps", 12, *small)
    run(*command, "--out", tmp_path / "unbroken")
    begin = Buffer.begin

    def breaks(self: Buffer, step: int) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, step)

    monkeypatch.setattr(Buffer, "begin", breaks)
    with pytest.raises(SystemExit) as stopped:
        run(*command, "--out", tmp_path / "broken")
    assert stopped.value.code == 143
    monkeypatch.setattr(Buffer, "begin", begin)
    run(*command, "--out", tmp_path / "broken", "--resume")
    assert weights_in(tmp_path / "broken") == weights_in(tmp_path / "unbroken")


def test_what_training_from_a_stream_refuses(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--dataset", f"lerobot:{robot}", "--stream", 8, *small, "--steps", 1)
    with pytest.raises(SystemExit) as ended:
        run("fit", *data, "--out", tmp_path / "out")
    assert ended.value.code == 2, "inverse dynamics is fitted to few trajectories, which are read at once"
    assert "--stream" in capsys.readouterr().err
