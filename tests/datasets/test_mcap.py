"""Recordings of ROS 1 and ROS 2 in MCAP: pictures and joints by their topics, paired by time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
from made_robots import arm, good, raw_picture, read, ros2, stamp

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data import ros
from lapa.data.notes import CHANGES
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import stream

pytest.importorskip("mcap", reason="mcap is not installed")
JOINTS = "sensor_msgs/msg/JointState"


def test_ros2(tmp_path: Path) -> None:
    (episode,) = good(f"mcap:{ros2(tmp_path / 'lift_the_cup.mcap', arm())}")
    np.testing.assert_array_equal(episode.frames, made.pictures(6))
    assert episode.fps == pytest.approx(10)
    assert episode.state_names == ("shoulder", "elbow")
    assert episode.state is not None
    assert episode.actions is not None
    np.testing.assert_allclose(episode.state[:, 0], np.arange(6) / 10, atol=1e-6)
    np.testing.assert_array_equal(episode.actions, episode.state[[1, 2, 3, 4, 5, 5]])
    assert episode.action_kinds == ("absolute", "absolute")
    assert episode.camera == "/camera/image_raw/compressed"
    assert episode.instruction == "lift the cup"
    said = " ".join(episode.notes)
    assert all(word in said for word in ("/leader/joint_states", "next state", "headers", "depth", "/wrist_camera"))


def test_topics_by_name(tmp_path: Path) -> None:
    spec = f"mcap:{ros2(tmp_path / 'a.mcap', arm())}"
    options = "camera=wrist_camera/image_raw,action=/leader/joint_states,state=/joint_states.velocity+/joint_states"
    (episode,) = good(f"{spec},{options},instruction=push it")
    np.testing.assert_array_equal(episode.frames, made.pictures(6, seed=30))  # bgr8, its rows filled up
    assert episode.actions is not None
    assert episode.state is not None
    # the last command before the next frame: 0.09 s after the frame, and a second ahead
    np.testing.assert_allclose(episode.actions[:, 0], np.arange(6) / 10 + 1.09, atol=1e-6)
    np.testing.assert_allclose(episode.state[:, 0], 1)
    np.testing.assert_allclose(episode.state[:, 2], np.arange(6) / 10, atol=1e-6)
    assert episode.action_kinds == ("absolute", "absolute")
    assert episode.instruction == "push it"
    assert good(f"{spec},action=none,state=none")[0].state is None
    assert good(f"{spec},action=none")[0].actions is None
    for option, known in {"camera=/no": "/wrist_camera/image_raw", "state=/no": "/joint_states"}.items():
        with pytest.raises(LapaError, match=known):
            open_dataset(f"{spec},{option}")
    with pytest.raises(LapaError, match="speed"):
        pack([f"{spec},state=/joint_states.speed"], 8, quiet=True, cache=tmp_path / "c")


def test_options_of_every_dataset_and_streams(tmp_path: Path) -> None:
    for number in range(3):
        ros2(tmp_path / f"bags/run_{number}.mcap", arm(9, seed=number))
    spec = f"mcap:{tmp_path}/bags"
    packed = pack([spec], 12, quiet=True, cache=tmp_path / "c")
    streamed = stream([spec], 12, quiet=True, cache=tmp_path / "c")
    assert packed.ids == ("run_0", "run_1", "run_2")
    assert packed.outline == streamed.outline
    for start in (0, 4):
        np.testing.assert_array_equal(
            np.stack(list(streamed.frames(2, start))), packed.gather(np.arange(18 + start, 27))
        )
    (thin,) = good(f"{spec},episodes=1,stride=2")
    np.testing.assert_array_equal(thin.frames, made.pictures(9, seed=1)[::2])
    assert good(f"{spec},fps=5,episodes=0")[0].fps == 5
    two = pack([spec], 12, quiet=True, cache=tmp_path / "c", cameras=("/wrist_camera/image_raw",))
    assert two.camera == "/wrist_camera/image_raw"


def test_a_folder_of_rosbag2(tmp_path: Path) -> None:
    """Parts of one recording follow one another."""
    messages = arm(8)
    ros2(tmp_path / "all/pick_it/pick_it_0.mcap", [m for m in messages if m[0] < 1000.35])
    ros2(tmp_path / "all/pick_it/pick_it_1.mcap", [m for m in messages if m[0] >= 1000.35])
    (tmp_path / "all/pick_it/metadata.yaml").write_text("rosbag2_bagfile_information:\n")
    ros2(tmp_path / "all/alone.mcap", arm(4))
    one, two = good(f"mcap:{tmp_path}/all")
    assert [(e.id, len(e.frames), e.instruction) for e in (one, two)] == [
        ("alone", 4, "alone"), ("pick_it", 8, "pick it")]  # fmt: skip
    np.testing.assert_array_equal(two.frames, made.pictures(8))
    assert [e.id for e in good(f"mcap:{tmp_path}/all/pick_it")] == ["pick_it"]


def test_ros1(tmp_path: Path) -> None:
    """By MCAP's writer for ROS 1, with messages that its own package makes of the definitions."""
    from mcap_ros1._vendor.genpy import Time, dynamic
    from mcap_ros1.writer import Writer

    header = "=" * 80 + "\nMSG: std_msgs/Header\nuint32 seq\ntime stamp\nstring frame_id\n"
    texts = {
        "sensor_msgs/Image": "Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\n"
        "uint32 step\nuint8[] data\n" + header,
        "sensor_msgs/JointState": "Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\n"
        "float64[] effort\n" + header,
    }  # fmt: skip
    kinds = {name: dynamic.generate_dynamic(name, text)[name] for name, text in texts.items()}
    with (tmp_path / "a.mcap").open("wb") as out:
        writer = Writer(out)
        for t, picture in enumerate(made.pictures(5)):
            for topic, name in (("/cam", "sensor_msgs/Image"), ("/joint_states", "sensor_msgs/JointState")):
                message = kinds[name]()
                message.header.stamp = Time.from_sec(100 + t / 10)
                if topic == "/cam":
                    message.height, message.width, message.step, message.encoding = 24, 32, 96, "rgb8"
                    message.data = picture.tobytes()
                else:
                    message.name, message.position = ["a", "b"], [t, -t]
                writer.write_message(topic, message, int((100 + t / 10) * 1e9))
        writer.finish()
    (episode,) = good(f"mcap:{tmp_path / 'a.mcap'}")
    np.testing.assert_array_equal(episode.frames, made.pictures(5))
    assert episode.state is not None
    np.testing.assert_array_equal(episode.state, [[t, -t] for t in range(5)])


