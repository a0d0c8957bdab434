"""HDF5 of robomimic, LIBERO and ALOHA, as their own scripts write it, and other layouts told by options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made
import made_robots
import numpy as np
import pytest
from made_robots import good, read

from lapa.contracts import BadVideo, LapaError
from lapa.data.notes import CHANGES
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import stream

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def test_robomimic(tmp_path: Path) -> None:
    file = made_robots.robomimic(tmp_path / "demo.hdf5")
    first, second, third = good(f"hdf5:{file}")
    assert [e.id for e in (first, second, third)] == ["demo_0", "demo_1", "demo_2"]
    np.testing.assert_array_equal(second.frames, made.pictures(5, seed=1))
    assert first.fps == 20
    assert first.action_kinds == ("delta",) * 6 + ("binary",)
    assert first.embodiment == "Panda"
    assert first.camera == "agentview_image"
    assert first.state is not None
    assert first.state.shape == (4, 9)
    assert len(first.state_names) == 9
    assert second.actions is not None
    np.testing.assert_allclose(second.actions[:, :6], made_robots.vectors(5, 7, 1)[:, :6], rtol=1e-6)
    (wrist,) = good(f"hdf5:{file},camera=robot0_eye_in_hand_image,episodes=2")
    np.testing.assert_array_equal(wrist.frames, made.pictures(6, seed=32))
    assert open_dataset(f"hdf5:{file}").cameras == ("agentview_image", "robot0_eye_in_hand_image")  # type: ignore[attr-defined]


def test_numbers_in_names_are_numbers(tmp_path: Path) -> None:
    file = made_robots.robomimic(tmp_path / "demo.hdf5", (2,) * 12)
    assert [e.id for e in good(f"hdf5:{file}", 8)] == [f"demo_{n}" for n in range(12)]


def test_splits_are_masks(tmp_path: Path) -> None:
    file = made_robots.robomimic(tmp_path / "demo.hdf5")
    assert [e.id for e in good(f"hdf5:{file},split=train")] == ["demo_1", "demo_2"]
    assert [e.id for e in good(f"hdf5:{file},split=valid")] == ["demo_0"]
    with pytest.raises(LapaError, match=r"test.*train, valid"):
        open_dataset(f"hdf5:{file},split=test")


def test_libero_is_upright_and_says_so(tmp_path: Path) -> None:
    file = made_robots.libero(tmp_path / "KITCHEN_SCENE1_put_the_bowl_demo.hdf5")
    for read_as in (pack, stream):
        found = read_as([f"hdf5:{file}"], 16, quiet=True, cache=tmp_path / "cache")
        assert [line for line in found.told() if line.startswith("pictures: ") and "opengl" in line]
        assert set(found.instructions) == {"put the bowl on the plate"}
    first = good(f"hdf5:{file}")[0]
    np.testing.assert_array_equal(first.frames, made.pictures(4))
    assert first.state is not None
    assert first.state.shape[1] == 8
    stored = made.pictures(4)[:, ::-1]
    for option, expected in {
        "flip=none": stored, "flip=rows": stored[:, ::-1], "flip=columns": stored[:, :, ::-1],
        "rotate=180": stored[:, ::-1, ::-1], "rotate=90": np.rot90(stored, -1, (1, 2)),
        "rotate=90,flip=columns": np.rot90(stored, -1, (1, 2))[:, :, ::-1],
    }.items():  # fmt: skip
        (turned, _) = good(f"hdf5:{file},{option}")
        np.testing.assert_array_equal(turned.frames, expected, err_msg=option)
        assert turned.size == expected.shape[1:3]
    with pytest.raises(LapaError, match="45"):
        open_dataset(f"hdf5:{file},rotate=45")


def test_libero_by_the_name_of_its_file(tmp_path: Path) -> None:
    file = made_robots.libero(tmp_path / "KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5", language=None)
    (first, _) = good(f"hdf5:{file}", 8)
    assert first.instruction == "close the top drawer"
    assert first.instruction_from


@pytest.mark.parametrize("coded", [False, True])
def test_aloha(tmp_path: Path, coded: bool) -> None:
    root = made_robots.aloha(tmp_path / "fold_the_towel", (4, 5, *[2] * 9), coded)
    episodes = good(f"hdf5:{root}")
    assert [e.id for e in episodes] == [f"episode_{n}" for n in range(11)]
    first = episodes[0]
    expected = made.pictures(4).astype(int)
    assert np.abs(first.frames.astype(int) - expected).mean() < (6 if coded else 1e-9)
    assert first.camera == "cam_high"
    assert first.fps == 50
    assert any(note.startswith("rate: 50 Hz") for note in first.notes)
    assert first.actions is not None
    np.testing.assert_allclose(first.actions, made_robots.vectors(4, 14) + 0.01, rtol=1e-5)
    assert pack([f"hdf5:{root}"], 8, quiet=True, cache=tmp_path / "c").action_spec.kinds == ("absolute",) * 14  # type: ignore[union-attr]
    assert good(f"hdf5:{root},fps=25,episodes=0")[0].fps == 25
    swapped = good(f"hdf5:{root},colours=bgr,episodes=0")[0]
    np.testing.assert_array_equal(swapped.frames, first.frames[..., ::-1])


def test_options_of_every_dataset(tmp_path: Path) -> None:
    root = made_robots.aloha(tmp_path / "a", (9, 8))
    (whole, _) = good(f"hdf5:{root}")
    (thin, _) = good(f"hdf5:{root},stride=3")
    np.testing.assert_array_equal(thin.frames, whole.frames[::3])
    assert thin.fps == pytest.approx(50 / 3)
    assert good(f"hdf5:{root},kinds=absolute")[0].action_kinds == ("absolute",) * 14
    packed = pack([f"hdf5:{root}"], 12, quiet=True, cache=tmp_path / "c")
    streamed = stream([f"hdf5:{root}"], 12, quiet=True, cache=tmp_path / "c")
    assert packed.outline == streamed.outline
    for start in (0, 5):
        np.testing.assert_array_equal(
            np.stack(list(streamed.frames(1, start))), packed.gather(np.arange(9 + start, 17))
        )
    two = pack([f"hdf5:{root}"], 12, quiet=True, cache=tmp_path / "c", cameras=("cam_left_wrist", "cam_high"))
    assert not np.array_equal(two.gather(np.array([3])), two.gather(np.array([3]), "cam_high"))


def test_a_folder_names_what_it_does_not_read(tmp_path: Path) -> None:
    root = made_robots.aloha(tmp_path / "a")
    (root / "notes.pdf").write_text("x")
    made_robots.robomimic(root / "in" / "more.h5", (4,))
    with pytest.raises(BadVideo, match="more"):
        pack([f"hdf5:{root}"], 8, quiet=True, cache=tmp_path / "c")
    found = pack([f"hdf5:{root}"], 8, quiet=True, skip_bad=True, cache=tmp_path / "c")
    assert found.episodes == 2
    assert any(".pdf" in line for line in found.told())
    assert len(found.bad) == 1


# --- other layouts


def write(file: Path, arrays: dict[str, Any], **attributes: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        for name, array in arrays.items():
            out[name] = array
        for name, value in attributes.items():
            out.attrs[name] = value
    return f"hdf5:{file}"


def test_arrays_named_by_options(tmp_path: Path) -> None:
    """RoboMIND's names: the leader's joints are the action."""
    spec = write(tmp_path / "x.hdf5", {
        "observations/rgb_images/camera_top": made.pictures(5),
        "observations/depth_images/camera_top": np.zeros((5, 24, 32), np.uint16),
        "master/joint_position": made_robots.vectors(5, 8), "puppet/joint_position": made_robots.vectors(5, 8, 1),
        "puppet/end_effector": made_robots.vectors(5, 6), "language_raw": np.array([b"open the drawer"]),
    }, fps=10)  # fmt: skip
    action, state = "action=master/joint_position", "state=end_effector[0:3]+puppet/joint_position[7:]"
    (episode,) = good(f"{spec},{action},{state},instruction=language_raw")
    assert episode.actions is not None
    assert episode.state is not None
    np.testing.assert_allclose(episode.actions, made_robots.vectors(5, 8), rtol=1e-6)
    np.testing.assert_allclose(episode.state[:, :3], made_robots.vectors(5, 6)[:, :3], rtol=1e-6)
    np.testing.assert_allclose(episode.state[:, 3], made_robots.vectors(5, 8, 1)[:, 7], rtol=1e-6)
    assert episode.instruction == "open the drawer"
    assert any("master/joint_position" in note and "end_effector[0:3]" in note for note in episode.notes)
    with pytest.raises(LapaError, match="joint_position"):  # of the two
        open_dataset(f"{spec},action=joint_position")
    with pytest.raises(LapaError, match=r"jonts.*puppet"):
        open_dataset(f"{spec},state=jonts")


def test_files_that_say_different_things(tmp_path: Path) -> None:
    """Each file has its own rate, robot and way up; one that says none has those of the first."""
    flipped = made.pictures(5)[:, ::-1]
    for name, pictures, about in (
        ("a", made.pictures(5), {"fps": 10, "robot": "ur5"}),
        ("b", flipped, {"fps": 30, "robot": "franka", "macros_image_convention": "opengl"}),
        ("c", made.pictures(5), {"robot": "ur5"}),
        ("d", made.pictures(5), {}),
    ):
        write(tmp_path / f"set/{name}.h5", {"images": pictures, "actions": np.zeros((5, 2))}, **about)
    spec = f"hdf5:{tmp_path}/set"
    episodes = good(spec)
    assert [(e.fps, e.embodiment) for e in episodes] == [(10, "ur5"), (30, "franka"), (10, "ur5"), (10, "")]
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.frames, made.pictures(5), err_msg=str(number))
    found = pack([spec], 16, quiet=True, cache=tmp_path / "cache")
    assert found.fps.tolist() == [10, 30, 10, 10]
    assert found.embodiments == ("",)
    assert [line for line in found.told() if "ur5 (2), franka (1)" in line]
    assert [line for line in found.told() if "rate: 30 Hz" in line and "1 episode of 4" in line]
    assert pack([f"{spec},episodes=2-3"], 16, quiet=True, cache=tmp_path / "cache").embodiments == ("ur5",)
    assert [e.fps for e in good(f"{spec},fps=20")] == [20] * 4


def test_words_that_change_are_told(tmp_path: Path) -> None:
    """An array of texts with one a frame; empty ones say nothing."""
    arrays = {"images": made.pictures(4), "language_instruction": np.array([b"", b"pick", b"pick", b"place"])}
    (episode,) = good(write(tmp_path / "x.h5", arrays, fps=10))
    assert episode.instruction == "pick"
    assert CHANGES in episode.notes
    arrays["language_instruction"] = np.array([b"pick"] * 4)
    assert CHANGES not in good(write(tmp_path / "y.h5", arrays, fps=10))[0].notes


def test_episodes_by_any_name(tmp_path: Path) -> None:
    """Groups with actions in each are episodes, whatever they are called; groups of cameras are not."""
    arrays = {f"{name}/{part}": array for name in ("pick_cup", "place_cup") for part, array in
              (("images", made.pictures(4)), ("actions", np.zeros((4, 2))))}  # fmt: skip
    assert [e.id for e in good(write(tmp_path / "x.h5", arrays, fps=10))] == ["pick_cup", "place_cup"]
    cameras = {"top/images": made.pictures(4), "side/images": made.pictures(4), "arm/actions": np.zeros((4, 2))}
    (one,) = good(write(tmp_path / "y.h5", cameras, fps=10))
    assert one.camera == "top/images"


def test_numbers_that_are_not_taken_are_named(tmp_path: Path) -> None:
    arrays = {"images": made.pictures(4), "cmd/arm": np.zeros((4, 2))}
    (episode,) = good(write(tmp_path / "x.h5", arrays, fps=10))
    (told,) = (note for note in episode.notes if note.startswith("taken: "))
    assert "action from none (of cmd/arm, action= can take some)" in told
    assert "state from none (of cmd/arm, state= can take some)" in told
    (episode,) = good(write(tmp_path / "x.h5", arrays, fps=10) + ",action=arm,state=none")
    assert "taken: action from cmd/arm, state from none" in episode.notes


def test_several_texts_in_an_attribute(tmp_path: Path) -> None:
    texts = np.array(["pick it up", "lift it"], h5py.string_dtype())
    (episode,) = good(write(tmp_path / "open_drawer.h5", {"images": made.pictures(4)}, fps=10, instruction=texts))
    assert episode.instruction == "pick it up"


def test_times_in_milliseconds_tell_no_rate(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.h5", {"images": made.pictures(5), "timestamp": np.arange(5) * 20.0})
    with pytest.raises(LapaError, match="fps="):
        open_dataset(spec)
    assert good(f"{spec},fps=50")[0].fps == 50


def test_a_rate_that_one_file_says_is_that_of_the_others(tmp_path: Path) -> None:
    """ALOHA's own is for where none says any."""
    root = made_robots.aloha(tmp_path / "fold", (4, 4))
    assert {e.fps for e in good(f"hdf5:{root}")} == {50}
    with h5py.File(root / "episode_0.hdf5", "r+") as file:
        file.attrs["fps"] = 30
    assert {e.fps for e in good(f"hdf5:{root}")} == {30}


