"""RLDS: TFRecord framing, tf.train.Example, and the episodes in them; made here, and a real sample of Bridge."""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import encoded, example, features_json, image, pictures, rlds, tensor, tfrecord

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data import tfrecord as reader
from lapa.data.pack import pack
from lapa.data.spec import open_dataset

BRIDGE = Path(__file__).parents[3] / "shared/data/rlds_bridge_sample"


def read(spec: str, size: int | None = None) -> list[Episode | BadVideo]:
    return list(open_dataset(spec).episodes(size))


def good(spec: str, size: int | None = None) -> list[Episode]:
    found = read(spec, size)
    assert not [e for e in found if isinstance(e, BadVideo)]
    return [e for e in found if isinstance(e, Episode)]


def shard(root: Path) -> Path:
    return next(root.glob("*.tfrecord-*"))


# --- the wire -------------------------------------------------------------------------------------


def test_the_checksum_is_the_published_one() -> None:
    """CRC-32C of "123456789" is e3069283 (RFC 3720's polynomial); masked as TFRecord does, rotated and shifted."""
    rotated = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert reader.masked_crc(b"123456789") == (rotated + 0xA282EAD8) % 2**32


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    st.lists(st.floats(width=32, allow_nan=False), max_size=20),
    st.lists(st.binary(max_size=30), max_size=5),
    st.booleans(),
)
def test_an_example_comes_back(whole: list[int], real: list[float], raw: list[bytes], packed: bool) -> None:
    made = example({"a/int": np.array(whole, np.int64), "ä": np.array(real, np.float32), "b": raw}, packed)
    found = reader.example(made)
    np.testing.assert_array_equal(found["a/int"], np.array(whole, np.int64))
    np.testing.assert_array_equal(found["ä"], np.array(real, np.float32))
    assert found["b"] == raw


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_bytes_are_a_value_error(data: st.DataObject) -> None:
    made = bytearray(example({"n": np.arange(300), "x": np.ones(4, np.float32), "b": [b"abc", b"d"]}))
    for place in data.draw(st.lists(st.integers(0, len(made) - 1), min_size=1, max_size=4)):
        made[place] = data.draw(st.integers(0, 255))
    del made[data.draw(st.integers(0, len(made))) :]
    with contextlib.suppress(ValueError):  # no other exception may leave it
        reader.example(bytes(made))


def test_records_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tfrecord(tmp_path / "x", [b"first", b"second", b"third"])
    whole = path.read_bytes()
    assert list(reader.records(path)) == [b"first", b"second", b"third"]

    def after(change: dict[int, int], end: int | None = None) -> list[str]:
        data = bytearray(whole[:end])
        for place, value in change.items():
            data[place] = value
        path.write_bytes(data)
        return [str(r) if isinstance(r, BadVideo) else r.decode() for r in reader.records(path)]

    second = 16 + len(b"first")
    assert after({second + 12: 0}) == ["first", f"{path}: record 1 is damaged (checksum).", "third"]
    assert len(lost := after({second: 0})) == 2
    assert "checksum" in lost[1]
    assert "checksum" in after({second + 8: 0})[-1]
    assert after({}, -1)[-1].startswith(f"{path}: record 2 ")
    assert after({}, second + 5)[-1].startswith(f"{path}: record 1 ")
    assert after({}, 0) == []


# --- episodes -------------------------------------------------------------------------------------


def test_episodes(tmp_path: Path) -> None:
    root = rlds(tmp_path / "bridge/1.0.0")
    one, two = good(f"rlds:{root}")
    assert (one.frames.shape, two.frames.shape, one.size, one.fps) == ((4, 24, 32, 3), (5, 24, 32, 3), (24, 32), 5)
    assert [e.instruction for e in (one, two)] == ["push block 0", "push block 1"], "the first that is not empty"
    np.testing.assert_array_equal(two.actions, np.arange(15, dtype=np.float32).reshape(5, 3) + 1)
    np.testing.assert_array_equal(one.state, -np.arange(8, dtype=np.float32).reshape(4, 2))
    exact = good(f"rlds:{tmp_path / 'bridge'},camera=image_1,fps=3")[1]
    np.testing.assert_array_equal(exact.frames, pictures(5, seed=1))
    assert (exact.fps, one.id) == (3, "bridge_small-train.tfrecord-00000-of-00001:00000")
    assert np.abs(two.frames.astype(int) - exact.frames).max() < 40, "camera image_0 is the same as JPEG"
    assert len(open_dataset(f"rlds:{root}")) == 2  # type: ignore[arg-type]
    assert "observation/wrist " in str(read(f"rlds:{root},camera=observation/wrist")[0])


