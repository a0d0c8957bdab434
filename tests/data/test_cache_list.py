"""`lapa cache --list` and `--clear`: what is there, and what goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lapa.contracts import LapaError
from lapa.data import cache_list
from lapa.data.cache_list import clear, entries, table
from lapa.data.index import META
from lapa.data.pack import pack
from lapa.data.stream import stream

ONE, TWO = "tabletop:sim,episodes=1", "tabletop:hand,episodes=2,family=block2side"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: Path) -> Path:
    """Two packs, the index of a folder of videos, and a folder that is none of lapa's."""
    monkeypatch.setenv("LAPA_CACHE", str(tmp_path / "cache"))
    pack([ONE], 48, quiet=True)
    pack([TWO], 24, quiet=True)
    stream([f"video_folder:{clips}"], 16, quiet=True)
    (tmp_path / "cache/mine").mkdir()
    (tmp_path / "cache/mine/notes.txt").write_text("keep")
    return tmp_path / "cache"


def age(entry: Path, days: float) -> None:
    moment = time.time() - days * 86400
    for file in entry.rglob("*"):
        os.utime(file, (moment, moment))


def test_what_is_there(cache: Path, clips: Path) -> None:
    found = {(entry.dataset, entry.what): entry for entry in entries()}
    assert set(found) == {(ONE, "48 pixels"), (TWO, "24 pixels"), (f"video_folder:{clips}", "index")}
    one = found[ONE, "48 pixels"]
    assert one.bytes == sum(file.stat().st_size for file in one.path.iterdir())
    age(one.path, 3)
    lines = table(entries())
    assert len(lines) == 4
    assert lines[2].endswith("used 3 days ago")
    assert str(cache) in lines[3]
    pack([ONE], 48, quiet=True)
    assert "just now" in next(line for line in table(entries()) if ONE in line), "use is noted"


def test_by_dataset_by_age_or_all(cache: Path) -> None:
    age(next(entry.path for entry in entries() if entry.dataset == TWO), 10)
    assert [entry.dataset for entry in clear("9d")] == [TWO]
    assert [entry.dataset for entry in clear("tabletop:sim")] == [ONE]
    assert len(entries()) == 1
    with pytest.raises(LapaError, match=r"tabletop:sim.*--list"):
        clear("tabletop:sim")
    assert len(clear()) == 1
    assert [path.name for path in cache.iterdir()] == ["mine"]
    assert clear() == []


def test_what_is_being_made_stays(cache: Path) -> None:
    made = next(entry.path for entry in entries() if entry.dataset == ONE)
    started = made.with_name(f".{made.name}.part")
    made.rename(started)
    (started / META).unlink()
    assert next(entry.what for entry in entries() if entry.path == started) == "unfinished"
    clear()
    assert started.exists()
    age(started, 1)
    clear()
    assert not started.exists()


def test_a_large_cache_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(["tabletop:sim,episodes=2"], 48)
    assert "lapa cache --list" not in capsys.readouterr().err
    monkeypatch.setattr(cache_list, "MUCH", 1000)
    pack(["tabletop:sim,episodes=3"], 48)
    assert "lapa cache --list" in capsys.readouterr().err
    pack(["tabletop:sim,episodes=3"], 48)
    assert "lapa cache --list" not in capsys.readouterr().err, "only when something was packed"