def test_times(tmp_path: Path) -> None:
    """Frames that come late are paired by the time in their headers; without headers by the recording's."""
    late = [(at + 0.2 if "camera" in topic else at, topic, kind, message) for at, topic, kind, message in arm(6)]
    (episode,) = good(f"mcap:{ros2(tmp_path / 'a.mcap', sorted(late, key=lambda m: m[0]))}")
    assert episode.state is not None
    np.testing.assert_allclose(episode.state[:, 0], np.arange(6) / 10, atol=1e-6)
    bare = [(at, topic, kind, {**message, "header": stamp(0)}) for at, topic, kind, message in arm(6)]
    (episode,) = good(f"mcap:{ros2(tmp_path / 'b.mcap', bare)}")
    assert episode.state is not None
    np.testing.assert_allclose(episode.state[:, 0], np.arange(6) / 10, atol=1e-6)
    assert any("recording" in note for note in episode.notes if note.startswith("times"))


def test_a_varying_rate_is_evened(tmp_path: Path) -> None:
    """A camera that leaves out three frames: the one before is shown meanwhile, beside its own state."""
    kept = [m for m in arm(9) if not ("camera/image" in m[1] and 1000.35 < m[0] < 1000.65)]
    (episode,) = good(f"mcap:{ros2(tmp_path / 'a.mcap', kept)}")
    rows = [0, 1, 2, 3, 3, 3, 3, 7, 8]
    np.testing.assert_array_equal(episode.frames, made.pictures(9)[rows])
    assert episode.state is not None
    np.testing.assert_allclose(episode.state[:, 0], np.array(rows) / 10, atol=1e-6)