def test_an_action_of_parts_an_older_description_and_numbers_for_letters(tmp_path: Path) -> None:
    """As RT-1 (actions in parts) and Language Table (text as 512 integers) come."""
    steps = {"action": {"world_vector": tensor([3]), "gripper": tensor([1]), "terminate": tensor([], "int32")},
             "observation": {"rgb": image(), "instruction": tensor([512], "int32"),
                             "effector_translation": tensor([2])}}  # fmt: skip
    said = np.zeros((4, 512), np.int64)
    text = "push the red möön to the left".encode()
    said[:, : len(text)] = list(text)
    made = {
        "steps/action/world_vector": np.arange(12, dtype=np.float32),
        "steps/action/gripper": np.ones(4, np.float32),
        "steps/action/terminate": np.array([0, 0, 0, 1]),
        "steps/observation/rgb": [encoded(f) for f in pictures(4)],
        "steps/observation/instruction": said,
        "steps/observation/effector_translation": np.ones(8, np.float32),
    }
    tfrecord(tmp_path / "language_table_sim-train.tfrecord-00000-of-00002", [example(made)])
    (tmp_path / "features.json").write_text(json.dumps(features_json(steps, old=True)))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "language_table_sim"}))
    (episode,) = good(f"rlds:{tmp_path}")
    assert (episode.instruction, episode.fps) == ("push the red möön to the left", 10)
    assert episode.action_names == ("gripper_0", "world_vector_0", "world_vector_1", "world_vector_2")
    assert episode.actions is not None
    np.testing.assert_array_equal(episode.actions[3], [1, 9, 10, 11])
    assert [note for note in episode.notes if "action/terminate" in note], "what was left out is said"
    assert episode.state is not None
    assert episode.state.shape == (4, 2)
    for wanted, row in (
        ("action/world_vector", [9, 10, 11]),
        ("world_vector+gripper", [9, 10, 11, 1]),
        ("gripper+action/world_vector", [1, 9, 10, 11]),
        ("world_vector+terminate", [9, 10, 11, 1]),
        ("action", [1, 9, 10, 11]),
    ):
        (chosen,) = good(f"rlds:{tmp_path},action={wanted}")
        assert chosen.actions is not None
        np.testing.assert_array_equal(chosen.actions[3], row)
    (both,) = good(f"rlds:{tmp_path},state=effector_translation+gripper")
    assert both.state is not None
    assert both.state.shape == (4, 3)


def test_damaged_records_spare_the_others(tmp_path: Path) -> None:
    root = rlds(tmp_path / "ds", (4, 5, 6))
    clean, whole = good(f"rlds:{root}"), shard(root).read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    shard(root).write_bytes(data)
    first, bad, last = read(f"rlds:{root}")
    assert "record 1 is damaged (checksum)" in str(bad)
    for before, after in ((clean[0], first), (clean[2], last)):
        assert isinstance(after, Episode)
        np.testing.assert_array_equal(before.frames, after.frames)
    packed = pack([f"rlds:{root}"], 16, skip_bad=True, quiet=True, cache=tmp_path / "cache")
    assert (packed.episodes, len(packed.bad)) == (2, 1)
    records = [r for r in reader.records(shard(rlds(tmp_path / "again", (4, 5)))) if isinstance(r, bytes)]
    tfrecord(shard(root), records)
    assert "2 records, dataset_info.json says 3" in str(read(f"rlds:{root}")[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps/action": np.ones(5, np.float32)}, "record 0: action .* 4 x 3 .* 5 "),
        ({"steps/action": None}, "record 0: action .* 4 x 3 .* none"),
        ({"steps/observation/image_0": None}, "record 0: .*observation/image_0"),
        ({"steps/observation/image_0": [b"x"] * 4}, "observation/image_0, step 0: "),
        ({"steps/observation/image_0": [b"x"]}, "has 1 frame"),
    ],
)
def test_records_without_what_is_described(tmp_path: Path, change: dict[str, object], message: str) -> None:
    root = rlds(tmp_path / "ds", (4,))
    (record,) = reader.records(shard(root))
    assert isinstance(record, bytes)
    made = {key: value for key, value in {**reader.example(record), **change}.items() if value is not None}
    tfrecord(shard(root), [example(made)])
    (bad,) = read(f"rlds:{root}")
    assert isinstance(bad, BadVideo)
    assert str(shard(root)) in str(bad)
    assert re.search(message, str(bad))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (",camera=image_9", 'camera "image_9" .*observation/image_1'),
        (",split=val", 'split "val" .*train'),
        (",action=acton", r'action .*"action"\?'),
        (",state=observation/image_0", "observation/image_0 .*tensor"),
        (",instruction=words", 'instruction.* "words"'),
        (",fps=-1", "fps="),
    ],
)
def test_what_is_not_there(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(LapaError, match=message):
        open_dataset(f"rlds:{rlds(tmp_path / 'ds')}{options}")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("features.json", "{", "features.json: "),
        ("features.json", "{}", "describes? (no steps|features)"),
        ("features.json", '{"featuresDict": []}', "features.*TFDS"),
        ("dataset_info.json", '{"name": "bridge", "splits": [1]}', "splits.*TFDS"),
        ("dataset_info.json", '{"name": "my_robot"}', "frame rate.*fps="),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path: Path, file: str, text: str, message: str) -> None:
    root = rlds(tmp_path / "ds")
    (root / file).write_text(text)
    with pytest.raises(LapaError, match=message):
        open_dataset(f"rlds:{root}")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"RLDS .*features\.json"):
        open_dataset(f"rlds:{tmp_path}")


