"""Tars of clips: videos and pictures with texts, JSON and arrays beside them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import made
import made_robots
import numpy as np
import pytest
from made_robots import good, read, tar

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.notes import CHANGES
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import stream


def film(tmp_path: Path, count: int = 6, ending: str = ".mp4", seed: int = 0) -> bytes:
    return made.video(tmp_path / f"film{ending}", made.pictures(count, seed=seed)).read_bytes()


def array(values: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, values)
    return held.getvalue()


def test_clips(tmp_path: Path) -> None:
    vectors = made_robots.vectors(6, 3).astype(np.float32)
    path = tar(tmp_path / "train-000000.tar", {
        "a_0.mp4": film(tmp_path), "a_0.txt": b" lift the\ncup ",
        "sub/b.webm": film(tmp_path, ending=".webm"), "sub/b.json": json.dumps({"caption": "push"}).encode(),
        "open_the_drawer.mkv": film(tmp_path, ending=".mkv"), "open_the_drawer.actions.npy": array(vectors),
        "open_the_drawer.state.npy": array(vectors[:, :2]), "__meta__.json": b"{", "notes.md": b"x",
    })  # fmt: skip
    first, second, third = good(f"webdataset:{path}")
    assert (first.id, first.instruction, second.id, second.instruction) == ("a_0", "lift the cup", "sub/b", "push")
    assert third.instruction == "open the drawer"
    assert [e.instruction_from != "" for e in (first, second, third)] == [True] * 3
    plain = made.video(tmp_path / "plain.mp4", made.pictures(6))
    expected = next(iter(open_dataset(f"video_folder:{plain.parent}").episodes()))
    assert isinstance(expected, Episode)
    np.testing.assert_array_equal(first.frames, expected.frames)
    assert (first.fps, first.size) == (10, (24, 32))
    np.testing.assert_array_equal(third.actions, vectors)
    np.testing.assert_array_equal(third.state, vectors[:, :2])


def test_several_tars_packed_and_streamed(tmp_path: Path) -> None:
    for number in range(3):
        samples = {f"c{i}.mp4": film(tmp_path, 5 + i, seed=number) for i in range(2)}
        tar(tmp_path / f"set/x-{number}.tar", samples)
    (tmp_path / "set/readme.md").write_text("x")
    spec = f"webdataset:{tmp_path}/set"
    packed = pack([spec], 12, quiet=True, cache=tmp_path / "c")
    streamed = stream([spec], 12, quiet=True, cache=tmp_path / "c")
    assert packed.ids == tuple(f"x-{n}/c{i}" for n in range(3) for i in range(2))
    assert packed.outline == streamed.outline
    for start in (0, 3):
        np.testing.assert_array_equal(
            np.stack(list(streamed.frames(5, start))), packed.gather(np.arange(27 + start, 33))
        )
    assert any(".md" in line for line in packed.told())
    assert [e.id for e in good(f"{spec},episodes=2-3,stride=2")] == ["x-1/c0", "x-1/c1"]


def test_two_cameras(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar", {"k.wrist.mp4": film(tmp_path, seed=30), "k.top.mp4": film(tmp_path), "k.txt": b"go"}
    )
    (episode,) = good(f"webdataset:{path}")
    assert episode.camera == "top"
    assert any("wrist" in note for note in episode.notes)
    (wrist,) = good(f"webdataset:{path},camera=wrist")
    assert not np.array_equal(wrist.frames, episode.frames)
    with pytest.raises(LapaError, match=r"side.*wrist, top"):
        open_dataset(f"webdataset:{path},camera=side")


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    return [made.encoded(picture) for picture in made.pictures(count, seed=seed)]


def test_pictures_in_folders(tmp_path: Path) -> None:
    about = {"fps": 5, "instruction": "fold it", "actions": made_robots.vectors(12, 2).tolist()}
    files = {f"ep/frame_{i}.png": data for i, data in enumerate(jpegs(12))} | {"ep.json": json.dumps(about).encode()}
    (episode,) = good(f"webdataset:{tar(tmp_path / 'a.tar', files)}")
    np.testing.assert_array_equal(episode.frames, made.pictures(12))  # frame_2 before frame_10
    assert (episode.id, episode.fps, episode.instruction) == ("ep", 5, "fold it")
    np.testing.assert_allclose(episode.actions, made_robots.vectors(12, 2), rtol=1e-6)  # type: ignore[arg-type]


def test_pictures_of_one_sample(tmp_path: Path) -> None:
    files = {f"ep.{i}.png": data for i, data in enumerate(jpegs(11))} | {"ep.txt": b"wipe"}
    (episode,) = good(f"webdataset:{tar(tmp_path / 'a.tar', files)},fps=4")
    np.testing.assert_array_equal(episode.frames, made.pictures(11))
    assert (episode.fps, episode.instruction) == (4, "wipe")


def test_a_picture_a_sample(tmp_path: Path) -> None:
    """The JSON of each says which clip and which frame of it, in any order."""
    files: dict[str, bytes] = {}
    for number, (clip, frame) in enumerate([(1, 1), (0, 0), (0, 2), (1, 0), (0, 1), (1, 2)]):
        about = {"episode_index": clip, "frame_index": frame, "fps": 8, "task": f"do {clip}", "action": [frame, clip]}
        files[f"{number:05d}.png"] = jpegs(3, seed=clip)[frame]
        files[f"{number:05d}.json"] = json.dumps(about).encode()
    episodes = good(f"webdataset:{tar(tmp_path / 'a.tar', files)}")
    assert {e.id: e.instruction for e in episodes} == {"0": "do 0", "1": "do 1"}
    for episode in episodes:
        np.testing.assert_array_equal(episode.frames, made.pictures(3, seed=int(episode.id)))
        np.testing.assert_array_equal(episode.actions, [[t, int(episode.id)] for t in range(3)])


@pytest.mark.parametrize("form", ["{}", "frame_{}", "2024-01-05 frame {} of 12, camera 1"])
def test_frame_numbers_as_text(tmp_path: Path, form: str) -> None:
    """They are sorted as numbers, and a gap is told."""
    files = {}
    for frame in (3, 11, 0, 10, 1, 2, *range(4, 10)):
        about = {"video_id": "x", "frame_id": form.format(frame), "fps": 5, "action": [frame]}
        files |= {f"{frame:06d}.png": jpegs(12)[frame], f"{frame:06d}.json": json.dumps(about).encode()}
    (episode,) = good(f"webdataset:{tar(tmp_path / 'a.tar', files)}")
    np.testing.assert_array_equal(episode.frames, made.pictures(12))
    np.testing.assert_array_equal(episode.actions, np.arange(12)[:, None])
    gap = {name: data for name, data in files.items() if "000005" not in name}
    (bad,) = read(f"webdataset:{tar(tmp_path / 'b.tar', gap)}")
    assert "missing" in str(bad)


def test_tars_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        tar(tmp_path / f"set/{folder}/000.tar", {"000.mp4": film(tmp_path), "000.txt": folder.encode()})
    found = {e.id: e.instruction for e in good(f"webdataset:{tmp_path}/set")}
    assert found == {"train/000/000": "train", "val/000/000": "val"}
    assert [e.id for e in good(f"webdataset:{tmp_path}/set/train/000.tar")] == ["000"]


def test_words_and_rates_in_other_forms(tmp_path: Path) -> None:
    """Several captions of a clip: the first. A rate as text. Words that change on the way are told."""
    files = {"c_0.mp4": film(tmp_path), "c_0.json": json.dumps({"caption": ["lift it", "raise it"]}).encode()}
    (first,) = good(f"webdataset:{tar(tmp_path / 'a.tar', files)}")
    assert (first.instruction, first.instruction_from) == ("lift it", "JSON (caption)")
    files = {}
    for frame, picture in enumerate(jpegs(4)):
        about = {"episode": 0, "frame": frame, "fps": "8", "task": "pick" if frame < 2 else "place"}
        files |= {f"{frame}.png": picture, f"{frame}.json": json.dumps(about).encode()}
    (second,) = good(f"webdataset:{tar(tmp_path / 'b.tar', files)}")
    assert (second.instruction, second.fps) == ("pick", 8)
    assert CHANGES in second.notes
    assert CHANGES not in first.notes


def test_files_that_nobody_reads_are_told(tmp_path: Path) -> None:
    files = {"c.v1.mp4": film(tmp_path), "c.v1.txt": b"lift it", "c.cls": b"3", "c.actions.npz": b"x"}
    (episode,) = good(f"webdataset:{tar(tmp_path / 'a.tar', files)}")
    assert episode.instruction == "lift it"
    assert "not read: .actions.npz, .cls" in episode.notes


# --- what cannot be read


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"k/0.png": jpegs(1)[0], "k/1.png": jpegs(1)[0]}, "fps"),
        ({"k/0.png": jpegs(1)[0], "k/1.png": jpegs(1)[0], "k/3.png": jpegs(1)[0], "k.json": b'{"fps": 5}'}, "missing"),
        ({"k/0.png": jpegs(1)[0], "k/1.png": b"x", "k.json": b'{"fps": 5}'}, "1.png"),
        ({"k/0.png": jpegs(1)[0], "k/1.png": jpegs(1)[0], "k.json": b"{"}, "JSON"),
        ({"k/0.png": jpegs(1)[0], "k/1.png": jpegs(1)[0], "k.json": b'{"fps": 5, "actions": [[1]]}'}, "actions"),
        ({"k.mp4": b"x" * 3000}, "k.mp4"),
        ({"k.txt": b"x"}, "no video"),
        ({"k.png": jpegs(1)[0], "k.json": b'{"fps": 5, "clip": 0, "frame": "f' + b"9" * 5000 + b'"}'}, "1 frames"),
    ],
)
def test_refused_with_the_reason(tmp_path: Path, files: dict[str, bytes], named: str) -> None:
    path = tar(tmp_path / "some.tar", files)
    with pytest.raises(LapaError, match=named):
        pack([f"webdataset:{path}"], 8, quiet=True, cache=tmp_path / "c")


def test_arrays_are_not_unpickled_or_believed(tmp_path: Path) -> None:
    forged = array(np.zeros((6, 2))).replace(b"(6, 2)", b"(9, 9)")
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    for data in (forged, objects.getvalue(), b"x"):
        path = tar(tmp_path / "a.tar", {"k.mp4": film(tmp_path), "k.action.npy": data})
        (bad,) = read(f"webdataset:{path}")
        assert isinstance(bad, BadVideo)
        assert "k.action.npy" in str(bad)


def test_a_tar_that_breaks_off(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"c{i}.mp4": film(tmp_path) for i in range(3)})
    whole, clean = path.read_bytes(), good(f"webdataset:{path}")
    with tarfile.open(path) as opened:
        starts = [info.offset for info in opened]
    for cut in (starts[2], starts[2] + 100, starts[2] + 700):  # between two files, in a header, in a film
        path.write_bytes(whole[:cut])
        first, *rest = read(f"webdataset:{path}")
        np.testing.assert_array_equal(first.frames, clean[0].frames)
        assert [str(bad) for bad in rest if "a.tar" in str(bad)]
        assert not [e for e in rest if isinstance(e, Episode)]  # of the second there may be more
    damaged = bytearray(whole)
    damaged[starts[1] + 150] ^= 1  # a header's checksum: tarfile itself would take this for the end
    path.write_bytes(damaged)
    assert [bad for bad in read(f"webdataset:{path}") if isinstance(bad, BadVideo) and "a.tar" in str(bad)]


def test_packed_tars_and_folders_without(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "x.tar.gz"):
        with pytest.raises(LapaError, match=r"x\.tar\.gz.*gunzip"):
            open_dataset(f"webdataset:{path}")
    (tmp_path / "none").mkdir()
    with pytest.raises(LapaError, match="none"):
        open_dataset(f"webdataset:{tmp_path}/none")
