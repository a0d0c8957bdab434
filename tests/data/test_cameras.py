"""Several cameras: collected, read, packed; names, kinds and robot go with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lapa import cli
from lapa.commands.options import open_pack
from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.pack import pack
from lapa.data.spec import cameras_of, open_dataset, parse
from lapa.data.stream import stream
from lapa.interop.collect import Take, collect, write

ARM = ("shoulder", "elbow", "grip")
KINDS = ("absolute", "absolute", "binary")


def smooth(seed: int, length: int, height: int, width: int) -> Array:
    """Soft pictures, as cameras take them, uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(5, 9) + t / 3 + c) + np.cos(y / rng.uniform(5, 9)) for t in range(length)
             for c in range(3)]  # fmt: skip
    return (127 + 60 * np.array(waves).reshape(length, 3, height, width).transpose(0, 2, 3, 1)).astype(np.uint8)


def a_take(number: int, length: int = 9) -> Take:
    rng = np.random.default_rng(number)
    state = np.cumsum(rng.normal(size=(length, 3)), 0).astype(np.float32)
    episode = Episode(
        f"episode_{number:06d}", smooth(number, length, 24, 32), 10.0, "stack", state + 0.01, state, ARM, ARM,
        camera="top", action_kinds=KINDS, embodiment="arm",
    )  # fmt: skip
    return episode, {"wrist": smooth(100 + number, length, 16, 16)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot dataset of two cameras of other sizes."""
    root = tmp_path_factory.mktemp("cameras") / "ds"
    made = write([a_take(number) for number in range(3)], root, {"sources": ["made"]})
    [told] = made.pop("notes")
    assert told.startswith("instructions: 3 from")
    assert made == {"episodes": 3, "frames": 27, "with": "with", "cameras": ["top", "wrist"]}
    return root


def test_what_is_written_is_read(two: Path) -> None:
    info = json.loads((two / "meta/info.json").read_text())
    assert info["robot_type"] == "arm"
    for camera, height, width in (("top", 24, 32), ("wrist", 16, 16)):
        assert info["features"][f"observation.images.{camera}"]["shape"] == [height, width, 3]
        for number, found in enumerate(open_dataset(f"lerobot:{two},camera={camera}").episodes()):
            episode, views = a_take(number)
            assert isinstance(found, Episode)
            assert_array_equal(found.frames, episode.frames if camera == "top" else views["wrist"])
            assert_array_equal(found.actions, episode.actions)
            assert (found.camera, found.embodiment, found.action_kinds) == (camera, "arm", KINDS)
            assert found.action_names == found.state_names == ARM
    stats = json.loads((two / "meta/stats.json").read_text())
    assert {key for key in stats if "images" in key} == {"observation.images.top", "observation.images.wrist"}


def test_collect_keeps_cameras_names_kinds_and_robot(two: Path, tmp_path: Path) -> None:
    counts = collect([f"lerobot:{two}"], tmp_path / "all")
    assert counts["cameras"] == ["top", "wrist"]
    told = pack([f"lerobot:{tmp_path / 'all'}"], 16, quiet=True)
    assert (told.camera, told.cameras, told.embodiments) == ("top", ("top", "wrist"), ("arm",))
    assert told.action_spec is not None
    assert (told.action_spec.names, told.action_spec.kinds, told.kinds_from) == (ARM, KINDS, "the dataset")
    (robot, camera) = told.told()[1:3]
    assert robot == "robot: arm"
    assert camera.startswith("camera: top")
    assert "wrist" in camera
    assert collect([f"lerobot:{two}"], tmp_path / "turned", cameras=["wrist", "top"])["cameras"] == ["wrist", "top"]
    assert collect([f"lerobot:{two},camera=wrist"], tmp_path / "one")["cameras"] == ["wrist"]
    for name, main in (("turned", "top"), ("one", "wrist"), ("all", "top")):
        first = next(iter(open_dataset(f"lerobot:{tmp_path / name}").episodes()))
        assert isinstance(first, Episode)
        assert first.camera == main
    with pytest.raises(LapaError, match=r'no camera "side".*top, wrist'):
        collect([f"lerobot:{two}"], tmp_path / "none", cameras=["side"])
    assert not (tmp_path / "none").exists()


def test_the_commands_say_what_they_chose(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ds"
    cli.main(["collect", "--dataset", f"lerobot:{two}", "--cameras", "wrist,top", "--quality", "20", "--out", str(out)])
    assert "camera wrist, top" in capsys.readouterr().out
    cli.main(["inspect", "--dataset", f"lerobot:{out},episodes=0-1,kinds=3absolute", "--out", str(tmp_path / "look")])
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 numbers at 10 Hz: 3 absolute (shoulder, elbow, grip); kinds told by the option kinds" in shown
    assert "camera: top" in shown
    open_pack((f"lerobot:{out},stride=2",), 16, skip_bad=False)
    shown = capsys.readouterr().out
    assert "3 numbers at 5 Hz: 2 absolute (shoulder, elbow), 1 binary (grip); kinds told by the dataset" in shown
    assert "robot: arm" in shown


def test_collect_takes_pictures_that_are_no_squares(two: Path, tmp_path: Path) -> None:
    collect([f"lerobot:{two},episodes=1"], tmp_path / "ds")
    (found,) = open_dataset(f"lerobot:{tmp_path / 'ds'}").episodes()
    assert isinstance(found, Episode)
    assert_array_equal(found.frames, a_take(1)[0].frames)


def test_a_pack_of_two_cameras(two: Path) -> None:
    spec = f"lerobot:{two}"
    both = pack([spec], 16, quiet=True, cameras=("top", "wrist"))
    alone = {camera: pack([f"{spec},camera={camera}"], 16, quiet=True) for camera in ("top", "wrist")}
    index = np.array([3, 20, 7])
    assert_array_equal(both.gather(index), alone["top"].gather(index))
    assert_array_equal(both.gather(index, camera="wrist"), alone["wrist"].gather(index))
    assert_array_equal(both.view("wrist").gather(index), alone["wrist"].gather(index))
    assert both.view("top") is both
    part = both.subset(np.array([2, 0]))
    assert_array_equal(part.gather(np.array([0, 12]), camera="wrist"), alone["wrist"].gather(np.array([18, 3])))
    assert_array_equal(part.state, both.state[np.r_[18:27, 0:9]])
    with pytest.raises(LapaError, match=r'no camera "side".*top, wrist'):
        both.gather(index, camera="side")
    with pytest.raises(LapaError, match=r'no camera "side".*Known: top, wrist'):
        pack([spec], 16, quiet=True, cameras=("top", "side"))
    streamed = stream([spec], 16, quiet=True)
    assert streamed.view("top") is streamed
    with pytest.raises(LapaError, match=r"\bwrist\b.*--stream"):
        streamed.view("wrist")
    with pytest.raises(LapaError, match="camera="):
        pack([f"{spec},camera=top"], 16, quiet=True, cameras=("top", "wrist"))


def test_an_episode_that_one_camera_lacks(tmp_path: Path) -> None:
    """Another file of the wrist's than the tables say: one episode is cut short."""
    root = tmp_path / "ds"
    write([a_take(number) for number in range(3)], root, {})
    film = next((root / "videos/observation.images.wrist").rglob("*.mp4"))
    short = tmp_path / "short"
    write([a_take(number) for number in range(2)], short, {})
    film.write_bytes(next((short / "videos/observation.images.wrist").rglob("*.mp4")).read_bytes())
    spec = f"lerobot:{root}"
    assert pack([spec], 16, quiet=True).episodes == 3
    with pytest.raises(BadVideo, match="wrist"):
        pack([spec], 16, quiet=True, cameras=("top", "wrist"))
    both = pack([spec], 16, quiet=True, cameras=("top", "wrist"), skip_bad=True)
    assert both.ids == both.view("wrist").ids == ("episode_000000", "episode_000001")
    assert len(both.bad) == 1
    with pytest.raises(BadVideo, match="--cameras"):
        collect([spec], tmp_path / "again")
    assert collect([spec], tmp_path / "again", skip_bad=True)["episodes"] == 2


def test_a_quality_takes_less_room_and_is_near(tmp_path: Path) -> None:
    takes = [a_take(number, 60) for number in range(2)]
    for name, quality in (("exact", None), ("fine", 10), ("small", 30)):
        write(takes, tmp_path / name, {}, quality=quality)
    sizes = {
        name: sum(f.stat().st_size for f in (tmp_path / name).rglob("*.mp4")) for name in ("exact", "fine", "small")
    }
    assert sizes["exact"] > 2 * sizes["fine"] > 2 * sizes["small"]
    found = list(open_dataset(f"lerobot:{tmp_path / 'fine'}").episodes())
    error = np.abs(found[1].frames.astype(int) - takes[1][0].frames).mean()
    assert 0 < error < 4, "of 255 levels; most of it is the coarser colour"
    info = json.loads((tmp_path / "fine/meta/info.json").read_text())
    assert info["features"]["observation.images.top"]["info"]["video.pix_fmt"] == "yuv420p"
    streamed = list(open_dataset(f"lerobot:{tmp_path / 'fine'}").frames(1, start=50))
    assert_array_equal(np.stack(streamed), found[1].frames[50:])


def test_what_cannot_be_written(tmp_path: Path) -> None:
    episode, views = a_take(0)
    with pytest.raises(LapaError, match="top"):
        LeRobotWriter(tmp_path / "a", 10.0, (24, 32), camera="top", views={"top": (16, 16)})
    with pytest.raises(LapaError, match=r"0 .best. to 51"):
        LeRobotWriter(tmp_path / "c", 10.0, (24, 32), quality=60)
    with pytest.raises(LapaError, match=r"\bwrist\b"):
        write([(episode, views), (episode, {})], tmp_path / "d", {})
    with pytest.raises(LapaError, match="has 5 frames"):
        write([(episode, {"wrist": views["wrist"][:5]})], tmp_path / "e", {})
    assert not list(tmp_path.iterdir())


def test_cameras_of() -> None:
    assert len(cameras_of(parse("tabletop:sim"))) == 1
    with pytest.raises(LapaError, match="one camera"):
        cameras_of(parse("tabletop:sim"), ("top", "wrist"))