# --- the real sample ------------------------------------------------------------------------------


@pytest.mark.skipif(not BRIDGE.exists(), reason=f"{BRIDGE} is not on this machine")
def test_bridge() -> None:
    episodes = good(f"rlds:{BRIDGE}")
    assert len(episodes) == 25
    assert {e.frames.shape for e in episodes} == {(10, 64, 64, 3)}
    assert {e.instruction for e in episodes} == {
        "put carrot on plate", "put cup from counter or drying rack into sink", "flip pot upright which is in sink",
        "turn lever vertical to front",
    }  # fmt: skip
    actions = np.concatenate([e.actions for e in episodes if e.actions is not None])
    assert actions.shape == (250, 7)
    assert 0 <= actions[:, 6].min() < 0.3 < 0.9 < actions[:, 6].max() <= 1, "the gripper opens and closes"
    assert np.abs(actions[:, :3]).max() < 0.1, "metres a step"
    states = np.stack([e.state for e in episodes if e.state is not None])
    moved, asked = states[:, 1:, :3] - states[:, :-1, :3], np.stack([e.actions for e in episodes])[:, :-1, :3]
    correlation = np.corrcoef(moved.ravel(), asked.ravel())[0, 1]
    assert correlation > 0.5, (
        f"action t leads from frame t to t + 1, but state and action correlate by {correlation:.2f}"
    )
    assert len(good(f"rlds:{BRIDGE},camera=image_2", 32)) == 25


# --- words and pictures in other places ------------------------------------------------------------


def words_in(
    tmp_path: Path, steps: dict[str, object], episode: dict[str, object], values: dict[str, object]
) -> list[Episode]:
    """One episode of four steps with these features and values."""
    tree = features_json({"action": tensor([2]), "observation": {"rgb": image()}, **steps})
    tree["featuresDict"]["features"]["episode_metadata"] = {"featuresDict": {"features": episode}}
    values = {
        "steps/action": np.zeros(8, np.float32),
        "steps/observation/rgb": [encoded(f) for f in pictures(4)],
        **values,
    }
    root = tmp_path / "words/1.0.0"
    tfrecord(root / "words-train.tfrecord-00000-of-00001", [example(values)])
    (root / "features.json").write_text(json.dumps(tree))
    return good(f"rlds:{root},fps=5")


@pytest.mark.parametrize(
    ("steps", "episode", "values", "origin"),
    [
        ({}, {"language_instruction": {"text": {}}, "file_path": {"text": {}}},
         {"episode_metadata/language_instruction": [b"fold it"], "episode_metadata/file_path": [b"/x"]},
         "episode_metadata/language_instruction"),
        ({}, {"language_instructions": {"sequence": {"feature": {"text": {}}}}},
         {"episode_metadata/language_instructions": [b"", b"fold it", b"or else"]},
         "episode_metadata/language_instructions"),
        ({"language_instruction": {"text": {}}, "language_instruction_2": {"text": {}}}, {"task": {"text": {}}},
         {"steps/language_instruction": [b""] * 4, "steps/language_instruction_2": [b"fold it"] * 4,
          "episode_metadata/task": [b"something else"]}, "language_instruction_2"),
        ({"language_instruction": {"sequence": {"feature": {"text": {}}}}}, {},
         {"steps/language_instruction/ragged_flat_values": [b"fold it", b"fold", b"fold it"],
          "steps/language_instruction/ragged_row_lengths_0": np.array([1, 1, 1, 0])}, "language_instruction"),
        ({"language_instruction": {"text": {}}}, {"task_description": {"text": {}}},
         {"steps/language_instruction": [b""] * 4, "episode_metadata/task_description": [b"fold it"]},
         "episode_metadata/task_description"),
    ],
)  # fmt: skip
def test_words_wherever_they_stand(
    tmp_path: Path, steps: dict[str, object], episode: dict[str, object], values: dict[str, object], origin: str
) -> None:
    (one,) = words_in(tmp_path, steps, episode, values)
    assert (one.instruction, one.instruction_from) == ("fold it", origin)
    if "ragged" not in str(values):
        (named,) = good(f"rlds:{tmp_path / 'words'},fps=5,instruction={origin}")
        assert named.instruction == "fold it"
    with pytest.raises(LapaError, match="observation/rgb"):
        open_dataset(f"rlds:{tmp_path / 'words'},fps=5,instruction=episode_metadata/nothing")


