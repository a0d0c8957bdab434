"""Actions and state of the jsonl under other keys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made import jsonl

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.notes import CHANGES
from lapa.data.spec import open_dataset


def test_rows_with_actions_and_state_under_other_keys(tmp_path: Path) -> None:
    path = jsonl(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        raw = row.pop("raw_actions")
        row |= {"arm": [raw[:2], raw[2:4]], "grip": raw[6], "qpos": {"a": raw[0], "b": [7]}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, episode = (e for e in open_dataset(f"lapa_jsonl:{path},fps=5,action=grip+arm,state=qpos").episodes())
    assert isinstance(episode, Episode)
    np.testing.assert_allclose(episode.actions[2], [1, 0.2, 0, 0, 0])
    np.testing.assert_allclose(episode.state[2], [0.2, 7])
    with pytest.raises(LapaError, match=r"grap.*arm, grip, qpos"):
        open_dataset(f"lapa_jsonl:{path},fps=5,action=grap")


def test_words_that_change_are_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    same = list(open_dataset(f"lapa_jsonl:{path},fps=5").episodes())
    rows[0]["instruction"] = "something else"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for episodes, changed in ((same, 0), (list(open_dataset(f"lapa_jsonl:{path},fps=5").episodes()), 1)):
        assert sum(CHANGES in episode.notes for episode in episodes if isinstance(episode, Episode)) == changed


@pytest.mark.parametrize("before", ["/home/other/data/", "C:\\data\\", "file:///data/", ".\\"])
def test_paths_of_another_machine(tmp_path: Path, before: str) -> None:
    path = jsonl(tmp_path)
    whole = [e for e in open_dataset(f"lapa_jsonl:{path},fps=5").episodes() if isinstance(e, Episode)]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["image"] = before + (row["image"].replace("/", "\\") if "\\" in before else row["image"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [e for e in open_dataset(f"lapa_jsonl:{path},fps=5").episodes() if isinstance(e, Episode)]
    assert len(found) == len(whole) > 0
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
    next(path.parent.rglob("*.png")).unlink()  # a picture in another folder is no stand-in
    assert any(isinstance(e, BadVideo) for e in open_dataset(f"lapa_jsonl:{path},fps=5").episodes())


def test_a_bad_row_is_no_episode(tmp_path: Path) -> None:
    path = jsonl(tmp_path)
    spec = f"lapa_jsonl:{path},fps=5"
    count = len(list(open_dataset(spec).episodes()))
    with path.open("a") as file:
        file.write('{"x": 1}\n')
    with pytest.raises(LapaError, match=f"no episode {count}; it has {count}"):
        list(open_dataset(f"{spec},episodes={count}").episodes())


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("listed", [False, True])
def test_with_a_mark_at_the_start(tmp_path: Path, coding: str, listed: bool) -> None:
    path = jsonl(tmp_path)
    usual = [e.id for e in open_dataset(f"lapa_jsonl:{path},fps=5").episodes() if isinstance(e, Episode)]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    text = json.dumps(rows) if listed else "\r\n".join(map(json.dumps, rows))
    path.write_text(text, encoding=coding, newline="")
    found = list(open_dataset(f"lapa_jsonl:{path},fps=5").episodes())
    assert [e.id for e in found if isinstance(e, Episode)] == usual
    assert len(found) == len(usual)
