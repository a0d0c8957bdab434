"""Plans of commands: order, resuming, failure, Ctrl-C; and the demo as such a plan."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from here import here, light

from lapa import cli
from lapa.contracts import LapaError
from lapa.experiments import demo, schedule
from lapa.experiments.schedule import PlanStep, run


def collecting(name: str, folder: Path, needs: tuple[str, ...] = (), domain: str = "sim") -> PlanStep:
    """Two demonstrations to disk: a few seconds, or none where it is `light`."""
    out = folder / name
    command = ("collect", "--dataset", f"tabletop:{domain},episodes=2", "--out", str(out))
    return PlanStep(name, command, out, out / "meta/info.json", needs)


def endless(folder: Path) -> PlanStep:
    out = folder / "endless"
    command = ("ground", "--steps", "100000", "--batch-size", "4", "--out", str(out))
    return PlanStep("endless", command, out, out / "config.json")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[schedule._Running]:
    """What `run` started, in order."""
    kept: list[schedule._Running] = []
    start = schedule._start

    def watched(step: PlanStep, folder: Path) -> schedule._Running:
        kept.append(start(step, folder))
        return kept[-1]

    monkeypatch.setattr(schedule, "_start", watched)
    return kept


def test_steps_wait_for_what_they_need_and_are_done_once(
    tmp_path: Path, started: list[schedule._Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    light(monkeypatch)
    steps = [collecting("last", tmp_path, ("first", "second")), collecting("first", tmp_path),
             collecting("second", tmp_path)]  # fmt: skip
    times = run(steps, tmp_path, workers=2)
    assert [r.step.name for r in started] == ["first", "second", "last"]
    assert started[2].started >= max(r.started for r in started[:2])
    assert set(times) == {"first", "second", "last"}
    assert json.loads((tmp_path / "seconds.json").read_text()) == times
    assert "Wrote 2 episodes" in (tmp_path / "logs/first.log").read_text()
    started.clear()
    assert run(steps, tmp_path) == times, "the times of the run that did the work"
    assert not started, "what is done is not done again"


def test_a_missing_result_is_made_again(
    tmp_path: Path, started: list[schedule._Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    light(monkeypatch)
    steps = [collecting("one", tmp_path), collecting("two", tmp_path)]
    run(steps[:1], tmp_path)
    run(steps, tmp_path)
    assert [r.step.name for r in started] == ["one", "two"]


def test_a_failing_step_is_shown_and_stops_the_others(tmp_path: Path, started: list[schedule._Running]) -> None:
    steps = [endless(tmp_path), collecting("typo", tmp_path, domain="smi"), collecting("never", tmp_path, ("typo",))]
    with pytest.raises(LapaError) as failed:
        run(steps, tmp_path, workers=2)
    message = str(failed.value)
    assert message.startswith("Step typo ")
    assert str(tmp_path / "logs/typo.log") in message
    assert '"sim"?' in message, "the end of the log is in the message"
    assert [r.step.name for r in started] == ["endless", "typo"]
    assert all(r.process.poll() is not None for r in started), "nothing goes on in the background"
    assert set(json.loads((tmp_path / "seconds.json").read_text())) == {"endless", "typo"}


def test_two_do_not_run_steps_in_one_folder(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(LapaError, match=str(tmp_path)):
        run([collecting("a", tmp_path)], tmp_path)
    assert not (tmp_path / "logs").exists()
    os.close(other)
    assert run([], tmp_path) == {}


def test_a_step_that_leaves_no_result_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light(monkeypatch)
    step = PlanStep("idle", ("list",), tmp_path / "idle", tmp_path / "idle/config.json")
    with pytest.raises(LapaError, match="Step idle "):
        run([step], tmp_path)


def test_ctrl_c_stops_the_steps(
    tmp_path: Path, started: list[schedule._Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        if (tmp_path / "endless/run.json").exists():
            raise KeyboardInterrupt
        assert started[0].process.poll() is None

    monkeypatch.setattr(schedule.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run([endless(tmp_path)], tmp_path)
    assert started[0].process.poll() == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "seconds.json").read_text())["endless"] > 0


def test_the_time_left_is_the_plan_played_out(tmp_path: Path) -> None:
    def step(name: str, seconds: float, *needs: str) -> PlanStep:
        return PlanStep(name, (), tmp_path, tmp_path / "never", needs, seconds)

    board = schedule._Board([], {})
    assert board.left([step("a", 10), step("b", 10), step("c", 10)], [], workers=2) == 20
    assert board.left([step("a", 10), step("b", 5, "a"), step("c", 1)], [], workers=2) == 15
    assert board.left([], [], workers=2) == 0


# --- the demo -------------------------------------------------------------------------------------

SMALL = ["--quick", "--videos", "12", "--labels", "4", "--episodes", "3", "--workers", "2"]


@pytest.mark.slow
def test_demo_interrupted_and_finished(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after the first step is done; the same command again, with small models, goes on to results and report."""
    monkeypatch.setattr(demo, "QUICK", (*demo.QUICK, *small))
    out = tmp_path / "demo"
    command = ["demo", *SMALL, "--out", str(out)]
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it\n"
        "from lapa.cli import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)
    first = [out / "data/videos/meta/info.json", out / "data/labelled/meta/info.json"]
    while not any(marker.exists() for marker in first):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "Traceback" not in message
    assert not (out / "results.json").exists()
    done = {marker: marker.stat().st_mtime_ns for marker in first if marker.exists()}

    with pytest.raises(SystemExit):
        cli.main([*command, "--seed", "1"])
    assert f"{out} " in capsys.readouterr().err.replace("\n", " ")

    started = here(monkeypatch).started
    cli.main(command)
    assert {marker: marker.stat().st_mtime_ns for marker in done} == done, "a finished step is not repeated"
    results = json.loads((out / "results.json").read_text())
    assert set(results["methods"]) == {"no_op", "random", "scratch", "vpt", "lapa", "actionvla", "expert"}
    for row in results["methods"].values():
        assert row["episodes"] == 3
        assert 0 <= row["interval"][0] <= row["success"] <= row["interval"][1] <= 1
    assert results["methods"]["no_op"]["success"] == 0
    assert results["methods"]["expert"]["success"] == 1
    assert {"action_r2", "displacement_r2", "position_r2", "perplexity", "error_over_copy"} <= set(results["probe"])
    assert set(results["seconds"]) == set(results["settings"]["commands"])
    assert results["settings"]["labels"] == 4
    made = results["settings"]["commands"]
    assert "tabletop:hand" in made["data/videos"], "by default the videos show a hand"
    assert "tabletop:sim" in made["data/labelled"]
    films = {path.stem.split("_", 2)[2] for path in (out / "pictures").glob("scene_0_*.gif")}
    assert films == {"lapa", "vpt", "scratch"}, "baselines are shown beside LAPA"
    report = (out / "report.html").read_text()
    assert "<script src" not in report, "one file that needs no other"
    assert len(report) > 100_000

    started.clear()
    cli.main([*command, "--unipi"])
    assert started
    assert all("unipi" in name for name in started), "UniPi is added, and nothing is trained again"
    assert list(json.loads((out / "results.json").read_text())["methods"])[3] == "unipi"
    longer = (out / "report.html").read_text()
    assert longer.count("data:image/png") == report.count("data:image/png") + 1
    assert "futures.png" not in longer, "the picture is in the page and not missing"


def test_fewer_than_no_workers(tmp_path: Path) -> None:
    """With -1 the last step was never started, and waited for."""
    for call in (lambda: run([endless(tmp_path)], tmp_path, -1), lambda: schedule.left([], tmp_path, -1)):
        with pytest.raises(LapaError, match="--workers is at least 1"):
            call()