def test_words_that_change_are_told(tmp_path: Path) -> None:
    said = {"steps/language_instruction": [b"", b"open", b"open", b"close"]}
    (one,) = words_in(tmp_path, {"language_instruction": {"text": {}}}, {}, said)
    assert one.instruction == "open"
    assert any(note.startswith("instructions: ") for note in one.notes)


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
@pytest.mark.parametrize("first", [True, False])
def test_pictures_as_tensors(tmp_path: Path, encoding: str, first: bool) -> None:
    frames = pictures(4)
    stored = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)) if first else frames
    pixels = {
        "tensor": {"shape": {"dimensions": [str(d) for d in stored.shape[1:]]}, "dtype": "uint8", "encoding": encoding}
    }
    deep = {"image": {"shape": {"dimensions": ["24", "32", "1"]}, "dtype": "uint16", "encodingFormat": "png"}}
    tree = features_json({"action": tensor([2]), "observation": {"a_depth": deep, "rgb": pixels}})
    value: object = stored.ravel()
    if encoding != "none":
        value = [zlib.compress(f.tobytes()) if encoding == "zlib" else f.tobytes() for f in stored]
    values = {"steps/action": np.zeros(8, np.float32), "steps/observation/rgb": value,
              "steps/observation/a_depth": [encoded(np.zeros((24, 32), np.uint16))] * 4}  # fmt: skip
    tfrecord(tmp_path / "t/t-train.tfrecord-00000-of-00001", [example(values)])
    (tmp_path / "t/features.json").write_text(json.dumps(tree))
    (one,) = good(f"rlds:{tmp_path / 't'},fps=5")
    np.testing.assert_array_equal(one.frames, frames)
    dataset = open_dataset(f"rlds:{tmp_path / 't'},fps=5")
    assert dataset.cameras == ("rgb",)  # type: ignore[attr-defined]
    ((number, _),) = dataset.index()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.stack(list(dataset.frames(number, None, 1))), frames[1:])  # type: ignore[attr-defined]


def test_several_datasets_below_a_folder(tmp_path: Path) -> None:
    """Of versions the newest is read; datasets are not versions of one another."""
    for version, length in (("1.0.0", 3), ("1.10.0", 5), ("1.2.0", 4)):
        rlds(tmp_path / f"bridge_small/{version}", (length,))
    assert [len(e.frames) for e in good(f"rlds:{tmp_path}/bridge_small")] == [5]
    for name in ("bridge", "taco_play"):
        rlds(tmp_path / f"all/{name}", (3,))
        rlds(tmp_path / f"each/{name}/0.1.0", (3,))
    for folder in ("all", "each"):
        with pytest.raises(LapaError, match=r"folder of datasets \(bridge, taco_play\)"):
            open_dataset(f"rlds:{tmp_path}/{folder}")


def test_a_shard_is_given(tmp_path: Path) -> None:
    root = rlds(tmp_path / "bridge_small")
    with pytest.raises(LapaError, match=f"is a file.*{root}"):
        open_dataset(f"rlds:{next(root.glob('*.tfrecord*'))}")


def test_shards_of_two_sets(tmp_path: Path) -> None:
    """As after a download of the same data, cut otherwise: each episode would count twice."""
    root = rlds(tmp_path / "bridge_small", (3, 4), shards=2)
    again = tfrecord(root / "bridge_small-train.tfrecord-00000-of-00001", [])
    with pytest.raises(LapaError, match=r"2 sets, .*of-00001 and .*of-00002"):
        open_dataset(f"rlds:{root}")
    again.unlink()
    assert len(good(f"rlds:{root}")) == 2


def test_a_rate_of_nought_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="fps"):
        read(f"rlds:{rlds(tmp_path / 'bridge_small')},fps=0")


def test_a_rate_that_the_name_tells_is_said(tmp_path: Path) -> None:
    root = rlds(tmp_path / "bridge/1.0.0")
    assert any(note.startswith("rate: 5 fps") for note in good(f"rlds:{root}")[0].notes)
    assert not any(note.startswith("rate: ") for note in good(f"rlds:{root},fps=3")[0].notes)