def test_measured_rates_scatter(tmp_path: Path) -> None:
    """Times of one rate are one rate; of another, another."""
    for name, fps in (("a", 10), ("b", 10.3), ("c", 15)):
        write(tmp_path / f"set/{name}.h5", {"images": made.pictures(5), "timestamp": np.arange(5) / fps})
    assert [e.fps for e in good(f"hdf5:{tmp_path}/set")] == [10, 10, 15]


def test_steps_and_places_are_not_mixed(tmp_path: Path) -> None:
    """Of robomimic's files one was recorded with steps, another with places to go to."""
    made_robots.robomimic(tmp_path / "set/a.hdf5", (4,))
    places = json.dumps({"env_kwargs": {"controller_configs": {"type": "OSC_POSE", "control_delta": False}}})
    with h5py.File(made_robots.robomimic(tmp_path / "set/b.hdf5", (4,)), "r+") as file:
        file["data"].attrs["env_args"] = places
    spec = f"hdf5:{tmp_path}/set"
    with pytest.raises(BadVideo, match=r"b/demo_0.*absolute.*delta"):
        pack([spec], 16, quiet=True, cache=tmp_path / "cache")
    pack([f"{spec},kinds=6delta+binary"], 16, quiet=True, cache=tmp_path / "cache")


def test_groups_that_are_episodes(tmp_path: Path) -> None:
    """ManiSkill's names, a picture more than actions; and groups named by a pattern."""
    arrays: dict[str, Any] = {}
    for number in (0, 1, 10):
        arrays[f"traj_{number}/obs/sensor_data/base_camera/rgb"] = made.pictures(6, seed=number)
        arrays[f"traj_{number}/obs/agent/qpos"] = made_robots.vectors(6, 3)
        arrays[f"traj_{number}/actions"] = made_robots.vectors(5, 3, number)
    spec = write(tmp_path / "t.h5", arrays, control_freq=20)
    episodes = good(spec)
    assert [(e.id, len(e.frames), e.actions.shape, e.state.shape) for e in episodes] == [  # type: ignore[union-attr]
        (f"traj_{n}", 5, (5, 3), (5, 3)) for n in (0, 1, 10)
    ]
    assert [e.id for e in good(f"{spec},group=traj_1*")] == ["traj_1", "traj_10"]
    with pytest.raises(LapaError, match="nowhere"):
        open_dataset(f"{spec},group=nowhere/*")


