"""LeRobot datasets of both versions, on disk and on a stand-in for the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import encoded, lerobot_v21, pictures

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.pack import pack
from lapa.data.spec import open_dataset


def read(spec: str, size: int | None = None) -> list[Episode | BadVideo]:
    return list(open_dataset(spec).episodes(size))


def good(spec: str, size: int | None = None) -> list[Episode]:
    found = read(spec, size)
    assert not [e for e in found if isinstance(e, BadVideo)]
    return [e for e in found if isinstance(e, Episode)]


@pytest.mark.parametrize("chunk", [1000, 1])
def test_version_2_1(tmp_path: Path, chunk: int) -> None:
    one, two = good(f"lerobot:{lerobot_v21(tmp_path / 'ds', chunk=chunk)},camera=observation.images.top")
    assert (one.id, two.id, one.fps) == ("episode_000000", "episode_000001", 10)
    assert (one.instruction, two.instruction) == ("lift the cup", "drop it")
    assert (one.frames.shape, two.frames.shape, one.size) == ((4, 24, 32, 3), (6, 24, 32, 3), (24, 32))
    np.testing.assert_array_equal(two.actions, np.arange(12, dtype=np.float32).reshape(6, 2) + 1)
    np.testing.assert_array_equal(one.state, np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_allclose(two.frames[:, 12:, 16:].mean((1, 2, 3)), 30 + 20 * np.arange(6), atol=4)


def test_any_camera(tmp_path: Path) -> None:
    root = lerobot_v21(tmp_path / "ds")
    first, top, whole = (
        good(f"lerobot:{root},camera={camera}")[0] for camera in ("wrist", "top", "observation.images.top")
    )
    np.testing.assert_array_equal(top.frames, whole.frames)
    assert abs(float(top.frames[0, 12:, 16:].mean() - first.frames[0, 12:, 16:].mean())) > 20
    signatures = {open_dataset(f"lerobot:{root}{camera}").signature() for camera in (",camera=wrist", ",camera=top")}
    assert len(signatures) == 2
    with pytest.raises(LapaError, match=r'"tip".*Known: wrist, top'):
        open_dataset(f"lerobot:{root},camera=tip")


def test_one_bad_episode_spares_the_others(tmp_path: Path) -> None:
    root = lerobot_v21(tmp_path / "ds", lengths=(4, 5, 6, 4))
    clean = good(f"lerobot:{root}")
    videos = root / "videos/chunk-000/observation.images.top"
    (videos / "episode_000001.mp4").write_bytes(b"damaged")
    (root / "data/chunk-000/episode_000002.parquet").unlink()
    first, damaged, lost, last = read(f"lerobot:{root}")
    assert "episode_000001.mp4: " in str(damaged)
    assert "episode_000002.parquet: is missing" in str(lost)
    for before, after in ((clean[0], first), (clean[3], last)):
        assert isinstance(after, Episode)
        np.testing.assert_array_equal(before.frames, after.frames)
        np.testing.assert_array_equal(before.actions, after.actions)
    packed = pack([f"lerobot:{root}"], 16, skip_bad=True, quiet=True, cache=tmp_path / "cache")
    assert (packed.episodes, len(packed.bad)) == (2, 2)
    with pytest.raises(BadVideo, match=r"episode_000001.mp4.*--skip-bad"):
        pack([f"lerobot:{root}"], 16, quiet=True, cache=tmp_path / "cache")


def test_a_shared_video_cut_short_loses_its_end_only(tmp_path: Path) -> None:
    """Version 3 keeps many episodes in one file: those before the cut are read."""
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    with LeRobotWriter(tmp_path / "ds", 5, 16) as writer:
        for number in range(3):
            writer.add(Episode(str(number), np.roll(frames, number, 0), 5.0, "go"))
    (tables,) = (tmp_path / "ds/meta/episodes").rglob("*.parquet")
    (film,) = (tmp_path / "ds/videos").rglob("*.mp4")
    with LeRobotWriter(tmp_path / "short", 5, 16) as writer:
        writer.add(Episode("0", frames, 5.0, "go"))
        writer.add(Episode("1", np.roll(frames, 1, 0)[:2], 5.0, "go"))
    film.write_bytes(next((tmp_path / "short/videos").rglob("*.mp4")).read_bytes())
    first, second, third = read(f"lerobot:{tmp_path / 'ds'}")
    assert isinstance(first, Episode)
    np.testing.assert_array_equal(first.frames, frames)
    assert isinstance(second, BadVideo)
    assert isinstance(third, BadVideo)
    for number, bad in ((1, second), (2, third)):
        assert f"{film}: episode {number}" in str(bad)
    assert tables.exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("info.json", '{"codebase_version": "v1.6"}', "v1.6.* v2.x.* v3.x"),
        ("info.json", "[]", "info.json"),
        ("info.json", '{"codebase_version": "v2.1", "features": {"x": {}}}', "fps, data_path"),
        ("episodes.jsonl", '{"episode_index": 0}', "episodes.jsonl, line 1: length .*None"),
        ("episodes.jsonl", "{", "episodes.jsonl, line 1: "),
        ("tasks.jsonl", "[1]", "tasks.jsonl, line 1: "),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, file: str, text: str, message: str) -> None:
    root = lerobot_v21(tmp_path / "ds")
    (root / "meta" / file).write_text(text)
    with pytest.raises(LapaError, match=message):
        open_dataset(f"lerobot:{root}")


def test_a_template_that_cannot_be_followed(tmp_path: Path) -> None:
    root = lerobot_v21(tmp_path / "ds")
    info = json.loads((root / "meta/info.json").read_text()) | {"video_path": "videos/{surprise}.mp4"}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(LapaError, match=r"video_path .*surprise"):
        open_dataset(f"lerobot:{root}")


# --- the hub --------------------------------------------------------------------------------------


class Hub:
    """Stands in for huggingface_hub.snapshot_download: copies what matches from a folder, and keeps a record."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache = source, cache
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, repo_id: str, *, repo_type: str, revision: str | None, allow_patterns: Sequence[str]) -> str:
        from huggingface_hub.utils import filter_repo_objects

        assert repo_type == "dataset"
        self.asked.append((repo_id, revision))
        files = [path.relative_to(self.source).as_posix() for path in self.source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=list(allow_patterns)):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            (self.cache / name).write_bytes((self.source / name).read_bytes())
        return str(self.cache)