def test_what_lies_outside_the_states_is_left_out_and_said(tmp_path: Path) -> None:
    kept = [m for m in arm(20) if m[2] != JOINTS or 1000.5 < m[0] < 1001.4]
    (episode,) = good(f"mcap:{ros2(tmp_path / 'a.mcap', kept)}")
    assert len(episode.frames) < 14
    assert any(note.startswith("left out") for note in episode.notes)
    assert episode.state is not None
    first = episode.frames[0, -1, -1, 0] / 20 / 10  # seconds
    assert abs(float(episode.state[0, 0]) - first) <= 0.15
    gap = [m for m in arm(40) if m[2] != JOINTS or not 1000.5 < m[0] < 1003.5]
    with pytest.raises(BadVideo, match="/joint_states"):
        pack([f"mcap:{ros2(tmp_path / 'gap.mcap', gap)}"], 8, quiet=True, cache=tmp_path / "c")


def test_no_command_is_taken_from_the_future(tmp_path: Path) -> None:
    """Frames before the first command are left out; the last one holds."""
    kept = [m for m in arm(20) if m[1] != "/leader/joint_states" or 1000.5 < m[0] < 1001.0]
    (episode,) = good(f"mcap:{ros2(tmp_path / 'a.mcap', kept)},action=/leader/joint_states")
    assert episode.actions is not None
    assert len(episode.frames) == 15
    np.testing.assert_array_equal(episode.frames[0], made.pictures(20)[5])
    np.testing.assert_allclose(episode.actions[:5, 0], [1.59, 1.69, 1.79, 1.89, 1.99], atol=1e-5)
    np.testing.assert_allclose(episode.actions[5:, 0], 1.99, atol=1e-5)
    assert any("before any command" in note for note in episode.notes)


def test_messages_that_overtake_one_another(tmp_path: Path) -> None:
    """The state is the nearest by its own time, in whatever order the messages came."""
    usual = good(f"mcap:{ros2(tmp_path / 'a.mcap', arm())}")[0]
    messages = arm()
    states = [i for i, message in enumerate(messages) if message[1] == "/joint_states"]
    for one, other in zip(states[10::10], states[19::10], strict=True):
        messages[one], messages[other] = messages[other], messages[one]
    other = good(f"mcap:{ros2(tmp_path / 'b.mcap', messages)}")[0]
    np.testing.assert_array_equal(other.state, usual.state)


def test_joints_in_another_order(tmp_path: Path) -> None:
    """Each recording lists its joints in an order of its own: columns are those of the first recording."""
    ros2(tmp_path / "bags/a.mcap", arm())
    turned = [
        (at, topic, kind, {**said, **{key: said[key][::-1] for key in ("name", "position", "velocity") if key in said}})
        for at, topic, kind, said in arm()
    ]
    ros2(tmp_path / "bags/b.mcap", turned)
    one, two = good(f"mcap:{tmp_path}/bags,action=/leader/joint_states")
    assert two.state_names == one.state_names == two.action_names == ("shoulder", "elbow")
    np.testing.assert_array_equal(two.state, one.state)
    np.testing.assert_array_equal(two.actions, one.actions)
    assert good(f"mcap:{tmp_path}/bags/b.mcap")[0].state_names == ("elbow", "shoulder")