def demos(*names: str, **beside: Any) -> dict[str, Any]:
    """Arrays of an episode in each group, of 4, 5, .. frames, and what lies beside them."""
    arrays = dict(beside)
    for number, name in enumerate(names):
        arrays[f"{name}/obs/img"] = made.pictures(4 + number, seed=number)
        arrays[f"{name}/obs/state"] = made_robots.vectors(4 + number, 3)
        arrays[f"{name}/actions"] = made_robots.vectors(4 + number, 2, number)
    return arrays


@pytest.mark.parametrize(
    ("groups", "beside", "ids", "told"),
    [
        (("traj_0", "traj_1", "traj_10"), {"metadata/date": "2024"}, ["traj_0", "traj_1", "traj_10"], "metadata"),
        (("episodes/ep_0", "episodes/ep_1"), {}, ["ep_0", "ep_1"], ""),
        (("data/demo_0", "data/demo_1"), {"data/stats/mean": np.zeros(2)}, ["demo_0", "demo_1"], "data/stats"),
        (("data/demo_0", "data/demo_1"), {"info": np.zeros(3)}, ["demo_0", "demo_1"], "info"),
        (("demos/0", "demos/1"), {}, ["0", "1"], ""),
        (("train/demo_0", "test/demo_0"), {}, ["test/demo_0", "train/demo_0"], ""),
        (("traj_0",), {"language_embedding": np.zeros(10)}, ["traj_0"], "language_embedding"),
        (("traj_0",), {"language_embedding": np.zeros(4)}, ["traj_0"], "language_embedding"),
        (("root",), {}, ["root"], ""),
        (("pick", "place"), {"info/cups": np.zeros(2)}, ["pick", "place"], "info"),
        (("day_1/demo_0", "day_2/demo_0"), {}, ["day_1/demo_0", "day_2/demo_0"], ""),
    ],
)
def test_what_lies_beside_episodes_makes_them_no_one(
    tmp_path: Path, groups: tuple[str, ...], beside: dict[str, Any], ids: list[str], told: str
) -> None:
    """Each group is an episode with its actions; the rest is named as not read."""
    episodes = good(write(tmp_path / "x.h5", demos(*groups, **beside), fps=10))
    assert [episode.id for episode in episodes] == ids
    assert sorted(len(episode.frames) for episode in episodes) == list(range(4, 4 + len(groups)))
    for episode in episodes:
        assert episode.actions is not None
        assert episode.actions.shape == (len(episode.frames), 2)
        assert [note for note in episode.notes if note.startswith("not read")] == (
            [f"not read, for it is in no episode: {told}"] if told else []
        )


