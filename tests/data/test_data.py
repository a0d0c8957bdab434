"""The data layer: what is written is read back, packed once and cut into pairs; what is bad is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import pictures, video
from PIL import Image

from lapa.contracts import ActionSpec, BadVideo, Episode, Labels, LapaError
from lapa.data import lerobot_format
from lapa.data import pack as pack_module
from lapa.data import spec as spec_module
from lapa.data.labelled import read_labels, read_shard, write_shard
from lapa.data.lerobot_format import CAMERA, LeRobotWriter
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.data.video import VideoReader
from lapa.data.words import words
from lapa.plugins import find
from lapa.stage1_latent_actions import _sampler
from lapa.training.loop import Optimisation

REAL_CLIPS = Path(__file__).parents[3] / "shared/data/real_clips"
SIZE = 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LAPA_CACHE", str(folder))
    return folder


def an_episode(seed: int, length: int = 6, fps: float = 5.0, size: int = SIZE) -> Episode:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(2, length, 2)).astype(np.float32)
    return Episode(
        id=str(seed),
        frames=random.integers(0, 256, (length, size, size, 3), np.uint8),
        fps=fps,
        instruction=f"push the {['cup', 'block'][seed % 2]}",
        actions=vectors[0],
        state=vectors[1],
    )


def a_dataset(path: Path, episodes: list[Episode], actions: bool = True) -> Path:
    names = (("dx", "dy"), ("x", "y")) if actions else ((), ())
    with LeRobotWriter(path, episodes[0].fps, episodes[0].frames.shape[1], *names, {"seed": 1}) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


def read(path: Path, **options: str) -> list[Episode]:
    return list(find("datasets", "lerobot")(path=str(path), **options).build().episodes())


def a_video(path: Path, frames: int, fps: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(frames):
            picture = np.full((24, 32, 3), 40 * (i % 6), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def edit_parquet(path: Path, **columns: object) -> None:
    """Set columns of a parquet file; None removes one."""
    table = {name: pq.read_table(path)[name] for name in pq.read_table(path).column_names}
    table = {name: value for name, value in (table | columns).items() if value is not None}
    pq.write_table(pa.table(table), path)


# --- the LeRobot format ---------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [5.0, 10.0, 29.97, 7.5])
def test_what_is_written_is_read(tmp_path: Path, fps: float) -> None:
    written = [an_episode(seed, 3 + seed, fps) for seed in range(5)]
    again = read(a_dataset(tmp_path / "ds", written))
    assert len(again) == 5
    for one, two in zip(written, again, strict=True):
        np.testing.assert_array_equal(one.frames, two.frames)
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.state, two.state)
        assert (one.instruction, one.fps) == (two.instruction, two.fps)
        assert (two.action_names, two.state_names) == (("dx", "dy"), ("x", "y"))


def test_metadata_as_lerobot_has_it(tmp_path: Path) -> None:
    written = [an_episode(seed) for seed in range(4)]
    root = a_dataset(tmp_path / "ds", written)
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 5, 24)
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]}
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    assert episodes[f"videos/{CAMERA}/from_timestamp"].to_pylist() == pytest.approx([0.0, 1.2, 2.4, 3.6])
    assert episodes["dataset_to_index"].to_pylist() == [6, 12, 18, 24]
    assert len(list(root.rglob("*.mp4"))) == 1, "many episodes share one file"
    rows = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert rows["timestamp"].to_pylist()[6:8] == pytest.approx([0, 0.2]), "time restarts with the episode"
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.concatenate([e.actions for e in written])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-4)
    pixels = np.concatenate([e.frames[::8] for e in written]) / 255
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["std"]), pixels.std((0, 1, 2)), rtol=1e-6)
    index = json.loads(pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"])["index_columns"]
    assert index == ["task"]


def test_several_files_when_one_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_format, "FRAMES_PER_FILE", 10)
    written = [an_episode(seed) for seed in range(5)]
    root = a_dataset(tmp_path / "ds", written)
    assert len(list(root.rglob("*.mp4"))) == len(list((root / "data").rglob("*.parquet"))) == 3
    for one, two in zip(written, read(root), strict=True):
        np.testing.assert_array_equal(one.frames, two.frames)
        np.testing.assert_array_equal(one.actions, two.actions)


def test_foreign_files_are_read(tmp_path: Path) -> None:
    """Unknown keys and columns, the column of an unnamed pandas index, one-dimensional actions as scalars."""
    written = [an_episode(seed) for seed in range(3)]
    root = a_dataset(tmp_path / "ds", written)
    info = json.loads((root / "meta/info.json").read_text())
    info |= {"codebase_version": "v3.1", "surprise": {"a": 1}}
    info["features"]["action"] = {"dtype": "float32", "shape": [1], "names": {"motors": ["lift"]}}
    del info["features"]["observation.state"]
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = pq.read_table(root / "meta/tasks.parquet")
    edit_parquet(root / "meta/tasks.parquet", task=None, __index_level_0__=tasks["task"], extra=tasks["task_index"])
    data = root / "data/chunk-000/file-000.parquet"
    scalars = pa.array(np.concatenate([e.actions[:, 0] for e in written]))
    unknown = pa.array([b"x"] * 18)
    edit_parquet(data, **{"action": scalars, "unknown": unknown, "observation.state": None})
    for one, two in zip(written, read(root), strict=True):
        np.testing.assert_array_equal(one.actions[:, :1], two.actions)
        assert (two.instruction, two.action_names, two.state) == (one.instruction, ("lift",), None)


def test_images_inside_parquet(tmp_path: Path) -> None:
    written = [an_episode(seed) for seed in range(2)]
    root = a_dataset(tmp_path / "ds", written)
    stored = []
    for frame in np.concatenate([e.frames for e in written]):
        Image.fromarray(frame).save(tmp_path / "x.png")
        stored.append({"bytes": (tmp_path / "x.png").read_bytes(), "path": None})
    edit_parquet(root / "data/chunk-000/file-000.parquet", **{"observation.images.wrist": pa.array(stored)})
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"] = {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    for one, two in zip(written, read(root, camera="observation.images.wrist"), strict=True):
        np.testing.assert_array_equal(one.frames, two.frames)


def test_writing_leaves_no_trace_of_a_failure(tmp_path: Path) -> None:
    broken = Episode("1", np.zeros(3), 5.0)
    with pytest.raises(LapaError, match='Episode "1"'):
        a_dataset(tmp_path / "ds", [an_episode(0), broken], actions=False)
    with pytest.raises(LapaError, match="one episode"), LeRobotWriter(tmp_path / "ds", 5, SIZE):
        pass
    assert list(tmp_path.iterdir()) == []
    root = a_dataset(tmp_path / "ds", [an_episode(0)])
    with pytest.raises(LapaError, match="exists already"):
        LeRobotWriter(root, 5, SIZE)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (an_episode(7, size=8), 'Episode "7".*frames'),
        (an_episode(7, fps=10), r"10 fps.*5\.0"),
        (replace(an_episode(7), state=np.full((6, 2), np.nan)), "observation.state .*NaN"),
        (Episode("7", an_episode(7).frames, 5.0), r"action.*\(6, 2\).*none"),
    ],
)
def test_the_writer_refuses(tmp_path: Path, episode: Episode, message: str) -> None:
    with pytest.raises(LapaError, match=message):
        a_dataset(tmp_path / "ds", [an_episode(0), episode])
    assert not (tmp_path / "ds").exists()


def set_info(root: Path, **values: object) -> None:
    info = json.loads((root / "meta/info.json").read_text()) | values
    (root / "meta/info.json").write_text(json.dumps(info))


def cut_rows(root: Path) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 10), path)


def swap_video(root: Path) -> None:
    a_video(next(root.rglob("*.mp4")), 8)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda r: set_info(r, codebase_version="v1.6"), "v1.6.* v2.x.* v3.x"),
        (lambda r: (r / "meta/info.json").write_text("{"), "info.json: "),
        (lambda r: (r / "meta/info.json").unlink(), "LeRobot.* meta/info.json"),
        (lambda r: set_info(r, features={"action": {}}), "features.* video"),
        (lambda r: shutil.rmtree(r / "meta/episodes"), "meta/episodes.* parquet"),
        (lambda r: shutil.rmtree(r / "data"), "file-000.parquet: is missing"),
        (lambda r: shutil.rmtree(r / "videos"), r"file-000\.mp4"),
        (lambda r: next(r.rglob("*.mp4")).write_bytes(b"no video"), r"file-000\.mp4"),
        (cut_rows, "episode 1 has 4 rows, meta/episodes says 6"),
        (swap_video, r"file-000\.mp4: episode 1 has 6 rows.* 2 frames"),
    ],
)
def test_a_broken_dataset_is_named(tmp_path: Path, harm: object, message: str) -> None:
    root = a_dataset(tmp_path / "ds", [an_episode(0), an_episode(1)])
    harm(root)  # type: ignore[operator]
    with pytest.raises(LapaError, match=message):
        pack([f"lerobot:{root}"], SIZE, quiet=True)


def test_an_unknown_camera_is_corrected(tmp_path: Path) -> None:
    root = a_dataset(tmp_path / "ds", [an_episode(0)])
    with pytest.raises(LapaError, match=r'"observation\.images\.main"\?'):
        read(root, camera="observation.image.main")


# --- folders of videos ----------------------------------------------------------------------------


def test_a_video_folder(tmp_path: Path) -> None:
    for name, frames in (("b/pick_up-the_Cup_003.mp4", 4), ("a.mkv", 3), ("b/c/z.MOV", 2)):
        a_video(tmp_path / "v" / name, frames)
    Image.new("RGB", (8, 8)).save(tmp_path / "v/d.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    (tmp_path / "v/notes.txt").write_text("no video")
    (tmp_path / "v/any.csv").write_text('file,extra,instruction\na.mkv,1,"lift, then turn"\n')
    dataset = find("datasets", "video_folder")(path=str(tmp_path / "v")).build()
    found = {e.id: (len(e.frames), e.instruction) for e in dataset.episodes()}
    assert found == {
        "a.mkv": (3, "lift, then turn"),
        "b/c/z.MOV": (2, ""),
        "b/pick_up-the_Cup_003.mp4": (4, "pick up the Cup"),
        "d.gif": (2, ""),
    }
    assert list(found) == sorted(found)
    before = dataset.signature()
    a_video(tmp_path / "v/new.webm.mp4", 2)
    assert find("datasets", "video_folder")(path=str(tmp_path / "v")).build().signature() != before


def test_a_file_that_may_be_read_again_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack that was made while it might not be read, with --skip-bad, is not used any longer."""
    video(tmp_path / "v/a.mp4", pictures(4))
    dataset = find("datasets", "video_folder")(path=str(tmp_path / "v")).build()
    before = dataset.signature()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda file, mode: False)
        assert dataset.signature() != before
    assert dataset.signature() == before


