"""The forms that LeRobot datasets of others have: tasks, actions and state, pictures, files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import encoded
from robot_rows import CAMERA, TASKS, arrow, features, numbered, robot, rows, shown, taken

from lapa.contracts import BadVideo, Episode, LapaError, Seekable
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import stream

VERSIONS = pytest.mark.parametrize("version", [2, 3])
READS = pytest.mark.parametrize("read", [pack, stream])


def episodes(root: Path, options: str = "") -> list[Episode]:
    found = list(open_dataset(f"lerobot:{root}{options}").episodes())
    assert not [e for e in found if isinstance(e, BadVideo)], found
    return [e for e in found if isinstance(e, Episode)]


def one(root: Path, options: str = "") -> Episode:
    (episode,) = episodes(root, options)
    return episode


def noted(episode: Episode, *words: str) -> bool:
    return any(all(word in note for word in words) for note in episode.notes)


# --- instructions


@VERSIONS
def test_tasks_that_change_within_an_episode(tmp_path: Path, version: int) -> None:
    table = rows(9) | {"task_index": np.array([0, 0, 0, 0, 1, 1, 1, 0, 0])}
    found = episodes(robot(tmp_path / "ds", [table, rows(4, episode=1)], version=version))
    assert [(e.instruction, shown(e.frames)) for e in found] == [
        (TASKS[0], [0, 1, 2, 3]), (TASKS[1], [4, 5, 6]), (TASKS[0], [7, 8]), (TASKS[1], [0, 1, 2, 3]),
    ]  # fmt: skip
    assert len({e.id for e in found}) == 4
    assert found[3].id == "episode_000001"
    assert noted(found[0], "split", "task")
    assert not noted(found[3], "split")
    for episode in found[:3]:
        np.testing.assert_array_equal(episode.actions[:, 0], shown(episode.frames))


@VERSIONS
@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([["wipe it"], ["fold it"]], ["wipe it", "fold it"]),
        (["wipe it", "fold it"], ["wipe it", "fold it"]),
        ([["wipe it", "fold it"], ["fold it"]], ["wipe it; fold it", "fold it"]),
    ],
)
def test_tasks_in_the_list_of_episodes(tmp_path: Path, version: int, tasks: list[Any], expected: list[str]) -> None:
    tables = [rows(5), rows(4, episode=1)]
    for table in tables:
        del table["task_index"]
    found = episodes(robot(tmp_path / "ds", tables, version=version, tasks=tasks))
    assert [e.instruction for e in found] == expected
    assert "meta/episodes" in found[0].instruction_from


def test_numbers_of_tasks_in_the_list_of_episodes(tmp_path: Path) -> None:
    table = {name: values for name, values in rows(5).items() if name != "task_index"}
    assert one(robot(tmp_path / "ds", [table], tasks=[[1]])).instruction == TASKS[1]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (["pick", "the", "cup"], "pick the cup"),
        (["pick the cup", "take the cup"], "pick the cup"),
        (" pick\n it ", "pick it"),
    ],
)
def test_words_as_lists(tmp_path: Path, task: object, expected: str) -> None:
    root = robot(tmp_path / "ds", [rows(5)])
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    assert one(root).instruction == expected
    root = robot(tmp_path / "new", [rows(5)], version=3)
    pq.write_table(pa.table({"task_index": [0], "task": [task]}), root / "meta/tasks.parquet")
    assert one(root).instruction == expected


def test_words_in_the_rows(tmp_path: Path) -> None:
    table = rows(5) | {
        "language_instruction": np.array(["wipe it"] * 3 + ["fold it"] * 2),
        "other": np.array(["x"] * 5),
    }
    assert [e.instruction for e in episodes(robot(tmp_path / "ds", [table]), ",instruction=language_instruction")] == [
        "wipe it", "fold it"
    ]  # fmt: skip
    assert one(tmp_path / "ds", ",instruction=other").instruction == "x"
    del table["task_index"]
    found = episodes(robot(tmp_path / "none", [table], tasks=[[]]))
    assert [e.instruction for e in found] == ["wipe it", "fold it"]
    with pytest.raises(LapaError, match=r'"others".*other'):
        open_dataset(f"lerobot:{tmp_path / 'ds'},instruction=others")


@pytest.mark.parametrize("values", [[0, None, 0, 0, 0], [0, 0, 0, 0, 0.5], [0, 0, 7, 0, 0]])
def test_a_task_that_is_none(tmp_path: Path, values: list[object]) -> None:
    root = robot(tmp_path / "ds", [rows(5) | {"task_index": pa.array(values)}], tasks=[["a", "b"]])
    (bad,) = open_dataset(f"lerobot:{root}").episodes()
    assert isinstance(bad, BadVideo)
    assert "episode_000000.parquet" in str(bad)


# --- actions and state


def vector(width: int | list[int]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [width] if isinstance(width, int) else width, "names": None}


def other(count: int = 5, **columns: Any) -> dict[str, Any]:
    """Rows without action and state, and with other columns ("__" for a dot)."""
    table = {name: v for name, v in rows(count).items() if name not in ("action", "observation.state")}
    return table | {name.replace("__", "."): value for name, value in columns.items()}


def dataset(root: Path, table: Mapping[str, Any], **about: Any) -> Path:
    told = features(**{"action": None, "observation__state": None, **about})
    return robot(root, [dict(table)], [numbered(5)], about=told)


ARM, HAND = np.arange(10, dtype=np.float32).reshape(5, 2), np.arange(5, dtype=np.float32) + 50


def test_actions_and_state_by_other_names(tmp_path: Path) -> None:
    root = dataset(tmp_path / "ds", other(actions=ARM, state=HAND), actions=vector(2), state=vector(1))
    episode = one(root)
    np.testing.assert_array_equal(episode.actions, ARM)
    np.testing.assert_array_equal(episode.state, HAND[:, None])
    assert noted(episode, "taken", "actions", "state")


def test_an_action_in_parts(tmp_path: Path) -> None:
    root = dataset(tmp_path / "ds", other(action__gripper=HAND, action__arm=ARM, action__done=HAND),
                   action__gripper=vector(1), action__arm=vector(2), action__done=vector(1))  # fmt: skip
    episode = one(root)
    np.testing.assert_array_equal(episode.actions, np.column_stack([HAND, ARM]))
    assert episode.action_names == ("gripper_0", "arm_0", "arm_1")
    assert noted(episode, "action.done")
    for wanted in ("action.arm+action.gripper", "arm+gripper"):
        np.testing.assert_array_equal(one(root, f",action={wanted}").actions, np.column_stack([ARM, HAND]))
    np.testing.assert_array_equal(one(root, ",state=gripper").state, HAND[:, None])
    assert one(root, ",action=none").actions is None
    with pytest.raises(LapaError, match=r'"arms".*action.arm'):
        open_dataset(f"lerobot:{root},action=arms")


@pytest.mark.parametrize("told", [True, False])
def test_an_action_with_fields(tmp_path: Path, told: bool) -> None:
    """A column of structs, which info.json tells of or not."""
    column = pa.array([{"arm": ARM[i].tolist(), "gripper": float(HAND[i]), "note": "x"} for i in range(5)])
    about = {"action": {"dtype": "struct", "shape": [3], "names": None}} if told else {}
    root = dataset(tmp_path / "ds", other(action=column), **about)
    np.testing.assert_array_equal(one(root).actions, np.column_stack([ARM, HAND]))
    np.testing.assert_array_equal(one(root, ",action=gripper+action.arm").actions, np.column_stack([HAND, ARM]))


def test_features_within_features(tmp_path: Path) -> None:
    nested = {"arm": vector(2), "gripper": vector(1)}
    root = dataset(tmp_path / "ds", other(action__arm=ARM, action__gripper=HAND), action=nested)
    np.testing.assert_array_equal(one(root).actions, np.column_stack([ARM, HAND]))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float64())),
        pa.list_(pa.list_(pa.float32(), 3), 2),
        pa.large_list(pa.list_(pa.int64())),
    ],
)
def test_an_action_of_two_dimensions(tmp_path: Path, kind: pa.DataType) -> None:
    values = (np.arange(30).reshape(5, 2, 3) % 2).tolist()
    root = dataset(tmp_path / "ds", other(action=pa.array(values, kind)), action=vector([2, 3]))
    episode = one(root)
    np.testing.assert_array_equal(episode.actions, np.arange(30).reshape(5, 6) % 2)
    assert episode.action_names == ()


def test_ragged_rows_are_named(tmp_path: Path) -> None:
    ragged = pa.array(
        [[[1.0, 2.0], [3.0]], [[1.0], [2.0, 3.0]], [[1.0, 2.0, 3.0]], [[0.0], [1.0], [2.0]], [[0.0, 1.0]]]
    )
    root = dataset(tmp_path / "ds", other(action=ragged), action=vector(3))
    (bad,) = open_dataset(f"lerobot:{root}").episodes()
    assert isinstance(bad, BadVideo)
    assert "episode_000000.parquet: action of episode 0" in str(bad)


def test_without_actions_the_numbers_are_named(tmp_path: Path) -> None:
    root = dataset(tmp_path / "ds", other(teleop=ARM), teleop=vector(2))
    episode = one(root)
    assert episode.actions is None
    assert noted(episode, "no action", "teleop")
    np.testing.assert_array_equal(one(root, ",action=teleop").actions, ARM)


def test_every_command_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lapa.commands.options import open_pack, open_stream

    root = dataset(tmp_path / "ds", other(actions=ARM), actions=vector(2))
    for opened in (open_pack, open_stream):
        opened((f"lerobot:{root}",), 8, False)
        said = capsys.readouterr().out
        assert "taken: action from actions" in said
        assert "camera" in said


# --- pictures


IMAGE = {"dtype": "image", "shape": [24, 32, 3], "names": None}


def with_pictures(root: Path, cells: pa.Array, image: Mapping[str, Any] = IMAGE, name: str = CAMERA) -> Path:
    about = features(**{CAMERA.replace(".", "__"): None, name.replace(".", "__"): image})
    return robot(root, [rows(5) | {name.partition("|")[0]: cells}], [], about=about)


@pytest.mark.parametrize(
    "cells",
    [
        [encoded(f) for f in numbered(5)],
        [{"bytes": encoded(f), "path": "x.png"} for f in numbered(5)],
        numbered(5).tolist(),
        numbered(5).transpose(0, 3, 1, 2).tolist(),
        (numbered(5) / 255).tolist(),
        numbered(5).reshape(5, -1).tolist(),
    ],
    ids=["bytes", "struct", "numbers", "channels first", "0..1", "flat"],
)
def test_pictures_of_every_form(tmp_path: Path, cells: list[Any]) -> None:
    root = with_pictures(tmp_path / "ds", pa.array(cells))
    assert shown(one(root).frames) == [*range(5)]
    dataset = open_dataset(f"lerobot:{root}")
    assert shown(np.stack(list(dataset.frames(0, start=2)))) == [2, 3, 4]  # type: ignore[attr-defined]


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    """One film has one size; that info.json tells of another does not matter."""
    about = features(observation__images__top={"dtype": "image", "shape": [48, 64, 3]})
    for name, last in (("same", 24), ("other", 30)):
        cells = [{"bytes": encoded(np.zeros((last if i == 4 else 24, 32, 3), np.uint8))} for i in range(5)]
        robot(tmp_path / name, [{**rows(5), CAMERA: pa.array(cells)}], [], about=about)
    (same,) = open_dataset(f"lerobot:{tmp_path}/same").episodes()
    assert isinstance(same, Episode)
    assert same.frames.shape == (5, 24, 32, 3)
    dataset = open_dataset(f"lerobot:{tmp_path}/other")
    for size in (None, 16):
        (other,) = dataset.episodes(size)
        assert isinstance(other, BadVideo)
        assert "frame 4: is 32 x 30, the first is 32 x 24" in str(other)
    assert isinstance(dataset, Seekable)
    with pytest.raises(BadVideo, match="frame 4"):
        list(dataset.frames(0, 16, 4))


def test_numbers_that_info_calls_numbers(tmp_path: Path) -> None:
    root = with_pictures(tmp_path / "ds", pa.array(numbered(5).tolist()), IMAGE | {"dtype": "uint8"}, "image")
    assert shown(one(root).frames) == [*range(5)]


@pytest.mark.parametrize(
    "form", ["images/{}.png", "/home/me/ds/images/{}.png", "C:\\data\\ds\\images\\{}.png", "./images/{}.png"]
)
@pytest.mark.parametrize("plain", [True, False])
def test_pictures_by_their_paths(tmp_path: Path, form: str, plain: bool) -> None:
    paths = [form.format(i) for i in range(5)]
    root = with_pictures(tmp_path / "ds", pa.array(paths if plain else [{"bytes": None, "path": p} for p in paths]))
    (root / "images").mkdir()
    for i, frame in enumerate(numbered(5)):
        (root / f"images/{i}.png").write_bytes(encoded(frame))
    assert shown(one(root).frames) == [*range(5)]
    (root / "images/3.png").unlink()
    (bad,) = open_dataset(f"lerobot:{root}").episodes()
    assert isinstance(bad, BadVideo)
    assert paths[3] in str(bad)


def test_pictures_beside_the_tables(tmp_path: Path) -> None:
    """images/CAMERA/episode_000000/frame_000000.png, and no column, or one with the names of the files."""
    about = features(observation__images__top=IMAGE)
    for name, more in (("ds", {}), ("named", {CAMERA: pa.array([f"frame_{i:06d}.png" for i in (2, 0, 1)])})):
        root = robot(tmp_path / name, [taken(rows(3), [2, 0, 1]) | more], [], about=about)
        (root / f"images/{CAMERA}/episode_000000").mkdir(parents=True)
        for i, frame in enumerate(numbered(3)):
            (root / f"images/{CAMERA}/episode_000000/frame_{i:06d}.png").write_bytes(encoded(frame))
        assert shown(one(root).frames) == [0, 1, 2]


def test_numbers_that_are_no_picture(tmp_path: Path) -> None:
    depth = (numbered(5)[..., :1].astype(int) * 100).tolist()
    (bad,) = open_dataset(f"lerobot:{with_pictures(tmp_path / 'ds', pa.array(depth))}").episodes()
    assert isinstance(bad, BadVideo)
    assert f"{CAMERA} of episode 0, frame 1" in str(bad)


def test_cameras_of_nested_names(tmp_path: Path) -> None:
    names = [f"observation.images.{side}.rgb" for side in ("wrist", "front", "back")]
    cells = {name: pa.array([encoded(f) for f in numbered(5, 5 * i)]) for i, name in enumerate(names)}
    about = features(observation__images__top=None, **{name.replace(".", "__"): IMAGE for name in names})
    root = robot(tmp_path / "ds", [rows(5) | cells], [], about=about)
    assert shown(one(root).frames) == [*range(5, 10)], "not the wrist"
    assert shown(one(root, ",camera=back.rgb").frames) == [*range(10, 15)]
    assert shown(one(root, f",camera={names[0]}").frames) == [*range(5)]
    with pytest.raises(LapaError, match=r"front\.rgb"):
        open_dataset(f"lerobot:{root},camera=rgb")


def test_pictures_within_a_column_of_fields(tmp_path: Path) -> None:
    cells = pa.array([{"images": {"top": {"bytes": encoded(f), "path": None}}} for f in numbered(5)])
    root = with_pictures(tmp_path / "ds", pa.array([0] * 5))
    path = next((root / "data").rglob("*.parquet"))
    pq.write_table(pq.read_table(path).drop_columns([CAMERA]).append_column("observation", cells), path)
    assert shown(one(root).frames) == [*range(5)]


# --- files


def test_rows_in_another_file_than_meta_says(tmp_path: Path) -> None:
    tables = [rows(6), rows(5, episode=1), rows(4, episode=2)]
    root = robot(tmp_path / "ds", tables, version=3)
    first = root / "data/chunk-000/file-000.parquet"
    pq.write_table(arrow(tables[0]), first)
    halves = [taken(tables[1], [0, 1, 2]), taken(tables[1], [3, 4])]
    pq.write_table(pa.concat_tables([arrow(tables[2]), arrow(halves[0])]), first.with_name("file-001.parquet"))
    pq.write_table(arrow(halves[1]), first.with_name("file-002.parquet"))
    found = episodes(root)
    assert [e.actions[:, 0].astype(int).tolist() for e in found] == [[*range(6)], [*range(5)], [*range(4)]]
    assert [shown(e.frames) for e in found] == [[*range(6)], [*range(5)], [*range(4)]]
    assert noted(found[1], "rows", "files")
    assert not noted(found[0], "files")
    first.with_name("file-002.parquet").unlink()
    _, bad, last = open_dataset(f"lerobot:{root}").episodes()
    assert isinstance(last, Episode)
    assert [w for w in ("episode 1", "3 rows", "5", "file-001.parquet") if w not in str(bad)] == []


def test_a_file_of_another_episode(tmp_path: Path) -> None:
    """Version 2, where the files of two episodes have changed places."""
    root = robot(tmp_path / "ds", [rows(6, episode=1), rows(5)], [numbered(5), numbered(6)])
    lines = [json.dumps({"episode_index": i, "length": n, "tasks": []}) for i, n in enumerate((5, 6))]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    assert [shown(e.frames) for e in episodes(root)] == [[*range(5)], [*range(6)]]


@READS
@VERSIONS
def test_an_empty_episode_spares_the_others(tmp_path: Path, version: int, read: Any) -> None:
    tables = [rows(6), taken(rows(1, episode=1), []), rows(4, episode=2)]
    films = [numbered(6), numbered(1)[: 3 - version], numbered(4)]
    root = robot(tmp_path / "ds", tables, films, version=version)
    found = read([f"lerobot:{root}"], 8, quiet=True, skip_bad=True, cache=tmp_path / "cache")
    assert found.ids == ("episode_000000", "episode_000002")
    (bad,) = found.bad
    assert "episode 1" in bad
    assert not any("from_timestamp" in note for note in found.notes)
    with pytest.raises(LapaError, match="episode 1"):
        read([f"lerobot:{root}"], 8, quiet=True, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("version", "words"),
    [("v1.6", ["v1.6", "convert_dataset_v1_to_v2"]), ("v4.0", ["v4.0", "newer"]), ("2", []), ("v2.0", [])],
)
def test_versions(tmp_path: Path, version: str, words: list[str]) -> None:
    root = robot(tmp_path / "ds", [rows(5)], info={"codebase_version": version})
    if not words:
        assert shown(one(root).frames) == [*range(5)]
        return
    with pytest.raises(LapaError) as caught:
        open_dataset(f"lerobot:{root}")
    assert [word for word in words if word not in str(caught.value)] == []


def test_version_1_as_it_lay_on_disk(tmp_path: Path) -> None:
    (tmp_path / "ds/meta_data").mkdir(parents=True)
    (tmp_path / "ds/meta_data/info.json").write_text('{"codebase_version": "v1.6", "fps": 10}')
    with pytest.raises(LapaError, match=r"v1.*convert_dataset_v1_to_v2"):
        open_dataset(f"lerobot:{tmp_path / 'ds'}")


@READS
def test_a_folder_of_datasets(tmp_path: Path, read: Any) -> None:
    robot(tmp_path / "all/cup", [rows(5), rows(4, episode=1)])
    robot(tmp_path / "all/more/box", [rows(6)], version=3)
    spec = f"lerobot:{tmp_path / 'all'}"
    found = read([spec], 8, quiet=True, cache=tmp_path / "cache")
    assert found.ids == ("cup/episode_000000", "cup/episode_000001", "more/box/episode_000000")
    assert np.diff(found.starts).tolist() == [5, 4, 6]
    assert any("2 datasets" in line and "cup" in line for line in found.told())
    np.testing.assert_array_equal(found.actions[:, 0], [*range(5), *range(4), *range(6)])
    chosen = read([f"{spec},episodes=2"], 8, quiet=True, cache=tmp_path / "cache")
    assert chosen.ids == found.ids[2:]


def test_a_folder_of_datasets_of_different_cameras(tmp_path: Path) -> None:
    robot(tmp_path / "all/cup", [rows(5)])
    about = features(observation__images__top=None, observation__images__side=IMAGE)
    pictures = pa.array([encoded(f) for f in numbered(5)])
    robot(tmp_path / "all/box", [rows(5) | {"observation.images.side": pictures}], [], about=about)
    with pytest.raises(LapaError, match=r"side: box.*top: cup"):
        open_dataset(f"lerobot:{tmp_path / 'all'}")


def test_a_folder_of_datasets_of_different_robots(tmp_path: Path) -> None:
    robot(tmp_path / "all/cup", [rows(5)])
    robot(tmp_path / "all/box", [rows(5)], info={"robot_type": "franka"})
    with pytest.raises(LapaError, match=r"franka: box.*--dataset"):
        open_dataset(f"lerobot:{tmp_path / 'all'}")


def test_a_folder_within_a_dataset(tmp_path: Path) -> None:
    root = robot(tmp_path / "ds", [rows(5)])
    with pytest.raises(LapaError, match=f"{root / 'data'}.*{root}. Give"):
        open_dataset(f"lerobot:{root / 'data'}")


def test_collect_leaves_depth_out_and_prints_what_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lapa import cli

    cells = pa.array([encoded(f) for f in numbered(5)])
    table = rows(5) | {"observation.images.top_depth": cells, "observation.images.side": cells}
    about = features(observation__images__top=None, observation__images__top_depth=IMAGE,
                     observation__images__side=IMAGE)  # fmt: skip
    root = robot(tmp_path / "ds", [table], [], about=about)
    cli.main(["collect", "--dataset", f"lerobot:{root}", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "taken: action from action" in said
    assert open_dataset(f"lerobot:{tmp_path / 'out'}").cameras == ("side",)  # type: ignore[attr-defined]