def test_a_damaged_group_beside_episodes_is_told(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.h5", demos("demo_0", "demo_2") | {"demo_1/notes": "lost", "stats/mean": np.zeros(2)},
                 fps=10, language_instruction="fold it")  # fmt: skip
    first, bad, last = read(spec)
    assert isinstance(bad, BadVideo)
    assert "demo_1" in str(bad)
    assert (first.id, last.id, last.instruction) == ("demo_0", "demo_2", "fold it")


def test_a_text_beside_episodes_is_their_instruction(tmp_path: Path) -> None:
    (episode,) = good(write(tmp_path / "x.h5", demos("traj_0", language_instruction="fold it"), fps=10))
    assert episode.instruction == "fold it"
    assert not [note for note in episode.notes if note.startswith("not read")]
    (episode,) = good(write(tmp_path / "open_drawer.h5", demos("root"), fps=10))
    assert episode.instruction == "open drawer"


def test_groups_that_are_parts_of_one_episode(tmp_path: Path) -> None:
    """Two arms and the scene; numbered cameras: there is a row for each frame beside them."""
    arms = {f"{arm}/{part}": array for arm in ("left", "right") for part, array in
            (("wrist", made.pictures(4)), ("actions", made_robots.vectors(4, 2)))}  # fmt: skip
    spec = write(tmp_path / "x.h5", {**arms, "scene/rgb": made.pictures(4)}, fps=10)
    (episode,) = good(f"{spec},action=left/actions+right/actions")
    assert episode.camera == "scene/rgb"
    assert episode.actions is not None
    assert episode.actions.shape == (4, 4)
    numbered = {"a_0/rgb": made.pictures(4), "a_1/rgb": made.pictures(4), "joints": made_robots.vectors(4, 2)}
    assert len(good(write(tmp_path / "y.h5", numbered, fps=10))) == 1


