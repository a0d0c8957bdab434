"""Zarr stores of Diffusion Policy and UMI, and what must not be read of them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import made
import made_robots
import numpy as np
import pytest
from made_robots import good, read

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import stream

zarr = pytest.importorskip("zarr", reason="zarr is not installed")


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("zipped", [False, True])
def test_diffusion_policy(tmp_path: Path, form: int, zipped: bool) -> None:
    path = made_robots.diffusion_policy(tmp_path / "a" / "pusht.zarr", form=form)
    if zipped:  # with the folder's name before all others, as a zip of a folder has it
        path = Path(shutil.make_archive(str(tmp_path / "pusht.zarr"), "zip", tmp_path / "a"))
    first, second, third = good(f"zarr:{path}")
    assert [len(e.frames) for e in (first, second, third)] == [4, 5, 6]
    np.testing.assert_array_equal(second.frames, made.pictures(5, seed=1))
    assert second.fps == 10
    assert second.actions is not None
    assert second.state is not None
    np.testing.assert_allclose(second.actions, made_robots.vectors(15, 2)[4:9] + 0.5, rtol=1e-6)
    np.testing.assert_allclose(second.state, made_robots.vectors(15, 5)[4:9, :2], rtol=1e-6)  # not the block's place
    assert second.action_kinds == ("absolute", "absolute")
    assert any("state[0:2]" in note for note in second.notes)
    assert good(f"zarr:{path},state=state")[0].state.shape == (4, 5)  # type: ignore[union-attr]
    packed = pack([f"zarr:{path}"], 12, quiet=True, cache=tmp_path / "c")
    streamed = stream([f"zarr:{path},episodes=1-2"], 12, quiet=True, cache=tmp_path / "c")
    np.testing.assert_array_equal(np.stack(list(streamed.frames(1, 2))), packed.gather(np.arange(11, 15)))


def test_umi(tmp_path: Path) -> None:
    path = made_robots.umi(tmp_path / "dataset.zarr.zip")
    first, second = good(f"zarr:{path}")
    np.testing.assert_array_equal(second.frames, made.pictures(5, seed=1))
    assert first.fps == 59.94
    assert first.state is not None
    assert first.actions is not None
    assert first.state.shape == (4, 7)
    np.testing.assert_array_equal(first.actions, first.state[[1, 2, 3, 3]])
    assert first.action_kinds == ("absolute",) * 7
    assert first.action_names[:2] == ("robot0_eef_pos_0", "robot0_eef_pos_1")
    assert any("next state" in note and "robot0_gripper_width" in note for note in first.notes)
    assert good(f"zarr:{path},fps=20")[0].fps == 20


def test_several_cameras_and_names_of_ones_own(tmp_path: Path) -> None:
    arrays = {
        "agentview_image": made.pictures(9), "robot0_eye_in_hand_image": made.pictures(9, seed=30),
        "actions": made_robots.vectors(9, 7), "robot_eef_pose": made_robots.vectors(9, 6),
    }  # fmt: skip
    path = made_robots.diffusion_policy(tmp_path / "x.zarr", (4, 5), **arrays)
    zarr.open_group(str(path), mode="a").attrs.update({"fps": 15, "instruction": "fold it"})
    first = good(f"zarr:{path}")[0]
    assert (first.camera, first.fps, first.instruction) == ("agentview_image", 15, "fold it")
    wrist = good(f"zarr:{path},camera=robot0_eye_in_hand_image,state=robot_eef_pose[0:3]")[1]
    np.testing.assert_array_equal(wrist.frames, made.pictures(9, seed=30)[4:])
    assert wrist.state is not None
    assert wrist.state.shape == (5, 3)


def test_a_folder_of_stores(tmp_path: Path) -> None:
    made_robots.diffusion_policy(tmp_path / "all" / "b.zarr", (3,))
    made_robots.diffusion_policy(tmp_path / "all" / "a.zarr", (3, 4))
    assert [e.id for e in good(f"zarr:{tmp_path}/all", 8)] == ["a/episode_0", "a/episode_1", "b/episode_0"]


def test_stores_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for task in ("taskA", "taskB"):
        made_robots.diffusion_policy(tmp_path / "all" / task / "replay_buffer.zarr", (3,))
    found = pack([f"zarr:{tmp_path}/all"], 8, quiet=True, cache=tmp_path / "c")
    assert list(found.ids) == [f"task{x}/replay_buffer/episode_0" for x in "AB"]
    made_robots.diffusion_policy(tmp_path / "one" / "in" / "a.zarr", (3,))
    assert [e.id for e in good(f"zarr:{tmp_path}/one", 8)] == ["a/episode_0"]


def store(path: Path, arrays: dict[str, Any], **attributes: Any) -> str:
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for name, values in arrays.items():
        array = np.asarray(values)
        root.create_array(name, shape=array.shape, chunks=array.shape, dtype=array.dtype)[...] = array
    root.attrs.update(attributes)
    return f"zarr:{path}"


@pytest.mark.parametrize("base", ["", "data/"])
def test_groups_that_are_episodes(tmp_path: Path, base: str) -> None:
    arrays: dict[str, Any] = {f"{base}info": np.zeros(2)}
    for number in (0, 1, 10):
        arrays[f"{base}episode_{number}/img"] = made.pictures(4 + number, seed=number)
        arrays[f"{base}episode_{number}/action"] = made_robots.vectors(4 + number, 2, number + 1)
    spec = store(tmp_path / "x.zarr", arrays, fps=10)
    zarr.open_group(str(tmp_path / "x.zarr"), mode="a")[f"{base}episode_1"].attrs["instruction"] = "fold it"
    episodes = good(spec)
    assert [(e.id, len(e.frames), e.instruction) for e in episodes] == [
        ("episode_0", 4, ""), ("episode_1", 5, "fold it"), ("episode_10", 14, ""),
    ]  # fmt: skip
    np.testing.assert_array_equal(episodes[1].frames, made.pictures(5, seed=1))
    assert episodes[1].actions is not None
    np.testing.assert_allclose(episodes[1].actions, made_robots.vectors(5, 2, 2), rtol=1e-6)
    assert any("no episode: info" in note for note in episodes[0].notes)


def test_groups_that_may_be_episodes_or_cameras(tmp_path: Path) -> None:
    spec = store(tmp_path / "x.zarr", {f"cup_{n}/rgb": made.pictures(4 + n) for n in range(2)}, fps=10)
    with pytest.raises(LapaError, match=r"x\.zarr.*cup_0, cup_1.*camera=cup_0/rgb"):
        open_dataset(spec)
    assert len(good(f"{spec},camera=cup_1/rgb")) == 1


def test_ends_beside_the_arrays(tmp_path: Path) -> None:
    arrays = {"img": made.pictures(9), "action": made_robots.vectors(9, 2) + 1, "episode_ends": np.array([4, 9])}
    first, second = good(store(tmp_path / "x.zarr", arrays, fps="10"))
    assert (len(first.frames), len(second.frames), first.fps) == (4, 5, 10)
    assert second.actions is not None
    np.testing.assert_allclose(second.actions, arrays["action"][4:], rtol=1e-6)
    assert not any("episode_ends" in note for note in first.notes)


def test_an_action_in_parts_comes_before_the_next_state(tmp_path: Path) -> None:
    arrays = {
        "data/img": made.pictures(4), "data/state": made_robots.vectors(4, 4, 100), "meta/episode_ends": [4],
        "data/action/arm": made_robots.vectors(4, 3, 1), "data/action/gripper": made_robots.vectors(4, 1, 7),
    }  # fmt: skip
    (episode,) = good(store(tmp_path / "x.zarr", arrays, fps=10))
    assert episode.actions is not None
    np.testing.assert_allclose(episode.actions[:, 3:], made_robots.vectors(4, 1, 7), rtol=1e-6)
    assert episode.action_names == ("arm_0", "arm_1", "arm_2", "gripper_0")


def test_several_texts_in_an_attribute(tmp_path: Path) -> None:
    path = made_robots.diffusion_policy(tmp_path / "x.zarr")
    zarr.open_group(str(path), mode="a").attrs["instruction"] = ["push it", "move it"]
    assert {episode.instruction for episode in good(f"zarr:{path}")} == {"push it"}


def test_rows_of_no_episode_are_told(tmp_path: Path) -> None:
    """As when a recording was stopped within an episode."""
    path = made_robots.diffusion_policy(tmp_path / "x.zarr")
    spec = f"zarr:{path}"
    assert not any("behind" in note for episode in good(spec) for note in episode.notes)
    ends = zarr.open_group(str(path), mode="a")["meta/episode_ends"]
    ends[:] = np.array([4, 7, 9])
    episodes = good(spec)
    assert [len(episode.frames) for episode in episodes] == [4, 3, 2]
    assert all(any("6 rows of" in note for note in episode.notes) for episode in episodes)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A codec that unpickles what it reads would run the code of whoever made the file."""
    path = made_robots.diffusion_policy(tmp_path / "x.zarr")
    flag = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(flag),)

    for compressor, filters in (({"id": "pickle", "protocol": 5}, None), (None, [{"id": "pickle", "protocol": 5}])):
        about = json.loads((path / "data/img/.zarray").read_text())
        about |= {"compressor": compressor, "filters": filters, "dtype": "|O", "chunks": [15], "shape": [15]}
        (path / "data/img/.zarray").write_text(json.dumps(about))
        (path / "data/img/0").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(LapaError, match="pickle"):
            open_dataset(f"zarr:{path}")
        assert not flag.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chunks": [10**6, 10**4, 10**4, 3]}, "chunks"),
        ({"shape": [15, 10**9, 10**9, 3]}, "img"),
        ({"dtype": "|O"}, "img"),
        ({"compressor": {"id": "no_such"}}, "no_such"),
        ({"shape": "x"}, "shape"),
    ],
)
def test_forged_descriptions(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = made_robots.diffusion_policy(tmp_path / "x.zarr")
    about = json.loads((path / "data/img/.zarray").read_text())
    (path / "data/img/.zarray").write_text(json.dumps(about | change))
    with pytest.raises(LapaError, match=named):
        pack([f"zarr:{path},fps=10"], 8, quiet=True, cache=tmp_path / "c")


def test_a_missing_chunk_is_not_black(tmp_path: Path) -> None:
    path = made_robots.diffusion_policy(tmp_path / "x.zarr")
    (path / "data/img/2.0.0.0").unlink()  # frames 6 to 8
    first, second, third = read(f"zarr:{path}")
    assert isinstance(first, Episode)
    assert isinstance(second, BadVideo)
    assert "2.0.0.0" in str(second)
    assert isinstance(third, Episode)
    (path / "meta/episode_ends/0").unlink()
    with pytest.raises(LapaError, match="episode_ends/0"):
        open_dataset(f"zarr:{path}")


@pytest.mark.parametrize("form", [2, 3])
def test_numbers_that_are_zero_need_no_chunk(tmp_path: Path, form: int) -> None:
    """zarr leaves out what is all fill value, in both formats; that it was so is told."""
    still = made_robots.vectors(9, 2)
    still[:3] = 0
    path = made_robots.diffusion_policy(tmp_path / "x.zarr", (4, 5), form, img=made.pictures(9), action=still)
    assert not [name for name in ("0.0", "c/0/0") if (path / "data/action" / name).exists()]
    first, second = good(f"zarr:{path},fps=10")
    assert first.actions is not None
    np.testing.assert_allclose(first.actions, still[:4], rtol=1e-6)
    assert any("not stored" in note and "action" in note for note in first.notes)
    assert not any("not stored" in note for note in second.notes)


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="nothing"):
        open_dataset(f"zarr:{tmp_path}/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LapaError, match="empty"):
        open_dataset(f"zarr:{tmp_path}/empty")
    (tmp_path / "x.zarr.zip").write_bytes(b"x" * 1000)
    with pytest.raises(LapaError, match=r"x\.zarr\.zip"):
        open_dataset(f"zarr:{tmp_path}/x.zarr.zip")
    path = made_robots.diffusion_policy(tmp_path / "y.zarr", (3,), action=made_robots.vectors(3, 2))
    with pytest.raises(LapaError, match="action"):  # holds no pictures; what it has is named
        open_dataset(f"zarr:{path}")
    path = made_robots.diffusion_policy(tmp_path / "z.zarr", (3,), img=made.pictures(3))
    with pytest.raises(LapaError, match="fps="):
        open_dataset(f"zarr:{path}")
    with pytest.raises(LapaError, match="no/ends"):
        open_dataset(f"zarr:{path},fps=10,ends=no/ends")


def test_zarr_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lapa.data.installed.find_spec", lambda name: None)
    with pytest.raises(LapaError, match=r"zarr.*pip install .*lapa\[zarr\]"):
        open_dataset(f"zarr:{tmp_path}")
