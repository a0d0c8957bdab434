"""What people have in their folders, beside and in place of clips: taken, told, or refused with what to do."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made import encoded, frame_folders, jsonl, lerobot_v21, pictures, something, video
from PIL import Image

from lapa.commands.look import inspect
from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.data.stream import stream
from lapa.interop.collect import collect

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 1234\n".format("0" * 64)


def read(spec: str) -> tuple[dict[str, Episode], list[str], tuple[str, ...]]:
    """Episodes by their ids, what cannot be read, and the notes."""
    dataset = open_dataset(spec)
    found = list(dataset.episodes())
    return ({e.id: e for e in found if isinstance(e, Episode)}, [str(e) for e in found if isinstance(e, BadVideo)],
            getattr(dataset, "notes", ()))  # fmt: skip


def test_what_is_not_read_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.m4v", "in/c.mts"):
        video(tmp_path / name, pictures(3))
    for name in ("x.pdf", "y.pdf", "in/rest.zip", "more.tar.gz", "GL010042.LRV", "README"):
        (tmp_path / name).write_bytes(b"no video")
    (tmp_path / "player.ts").write_text("export const fps = 30;\n")
    (tmp_path / "captions.csv").write_text("file,instruction\na.mp4,go\n")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "cover.webp")
    found, bad, (note,) = read(f"video_folder:{tmp_path}")
    assert (list(found), bad) == (["a.mp4", "b.m4v", "in/c.mts"], [])
    assert note.startswith("not read: 8 files")
    for part in ("2 .pdf", "1 .zip (an archive", "1 .tar.gz (an archive", "1 .lrv", "1 .ts", "1 .webp"):
        assert part in note
    told = pack([f"video_folder:{tmp_path}"], 16, quiet=True).told()
    assert note in told
    assert "instructions: 1 from captions.csv; 2 missing" in told


def test_commands_say_where_instructions_come_from(tmp_path: Path) -> None:
    for name in ("open_drawer_3.mp4", "IMG_0042.mp4", "x.mp4"):
        video(tmp_path / name, pictures(3))
    (tmp_path / "x.txt").write_text("lift it")
    expected = 'instructions: 1 missing; 1 from names of files, such as "open drawer"; 1 from .txt files of the clips'
    for told in (
        pack([f"video_folder:{tmp_path}"], 16, quiet=True),
        stream([f"video_folder:{tmp_path}"], 16, quiet=True),
    ):
        (line,) = [line for line in told.told() if line.startswith("instructions: ")]
        assert sorted(line.removeprefix("instructions: ").split("; ")) == sorted(
            expected.removeprefix("instructions: ").split("; ")
        )
        one = told.subset(np.array([told.ids.index("x.mp4")]))
        assert "instructions: 1 from .txt files of the clips" in one.told()


def test_a_json_that_gives_no_instruction_is_told(tmp_path: Path) -> None:
    video(tmp_path / "x.mp4", pictures(3))
    frame_folders(tmp_path / "frames", ("x",), 3)
    for name in ("x.json", "frames/x.json"):
        (tmp_path / name).write_text('{"fps": 3}')
    for spec in (f"video_folder:{tmp_path}/x.mp4", f"frame_folder:{tmp_path}/frames,fps=3"):
        (one,) = read(spec)[0].values()
        assert any("captions: " in note and ".json" in note for note in one.notes)


def test_one_file_is_a_dataset(tmp_path: Path) -> None:
    for name in ("a.mp4", "one file.mp4"):
        video(tmp_path / name, pictures(5))
    (tmp_path / "captions.csv").write_text("file,instruction\na.mp4,go\none file.mp4,lift it\n")
    found, bad, notes = read(f"video_folder:{tmp_path / 'one file.mp4'}")
    assert [(e.id, e.instruction, len(e.frames)) for e in found.values()] == [("one file.mp4", "lift it", 5)]
    assert not bad
    assert not notes


def test_inspect_and_collect_take_one_file_and_say_whose_words_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = video(tmp_path / "open_drawer_3.mp4", pictures(5))
    inspect((str(clip),), out=tmp_path / "seen")
    assert 'instructions: 1 from names of files, such as "open drawer"' in capsys.readouterr().out
    made = collect([f"video_folder:{clip}"], tmp_path / "robot")
    assert made["notes"][-1] == 'instructions: 1 from names of files, such as "open drawer"'


@pytest.mark.parametrize("reader", ["video_folder", "frame_folder"])
def test_folders_for_another_reader(tmp_path: Path, reader: str) -> None:
    robot = lerobot_v21(tmp_path / "robot")
    for path in (robot, robot / "videos"):
        with pytest.raises(LapaError, match=f"lerobot:{path}"):
            open_dataset(f"{reader}:{path},fps=10" if reader == "frame_folder" else f"{reader}:{path}")


@pytest.mark.parametrize("spec", ["video_folder:{}", "frame_folder:{},fps=5", "lapa_jsonl:{},fps=5"])
def test_archives_are_to_be_unpacked(tmp_path: Path, spec: str) -> None:
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("a.mp4", b"")
    with pytest.raises(LapaError, match=r"clips\.zip.*npack"):
        open_dataset(spec.format(tmp_path / "clips.zip"))
    if "jsonl" not in spec:
        with pytest.raises(LapaError, match=r"clips\.zip.*npack"):
            open_dataset(spec.format(tmp_path))


def test_pointers_in_place_of_files(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", pictures(3))
    (tmp_path / "b.mp4").write_text(POINTER)
    (tmp_path / "c.mp4").symlink_to(".git/annex/objects/xx/yy")
    (tmp_path / "d.mp4").write_text("/annex/objects/MD5E-s1--0.mp4\n")
    found, bad, _ = read(f"video_folder:{tmp_path}")
    assert list(found) == ["a.mp4"]
    for name, tool in (("b.mp4", "git lfs pull"), ("c.mp4", "git annex get"), ("d.mp4", "git annex get")):
        assert any(name in fault and tool in fault for fault in bad)
    frame_folders(tmp_path / "frames", ("lift",), 3)
    (tmp_path / "frames/lift/img_1.png").write_text(POINTER)
    assert "git lfs pull" in read(f"frame_folder:{tmp_path / 'frames'},fps=5")[1][0]


def test_depth_beside_colour(tmp_path: Path) -> None:
    frame_folders(tmp_path, ("open_box/rgb", "open_box/aligned"), 4)
    for i in range(4):
        Image.fromarray(np.full((24, 32), 900 + i, np.uint16)).save(tmp_path / f"open_box/aligned/img_{i}.png")
    frame_folders(tmp_path / "open_box", ("depth",), 4)  # of 8 bits: its name says it
    found, bad, notes = read(f"frame_folder:{tmp_path},fps=5")
    assert {e.id: e.instruction for e in found.values()} == {"open_box/rgb": "open box"}
    assert not bad
    assert any("open_box/depth" in note for note in notes)
    dataset = open_dataset(f"frame_folder:{tmp_path},fps=5")
    assert [number for number, _ in dataset.index()] == [1]  # type: ignore[attr-defined]
    assert len(list(dataset.frames(1))) == 4  # type: ignore[attr-defined]
    assert any("open_box/aligned" in note for note in dataset.notes)  # type: ignore[attr-defined]
    _, bad, _ = read(f"frame_folder:{tmp_path / 'open_box/aligned'},fps=5")
    assert "depth" in bad[0]
    video(tmp_path / "v/rgb.mp4", pictures(3))
    video(tmp_path / "v/depth.mp4", pictures(3))
    found, _, (note,) = read(f"video_folder:{tmp_path / 'v'}")
    assert list(found) == ["rgb.mp4"]
    assert "depth.mp4" in note


@pytest.mark.parametrize(("tag", "seen"), [(1, "RGBY"), (2, "GRYB"), (3, "YBGR"), (4, "BYRG"), (5, "RBGY"), (6, "BRYG"),
                                           (7, "YGBR"), (8, "GYRB")])  # fmt: skip
def test_pictures_are_turned_by_their_exif_tag(tmp_path: Path, tag: int, seen: str) -> None:
    colours = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "Y": (220, 220, 30)}
    frame = np.array([[colours["R"], colours["G"]], [colours["B"], colours["Y"]]], np.uint8).repeat(24, 0).repeat(32, 1)
    exif = Image.Exif()
    exif[0x0112] = tag
    (tmp_path / "lift").mkdir()
    for i in range(3):
        Image.fromarray(frame).save(tmp_path / f"lift/IMG_{i}.jpg", exif=exif, quality=95)
    (one,) = read(f"frame_folder:{tmp_path},fps=5")[0].values()
    shape = (48, 64) if tag < 5 else (64, 48)
    assert one.size == one.frames.shape[1:3] == shape
    places = [one.frames[0, y, x].astype(int) for y, x in ((4, 4), (4, -5), (-5, 4), (-5, -5))]
    assert "".join(min(colours, key=lambda n: np.abs(p - colours[n]).sum()) for p in places) == seen
    ((_, outline),) = open_dataset(f"frame_folder:{tmp_path},fps=5").index()  # type: ignore[attr-defined]
    assert outline.frames.shape == one.frames.shape


def test_the_raw_form_of_bridge(tmp_path: Path) -> None:
    group = tmp_path / "raw/traj_group0"
    frame_folders(group, ("traj0/images0", "traj0/images1", "traj1/images0"), 12)
    (group / "traj0/lang.txt").write_text("put the corn in the pot\nconfidence: 1.0\n")
    found, _, _ = read(f"frame_folder:{tmp_path},fps=5")
    told = {e.id.removeprefix("raw/traj_group0/"): (e.instruction, e.instruction_from) for e in found.values()}
    corn = ("put the corn in the pot", "lang.txt")
    assert told == {"traj0/images0": corn, "traj0/images1": corn, "traj1/images0": ("", "")}


def test_names_that_are_times_give_the_rate(tmp_path: Path) -> None:
    (tmp_path / "lift").mkdir()
    frames = pictures(12)
    for i in (0, 1, 2, 3, 4, 8, 9, 10, 11):  # three were lost: the one before them is on show for longer
        (tmp_path / f"lift/1305031102.{i * 50000:06d}.png").write_bytes(encoded(frames[i]))
    for spec in (f"frame_folder:{tmp_path}", f"frame_folder:{tmp_path},fps=3"):
        (one,) = read(spec)[0].values()
        assert one.fps == pytest.approx(20)
        np.testing.assert_array_equal(one.frames, frames[[0, 1, 2, 3, 4, 4, 4, 4, 8, 9, 10, 11]])
        assert "rate: 20 fps" in one.notes[-1]


def test_several_clips_in_one_folder(tmp_path: Path) -> None:
    for i, frame in enumerate(pictures(10)):
        (tmp_path / f"ep{i // 5}_step_{i % 5}.png").write_bytes(encoded(frame))
    found, bad, _ = read(f"frame_folder:{tmp_path},fps=5")
    assert ([len(e.frames) for e in found.values()], bad) == ([5, 5], [])
    np.testing.assert_array_equal(list(found.values())[1].frames, pictures(10)[5:])


def test_jsonl_images_of_all_episodes_in_one_folder(tmp_path: Path) -> None:
    source = jsonl(tmp_path)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        flat = row["image"].removeprefix("demo/").replace("/img", "_step")
        (tmp_path / row["image"]).rename(tmp_path / flat)
        row["image"] = flat
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, bad, _ = read(f"lapa_jsonl:{source},fps=5")
    assert not bad
    for number, one in enumerate(found.values()):
        np.testing.assert_array_equal(one.frames, pictures(5, seed=number))
        assert one.actions is not None
        np.testing.assert_allclose(one.actions[:, 0], np.arange(5) / 10)
        assert (one.instruction, one.instruction_from) == (f"lift cup {number}", "the rows")


def test_something_something_converted(tmp_path: Path) -> None:
    root = something(tmp_path / "ssv2")
    for path in list(root.rglob("*.webm")):
        frames = np.stack([frame for _, frame in _frames(path)])
        video(path.with_suffix(".mp4"), frames, 12)
        path.unlink()
    found, bad, notes = read(f"something_v2:{root}")
    assert [e.instruction for e in found.values()] == ["Holding a cup next to a red box", "pushing a pen"]
    assert not bad
    assert "2 .mp4" in notes[0]
    for path in root.rglob("*.mp4"):
        path.unlink()
    (root / "20bn-something-something-v2-00").write_bytes(b"a part of an archive")
    with pytest.raises(LapaError, match="20bn-something-something-v2-00"):
        open_dataset(f"something_v2:{root}")


def _frames(path: Path) -> list[tuple[float, np.ndarray]]:
    from lapa.data.video import VideoReader

    with VideoReader(path) as found:
        return list(found)
