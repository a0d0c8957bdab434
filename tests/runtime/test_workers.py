"""Processes that lapa starts are of this very package, wherever the user works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lapa.contracts import LapaError
from lapa.experiments.schedule import PlanStep, run
from lapa.runtime.workers import start


def a_folder_called_lapa(where: Path) -> None:
    """What `python -m lapa` would take for the package."""
    (where / "lapa").mkdir()
    (where / "lapa/__init__.py").touch()
    (where / "lapa/__main__.py").write_text("import sys; sys.exit('the wrong lapa')\n")


@pytest.mark.slow
def test_a_plan_runs_beside_a_folder_called_lapa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_folder_called_lapa(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in [os.environ.get("PYTHONPATH", "")] if p))
    out = Path("made")
    collect = ("collect", "--dataset", "tabletop:sim,episodes=1", "--out", str(out))
    run([PlanStep("collect", collect, out, out / "meta/info.json")], Path("plan"))
    assert (out / "meta/info.json").exists()
    with pytest.raises(LapaError, match="Step wrong "):
        run([PlanStep("wrong", ("nothing",), out, out / "never")], Path("plan"))


def test_a_module_of_the_package_is_started_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_folder_called_lapa(tmp_path)
    monkeypatch.chdir(tmp_path)
    with Path("log").open("wb") as log:
        process = start("lapa", "list", log=log)
        assert process.wait() == 0, Path("log").read_text()
    assert "tabletop" in Path("log").read_text()
