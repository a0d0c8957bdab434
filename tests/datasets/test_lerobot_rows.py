"""Rows and frames of LeRobot datasets belong together by time, whatever order, clock and rate the rows have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from robot_rows import CAMERA, Table, features, numbered, robot, rows, shown, taken

from lapa.contracts import BadVideo, Episode, LapaError, Seekable
from lapa.data.pack import Packed, pack
from lapa.data.pairing import clock, paired
from lapa.data.spec import open_dataset
from lapa.data.stream import Stream, stream

VERSIONS = pytest.mark.parametrize("version", [2, 3])


def read(root: Path, options: str = "") -> list[Episode]:
    """The episodes, which are the same from front to back and one by one."""
    dataset = open_dataset(f"lerobot:{root}{options}")
    assert isinstance(dataset, Seekable)
    found, listed = list(dataset.episodes()), list(dataset.index())
    assert [str(e) for e in found if isinstance(e, BadVideo)] == [str(e) for _, e in listed if isinstance(e, BadVideo)]
    good = [e for e in found if isinstance(e, Episode)]
    for episode, (number, outline) in zip(good, [(n, e) for n, e in listed if isinstance(e, Episode)], strict=True):
        np.testing.assert_array_equal(episode.actions, outline.actions)
        np.testing.assert_array_equal(episode.frames, np.stack(list(dataset.frames(number))))
        assert len(outline.frames) == len(episode.frames)
        half = len(episode.frames) // 2
        if half:
            np.testing.assert_array_equal(episode.frames[half], next(dataset.frames(number, start=half)))
        assert (outline.id, outline.fps, outline.notes) == (episode.id, episode.fps, episode.notes)
    return good


def acted(episode: Episode) -> list[int]:
    """The number of the frame that each action says it belongs to."""
    assert episode.actions is not None
    return episode.actions[:, 0].astype(int).tolist()


def in_step(root: Path, expected: list[list[int]], options: str = "") -> list[Episode]:
    """The episodes, whose frames and actions have to be the expected ones."""
    found = read(root, options)
    assert [shown(e.frames) for e in found] == expected
    assert [acted(e) for e in found] == expected
    return found


def noted(episode: Episode, *words: str) -> bool:
    """Does one of its notes have all the words?"""
    return any(all(word in note for word in words) for note in episode.notes)


@VERSIONS
def test_as_recorded(tmp_path: Path, version: int) -> None:
    root = robot(tmp_path / "ds", [rows(6), rows(4, episode=1)], version=version)
    one, two = in_step(root, [[*range(6)], [*range(4)]])
    assert (one.id, one.fps, one.instruction, two.instruction) == ("episode_000000", 10, "pick the cup",
                                                                   "close the drawer")  # fmt: skip
    assert not noted(one, "rows")
    assert not noted(one, "frames")


@VERSIONS
def test_shuffled_rows(tmp_path: Path, version: int) -> None:
    order = np.random.default_rng(0).permutation(9)
    root = robot(tmp_path / "ds", [taken(rows(9), order), rows(4, episode=1)], version=version)
    in_step(root, [[*range(9)], [*range(4)]])


@VERSIONS
def test_trimmed_rows(tmp_path: Path, version: int) -> None:
    """The first rows and the last ones are gone, the film is whole."""
    tables = [taken(rows(12), range(4, 10)), taken(rows(8, episode=1), range(3, 8))]
    root = robot(tmp_path / "ds", tables, [numbered(12), numbered(8)], version=version)
    for episode in in_step(root, [[*range(4, 10)], [*range(3, 8)]]):
        assert noted(episode, "frames", "left out")


@VERSIONS
def test_trimmed_rows_that_are_counted_anew(tmp_path: Path, version: int) -> None:
    table = taken(rows(12), range(4, 10)) | {"frame_index": np.arange(6)}
    root = robot(tmp_path / "ds", [table, rows(4, episode=1)], [numbered(12), numbered(4)], version=version)
    in_step(root, [[*range(4, 10)], [*range(4)]])


@VERSIONS
def test_thinned_rows(tmp_path: Path, version: int) -> None:
    """Every second row: half the rate, and so it is said."""
    tables = [taken(rows(12), range(0, 12, 2)), taken(rows(9, episode=1), range(0, 9, 2))]
    root = robot(tmp_path / "ds", tables, [numbered(12), numbered(9)], version=version)
    for episode in in_step(root, [[*range(0, 12, 2)], [*range(0, 9, 2)]]):
        assert episode.fps == pytest.approx(5)
        assert noted(episode, "5", "10")


def test_rows_missing_in_the_middle_make_two_episodes(tmp_path: Path) -> None:
    keep = [*range(5), *range(9, 14)]
    root = robot(tmp_path / "ds", [taken(rows(14), keep), rows(4, episode=1)], [numbered(14), numbered(4)])
    one, two, _ = in_step(root, [[*range(5)], [*range(9, 14)], [*range(4)]])
    assert one.id != two.id
    assert one.fps == two.fps == 10
    assert noted(one, "split")
    (chosen,) = read(root, ",episodes=1")
    assert acted(chosen) == [*range(4)]
    assert [acted(e) for e in read(root, ",without=1")] == [[*range(5)], [*range(9, 14)]]
    with pytest.raises(LapaError, match="no episode 2"):
        read(root, ",episodes=2")


@pytest.mark.parametrize("late", [0.1, 5.0, 1.7e9, -0.3])
def test_a_clock_that_starts_elsewhere(tmp_path: Path, late: float) -> None:
    table = rows(9)
    table["timestamp"] = table["timestamp"].astype(np.float64) + late
    (one,) = in_step(robot(tmp_path / "ds", [table]), [[*range(9)]])
    assert noted(one, "one to one")


@pytest.mark.parametrize(("unit", "word"), [(1e3, "milli"), (1e6, "micro"), (1e9, "nano")])
def test_a_clock_in_other_units(tmp_path: Path, unit: float, word: str) -> None:
    table = rows(9)
    table["timestamp"] = (table["timestamp"].astype(np.float64) * unit).round().astype(np.int64)
    (one,) = in_step(robot(tmp_path / "ds", [table]), [[*range(9)]])
    assert one.fps == 10
    assert noted(one, word)


@VERSIONS
def test_a_film_of_another_rate(tmp_path: Path, version: int) -> None:
    """Recorded at 10, encoded as 8 frames a second: as many rows as frames."""
    root = robot(tmp_path / "ds", [rows(20), rows(9, episode=1)], film_fps=8, version=version)
    one, two = in_step(root, [[*range(20)], [*range(9)]])
    assert one.fps == two.fps == 10
    assert noted(one, "one to one", "8", "10")


@VERSIONS
def test_a_film_of_nearly_the_same_rate(tmp_path: Path, version: int) -> None:
    root = robot(tmp_path / "ds", [rows(30), rows(30, episode=1)], film_fps=9.7, version=version)
    in_step(root, [[*range(30)]] * 2)


def test_info_that_states_another_rate_than_rows_and_film(tmp_path: Path) -> None:
    (one,) = in_step(robot(tmp_path / "ds", [rows(9, fps=20)], film_fps=20, fps=10), [[*range(9)]])
    assert one.fps == pytest.approx(20)
    assert noted(one, "20", "10")


def test_a_film_of_twice_the_rate(tmp_path: Path) -> None:
    root = robot(tmp_path / "ds", [rows(9)], [np.repeat(numbered(9), 2, 0)], film_fps=20)
    in_step(root, [[*range(9)]])


@VERSIONS
def test_one_row_more_than_frames(tmp_path: Path, version: int) -> None:
    root = robot(tmp_path / "ds", [rows(9), rows(6, episode=1)], [numbered(8), numbered(5)], version=version)
    one, two = in_step(root, [[*range(8)], [*range(5)]])
    assert noted(one, "last row")
    assert noted(two, "last row")


def test_one_frame_more_than_rows(tmp_path: Path) -> None:
    in_step(robot(tmp_path / "ds", [rows(9)], [numbered(10)]), [[*range(9)]])


def test_without_timestamps_the_frame_index_counts(tmp_path: Path) -> None:
    table = taken(rows(12), [5, 4, 6, 7])
    del table["timestamp"]
    in_step(robot(tmp_path / "ds", [table], [numbered(12)]), [[4, 5, 6, 7]])
    table["timestamp"] = np.zeros(4, np.float32)
    (one,) = in_step(robot(tmp_path / "zeros", [table], [numbered(12)]), [[4, 5, 6, 7]])
    assert noted(one, "frame_index")


def test_without_a_frame_index_the_timestamps_count(tmp_path: Path) -> None:
    table = taken(rows(12), [5, 4, 6, 7])
    in_step(robot(tmp_path / "none", [{**table, "frame_index": np.zeros(4, np.int64)}], [numbered(12)]), [[4, 5, 6, 7]])
    del table["frame_index"]
    in_step(robot(tmp_path / "ds", [table], [numbered(12)]), [[4, 5, 6, 7]])


def lost(table: dict[str, np.ndarray], name: str, value: object) -> dict[str, np.ndarray]:
    changed = np.array(table[name])
    changed[3] = value
    return {**table, name: changed}


@pytest.mark.parametrize(
    ("change", "films", "words"),
    [
        (lambda t: lost(t, "timestamp", np.nan), [numbered(9)], ["nan", "row 3"]),
        (lambda t: taken(t, [0, 1, 2, 2, 3, 4, 5, 6, 7]), [numbered(9)], ["2", "3", "timestamp"]),
        (lambda t: {**t, "frame_index": t["frame_index"][::-1]}, [numbered(9)], ["timestamp", "frame_index"]),
        (lambda t: t, [numbered(5)], ["9 rows", "5 frames", "row 5"]),
        (lambda t: taken(rows(20), range(11, 20)), [numbered(15)], ["9 rows", "15 frames"]),
        (lambda t: {**t, "timestamp": t["timestamp"] + np.float32(50)}, [numbered(12)], ["50", "12 frames"]),
    ],
)
def test_what_cannot_be_paired_is_named(tmp_path: Path, change: Callable[..., dict[str, np.ndarray]],
                                        films: list[np.ndarray], words: list[str]) -> None:  # fmt: skip
    root = robot(tmp_path / "ds", [change(rows(9)), rows(4, episode=1)], [*films, numbered(4)])
    in_step(root, [[*range(4)]])
    bad = [e for e in open_dataset(f"lerobot:{root}").episodes() if isinstance(e, BadVideo)]
    assert [word for word in ("episode_000000.mp4", "episode 0", *words) if word not in str(bad[0])] == [], str(bad[0])


def test_a_camera_of_half_the_rate(tmp_path: Path) -> None:
    root = robot(tmp_path / "ds", [rows(20), rows(4, episode=1)], [numbered(10), numbered(4)], film_fps=5)
    bad, _ = open_dataset(f"lerobot:{root}").episodes()
    assert isinstance(bad, BadVideo)
    assert [word for word in ("episode_000000.mp4", " 5 ", " 10", "camera") if word not in str(bad)] == []


def test_films_are_read_forward_however_the_episodes_lie(tmp_path: Path) -> None:
    """Version 3, where a later episode has an earlier place in the film."""
    import pyarrow.parquet as pq

    root = robot(tmp_path / "ds", [rows(5), rows(6, episode=1)], [numbered(6, 5), numbered(5)], version=3)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for key, values in {"from_timestamp": [0.6, 0.0], "to_timestamp": [1.1, 0.6]}.items():
        at = table.column_names.index(f"videos/{CAMERA}/{key}")
        table = table.set_column(at, f"videos/{CAMERA}/{key}", [values])
    pq.write_table(table, path)
    found = {e.id: shown(e.frames) for e in read(root)}
    assert found == {"episode_000000": [*range(5)], "episode_000001": [*range(5, 11)]}


@pytest.mark.parametrize("starts", [[0.0, 0.0, 0.0], [0.0, 0.5, 1.1], [0.0, 5.0, 9.0]])
def test_places_in_the_film_that_do_not_fit_it(tmp_path: Path, starts: list[float]) -> None:
    """Version 3, the film at 8 frames a second: from_timestamp is wrong, or was counted at 10; all rows have frames."""
    import pyarrow.parquet as pq

    root = robot(tmp_path / "ds", [rows(5), rows(6, episode=1), rows(7, episode=2)],
                 [numbered(5), numbered(6, 5), numbered(7, 11)], version=3, film_fps=8)  # fmt: skip
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for key, values in {"from_timestamp": starts, "to_timestamp": [start + 0.5 for start in starts]}.items():
        at = table.column_names.index(f"videos/{CAMERA}/{key}")
        table = table.set_column(at, f"videos/{CAMERA}/{key}", [values])
    pq.write_table(table, path)
    found = read(root)
    assert [shown(e.frames) for e in found] == [[*range(5)], [*range(5, 11)], [*range(11, 18)]]
    assert noted(found[1], "from_timestamp")


@VERSIONS
def test_pictures_in_the_rows_are_sorted_too(tmp_path: Path, version: int) -> None:
    import pyarrow as pa
    from made import encoded

    def table(count: int, episode: int) -> dict[str, object]:
        order = np.random.default_rng(episode).permutation(count)
        made = taken(rows(count, episode=episode), order)
        return {**made, CAMERA: pa.array([{"bytes": encoded(numbered(count)[i]), "path": None} for i in order])}

    image = {"dtype": "image", "shape": [24, 32, 3], "names": None}
    about = features(observation__images__top=image)
    root = robot(tmp_path / "ds", [table(9, 0), table(5, 1)], [], about=about, version=version)
    in_step(root, [[*range(9)], [*range(5)]])


def test_pack_and_stream_agree(tmp_path: Path) -> None:
    keep = [*range(5), *range(9, 14)]
    root = robot(tmp_path / "ds", [taken(rows(14), keep[::-1]), rows(4, episode=1)], [numbered(14), numbered(4)])
    packed: Packed = pack([f"lerobot:{root}"], 8, quiet=True, cache=tmp_path / "cache")
    streamed: Stream = stream([f"lerobot:{root}"], 8, quiet=True, cache=tmp_path / "cache")
    assert packed.ids == streamed.ids
    assert packed.told() == streamed.told()
    np.testing.assert_array_equal(packed.actions, streamed.actions)
    for number in range(packed.episodes):
        span = np.arange(packed.starts[number], packed.starts[number + 1])
        np.testing.assert_array_equal(packed.gather(span), np.stack(list(streamed.frames(number))))


def test_the_nearest_frame_by_itself() -> None:
    """The rule without files: jitter is followed, a double is not made."""
    film = np.arange(10) / 10
    jitter = np.arange(9) / 10 + np.random.default_rng(0).uniform(-0.03, 0.03, 9)
    match = paired(clock(jitter, None, 9, 10, "x"), film, "x")
    assert match.frames.tolist() == [*range(9)]
    assert match.notes, "they are not where LeRobot would look for them"
    with pytest.raises(BadVideo, match="x"):
        paired(clock(np.arange(20) / 20, None, 20, 20, "x"), film, "x")


def at_random(random: np.random.Generator, episode: int, fps: float, twice: bool) -> tuple[Table, np.ndarray]:
    """The rows of an episode, changed in one of ten ways and shuffled half of the time; and its film."""
    count = int(random.integers(6, 28))
    table, film, keep = rows(count, episode=episode, fps=fps), numbered(count), np.arange(count)
    way = int(random.integers(10))
    if way == 0:  # trimmed
        first = int(random.integers(0, count // 2))
        keep = keep[first : int(random.integers(first + 3, count + 1))]
    elif way == 1:  # thinned
        keep = keep[:: int(random.integers(2, 4))]
    elif way == 2:  # rows missing in the middle
        keep = np.delete(keep, int(random.integers(1, count - 3)))
    elif way == 3:  # trimmed, and counted anew
        keep = keep[2:]
    table = taken(table, keep)
    if way == 3:
        table["frame_index"] = np.arange(len(keep))
    elif way == 4 and not twice:
        late = random.choice([0.5, 1, 2, 33, 1e9, -1]) / fps
        table["timestamp"] = table["timestamp"].astype(np.float64) + late
    elif way == 5:
        film = film[:-1]
    elif way == 6:
        film = np.concatenate([film, film[-3:]])
    elif way == 7:
        table["timestamp"] = table["timestamp"] + random.uniform(-0.15, 0.15, len(keep)) / fps
    if random.random() < 0.5:
        table = taken(table, random.permutation(len(keep)))
    return table, np.repeat(film, 2, 0) if twice else film


@pytest.mark.parametrize("seed", range(30))
def test_at_random(tmp_path: Path, seed: int) -> None:
    """Whatever happened to the rows: each keeps its frame, and none is lost but one that has none."""
    random = np.random.default_rng(seed)
    fps, twice = float(random.choice([5, 10, 15, 30])), bool(random.random() < 0.25)
    made = [at_random(random, number, fps, twice) for number in range(2)]
    root = robot(tmp_path / "ds", [table for table, _ in made], [film for _, film in made], fps=fps,
                 film_fps=fps * (1 + twice), version=int(random.choice([2, 3])))  # fmt: skip
    found = list(open_dataset(f"lerobot:{root}").episodes())
    kept = 0
    for episode in found:
        assert isinstance(episode, Episode), str(episode)
        assert shown(episode.frames) == acted(episode)
        kept += len(episode.frames)
    assert kept >= sum(len(table["action"]) for table, _ in made) - 2


def test_columns_of_other_types(tmp_path: Path) -> None:
    """Numbers as lists of one, as datasets writes them, and as floats, as pandas does."""
    import pyarrow as pa

    table: Table = rows(9)
    order = np.random.default_rng(0).permutation(9)
    listed = {name: pa.array([[value] for value in np.asarray(table[name])[order].tolist()])
              for name in ("timestamp", "frame_index", "task_index", "episode_index")}  # fmt: skip
    in_step(robot(tmp_path / "lists", [{**taken(table, order), **listed}]), [[*range(9)]])
    floats = {name: table[name].astype(np.float64)[order] for name in ("frame_index", "task_index", "episode_index")}
    (one,) = in_step(robot(tmp_path / "floats", [{**taken(table, order), **floats}]), [[*range(9)]])
    assert one.instruction == "pick the cup"