@pytest.mark.parametrize(
    ("stem", "text"), [("put_carrot", "put carrot"), ("the--big__cup_12", "the big cup"), ("042", "")]
)
def test_names_as_words(stem: str, text: str) -> None:
    assert words(stem) == text


def test_bad_videos_are_named_or_skipped(tmp_path: Path) -> None:
    root = tmp_path / "v"
    a_video(root / "good.mp4", 4)
    a_video(root / "one.mp4", 1)
    (root / "garbage.mp4").write_bytes(b"this is no video" * 100)
    (root / "empty.mp4").touch()
    spec = f"video_folder:{root}"
    with pytest.raises(BadVideo, match=r"empty\.mp4: .*--skip-bad"):
        pack([spec], SIZE, quiet=True)
    packed = pack([spec], SIZE, skip_bad=True, quiet=True)
    assert packed.ids == ("good.mp4",)
    assert len(packed.bad) == 3
    assert "one.mp4: " in packed.bad[2]
    with pytest.raises(BadVideo, match=r"empty\.mp4"):  # what was skipped once is not hidden by the cache
        pack([spec], SIZE, quiet=True)
    (root / "good.mp4").unlink()
    with pytest.raises(LapaError, match="no episode"):
        pack([spec], SIZE, skip_bad=True, quiet=True)


