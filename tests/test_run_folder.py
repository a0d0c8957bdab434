"""A run that is ended early and kept, one that is let go on after all, and one that is made longer."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lapa import cli
from lapa import stage1_latent_actions as stage1
from lapa.artefacts.folder import ended_early, load_artefact
from lapa.contracts import LapaError
from lapa.data.folders import new_folder
from lapa.runtime.alone import alone
from lapa.training.resume import Checkpoints

STEPS = 6


@pytest.fixture(autouse=True)
def _few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAQ is watched at half of the steps and at the end: looks take longer than steps here."""
    monkeypatch.setattr(stage1, "_first_look", lambda recipe: max(1, recipe.quantize.steps // 2))


def run(*arguments: object) -> None:
    cli.main([str(a) for a in arguments])


def command(robot: Path, small: list[str], out: Path, steps: int = STEPS) -> list[object]:
    data = ("--dataset", f"lerobot:{robot}")
    return ["quantize", *data, *small, "--out", out, "--steps", steps, "--resume"]


def steps_there(out: Path) -> list[int]:
    return Checkpoints(out, 0, 2).steps()


def test_ended_early_and_kept(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends after the step at hand, the artefact says so, and the same command then leaves it as it is."""
    out = tmp_path / "laq"
    out.mkdir()
    (out / "finish").touch()  # from before the first step on: it is the one at hand
    run(*command(robot, small, out))
    assert "step 1 of 6" in capsys.readouterr().err
    made = load_artefact(out, "laq")
    assert made.config["ended_early"] == {"step": 1, "steps": STEPS}
    assert steps_there(out) == [1]
    run(*command(robot, small, out))
    assert "step 1 of 6" in capsys.readouterr().out
    assert load_artefact(out, "laq").hash == made.hash
    run("label", "--dataset", f"lerobot:{robot}", "--source", out, "--out", tmp_path / "labels")


def test_two_do_not_train_in_one_folder(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "laq"
    out.mkdir()
    other = os.open(out, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(SystemExit):
        run(*command(robot, small, out))
    assert f"Another lapa writes to {out}" in capsys.readouterr().err
    assert not any(out.iterdir())
    os.close(other)
    run(*command(robot, small, out, steps=1))
    other = os.open(out, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the command let go
    os.close(other)


@pytest.mark.parametrize("command", ["evaluate", "protocol"])
def test_two_do_not_judge_in_one_folder(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "out", tmp_path / "protocol.yaml"
    out.mkdir()
    run("protocol", "--example")
    file.write_text(capsys.readouterr().out)
    asked = {"evaluate": ("--row", "random", "--benchmark", "tabletop:sim", "--episodes", 2), "protocol": (file,)}
    other = os.open(out, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(SystemExit):
        run(command, *asked[command], "--out", out)
    os.close(other)
    assert f"Another lapa writes to {out}" in capsys.readouterr().err
    assert not any(out.iterdir())


def test_what_is_written_when_sigterm_comes_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        """Stopped in the middle."""
        with new_folder(tmp_path / "data") as work:
            (work / "half").write_text("")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    monkeypatch.setattr(cli, "COMMANDS", {"write": write, "list": write})
    with pytest.raises(SystemExit) as left:
        cli.main(["write"])
    assert left.value.code == 143
    assert "stopped (SIGTERM)" in capfd.readouterr().err
    assert not any(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_disk_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with alone(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert f"{tmp_path / 'run'} lies on a disk without locks" in capsys.readouterr().err


def test_killed_before_the_artefact_was_made(robot: Path, small: list[str], tmp_path: Path) -> None:
    """What was asked for stays asked for: no further step is trained."""
    out = tmp_path / "laq"
    out.mkdir()
    (out / "finish").touch()
    run(*command(robot, small, out))
    before = load_artefact(out, "laq").hash
    (out / "config.json").unlink()
    run(*command(robot, small, out))
    assert steps_there(out) == [1]
    assert load_artefact(out, "laq").hash == before


@pytest.mark.slow
def test_an_end_that_is_taken_back(robot: Path, small: list[str], tmp_path: Path) -> None:
    """Without the file it goes on to the end, and is what an unbroken run is."""
    out, unbroken = tmp_path / "laq", tmp_path / "unbroken"
    out.mkdir()
    (out / "finish").touch()
    run(*command(robot, small, out))
    (out / "finish").unlink()
    run(*command(robot, small, out))
    run(*command(robot, small, unbroken))
    made, whole = load_artefact(out, "laq"), load_artefact(unbroken, "laq")
    assert made.hash == whole.hash
    assert "ended_early" not in made.config


def test_lapa_stop(robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "laq"
    with pytest.raises(SystemExit) as ended:
        run("stop", out)
    assert ended.value.code == 1
    run(*command(robot, small, out, steps=1))
    run("stop", out)
    assert not (out / "finish").exists()
    (out / "config.json").unlink()  # as if it still trained
    run("stop", out)
    assert (out / "finish").exists()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_made_longer(
    schedule: str, robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a constant rate the longer run is what it would have been from the start; otherwise it says that it is not.

    Until the longer one is there, the artefact of the shorter one stays in use.
    """
    options = [*small, "--set", f"quantize.schedule={schedule}", "--set", "quantize.warmup=0"]
    out, whole = tmp_path / "laq", tmp_path / "whole"
    run(*command(robot, options, out, 3))
    short = load_artefact(out, "laq")
    capsys.readouterr()
    run(*command(robot, options, out, STEPS))
    said = capsys.readouterr().out
    assert "from step 3 to 6 (planned before: 3)" in said
    assert ("planned anew" in said) == (schedule == "cosine")
    made = load_artefact(out, "laq")
    assert made.hash != short.hash
    assert made.config["recipe"]["quantize"]["steps"] == STEPS
    assert json.loads((out / "run.json").read_text())["recipe"]["quantize"]["steps"] == STEPS
    run(*command(robot, options, whole, STEPS))
    assert (load_artefact(whole, "laq").hash == made.hash) == (schedule == "constant")
    run(*command(robot, options, out, STEPS))
    assert load_artefact(out, "laq").hash == made.hash, "it is finished"
    with pytest.raises(SystemExit):
        run(*command(robot, options, out, 3))
    assert f"{STEPS} steps" in capsys.readouterr().err


def test_made_longer_with_the_start_that_was_chosen(robot: Path, small: list[str], tmp_path: Path) -> None:
    options = [*small, "--set", 'starts=[{"threshold":0.8},{"threshold":0.9}]', "--set", "hold_out=3"]
    out = tmp_path / "laq"
    run(*command(robot, options, out, 4))
    chosen = load_artefact(out, "laq").config["starts"]
    run(*command(robot, options, out, STEPS))
    made = load_artefact(out, "laq").config
    assert made["starts"] == chosen
    assert made["model"]["quantizer_options"]["threshold"] == (0.8, 0.9)[chosen["chosen"]]


def test_resumed_on_other_data(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other episodes of the dataset are another setting, and a dataset whose content changed is other data: neither is
    mixed into a run that has begun."""
    data = shutil.copytree(robot, tmp_path / "robot")

    def trained(options: str, steps: int, out: Path) -> None:
        data_spec = f"lerobot:{data}{options}"
        run("quantize", "--dataset", data_spec, *small, "--out", out, "--steps", steps, "--resume")

    out = tmp_path / "laq"
    trained(",episodes=0-5", 1, out)
    for options in (",episodes=6-11", ",without=0-5", ",episodes=0-5,stride=2", ""):
        with pytest.raises(SystemExit):
            trained(options, 2, out)
        assert "other settings (dataset" in capsys.readouterr().err
    tasks = data / "meta/tasks.parquet"
    table = pq.read_table(tasks)
    said = pa.array([f"{text} now" for text in table["task"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("task"), "task", said), tasks)
    with pytest.raises(SystemExit):
        trained(",episodes=0-5", 2, out)
    assert "other data" in capsys.readouterr().err
    started = json.loads((out / "run.json").read_text())
    fresh = tmp_path / "fresh"  # a start that came to nothing holds nobody to its data
    fresh.mkdir()
    (fresh / "run.json").write_text(json.dumps(started))
    trained(",episodes=0-5", 1, fresh)


def test_a_folder_of_other_things_is_no_run_to_go_on_with(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SystemExit):
        run(*command(robot, small, tmp_path))
    assert "no run to go on with: there is notes.txt" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_files_of_a_run_that_are_spoilt(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence that names the file, and no traceback."""
    out = tmp_path / "laq"
    run(*command(robot, small, out, 1))
    started, log = out / "run.json", out / "metrics.jsonl"
    whole = json.loads(started.read_text())
    for text in (
        "[]",
        "null",
        '{"recipe": 3}',
        json.dumps({**whole, "dataset": 3}),
        json.dumps({**whole, "labelled": 3}),
    ):
        started.write_text(text)
        with pytest.raises(SystemExit):
            run(*command(robot, small, out, 2))
        assert "run.json" in capsys.readouterr().err
    for steps in (3, {"steps": "x"}):
        started.write_text(json.dumps({**whole, "recipe": {**whole["recipe"], "quantize": steps}}))
        with pytest.raises(SystemExit):
            run(*command(robot, small, out, 2))
        assert "other settings" in capsys.readouterr().err
    started.write_text(json.dumps(whole))
    log.write_bytes(log.read_bytes() + b'{"step": 1, "l\xff')
    run(*command(robot, small, out, 2))
    (out / "finish").write_text("[1]")
    with pytest.raises(LapaError, match="finish"):
        ended_early(out)


@pytest.mark.parametrize("what", ["labels", "policy"])
def test_resumed_on_labels_or_a_policy_made_anew(
    what: str, chain: Path, robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was begun on one is not finished on another that has its name."""
    given, out = tmp_path / what, tmp_path / "out"
    data = ("--dataset", f"lerobot:{robot}", *small, "--out", out, "--resume")
    command = {"labels": ("pretrain", *data, "--labels", given), "policy": ("finetune", *data, "--policy", given)}[what]
    command = (*command, *(("--head", "own") if what == "policy" else ()))

    def made(number: int) -> None:
        shutil.rmtree(given, ignore_errors=True)
        if what == "policy":
            labels = ("--dataset", f"lerobot:{robot}", "--labels", chain / "labels")
            run("pretrain", *labels, *small, "--steps", 1, "--seed", number, "--out", given)
        else:
            end = ("drop", "clip")[number]
            run("label", "--dataset", f"lerobot:{robot}", "--source", chain / "laq", "--out", given, "--end", end)

    made(0)
    run(*command, "--steps", 1)
    made(1)
    with pytest.raises(SystemExit):
        run(*command, "--steps", 2)
    assert f"{given} has changed since" in capsys.readouterr().err
    made(0)
    run(*command, "--steps", 2)


def test_no_memory_is_no_stream(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(*command(robot, small, tmp_path / "laq"), "--stream", 0)
    assert "--stream is at least 1 MB, such as 1000, not 0" in capsys.readouterr().err
