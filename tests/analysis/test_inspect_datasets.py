"""`lapa inspect` of datasets: sizes, rates, instructions, action ranges of each, and the files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made import pictures, rlds, video

from lapa.analysis.inspect import inspect_dataset
from lapa.data.spec import open_dataset


def test_several_datasets_each_with_its_own_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    robot, clips = f"rlds:{rlds(tmp_path / 'robot')},weight=3", f"video_folder:{tmp_path / 'clips'},weight=1"
    video(tmp_path / "clips/wave_slowly.mp4", pictures(8), 10)
    video(tmp_path / "clips/007.webm", pictures(6, 48, 64), 25)
    (tmp_path / "clips/broken.mp4").write_bytes(b"no video")
    inspect_dataset([robot, clips], tmp_path / "out", 24)
    shown = capsys.readouterr().out
    made = json.loads((tmp_path / "out/inspect.json").read_text())
    first, second = made["parts"]
    truth = np.concatenate([e.actions for e in open_dataset(robot).episodes()])  # type: ignore[union-attr,misc]
    for dimension, told in enumerate(first["actions"]):
        column = truth[:, dimension]
        assert (told["min"], told["max"]) == (column.min(), column.max())
        assert told["mean"] == pytest.approx(column.mean())
        assert told["std"] == pytest.approx(column.std())
    assert (second["actions"], made["dataset"]["actions"]) == (None, None)
    assert made["dataset"]["sizes"] == {"32 x 24": 3, "64 x 48": 1}
    assert made["dataset"]["fps"] == {"5": 2, "10": 1, "25": 1}
    assert made["dataset"]["instructions"] == {"distinct": 3, "longest": "push block 0", "missing": 1}
    assert (made["dataset"]["episodes"], made["dataset"]["frames"]) == (4, 23)
    assert made["dataset"]["hours"] == pytest.approx((9 / 5 + 8 / 10 + 6 / 25) / 3600)
    assert made["dataset"]["bad"][0].partition(": ")[0].endswith("broken.mp4")
    assert made["dataset"]["actions"] is None
    assert "broken.mp4" in shown
    assert (tmp_path / "out/contact_sheet.png").exists()