def test_a_truncated_video(tmp_path: Path) -> None:
    whole = a_video(tmp_path / "v/x.mkv", 60).read_bytes()
    (tmp_path / "v/x.mkv").write_bytes(whole[:200])
    with pytest.raises(BadVideo, match=r"x\.mkv"):
        pack([f"video_folder:{tmp_path / 'v'}"], SIZE, quiet=True)


@pytest.mark.skipif(not REAL_CLIPS.exists(), reason=f"{REAL_CLIPS} is not on this machine")
def test_real_clips() -> None:
    dataset = find("datasets", "video_folder")(path=str(REAL_CLIPS)).build()
    assert len(dataset) == 57
    first = next(dataset.episodes())
    assert first.frames.shape[3] == 3
    assert first.instruction == "flip pot upright"
    with VideoReader(REAL_CLIPS / first.id) as video:
        assert video.fps == first.fps


# --- packing --------------------------------------------------------------------------------------


def test_packing_keeps_everything_and_reads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [an_episode(seed, 3 + seed) for seed in range(4)]
    spec = f"lerobot:{a_dataset(tmp_path / 'ds', written)}"
    packed = pack([spec], SIZE, quiet=True)
    frames = np.concatenate([e.frames for e in written])
    index = np.random.default_rng(0).integers(0, len(packed), 50)
    np.testing.assert_array_equal(packed.gather(index), frames[index])
    np.testing.assert_array_equal(packed.starts, [0, 3, 7, 12, 18])
    np.testing.assert_array_equal(packed.episode_of(np.array([0, 2, 3, 17])), [0, 0, 1, 3])
    np.testing.assert_array_equal(packed.require_actions("a test"), np.concatenate([e.actions for e in written]))
    assert packed.instructions == tuple(e.instruction for e in written)
    assert packed.action_names == ("dx", "dy")
    monkeypatch.setattr(pack_module, "_write", None)  # the second time nothing is written
    assert pack([spec], SIZE, quiet=True).fingerprint == packed.fingerprint


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    written = [an_episode(seed) for seed in range(3)]
    one = pack([f"lerobot:{a_dataset(tmp_path / 'a', written)}"], SIZE, quiet=True)
    (tmp_path / "a").rename(tmp_path / "b")
    two = pack([f"lerobot:{tmp_path / 'b'}"], SIZE, quiet=True)
    other = pack([f"lerobot:{a_dataset(tmp_path / 'c', written[:2])}"], SIZE, quiet=True)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_resizing_takes_the_whole_frame(tmp_path: Path) -> None:
    episode = an_episode(0, size=32)
    packed = pack([f"lerobot:{a_dataset(tmp_path / 'ds', [episode])}"], SIZE, quiet=True)
    mean = episode.frames.reshape(6, SIZE, 2, SIZE, 2, 3).mean((2, 4))
    assert np.abs(packed.gather(np.arange(6)) - mean).max() <= 1