def test_words_that_change_are_told(tmp_path: Path) -> None:
    texts = [(1000.0, "pick"), (1000.3, "place")]
    messages = [*arm(), *((at, "/task", "std_msgs/msg/String", {"data": text}) for at, text in texts)]
    path = ros2(tmp_path / "a.mcap", sorted(messages, key=lambda message: message[0]))
    (episode,) = good(f"mcap:{path},instruction=/task")
    assert episode.instruction == "pick"
    assert CHANGES in episode.notes
    assert CHANGES not in good(f"mcap:{path},instruction=push it")[0].notes


def test_joints_of_two_parts_on_one_topic(tmp_path: Path) -> None:
    """Other joints than the first message's are passed over and counted; the same in another order are not."""
    more = arm(6)
    for t in range(20):
        at = 1000 + t / 40
        for after, names, where in ((1e-3, ["finger"], [9.0]), (2e-3, ["elbow", "shoulder"], [-t / 40, t / 40])):
            joints = {"header": stamp(at + after), "name": names, "position": where, "velocity": [], "effort": []}
            more.append((at + after, "/joint_states", JOINTS, joints))
    (episode,) = good(f"mcap:{ros2(tmp_path / 'a.mcap', sorted(more, key=lambda m: m[0]))}")
    assert any("20 messages" in note and "/joint_states" in note for note in episode.notes)
    assert episode.state is not None
    assert (episode.state[:, 0] >= 0).all()
    assert (episode.state[:, 1] <= 0).all()


