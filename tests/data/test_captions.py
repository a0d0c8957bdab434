"""Instructions beside clips, in whatever form: each of these was reported of some software, or is its next of kin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lapa.contracts import BadVideo, LapaError
from lapa.data.captions import Captions

CLIPS = ("a.mp4", "sub/b.mp4")
BOTH = ("pick up the cup", "close the drawer")
PAIRS = (("a.mp4", BOTH[0]), ("sub/b.mp4", BOTH[1]))


def captions(root: Path, names: tuple[str, ...] = CLIPS, **more: object) -> Captions:
    return Captions(root, names, sorted(p for p in root.rglob("*") if p.is_file()), **more)  # type: ignore[arg-type]


def said(root: Path, names: tuple[str, ...] = CLIPS, **more: object) -> tuple[str, ...]:
    found = captions(root, names, **more)
    assert not found.problems()
    return tuple(found.of(name).text for name in names)


def rows(first: str, second: str, sep: str = ",", header: str = "file{}instruction") -> str:
    return f"{header.format(sep)}\n{first}{sep}{BOTH[0]}\n{second}{sep}{BOTH[1]}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", rows("/home/me/videos/a.mp4", "/home/me/videos/sub/b.mp4")),
        ("captions.csv", rows("a", "sub/b")),
        ("captions.csv", rows("C:\\videos\\a.mp4", "sub\\b.mp4")),
        ("captions.csv", rows("./a.mp4", "b.mp4")),
        ("captions.csv", rows("A.MP4", "Sub/B.mp4")),
        ("captions.csv", rows("a.avi", "file:///x/sub/b.mov")),
        ("captions.csv", rows("a.mp4", "sub/b.mp4", ";")),
        ("captions.csv", "sep=;\n" + rows("a.mp4", "sub/b.mp4", ";")),
        ("captions.csv", rows("a.mp4", "sub/b.mp4", "\t")),
        ("captions.csv", rows("a.mp4", "sub/b.mp4", "|")),
        ("captions.csv", rows("a.mp4", "sub/b.mp4", ", ")),
        ("captions.csv", rows("a.mp4", "sub/b.mp4", header="File Name{} Instruction ")),
        ("captions.csv", rows("a.mp4", "sub/b.mp4", header="VIDEO_PATH{}Caption")),
        ("captions.csv", rows("a.mp4", "sub/b.mp4").partition("\n")[2]),
        ("captions.csv", rows("a.mp4", "sub/b.mp4").replace("\n", "\r\n") + "\r\n,\r\n"),
        ("captions.tsv", rows("a.mp4", "sub/b.mp4", "\t")),
        ("captions.txt", rows("a.mp4", "sub/b.mp4", "\t").partition("\n")[2]),
        ("Captions.CSV", rows("a.mp4", "sub/b.mp4")),
        ("labels.csv", rows("a.mp4", "sub/b.mp4", header="video{}label")),
        ("captions.json", json.dumps([{"file": "a.mp4", "task": BOTH[0]}, {"file": "sub/b.mp4", "text": BOTH[1]}])),
        ("captions.json", json.dumps(dict(zip(CLIPS, BOTH, strict=True)))),
        ("captions.json", json.dumps({"a.mp4": {"caption": BOTH[0]}, "sub/b.mp4": {"caption": BOTH[1]}})),
        ("captions.json", json.dumps({"a": [BOTH[0], "or else"], "b": [BOTH[1]]})),
        ("captions.json", json.dumps({"v": 1, "data": [{"video": c, "task": t} for c, t in PAIRS]})),
        ("captions.json", json.dumps({"file": {"0": CLIPS[0], "1": CLIPS[1]}, "task": {"0": BOTH[0], "1": BOTH[1]}})),
        ("captions.json", json.dumps({"name": "clips", "n": [1, 2], "file": CLIPS, "instruction": BOTH})),
        ("metadata.jsonl", "".join(json.dumps({"file_name": c, "text": t}) + "\n" for c, t in PAIRS)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_tables_in_every_form(tmp_path: Path, name: str, text: str, coding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(coding))
    assert said(tmp_path) == BOTH
    assert captions(tmp_path).of("a.mp4").origin == name
    assert captions(tmp_path).files() == [tmp_path / name]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('a.mp4,"lift\nsub/b.mp4,pick\n', ("line 2", "sub/b.mp4", "quote")),  # it does not end: b would be lost
        ('a.mp4,"lift\nit"\nsub/b.mp4,"pick\nx.mp4,"\n', ()),  # lines within quotes, none about a clip
        ("a.mp4,lift, then push\nsub/b.mp4,pick\n", ("line 2", "comma")),
    ],
)
def test_rows_that_run_together_or_over(tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    for header in ("file,instruction", "file,instruction,"):  # a header may end with an empty column
        (tmp_path / "captions.csv").write_text(f"{header}\n{text}")
        faults = captions(tmp_path).problems()
        assert len(faults) == bool(named)
        assert all(name in str(faults[0]) for name in named)


def test_what_programs_write_for_no_text(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("file,instruction\na.mp4,nan\nsub/b.mp4,None of them\n")
    assert said(tmp_path) == ("", "None of them")


def test_clip_number_nought(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps([{"id": 0, "task": BOTH[0]}, {"id": 1, "task": BOTH[1]}]))
    assert said(tmp_path, ("0.mp4", "1.mp4")) == BOTH


def test_tables_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "robot_log.csv").write_text("t,x,y\n0,1,2\n")
    (tmp_path / "people.csv").write_text("name,title\nada,Dr\n")
    (tmp_path / "settings.json").write_text('{"fps": 30}')
    found = captions(tmp_path)
    assert [found.of(name).text for name in CLIPS] == ["", ""]
    assert not found.problems()
    assert all(name in found.notes[0] for name in ("robot_log.csv", "people.csv", "settings.json"))
    with pytest.raises(LapaError, match=r"robot_log\.csv.* t, x, y"):
        captions(tmp_path, table="robot_log.csv")
    (tmp_path / "captions.csv").write_text(rows("a.mp4", "sub/b.mp4"))
    assert said(tmp_path) == BOTH


def test_several_tables_are_joined_and_a_named_one_is_used_alone(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("file,instruction\na.mp4,pick up the cup\n")
    (tmp_path / "test.csv").write_text("file,instruction\nsub/b.mp4,close the drawer\n")
    assert said(tmp_path) == BOTH
    assert said(tmp_path, table="test.csv") == ("", BOTH[1])


def test_a_name_that_may_be_two_clips(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("file,instruction\nb.mp4,go\n")
    (fault,) = captions(tmp_path, ("x/b.mp4", "y/b.mp4")).problems()
    assert all(name in str(fault) for name in ("captions.csv, line 2", "x/b.mp4", "y/b.mp4"))
    assert said(tmp_path, ("b.mp4", "y/b.mp4")) == ("go", "")


def test_one_clip_of_a_table_for_many(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text(rows("a.mp4", "sub/b.mp4"))
    assert said(tmp_path, ("a.mp4",), whole=False) == BOTH[:1]
    assert "sub/b.mp4" in str(captions(tmp_path, ("a.mp4",)).problems()[0])


def test_texts_and_json_beside_clips_and_their_folders(tmp_path: Path) -> None:
    for path, text in {
        "a.txt": "lift\nit", "sub/c.json": json.dumps({"instruction": ["turn it"], "fps": 3}), "sub/lang.txt":
        "\nput the corn in the pot\nconfidence: 0.9\n", "x/y/metadata.json": json.dumps({"task": "wipe", "id": 3}),
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    names = ("a.mp4", "sub/c.mp4", "sub/deep/d.mp4", "x/y/e.mp4", "x/open_it.mp4", "x/f.mp4")
    found = [captions(tmp_path, names).of(name) for name in names]
    assert [one.text for one in found] == ["lift it", "turn it", "put the corn in the pot", "wipe", "open it", ""]
    assert [one.origin for one in found][2:] == ["lang.txt", "metadata.json", "names of files", ""]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadVideo, match=r"a\.txt"):
        captions(tmp_path, names).of("a.mp4")


@pytest.mark.parametrize("key", ["text", "description", "lang", "sentence"])
def test_a_json_of_the_clips_name_has_any_key_of_tables(tmp_path: Path, key: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({key: "lift it", "fps": 3}))
    assert captions(tmp_path).of("a.mp4").text == "lift it"


def test_a_json_without_an_instruction_is_told(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.json", "sub/info.json"):
        (tmp_path / name).write_text(json.dumps({"fps": 3}))
    first, second = (captions(tmp_path).of(name) for name in CLIPS)
    assert (first.text, second.text) == ("", "")
    assert "in .json files of the clips" in first.notes[0]
    assert "in info.json" in second.notes[0]
    (tmp_path / "a.txt").write_text("lift")
    assert not captions(tmp_path).of("a.mp4").notes


def test_tables_in_folders_of_clips(tmp_path: Path) -> None:
    """As Hugging Face's VideoFolder has them: names are within the folder of the table."""
    names = ("test/a.mp4", "train/a.mp4", "train/in/b.mp4")
    for name in ("test", "train", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "test/metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "push"}')
    (tmp_path / "train/metadata.csv").write_text("file_name,text\na.mp4,lift\nin/b.mp4,turn\n")
    (tmp_path / "other/metadata.csv").write_text("file_name,text\na.mp4,drop\n")  # about none of the clips
    assert said(tmp_path, names) == ("push", "lift", "turn")
    (tmp_path / "train/metadata.csv").write_text("t,x\n0,1\n")
    assert "train/metadata.csv" in captions(tmp_path, names).notes[0]
    (tmp_path / "train/metadata.csv").write_text("file_name,text\na.mp4,lift\nc.mp4,turn\n")
    (fault,) = captions(tmp_path, (*names, "test/c.mp4")).problems()  # that of another folder is not meant
    assert all(part in str(fault) for part in ("train/metadata.csv", "c.mp4"))
    (tmp_path / "captions.csv").write_text("file,instruction\ntest/a.mp4,open\n")  # one above goes first
    assert said(tmp_path, names) == ("open", "", "")


def test_a_folder_of_pictures_named_by_its_camera_is_called_as_the_folder_above() -> None:
    found = Captions(Path("x"), ("pick_up_cup/rgb", "traj0/images0", "open_drawer"), [], folders=True)
    assert [found.of(name).text for name in ("pick_up_cup/rgb", "traj0/images0", "open_drawer")] == [
        "pick up cup", "", "open drawer"]  # fmt: skip
