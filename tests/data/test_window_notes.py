"""What is said of windows that episodes do not fit: too short, too slow, not quite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import pictures, video

from lapa.contracts import LapaError
from lapa.data.index import Index
from lapa.data.pack import pack
from lapa.data.pairs import tell_of_window, window_notes, window_pairs


def clips(root: Path, films: dict[str, tuple[int, float]]) -> Index:
    """Clips by name: frames and frames a second."""
    for name, (length, fps) in films.items():
        video(root / name, pictures(length), fps)
    return pack([f"video_folder:{root}"], 16, quiet=True)


def test_a_time_lapse_has_no_pairs_of_a_fifth_of_a_second(tmp_path: Path) -> None:
    lapse = clips(tmp_path / "slow", {"lapse.mp4": (6, 0.1)})
    with pytest.raises(LapaError, match=r"0\.2 s .* 10 s .*lapse\.mp4.*--window"):
        window_pairs(lapse, 0.2)
    assert len(window_pairs(lapse, 10)) == 5
    assert not window_notes(lapse, 10)
    both = clips(tmp_path / "both", {"lapse.mp4": (6, 0.1), "usual.mp4": (6, 10)})
    assert set(window_pairs(both, 0.2).episode) == {1}
    (said,) = window_notes(both, 0.2)
    assert all(word in said for word in ("1 of 2", "lapse.mp4", "10 s", "0.2 s"))


def test_a_window_that_no_two_frames_are_apart(tmp_path: Path) -> None:
    (said,) = window_notes(clips(tmp_path, {"rt1.mp4": (6, 3)}), 0.2)
    assert all(word in said for word in ("rt1.mp4", "0.333 s", "0.2 s"))


def test_clips_that_are_too_short_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = clips(tmp_path, {"a.mp4": (2, 10), "b.mp4": (3, 10), "c.mp4": (9, 10)})
    np.testing.assert_array_equal(np.unique(window_pairs(packed, 0.2).episode), [1, 2])
    tell_of_window(packed, 0.2)
    tell_of_window(packed, 0.2)
    said = capsys.readouterr().err
    assert said.count("1 of 3 episodes (a.mp4)") == 1
    assert not window_notes(packed, None)