@pytest.mark.parametrize("version", [2, 3])
def test_from_the_hub_one_camera_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, robot: Path, version: int
) -> None:
    source = lerobot_v21(tmp_path / "source") if version == 2 else robot
    camera = "top" if version == 2 else "main"
    hub = Hub(source, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.chdir(tmp_path)
    fetched = good(f"lerobot:somebody/so100_lift,camera={camera},revision=v9")
    local = good(f"lerobot:{source},camera={camera}")
    assert hub.asked == [("somebody/so100_lift", "v9")] * 2
    for one, two in zip(fetched, local, strict=True):
        np.testing.assert_array_equal(one.frames, two.frames)
    kinds = {path.parent.name for path in hub.cache.rglob("*.mp4")} | {
        p.parent.parent.name for p in hub.cache.rglob("*.mp4")
    }
    assert "observation.images.wrist" not in kinds, "the other camera stays where it is"


def test_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("Cannot reach the hub\nTraceback and so on")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LapaError) as caught:
        open_dataset("lerobot:somebody/so100_lift")
    assert str(caught.value).startswith("somebody/so100_lift ")
    assert "\n" not in str(caught.value)
    (tmp_path / "somebody").mkdir()
    with pytest.raises(LapaError, match=r"LeRobot .*: somebody/so100_lift "):
        open_dataset("lerobot:somebody/so100_lift")  # a folder of ours, so it is a slip and not asked for outside


def test_an_image_in_the_tables_that_is_none(tmp_path: Path) -> None:
    root = lerobot_v21(tmp_path / "ds", (3, 3, 3))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] = {"pixels": {"dtype": "image", "shape": [24, 32, 3]}, "action": info["features"]["action"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    for episode, data in enumerate((encoded(pictures(1)[0]), b"no image", None)):
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        table = {name: pq.read_table(path)[name] for name in ("action", "episode_index", "task_index")}
        stored = pa.array(
            [{"bytes": data, "path": "x.png"}] * 3, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        )
        pq.write_table(pa.table(table | {"pixels": stored}), path)
    first, second, third = read(f"lerobot:{root}")
    assert isinstance(first, Episode)
    np.testing.assert_array_equal(first.frames[2], pictures(1)[0])
    for number, bad in ((1, second), (2, third)):
        assert f"episode_{number:06d}.parquet: pixels of episode {number}, frame 0: " in str(bad)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([["a", "b"]], ("a", "b")),
        (["a", "b"], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"left": ["a"], "right": ["b"]}, ("a", "b")),
        ({"a": 0, "b": 1}, ("a", "b")),
        (["a"], ()),
        (None, ()),
        (3, ()),
    ],
)
def test_names_of_joints_however_they_are_nested(tmp_path: Path, names: object, expected: tuple[str, ...]) -> None:
    root = lerobot_v21(tmp_path / "ds")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = names
    (root / "meta/info.json").write_text(json.dumps(info))
    packed = pack([f"lerobot:{root}"], 8, quiet=True)
    assert packed.action_names == expected
    assert packed.action_spec is not None
    assert packed.action_spec.names == (expected or ("action_0", "action_1"))
    assert packed.embodiments == ("so100",)


@pytest.mark.parametrize(
    ("names", "kinds"),
    [(["pan.pos", "lift.pos"], "absolute"), (["delta_x", "delta_y"], "delta")],
)
def test_names_that_say_what_actions_are(tmp_path: Path, names: list[str], kinds: str) -> None:
    root = lerobot_v21(tmp_path / "ds")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = names
    (root / "meta/info.json").write_text(json.dumps(info))
    packed = pack([f"lerobot:{root}"], 8, quiet=True)
    assert packed.action_spec is not None
    assert (packed.action_spec.kinds, packed.kinds_from) == ((kinds, kinds), "the dataset")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [({"train": "0:1", "test": "1:3"}, [0]), ({"train": "2:3, 0:1"}, [0, 2]), ({"train": "0:3"}, [0, 1, 2])],
)
def test_splits(tmp_path: Path, splits: dict[str, str], expected: list[int]) -> None:
    root = lerobot_v21(tmp_path / "ds", lengths=(3, 4, 5))
    info = json.loads((root / "meta/info.json").read_text()) | {"splits": splits}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert [e.id for e in good(f"lerobot:{root},split=train")] == [f"episode_{i:06d}" for i in expected]
    first = expected[-1]
    assert [e.id for e in good(f"lerobot:{root},split=train,episodes={first}")] == [f"episode_{first:06d}"]


@pytest.mark.parametrize("splits", [None, {}, {"train": "80%"}, {"train": "7:9"}])
def test_splits_that_say_nothing(tmp_path: Path, splits: object) -> None:
    root = lerobot_v21(tmp_path / "ds")
    info = json.loads((root / "meta/info.json").read_text()) | {"splits": splits}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(LapaError, match="split"):
        open_dataset(f"lerobot:{root},split=train")
