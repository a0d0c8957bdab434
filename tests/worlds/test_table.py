"""The paper's table in Meta-World, from nothing to its figures, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from here import here

from lapa import cli, plugins

if how := plugins.missing("benchmarks", "metaworld"):
    pytest.skip(f"metaworld is not installed: {how}", allow_module_level=True)

OTHER = "metaworld:button-press-topdown-v3"  # in the place of another robot, whose simulator takes longer


@pytest.mark.slow
def test_a_table_from_nothing(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = here(monkeypatch).started
    out = tmp_path / "table"
    where = ["--benchmark", "metaworld:reach-v3+push-v3,size=32", "--other", f"{OTHER},size=32"]
    part = ["--settings", "cross-task,cross-embodiment", "--methods", "expert,lapa", "--budgets", "1", "--seeds", "1"]
    few = ["--videos", "2", "--episodes", "1", "--quick", "--preset", "laptop", *small]
    command = ["compare", *where, *part, *few, "--out", str(out)]
    cli.main(command)
    told = capsys.readouterr().out
    assert (out / "table.md").read_text() in told
    results = json.loads((out / "results.json").read_text())
    assert (out / "curves.png").exists()
    assert {setting: list(splits) for setting, splits in results["table"].items()} == {
        "cross-task": ["others"], "cross-embodiment": ["test"],
    }  # fmt: skip
    others = results["cells"]["seed0/lapa/home+some1/others"]
    assert (others["episodes"], list(others["families"])) == (1, ["push-v3"])
    tried = results["cells"]["seed0/lapa/metaworld_button-press-topdown-v3+1/test"]
    assert (tried["episodes"], list(tried["stages"]["push-v3"])) == (2, ["reached", "moved", "lifted"])
    assert results["cells"]["seed0/expert/test"]["success"] == 1
    assert len([name for name in started if "/data/" in name]) == 4
    started.clear()
    cli.main(command)
    assert not started