def test_several_datasets_follow_one_another(tmp_path: Path) -> None:
    robot = f"lerobot:{a_dataset(tmp_path / 'ds', [an_episode(s) for s in range(3)])}"
    a_video(tmp_path / "v/wave.mp4", 4)
    video = f"video_folder:{tmp_path / 'v'}"
    both = pack([robot, video], SIZE, quiet=True)
    assert (both.episodes, len(both), both.actions, both.fps[-1]) == (4, 22, None, 5.0)
    index = np.array([21, 0, 18, 17])
    parts = [pack([robot], SIZE, quiet=True), pack([video], SIZE, quiet=True)]
    alone = [parts[1].gather(np.array([3])), parts[0].gather(np.array([0]))]
    alone += [parts[1].gather(np.array([0])), parts[0].gather(np.array([17]))]
    np.testing.assert_array_equal(both.gather(index), np.concatenate(alone))
    with pytest.raises(LapaError, match=r"video_folder.* actions.* stage 3"):
        both.require_actions("stage 3")
    twice = pack([robot, robot], SIZE, quiet=True)
    assert twice.actions is not None
    assert twice.actions.shape == (36, 2)


def test_a_subset(tmp_path: Path) -> None:
    written = [an_episode(seed, 3 + seed) for seed in range(4)]
    packed = pack([f"lerobot:{a_dataset(tmp_path / 'ds', written)}"], SIZE, quiet=True)
    some = packed.subset(np.array([2, 0]))
    np.testing.assert_array_equal(some.gather(np.arange(8)), np.concatenate([written[2].frames, written[0].frames]))
    np.testing.assert_array_equal(some.actions, np.concatenate([written[2].actions, written[0].actions]))
    assert some.fingerprint != packed.fingerprint
    with pytest.raises(LapaError, match="has 4 episodes"):
        packed.subset(np.array([4]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    root = a_dataset(tmp_path / "ds", [an_episode(0), an_episode(1)])
    data = root / "data/chunk-000/file-000.parquet"
    actions = np.stack(pq.read_table(data)["action"].to_numpy())
    actions[6 + 4, 1] = value
    edit_parquet(data, action=pa.array(list(actions)))
    message = f'episode "episode_000001": action is {value} at frame 4, dimension 1'
    with pytest.raises(LapaError, match=message):
        pack([f"lerobot:{root}"], SIZE, quiet=True)


@dataclass
class FakeConfig:
    """A dataset plug-in that yields what a test wants."""

    path: str
    shown: ClassVar[tuple[Episode, ...]] = ()

    def build(self) -> FakeConfig:
        return self

    def episodes(self, size: int | None = None) -> object:
        return iter(self.shown)

    def signature(self) -> str:
        return "fake"


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((6, 3), np.float32), "action.* 3 dimensions.* 2 "),
        (np.zeros((5, 2), np.float32), r"action.* \(5, 2\).* \[6, "),
        (None, 'episode "1".* no action'),
    ],
)
def test_actions_that_differ(monkeypatch: pytest.MonkeyPatch, actions: np.ndarray | None, message: str) -> None:
    second = Episode("1", an_episode(1).frames, 5.0, "go", actions, an_episode(1).state)
    monkeypatch.setattr(FakeConfig, "shown", (an_episode(0), second))
    monkeypatch.setattr("lapa.plugins.find", lambda kind, name: FakeConfig)
    monkeypatch.setattr(spec_module, "find", lambda kind, name: FakeConfig)
    monkeypatch.setattr(spec_module, "source_hash", lambda kind, name: None)
    with pytest.raises(LapaError, match=message):
        pack(["fake:/nowhere"], SIZE, quiet=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lerobo:/x", r'"lerobot"\?'),
        ("/just/a/path", "Write NAME:PATH"),
        ("lerobot:", "Write NAME:PATH"),
        ("lerobot:/no/such/folder", "/no/such/folder"),
        ("video_folder:/no/such/folder", "/no/such/folder"),
    ],
)
def test_a_spec_that_names_nothing(spec: str, message: str) -> None:
    with pytest.raises(LapaError, match=message):
        pack([spec], SIZE, quiet=True)


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=str(tmp_path)):
        pack([f"video_folder:{tmp_path}"], SIZE, quiet=True)


