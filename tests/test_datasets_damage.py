"""Damaged files: never a traceback, never silence about the file, and the other episodes as if it were not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made import frame_folders, jsonl, lerobot_v21, pictures, rlds, something, video

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.spec import open_dataset

TIMES = 40  # damages of each kind of dataset


def clips(root: Path) -> Path:
    for name in ("a.mp4", "b.webm", "c.mkv", "d.avi", "e.gif", "f.mov"):
        video(root / name, pictures(12))
    return root


MAKERS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], str | None]]] = {
    # made by, options, which episode a file belongs to (None: to several)
    "video_folder": (clips, "", lambda f: f.name),
    "frame_folder": (frame_folders, ",fps=5", lambda f: {"lift_cup": "lift_cup"}.get(f.parent.name, "more/turn_lever")),
    "something_v2": (something, ",split=all", lambda f: f.stem if f.suffix == ".webm" else None),
    "lapa_jsonl": (jsonl, ",fps=5", lambda f: f"demo/{f.parent.name}" if f.suffix == ".png" else None),
    "rlds": (rlds, "", lambda f: None),
    "lerobot": (
        lambda root: lerobot_v21(root, (4, 5, 6)),
        "",
        lambda f: None if f.parent.name == "meta" else f.stem,
    ),
}


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """Cut off, some bytes changed, some taken out, or something else altogether."""
    kind, place = random.integers(4), int(random.integers(max(len(data) - 8, 1)))
    if kind == 0:
        return data[:place]
    if kind == 1:
        changed = bytearray(data)
        for where in random.integers(0, len(data), 20):
            changed[where] ^= int(random.integers(1, 256))
        return bytes(changed)
    return data[:place] + data[place + 8 :] if kind == 2 else random.bytes(200)


def held(spec: str) -> dict[str, Episode] | LapaError:
    """What can be read, or the error of a dataset that cannot be opened. An error without a path is a failure."""
    try:
        found = list(open_dataset(spec).episodes(16))
    except LapaError as error:
        return error
    for one in found:
        assert not isinstance(one, BadVideo) or "/" in str(one).split(": ")[0], f"no path: {one}"
    return {one.id: one for one in found if isinstance(one, Episode)}


@pytest.mark.filterwarnings("ignore")  # Pillow's about damaged files
@pytest.mark.parametrize("name", MAKERS)
def test_damage_stays_where_it_is(name: str, tmp_path: Path) -> None:
    make, options, owner = MAKERS[name]
    path = make(tmp_path / "data")
    spec = f"{name}:{path}{options}"
    clean = held(spec)
    assert isinstance(clean, dict)
    random = np.random.default_rng(0)
    files = sorted(p for p in (tmp_path / "data").rglob("*") if p.is_file())
    for _ in range(TIMES):
        file = files[random.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(damage(whole, random))
        found = held(spec)
        if isinstance(found, LapaError):
            assert str(tmp_path / "data") in str(found)
        elif owner(file) is not None:
            for episode in clean.keys() - {owner(file)}:
                assert episode in found, f"damage to {file} lost {episode}"
                np.testing.assert_array_equal(clean[episode].frames, found[episode].frames)
        file.write_bytes(whole)