def test_groups_that_may_be_episodes_or_cameras(tmp_path: Path) -> None:
    arrays = {f"things/cup_{n}/rgb": made.pictures(4 + n) for n in range(3)}
    spec = write(tmp_path / "x.h5", {**arrays, "info": np.zeros(2)}, fps=10)
    with pytest.raises(LapaError, match=r"x\.h5.*things/cup_0.*group=things/\*.*camera=things/cup_0/rgb"):
        open_dataset(spec)
    assert [len(episode.frames) for episode in good(f"{spec},group=things/*")] == [4, 5, 6]
    assert [len(episode.frames) for episode in good(f"{spec},camera=things/cup_1/rgb")] == [5]
    cameras = {f"cameras/cam_{n}/rgb": made.pictures(4) for n in range(2)}
    assert len(good(write(tmp_path / "y.h5", cameras, fps=10))) == 1


def test_an_action_in_parts_comes_before_the_next_state(tmp_path: Path) -> None:
    arrays = {
        "observations/images/top": made.pictures(4), "observations/qpos": made_robots.vectors(4, 4, 100),
        "action/arm": made_robots.vectors(4, 3), "action/gripper": made_robots.vectors(4, 1, 7),
        "action/is_pad": np.zeros(4, bool),
    }  # fmt: skip
    (episode,) = good(write(tmp_path / "x.h5", arrays))
    assert episode.actions is not None
    np.testing.assert_allclose(episode.actions[:, :3], made_robots.vectors(4, 3), rtol=1e-6)
    np.testing.assert_allclose(episode.actions[:, 3:], made_robots.vectors(4, 1, 7), rtol=1e-6)
    assert episode.action_names == ("arm_0", "arm_1", "arm_2", "gripper_0")
    assert any("action/arm + action/gripper (passed over: action/is_pad)" in note for note in episode.notes)