def test_a_cache_on_a_disk_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has is used; when that was, cannot be noted."""
    video(tmp_path / "v/a.mp4", pictures(4))
    first = pack([f"video_folder:{tmp_path}/v"], SIZE, quiet=True)

    def refuse(path: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    assert pack([f"video_folder:{tmp_path}/v"], SIZE, quiet=True).fingerprint == first.fingerprint


def test_a_full_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_dataset(tmp_path / "ds", [an_episode(0)])
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LapaError, match="LAPA_CACHE"):
        pack([f"lerobot:{root}"], SIZE, quiet=True)
    assert list(cache.iterdir()) == [], "nothing half-written stays"


def test_two_writers_of_the_same_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"lerobot:{a_dataset(tmp_path / 'ds', [an_episode(0)])}"
    write, inner = pack_module._write, []

    def slow_write(*arguments: object) -> None:
        write(*arguments)
        if not inner:  # while the first still works, another process packs the same
            inner.append(True)
            inner.append(pack([spec], SIZE, quiet=True))

    monkeypatch.setattr(pack_module, "_write", slow_write)
    assert pack([spec], SIZE, quiet=True).fingerprint == inner[1].fingerprint


def test_progress_is_one_line_or_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"lerobot:{a_dataset(tmp_path / 'ds', [an_episode(0)])}"
    pack([spec], SIZE)
    assert capsys.readouterr().err == f"packed {spec}: 1 episode, 6 frames\n"
    pack([spec], 8, quiet=True)
    assert capsys.readouterr().err == ""


# --- the window -----------------------------------------------------------------------------------


def without_frames(lengths: list[int], fps: list[float], actions: np.ndarray | None = None) -> Packed:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count, names = int(starts[-1]), tuple(f"e{i}" for i in range(len(lengths)))
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 1, 1, 3))
    rates = np.array(fps, np.float64)
    rows = np.arange(count)
    sizes, source = np.ones((len(names), 2), np.int64), np.zeros(len(names), np.int64)
    spec = None if actions is None else ActionSpec(("x", "y")[: actions.shape[1]], ("delta",) * actions.shape[1], 10.0)
    about = {
        "spec": "x:y", "image_size": 1, "starts": starts, "ids": names, "instructions": names, "fps": rates,
        "sizes": sizes, "actions": actions, "state": None, "action_names": (), "state_names": (), "fingerprint": "",
        "bad": (), "source": source, "widths": (0,), "weights": None, "action_spec": spec, "kinds_from": "",
        "camera": "", "cameras": (), "embodiments": ("",), "fit": "squash",
        "instructions_from": ("",) * len(names), "notes": (),
    }  # fmt: skip
    return Packed(**about, _maps=(frames,), _rows=rows)


def test_one_window_at_mixed_rates() -> None:
    index = window_pairs(without_frames([6, 6, 3], [5, 10, 10]), 0.4)
    np.testing.assert_array_equal(index.offset, [2, 2, 2, 2, 4, 4])
    np.testing.assert_array_equal(index.now, [0, 1, 2, 3, 6, 7])
    np.testing.assert_array_equal(index.later, [2, 3, 4, 5, 10, 11])
    np.testing.assert_array_equal(index.frame, [0, 1, 2, 3, 0, 1])
    assert index.dropped == 1


def test_clipping_at_the_end() -> None:
    index = window_pairs(without_frames([4, 2], [5, 5]), 0.4, "clip")
    np.testing.assert_array_equal(index.later, [2, 3, 3, 3])
    np.testing.assert_array_equal(index.offset, [2, 2, 1, 0])
    assert index.dropped == 1


def test_a_batch_sums_the_actions() -> None:
    actions = np.arange(14, dtype=np.float32).reshape(7, 2)
    packed = without_frames([4, 3], [5, 5], actions)
    index = window_pairs(packed, 0.4, "clip")
    batch = index.batch(packed, np.array([3, 0, 2, 4]))
    expected = [[0, 0], actions[0] + actions[1], actions[2], actions[4] + actions[5]]
    np.testing.assert_array_equal(batch.actions, expected)
    np.testing.assert_array_equal(batch.now[:, 0, 0, 0], [3, 0, 2, 4])
    np.testing.assert_array_equal(batch.later[:, 0, 0, 0], [3, 2, 3, 6])
    assert index.batch(without_frames([4, 3], [5, 5]), np.array([0])).actions is None


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([5.0, 7.5, 10.0, 29.97])), min_size=1, max_size=8),
    st.floats(0.01, 5),
    st.sampled_from(["drop", "clip"]),
)
def test_pairs_are_all_the_pairs(episodes: list[tuple[int, float]], seconds: float, end: str) -> None:
    lengths, fps = [n for n, _ in episodes], [f for _, f in episodes]
    expected, start = [], 0
    for e, (length, rate) in enumerate(episodes):
        window = max(1, round(seconds * rate))
        for t in range(length if length > window and seconds * rate >= 0.5 else 0):
            later = min(t + window, length - 1)
            if end == "clip" or t + window < length:
                expected.append((start + t, start + later, e, t, later - t))
        start += length
    packed = without_frames(lengths, fps)
    if not expected:
        with pytest.raises(LapaError):
            window_pairs(packed, seconds, end)  # type: ignore[arg-type]
        return
    index = window_pairs(packed, seconds, end)  # type: ignore[arg-type]
    columns = (index.now, index.later, index.episode, index.frame, index.offset)
    assert all(c.dtype == np.int64 for c in columns)
    np.testing.assert_array_equal(np.stack(columns, 1), expected)
    np.testing.assert_array_equal(packed.episode_of(index.later), index.episode)


@pytest.mark.parametrize("seconds", [0, -1, np.nan, np.inf])
def test_a_window_that_is_none(seconds: float) -> None:
    with pytest.raises(LapaError, match="above 0 seconds"):
        window_pairs(without_frames([4], [5]), seconds)


def test_no_episode_is_long_enough() -> None:
    with pytest.raises(LapaError, match=r'"e1".* 6 frames at 5 fps; .* 1 s '):
        window_pairs(without_frames([4, 6], [5, 5]), 3)
    assert len(window_pairs(without_frames([4, 6], [5, 5]), 1)) == 1
    with pytest.raises(LapaError, match="two frames"):
        window_pairs(without_frames([1], [5]), 0.1)


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype"), [("codes", np.int64), ("actions", np.float32)])
def test_labels_round_trip(tmp_path: Path, kind: str, dtype: type) -> None:
    values = (np.random.default_rng(0).normal(size=(5, 3)) * 10).astype(dtype)
    labels = Labels(kind, np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 2]), values)
    parts = [Labels(kind, *(getattr(labels, k)[rows] for k in ("episode", "frame", "values")))
             for rows in (slice(2), slice(2, 5))]  # fmt: skip
    for i, part in enumerate(parts):
        write_shard(tmp_path / f"labels.parquet/{i}", part)
    manifest = {"shards": [{"file": str(i), "hash": read_shard(tmp_path / f"labels.parquet/{i}")[1]} for i in (0, 1)]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    again, found = read_labels(tmp_path)
    assert (again.kind, again.values.dtype, found) == (kind, np.dtype(dtype), manifest)
    for name in ("episode", "frame", "values"):
        np.testing.assert_array_equal(getattr(again, name), getattr(labels, name))


def test_labels_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"nothing"):
        read_labels(tmp_path / "nothing")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(LapaError, match=r"labels\.parquet"):
        read_labels(tmp_path / "foreign")
    (tmp_path / "foreign/labels.parquet").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign/labels.parquet/part")
    with pytest.raises(LapaError, match=r"manifest\.json"):
        read_labels(tmp_path / "foreign")
    (tmp_path / "foreign/manifest.json").write_text("{}")
    with pytest.raises(LapaError, match="shards"):
        read_labels(tmp_path / "foreign")
    (tmp_path / "foreign/manifest.json").write_text('{"shards": [{"file": "part", "hash": ""}]}')
    with pytest.raises(LapaError, match=r"columns episode, frame"):
        read_labels(tmp_path / "foreign")
    short = Labels("codes", np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros((3, 1), np.int64))
    with pytest.raises(LapaError, match=r"must be \[N\]"):
        write_shard(tmp_path / "x", short)


# --- mixtures -------------------------------------------------------------------------------------


def test_datasets_are_drawn_by_weight(tmp_path: Path) -> None:
    """3 to 1 although the second has five times the frames; within a dataset every frame is as likely."""
    small = f"lerobot:{a_dataset(tmp_path / 'small', [an_episode(0, 4)])}"
    large = f"lerobot:{a_dataset(tmp_path / 'large', [an_episode(s, 10) for s in (1, 2)])}"
    packed = pack([f"{small},weight=3", f"{large},weight=1"], SIZE, quiet=True)
    plain = pack([small, large], SIZE, quiet=True)
    assert packed.fingerprint == plain.fingerprint, "a weight changes no label"
    episode = packed.episode_of(np.arange(len(packed)))
    counts = np.bincount(Mixture(packed, episode).draw(np.random.default_rng(0), 40_000), minlength=24)
    assert counts[:4].sum() == pytest.approx(30_000, rel=0.02)
    assert counts[:4] == pytest.approx(7_500, rel=0.06)
    assert counts[4:] == pytest.approx(500, rel=0.2)
    by_size = Mixture(plain, episode).draw(np.random.default_rng(0), 100)
    np.testing.assert_array_equal(by_size, np.random.default_rng(0).integers(24, size=100))
    only_large = packed.subset(np.array([1, 2]))
    with pytest.raises(LapaError, match=r"Dataset 1 of .*weight"):
        Mixture(only_large, np.zeros(20, np.int64))


@pytest.mark.parametrize("specs", [["{},weight=0"], ["{},weight=nan"], ["{},weight=much"], ["{},weight=1", "{}"]])
def test_weights_that_mean_nothing(tmp_path: Path, specs: list[str]) -> None:
    robot = f"lerobot:{a_dataset(tmp_path / 'ds', [an_episode(0)])}"
    with pytest.raises(LapaError, match="weight"):
        pack([spec.format(robot) for spec in specs], SIZE, quiet=True)


def test_stage_1_draws_by_weight(tmp_path: Path) -> None:
    small = f"lerobot:{a_dataset(tmp_path / 'small', [an_episode(0, 8)])},weight=9"
    large = f"lerobot:{a_dataset(tmp_path / 'large', [an_episode(s, 30) for s in (1, 2)])},weight=1"
    packed = pack([small, large], SIZE, quiet=True)
    pairs = window_pairs(packed, 0.2)
    how = Optimisation(steps=1, batch_size=20_000, learning_rate=1.0)
    rows = _sampler(packed, pairs, how, np.arange(len(pairs))).draw(np.random.default_rng(0))
    assert (pairs.episode[rows] == 0).mean() == pytest.approx(0.9, abs=0.01)
