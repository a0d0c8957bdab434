"""Folders of videos, frame folders, Something-Something V2 and the released code's jsonl."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from made import encoded, frame_folders, jsonl, pictures, something, video

from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.spec import open_dataset, parse, with_camera
from lapa.data.video import read_video
from lapa.data.words import words
from lapa.datasets.lapa_jsonl import plain
from lapa.datasets.something_v2 import instruction


def read(spec: str, size: int | None = None) -> list[Episode | BadVideo]:
    return list(open_dataset(spec).episodes(size))


def good(spec: str, size: int | None = None) -> dict[str, Episode]:
    found = read(spec, size)
    assert not [e for e in found if isinstance(e, BadVideo)]
    return {e.id: e for e in found if isinstance(e, Episode)}


def brightness(frames: Array) -> Array:
    """Of the middle of each picture, int64 [T]: tells which of `pictures` it is."""
    return frames[:, 12:, 16:].astype(int).mean((1, 2, 3)).round().astype(int)


# --- names on the command line --------------------------------------------------------------------


def test_options_have_the_types_of_the_fields(tmp_path: Path) -> None:
    spec = parse("tabletop:sim,episodes=12,split=unseen")
    assert (spec.name, spec.path, spec.options) == ("tabletop", "sim", {"episodes": 12, "split": "unseen"})
    assert parse(f"rlds:{tmp_path},fps=2.5").options == {"fps": 2.5}
    odd = tmp_path / "a,fps=3"
    odd.mkdir()
    assert parse(f"rlds:{odd}").path == str(odd), "a path that is there is a path"


def test_one_camera_for_all() -> None:
    """`--camera` goes to the datasets that have several, and have none chosen."""
    given = ("rlds:data/bridge", "video_folder:clips/", "lerobot:me/robot,camera=top,weight=2")
    assert with_camera(given, "wrist") == ("rlds:data/bridge,camera=wrist", *given[1:])
    with pytest.raises(LapaError, match=r"--camera top.* video_folder:clips/"):
        with_camera(("video_folder:clips/",), "top")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tabletop:sim,epsodes=3", r'tabletop "epsodes".* "episodes"\?'),
        ("tabletop:sim,episodes=many", 'episodes.* "many"'),
        ("rlds:x,fps=fast", 'fps.* "fast"'),
        ("tabletop:sin", r'"sim"\?'),
        ("nothing", '"nothing".* NAME:PATH'),
        ("video_fodler:x", r'"video_folder"\?'),
    ],
)
def test_names_that_say_nothing(spec: str, message: str) -> None:
    with pytest.raises(LapaError) as caught:
        open_dataset(spec)
    assert re.search(message, str(caught.value))


# --- video files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".MOV", ".mkv", ".webm", ".avi", ".gif"])
def test_every_container(tmp_path: Path, suffix: str) -> None:
    video(tmp_path / f"one/two/wave{suffix}", pictures(8), 10)
    (episode,) = good(f"video_folder:{tmp_path}").values()
    assert episode.frames.shape == (8, 24, 32, 3)
    assert episode.fps == pytest.approx(10)
    tolerance = 20 if suffix == ".gif" else 6  # of a palette of 256 colours, of lossy codecs
    assert np.abs(brightness(episode.frames) - np.arange(8) * 20).max() <= tolerance


@pytest.mark.parametrize("turned", [90, -90, 180])
def test_a_phone_held_upright(tmp_path: Path, turned: int) -> None:
    """The white corner at the top left goes where a player would show it. -90 is what a phone held upright writes."""
    clip = read_video(video(tmp_path / "x.mp4", pictures(4), turned=turned))
    corner = {90: (-1, 0), -90: (0, -1), 180: (-1, -1)}[turned]
    assert clip.frames.shape[1:3] == clip.size == ((24, 32) if turned == 180 else (32, 24))
    lit = {(y, x) for y in (0, -1) for x in (0, -1) if clip.frames[0, y, x].min() > 200}
    assert lit == {corner}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_varying_rate_is_evened_by_the_timestamps(tmp_path: Path, suffix: str) -> None:
    """20 ms steps with two pauses: the picture on show is repeated through them, no time is lost or won."""
    times = [0, 0.02, 0.04, 0.14, 0.16, 0.18, 0.2, 0.4, 0.42]
    clip = read_video(video(tmp_path / f"x{suffix}", pictures(9), 50, times))
    assert clip.fps == pytest.approx(50)
    shown = [0, 1, *[2] * 5, 3, 4, 5, *[6] * 10, 7, 8]
    np.testing.assert_allclose(brightness(clip.frames), np.array(shown) * 20, atol=6)
    assert (len(clip.frames) - 1) / clip.fps == pytest.approx(times[-1])


def test_a_little_jitter_changes_no_frame(tmp_path: Path) -> None:
    jitter = np.random.default_rng(0).uniform(-0.008, 0.008, 20)
    clip = read_video(video(tmp_path / "x.mkv", pictures(20), 30, list(np.maximum(np.arange(20) / 30 + jitter, 0))))
    assert len(clip.frames) == 20
    assert clip.fps == pytest.approx(30, rel=0.03)


def test_frames_are_made_small_as_they_are_read(tmp_path: Path) -> None:
    path = video(tmp_path / "x.mp4", pictures(5, 48, 64))
    whole, small = read_video(path), read_video(path, 16)
    assert small.frames.shape == (5, 16, 16, 3)
    assert small.size == (48, 64)
    np.testing.assert_allclose(small.frames, whole.frames.reshape(5, 16, 3, 16, 4, 3).mean((2, 4)), atol=1)


def test_damaged_videos(tmp_path: Path) -> None:
    whole = video(tmp_path / "good.webm", pictures(60)).read_bytes()
    (tmp_path / "cut.webm").write_bytes(whole[: len(whole) * 6 // 10])
    moved = video(tmp_path / "moved.mp4", np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8))
    data = bytearray(moved.read_bytes())
    for place in range(len(data) // 4, len(data) // 2, 500):
        data[place] ^= 0xFF
    moved.write_bytes(data)
    video(tmp_path / "leap.mkv", pictures(4), 50, [0, 0.02, 0.04, 4000])
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "._good.webm").write_bytes(b"what a Mac leaves behind")
    found = read(f"video_folder:{tmp_path}")
    said = {Path(str(e).partition(": ")[0]).name: str(e) for e in found if isinstance(e, BadVideo)}
    assert sorted(said) == ["cut.webm", "leap.mkv", "moved.mp4", "nowhere.mp4"]
    assert "cut short" in said["cut.webm"]
    assert re.search("damaged|breaks off", said["moved.mp4"]), "which of the two depends on the encoder's bytes"
    assert "4000 s" in said["leap.mkv"]
    assert str(tmp_path / "nowhere.mp4") in said["nowhere.mp4"]
    assert [e.id for e in found if isinstance(e, Episode)] == ["good.webm"]


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    try:
        os.rename(video(tmp_path / "x.mp4", pictures(4)), os.fsencode(tmp_path) + b"/pick_\xff.mp4")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (episode,) = good(f"video_folder:{tmp_path}").values()
    assert episode.id == "pick_\\xff.mp4"
    episode.instruction.encode()
    assert open_dataset(f"video_folder:{tmp_path}").signature()


# --- captions -------------------------------------------------------------------------------------


def test_where_instructions_come_from(tmp_path: Path) -> None:
    for name in ("a.mp4", "in/b.mp4", "in/put_cup_02.mp4"):
        video(tmp_path / name, pictures(3))
    (tmp_path / "in/b.txt").write_text("\ufeffturn the\nlever\n")
    table = tmp_path / "captions.jsonl"
    table.write_text('{"file": "./a.mp4", "instruction": " lift  it "}\n\n')
    spec = f"video_folder:{tmp_path}"
    assert [e.instruction for e in good(spec).values()] == ["lift it", "turn the lever", "put cup"]
    before = open_dataset(spec).signature()
    (tmp_path / "in/b.txt").write_text("turn another lever")
    assert open_dataset(spec).signature() != before
    other = tmp_path / "hf.csv"
    other.write_text("file_name,text\nin/put_cup_02.mp4,\n")
    assert [e.instruction for e in good(f"{spec},captions=hf.csv").values()][2] == "", "the table says: none"


@pytest.mark.parametrize(
    ("stem", "said"),
    [
        ("pick_up-the_Cup_003", "pick up the Cup"), ("wave", "wave"), ("007", ""), ("IMG_0042", ""), ("clip_3", ""),
        ("PXL_20231005_101112", ""), ("VID-20231005-WA0003", ""), ("video of a cup", "video of a cup"),
    ],
)  # fmt: skip
def test_a_camera_names_no_task(stem: str, said: str) -> None:
    assert words(stem) == said


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "name,words\na.mp4,go\n", r"instruction.* name, words"),
        ("captions.csv", b"file,instruction\na.mp4,\xff\n", "UTF-8"),
        ("captions.jsonl", '{"words": "a.mp4"}', "column file"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    video(tmp_path / "a.mp4", pictures(3))
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LapaError, match=f"{name}.*{message}"):
        open_dataset(f"video_folder:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "file,instruction\n,go\n", "line 2: "),
        ("captions.csv", "file,instruction\nb.mp4,go\nb.mp4,stop\n", "line 3: .*b.mp4"),
        ("captions.csv", "file,instruction\nb.mp4,put it down, gently\n", "line 2: "),
        ("captions.jsonl", '{"file": "b.mp4"\n', "line 1: "),
        ("captions.jsonl", "[1]\n", "line 1: "),
        ("captions.jsonl", '{"file": "b.mp4", "text": 7}', "line 1: "),
    ],
)
def test_rows_of_captions_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    """They are told; the other rows are used. A clip of which two things are said is left out."""
    for clip in ("a.mp4", "b.mp4"):
        video(tmp_path / clip, pictures(3))
    first = "a.mp4,lift\n" if name.endswith("csv") else '{"file": "a.mp4", "text": "lift"}\n'
    head, _, rows = text.partition("\n") if name.endswith("csv") else ("", "", text)
    (tmp_path / name).write_text(f"{head}\n{rows}{first}" if head else f"{rows}\n{first}")
    found = read(f"video_folder:{tmp_path}")
    assert [e.instruction for e in found if isinstance(e, Episode) and e.id == "a.mp4"] == ["lift"]
    (told,) = [str(e) for e in found if isinstance(e, BadVideo)]
    assert re.search(f"{name}, {message}", told)
    assert len(found) == (2 if "b.mp4" in message else 3)


def test_captions_without_a_video_are_told(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", pictures(3))
    (tmp_path / "captions.csv").write_text("file,instruction\na.mp4,go\nb.mp4,stop\n")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    video(tmp_path / "c.mp4", pictures(3))
    first, unreadable, absent = read(f"video_folder:{tmp_path}")
    assert isinstance(first, Episode)
    assert str(tmp_path / "c.txt") in str(unreadable)
    assert str(tmp_path / "captions.csv") in str(absent)
    assert "b.mp4" in str(absent)


# --- Something-Something V2 -----------------------------------------------------------------------


def test_something_v2(tmp_path: Path) -> None:
    root = something(tmp_path / "ssv2")
    found = good(f"something_v2:{root}")
    assert {e.id: e.instruction for e in found.values()} == {
        "7": "Holding a cup next to a red box",
        "12": "pushing a pen",
    }
    assert (found["7"].frames.shape, found["7"].fps) == ((6, 24, 32, 3), 12)
    assert [e.instruction for e in good(f"something_v2:{root},split=validation").values()] == ["Dropping a lid"]
    assert len(good(f"something_v2:{root},split=all")) == 3
    (root / "20bn-something-something-v2/12.webm").unlink()
    assert " 1 of " in (lacking := str(read(f"something_v2:{root}")[-1]))
    assert "12.webm" in lacking
    for path in root.rglob("*.webm"):
        path.unlink()
    with pytest.raises(LapaError, match=" 2 clips"):
        open_dataset(f"something_v2:{root}")
    (root / "labels/train.json").write_text('{"id": 3}')
    with pytest.raises(LapaError, match=r"labels/train\.json"):
        open_dataset(f"something_v2:{root}")
    with pytest.raises(LapaError, match=r'split.* "test"'):
        open_dataset(f"something_v2:{root},split=test")


def test_a_template_without_placeholders() -> None:
    assert instruction({"template": "Doing nothing", "placeholders": []}) == "Doing nothing"
    assert instruction({"label": "moving it"}) == "moving it"


# --- frame folders --------------------------------------------------------------------------------


def test_frame_folders(tmp_path: Path) -> None:
    root = frame_folders(tmp_path / "frames")
    found = good(f"frame_folder:{root},fps=12")
    assert {e.id: e.instruction for e in found.values()} == {"lift_cup": "lift cup", "more/turn_lever": "turn lever"}
    np.testing.assert_array_equal(found["lift_cup"].frames, pictures(12), "img_10 comes after img_9")
    assert (found["lift_cup"].fps, good(f"frame_folder:{root},fps=12", 16)["lift_cup"].size) == (12, (24, 32))
    (root / "captions.csv").write_text("file,instruction\nlift_cup,raise it\ngone,x\n")
    (root / "more/turn_lever/img_3.png").write_bytes(b"no image")
    first, broken, absent = read(f"frame_folder:{root},fps=12")
    assert isinstance(first, Episode)
    assert first.instruction == "raise it"
    assert "turn_lever/img_3.png: " in str(broken)
    assert "captions.csv" in str(absent)
    assert "gone" in str(absent)
    (root / "more/turn_lever/img_3.png").write_bytes(encoded(pictures(1, 12, 12)[0]))
    assert "img_3.png: is 12 x 12, but " in str(read(f"frame_folder:{root},fps=12")[1])


def test_frame_folders_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="fps=12"):
        open_dataset(f"frame_folder:{tmp_path}")
    with pytest.raises(LapaError, match=str(tmp_path)):
        open_dataset(f"frame_folder:{tmp_path},fps=3")
    frame_folders(tmp_path, ("one",), 1)
    (alone,) = read(f"frame_folder:{tmp_path},fps=3")
    assert "has 1 frame" in str(alone)


# --- the released code's jsonl --------------------------------------------------------------------


def test_jsonl_with_actions(tmp_path: Path) -> None:
    path = jsonl(tmp_path)
    found = good(f"lapa_jsonl:{path},fps=5")
    assert list(found) == ["demo/episode_0", "demo/episode_1"]
    episode = found["demo/episode_1"]
    np.testing.assert_array_equal(episode.frames, pictures(5, seed=1))
    assert episode.actions is not None
    np.testing.assert_allclose(episode.actions[:, 0], np.arange(5) / 10)
    assert (episode.actions.dtype, episode.action_names[-1], episode.fps) == (np.float32, "gripper", 5)
    assert episode.instruction == "lift cup 1"
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere/data.jsonl")
    assert len(good(f"lapa_jsonl:{moved},fps=5")) == 2, "paths may start one folder above"
    assert len(good(f"lapa_jsonl:{moved},fps=5,images={tmp_path}")) == 2


def test_jsonl_with_latents_is_video(tmp_path: Path) -> None:
    found = good(f"lapa_jsonl:{jsonl(tmp_path, 'delta')},fps=5")
    assert [e.actions for e in found.values()] == [None, None]


def test_the_json_list_before_preprocessing(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in jsonl(tmp_path).read_text().splitlines()]
    listed = []
    for row in rows:
        asked = {"from": "human", "value": "<image>\n" + row["instruction"]}
        answer = {"from": "gpt", "raw_actions": row["raw_actions"], "states": {}}
        listed.append({"id": row["id"], "image": row["image"], "conversations": [asked, answer]})
    (tmp_path / "data.json").write_text(json.dumps(listed, indent=1))
    one, two = (list(good(f"lapa_jsonl:{tmp_path}/data.{kind},fps=5").values()) for kind in ("json", "jsonl"))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.actions, second.actions)
        assert first.instruction == second.instruction


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {k: v for k, v in r.items() if k != "raw_actions"}, ".*raw_actions.* delta"),
        (lambda r: {k: v for k, v in r.items() if k != "image"}, ""),
        (lambda r: r | {"raw_actions": ["much"]}, ""),
        (lambda r: [r], ""),
    ],
)
def test_jsonl_rows_that_cannot_be_used(tmp_path: Path, change: object, message: str) -> None:
    path = jsonl(tmp_path)
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(change(json.loads(lines[3])))  # type: ignore[operator]
    path.write_text("\n".join(lines))
    found = read(f"lapa_jsonl:{path},fps=5")
    assert re.search(f"data.jsonl, line 4: {message}", str(found[-1]))
    assert sum(isinstance(e, Episode) and len(e.frames) == 5 for e in found) == 1, "the episode of other rows"
    path.write_text("{}\n")
    with pytest.raises(LapaError, match=r"data\.jsonl, line 1: "):
        open_dataset(f"lapa_jsonl:{path},fps=5")


def test_jsonl_episodes_that_cannot_be_used(tmp_path: Path) -> None:
    path = jsonl(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows if not r["image"].endswith("0/img_2.png")))
    first, second = read(f"lapa_jsonl:{path},fps=5")
    assert re.search(r"img_1\.png.* img_3\.png", str(first))
    assert isinstance(second, Episode)
    for row in rows:
        if row["image"].endswith("1/img_4.png"):
            row["raw_actions"] = [1.0]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert "raw_actions " in str(read(f"lapa_jsonl:{path},fps=5")[1])
    (tmp_path / "demo/episode_0/img_2.png").unlink()
    assert "episode_0/img_2.png: " in str(read(f"lapa_jsonl:{path},fps=5")[0])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<s> You are a helpful assistant. USER: pick up the cup ASSISTANT:", "pick up the cup"),
        ("<image>\nWhat action should the robot take to `close it`", "close it"),
        ("just this", "just this"),
    ],
)
def test_prompts_are_unwrapped(prompt: str, said: str) -> None:
    assert plain(prompt) == said