@pytest.mark.parametrize(
    ("encoding", "stored"),
    [
        ("rgb8", lambda p: p), ("bgr8", lambda p: p[..., ::-1]), ("mono8", lambda p: p[..., 0]),
        ("8UC3", lambda p: p[..., ::-1]),
        ("rgba8", lambda p: np.concatenate([p, p[..., :1]], 2)),
        ("bgra8", lambda p: np.concatenate([p[..., ::-1], p[..., :1]], 2)),
        ("yuv422_yuy2", lambda p: np.stack([p[..., 0] * 0.8586 + 16, np.full(p.shape[:2], 128)], 2).astype(np.uint8)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_encodings(tmp_path: Path, encoding: str, stored: Any) -> None:
    kept = [np.ascontiguousarray(stored(picture)) for picture in made.pictures(4)]
    messages = [(1 + t / 10, "/cam", "sensor_msgs/msg/Image", raw_picture(picture, 1 + t / 10, encoding, 3))
                for t, picture in enumerate(kept)]  # fmt: skip
    (episode,) = good(f"mcap:{ros2(tmp_path / 'a.mcap', messages)}")
    assert np.abs(episode.frames.astype(int) - made.pictures(4)).max() <= (3 if "yuv" in encoding else 0)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "bayer_rggb8", "x"])
def test_pictures_that_are_not_read(tmp_path: Path, encoding: str) -> None:
    picture = np.zeros((24, 32), np.float32)
    messages = [(1 + t, "/cam", "sensor_msgs/msg/Image", raw_picture(picture, 1 + t, encoding)) for t in range(3)]
    with pytest.raises(LapaError, match=r"/cam|depth"):
        pack([f"mcap:{ros2(tmp_path / 'a.mcap', messages)}"], 8, quiet=True, cache=tmp_path / "c")


def test_other_messages(tmp_path: Path) -> None:
    """Numbers of any message: nested, arrays, with constants and comments in the definition; and texts."""
    more = arm(6)
    for t in range(60):
        at = 1000 + t / 100
        twist = {"linear": {"x": t, "y": 0.0, "z": 0.0}, "angular": {"x": 0.0, "y": 0.0, "z": -t}}
        array = {"layout": {"dim": [{"label": "x", "size": 2, "stride": 1}], "data_offset": 7}, "data": [t, 5.0]}
        more.append((at, "/cmd_vel", "geometry_msgs/msg/Twist", twist))
        more.append((at, "/pose", "std_msgs/msg/Float32MultiArray", array))
    more.append((1000.0, "/task", "std_msgs/msg/String", {"data": "pick  up the cup"}))
    spec = f"mcap:{ros2(tmp_path / 'a.mcap', sorted(more, key=lambda m: m[0]))}"
    (episode,) = good(f"{spec},action=/cmd_vel,state=/pose,instruction=/task")
    assert episode.action_names == ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")
    assert episode.actions is not None
    assert episode.state is not None
    np.testing.assert_array_equal(episode.actions[:, 0], [9, 19, 29, 39, 49, 59])
    np.testing.assert_array_equal(episode.state, [[10 * t, 5] for t in range(6)])
    assert episode.instruction == "pick up the cup"
    assert good(f"{spec},action=/cmd_vel.linear")[0].action_names == ("x", "y", "z")


# --- what cannot be read


def test_a_recording_that_breaks_off(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        ros2(tmp_path / f"bags/{name}.mcap", arm(6))
    file = tmp_path / "bags/b.mcap"
    file.write_bytes(file.read_bytes()[:-300])
    first, bad, last = read(f"mcap:{tmp_path}/bags")
    assert isinstance(first, Episode)
    assert isinstance(last, Episode)
    assert isinstance(bad, BadVideo)
    assert "b.mcap" in str(bad)
    assert "mcap recover" in str(bad)


def test_other_kinds_of_bags_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.bag").write_bytes(b"#ROSBAG V2.0\n")
    (tmp_path / "y.db3").write_bytes(b"SQLite format 3")
    for path in (tmp_path, tmp_path / "x.bag", tmp_path / "y.db3"):
        with pytest.raises(LapaError, match=r"mcap convert \w\.(bag|db3)"):
            open_dataset(f"mcap:{path}")
    ros2(tmp_path / "z.mcap", arm())
    assert any(".bag" in note for note in good(f"mcap:{tmp_path}")[0].notes)


def test_messages_that_are_not_ros(tmp_path: Path) -> None:
    from mcap.writer import Writer

    with (tmp_path / "a.mcap").open("wb") as out:
        writer = Writer(out)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "protobuf", b"\0")
        channel = writer.register_channel("/cam", "protobuf", schema)
        writer.add_message(channel, 1, b"x", 1)
        writer.finish()
    with pytest.raises(LapaError, match=r"a\.mcap.*/cam.*protobuf"):
        open_dataset(f"mcap:{tmp_path / 'a.mcap'}")


def test_definitions_are_not_believed() -> None:
    types = ros.definitions("x/msg/A", "float64[] many\nB[] more\nstring text\n" + "=" * 80 + "\nMSG: x/B\nint32 one\n")
    whole = b"\0\1\0\0" + np.array([1], "<u4").tobytes() + b"\0" * 4 + np.array([2.5]).tobytes()
    whole += np.array([2, 3, 4, 3], "<u4").tobytes() + b"hi\0"
    found = ros.decoded(types, "x/msg/A", whole, cdr=True)
    assert found["many"].tolist() == [2.5]
    assert found["more"] == [{"one": 3}, {"one": 4}]
    assert found["text"] == "hi"
    for at in (4, 20, 32):  # counts of 4 billion
        forged = whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :]
        with pytest.raises(ValueError, match=r"says|ends"):
            ros.decoded(types, "x/A", forged, cdr=True)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"\w"):
            ros.decoded(types, "x/A", whole[:length], cdr=True)
    with pytest.raises(ValueError, match="itself"):
        ros.decoded(ros.definitions("x/A", "A inner\n"), "x/A", whole, cdr=True)
    with pytest.raises(ValueError, match="line"):
        ros.definitions("x/A", "__import__('os')\n")


def test_mcap_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lapa.data.installed.find_spec", lambda name: None)
    with pytest.raises(LapaError, match=r"mcap.*pip install .*lapa\[mcap\]"):
        open_dataset(f"mcap:{tmp_path}")
