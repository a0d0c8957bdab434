"""`lapa collect`: any dataset becomes a LeRobot dataset, with its actions or without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lapa.contracts import LapaError
from lapa.data.pack import pack
from lapa.interop.collect import collect

SPEC = "tabletop:sim,episodes=3,seed=4"


def test_written_and_read_back_it_is_what_it_was(tmp_path: Path) -> None:
    counts = collect([SPEC], tmp_path / "data")
    before, after = (pack([spec], 48, quiet=True) for spec in (SPEC, f"lerobot:{tmp_path}/data"))
    [told] = counts.pop("notes")
    assert told.startswith("instructions: 3 from")
    assert counts == {"episodes": 3, "frames": len(before), "with": "with", "cameras": ["main"]}
    everything = np.arange(len(before))
    assert np.array_equal(before.gather(everything), after.gather(everything))
    assert before.actions is not None
    assert after.actions is not None
    assert np.array_equal(before.actions, after.actions)
    assert before.instructions == after.instructions


def test_without_actions_there_are_none_and_stage_3_says_so(tmp_path: Path) -> None:
    assert collect([SPEC], tmp_path / "video", without_actions=True)["with"] == "without"
    packed = pack([f"lerobot:{tmp_path}/video"], 48, quiet=True)
    assert packed.actions is None
    with pytest.raises(LapaError, match=r"video.* actions.* finetuning"):
        packed.require_actions("finetuning")
