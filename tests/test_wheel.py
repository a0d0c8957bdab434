"""What `pip install` of a built wheel gives a user: the package alone, in an empty folder, runs the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.wheel
def test_the_demo_runs_from_a_wheel(tmp_path: Path) -> None:
    source, empty, site = (tmp_path / name for name in ("source", "empty", "site"))
    shutil.copytree(ROOT / "lapa", source / "lapa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    empty.mkdir()
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(tmp_path, *pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", str(source))
    (wheel,) = (tmp_path / "dist").glob("lapa-*.whl")
    run(tmp_path, *pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    where = run(empty, "-P", "-c", "import lapa; print(lapa.__file__)", PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site), "the wheel, not the clone"
    run(empty, "-P", "-m", "lapa", "demo", "--quick", "--out", "demo", PYTHONPATH=str(site))
    assert (empty / "demo/report.html").stat().st_size > 10_000