@pytest.mark.parametrize(
    "names",
    [
        ("action_dict/joint_position", "action_dict/gripper_position"),
        ("action/cartesian_position", "action/joint_position", "action/gripper_position"),
        ("action/arm/position", "action/arm/velocity"),
    ],
)
def test_the_next_state_does_not_stand_for_actions_that_are_there(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Where it is not clear which of them is the action, they are listed."""
    arrays = {"img": made.pictures(4), "state": made_robots.vectors(4, 2),
              **{name: made_robots.vectors(4, 3) for name in names}}  # fmt: skip
    spec = write(tmp_path / "x.h5", arrays, fps=10)
    (episode,) = good(spec)
    assert episode.actions is None
    (told,) = (note for note in episode.notes if note.startswith("taken: action from none"))
    assert all(word in told for word in (*names, "action=", "next_state"))
    assert good(f"{spec},action={names[0]}")[0].actions.shape == (4, 3)  # type: ignore[union-attr]
    assert good(f"{spec},action=next_state")[0].actions.shape == (4, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("fps", ["30", b"30", " 30.0 "])
def test_a_rate_that_is_text(tmp_path: Path, fps: str | bytes) -> None:
    arrays = {"img": made.pictures(4), "action": made_robots.vectors(4, 2)}
    assert good(write(tmp_path / "x.h5", arrays, fps=fps))[0].fps == 30
    with pytest.raises(LapaError, match="fps="):
        open_dataset(write(tmp_path / "y.h5", arrays, fps="fast"))


def test_the_next_state_is_the_action_where_there_is_none(tmp_path: Path) -> None:
    spec = write(tmp_path / "x.h5", {"img": made.pictures(4), "state": made_robots.vectors(4, 2),
                                     "timestamp": np.arange(4) / 15, "obs/prev_action": np.zeros((4, 2)),
                                     "action/mean": np.zeros(2)})  # fmt: skip
    (episode,) = good(spec)
    assert episode.fps == 15
    assert episode.actions is not None
    np.testing.assert_allclose(episode.actions, made_robots.vectors(4, 2)[[1, 2, 3, 3]], rtol=1e-6)
    assert episode.action_kinds == ("absolute", "absolute")
    assert good(f"{spec},action=none")[0].actions is None
    assert good(f"{spec},action=none,state=none")[0].state is None


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (np.moveaxis(made.pictures(4), 3, 1), made.pictures(4)),
        (made.pictures(4).astype(np.float32) / 255, made.pictures(4)),
        (made.pictures(4).astype(np.float64), made.pictures(4)),
        (np.concatenate([made.pictures(4), made.pictures(4)[..., :1]], 3), made.pictures(4)),
        (made.pictures(4)[..., :1], made.pictures(4)),
    ],
    ids=["planes", "unit", "float", "alpha", "grey"],
)
def test_kinds_of_pictures(tmp_path: Path, pictures: np.ndarray, expected: np.ndarray) -> None:
    (episode,) = good(write(tmp_path / "x.h5", {"cam": pictures, "action": made_robots.vectors(4, 2)}, fps=5))
    np.testing.assert_array_equal(episode.frames, expected)


def test_floats_that_begin_in_the_dark(tmp_path: Path) -> None:
    dark = made.pictures(5, seed=3)
    dark[0] = 0
    for name, scale in (("whole", 1), ("unit", 255)):
        (episode,) = good(write(tmp_path / f"{name}.h5", {"images": dark.astype(np.float32) / scale}, fps=10))
        np.testing.assert_array_equal(episode.frames, dark)


def test_rows_of_bytes(tmp_path: Path) -> None:
    """Pictures coded, a row of its own length each."""
    rows = [np.frombuffer(made.encoded(picture), np.uint8) for picture in made.pictures(3)]
    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as out:
        held = out.create_dataset("cam", (3,), h5py.vlen_dtype(np.uint8))
        for number, row in enumerate(rows):
            held[number] = row
    np.testing.assert_array_equal(good(f"hdf5:{file},fps=5")[0].frames, made.pictures(3))


def test_episode_ends_in_hdf5(tmp_path: Path) -> None:
    arrays = {"data/img": made.pictures(9), "data/action": made_robots.vectors(9, 2), "meta/episode_ends": [4, 9]}
    first, second = good(write(tmp_path / "x.h5", arrays) + ",fps=10")
    np.testing.assert_array_equal(first.frames, made.pictures(9)[:4])
    np.testing.assert_array_equal(second.frames, made.pictures(9)[4:])
    assert second.actions is not None
    np.testing.assert_allclose(second.actions, made_robots.vectors(9, 2)[4:], rtol=1e-6)


# --- what cannot be read


@pytest.mark.parametrize(
    ("arrays", "options", "named"),
    [
        ({"cam": made.pictures(4), "action": made_robots.vectors(9, 2)}, "fps=5", "action 9"),
        ({"cam": made.pictures(9), "action": made_robots.vectors(4, 2)}, "fps=5", "cam 9"),
        ({"cam": made.pictures(1)}, "fps=5", "1 frames"),
        ({"cam": made.pictures(4)}, "", "fps="),
        ({"states": made_robots.vectors(4, 3)}, "fps=5", "states"),
        ({"depth": np.zeros((4, 24, 32, 1), np.uint8)}, "fps=5", "depth"),
        ({"cam": made.pictures(4)}, "fps=0", "fps"),
        ({"cam": made.pictures(4).astype(np.float32) - 9}, "fps=5", "-9"),
        ({"cam": made.pictures(4), "action": np.full((4, 2), np.nan)}, "fps=5", "nan"),
        ({"cam": made.pictures(4), "action": np.array(["a"] * 4, "S")}, "fps=5,action=action", "action"),
        ({"cam": made.pictures(4)}, "fps=5,instruction=what", "what"),
        ({"data/img": made.pictures(4), "meta/episode_ends": [2, 2, 4]}, "fps=5", "episode_ends: episode 1"),
        ({"data/img": made.pictures(4), "meta/episode_ends": [2, 40]}, "fps=5", "row 40"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(tmp_path: Path, arrays: dict[str, Any], options: str, named: str) -> None:
    spec = write(tmp_path / "some.h5", arrays)
    with pytest.raises(LapaError, match="some") as caught:
        pack([f"{spec},{options}" if options else spec], 8, quiet=True, cache=tmp_path / "c")
    assert named in str(caught.value)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """A file of others must not make lapa read other files: links, arrays kept elsewhere, virtual arrays."""
    secret = made_robots.robomimic(tmp_path / "secret.hdf5", (4,))
    (tmp_path / "raw").write_bytes(made.pictures(4).tobytes())
    file = made_robots.robomimic(tmp_path / "a" / "demo.hdf5", (4,))
    with h5py.File(file, "a") as out:
        out["data/demo_1"] = h5py.ExternalLink(str(secret), "/data/demo_0")
        demo = out["data/demo_0"]
        demo["obs/linked_image"] = h5py.ExternalLink(str(secret), "/data/demo_0/obs/agentview_image")
        demo["obs/soft_image"] = h5py.SoftLink("/data/demo_1/obs/agentview_image")
        raw = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
        demo.create_dataset("obs/raw_image", (4, 24, 32, 3), np.uint8, external=raw)
        layout = h5py.VirtualLayout((4, 24, 32, 3), np.uint8)
        layout[:] = h5py.VirtualSource(str(secret), "data/demo_0/obs/agentview_image", (4, 24, 32, 3))
        demo.create_virtual_dataset("obs/virtual_image", layout)
    first, second = read(f"hdf5:{file}")
    assert isinstance(second, BadVideo)
    assert "demo_1" in str(second)
    assert [note for note in first.notes if "obs/raw_image" in note or "obs/linked_image" in note]
    assert open_dataset(f"hdf5:{file}").cameras == ("agentview_image", "robot0_eye_in_hand_image")  # type: ignore[attr-defined]
    for name in ("linked_image", "soft_image", "raw_image", "virtual_image"):
        with pytest.raises(LapaError, match=name):
            open_dataset(f"hdf5:{file},camera={name}")


def test_groups_that_hold_themselves(tmp_path: Path) -> None:
    file = made_robots.robomimic(tmp_path / "demo.hdf5", (4,))
    with h5py.File(file, "a") as out:
        out["data/demo_0/obs/loop"] = out["data/demo_0"]
    assert len(good(f"hdf5:{file}")) == 1


def test_one_bad_file_spares_the_others(tmp_path: Path) -> None:
    root = made_robots.aloha(tmp_path / "a", (4, 5, 6))
    clean = good(f"hdf5:{root}")
    (root / "episode_1.hdf5").write_bytes(b"x" * 5000)
    first, bad, last = read(f"hdf5:{root}")
    assert isinstance(bad, BadVideo)
    assert "episode_1.hdf5" in str(bad)
    np.testing.assert_array_equal(first.frames, clean[0].frames)
    np.testing.assert_array_equal(last.frames, clean[2].frames)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lapa.data.installed.find_spec", lambda name: None)
    with pytest.raises(LapaError, match=r"h5py.*pip install .*lapa\[hdf5\]"):
        open_dataset(f"hdf5:{tmp_path}")


def test_settings_that_are_no_json(tmp_path: Path) -> None:
    file = made_robots.robomimic(tmp_path / "demo.hdf5", (4,), env_args="{", problem_info=json.dumps([1]))
    with pytest.raises(LapaError, match="fps="):
        open_dataset(f"hdf5:{file}")
    assert len(good(f"hdf5:{file},fps=20")) == 1
