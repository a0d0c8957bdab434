"""What a run writes for those who watch it, read back: JSONL, TensorBoard, and what a tracker is sent."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lapa.contracts import LapaError
from lapa.runtime import progress
from lapa.runtime.progress import Progress
from lapa.training.logbook import Logbook, by_position, read_metrics, require


@pytest.fixture(autouse=True)
def _files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the files of one second by their number, as text: 10 comes before 9. In a process that has
    written nine files before, a resumed run would be read before the run that it resumes."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def board(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board(run).Scalars(name)]


def logged(run: Path, start: int, stop: int, **options: Any) -> None:
    """Write the steps after `start` up to `stop`; the figures are a function of the step, as those of `fit` are."""
    with Logbook(run, start, **options) as book:
        for step in range(start + 1, stop + 1):
            if step % 2 == 0:
                picture = run / f"picture_{step}.png"
                Image.fromarray(np.full((4, 6, 3), step, np.uint8)).save(picture)
                book.picture("look", picture)
            book.write(step, {"loss": 1 / step, "watched/r2": step / 8})


def test_figures_and_pictures_arrive(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "laq", "seed": 3}')
    logged(tmp_path, 0, 4)
    assert lines(tmp_path) == [{"step": s, "loss": 1 / s, "watched/r2": s / 8} for s in (1, 2, 3, 4)]
    assert scalars(tmp_path, "loss") == [(s, pytest.approx(1 / s)) for s in (1, 2, 3, 4)]
    assert scalars(tmp_path, "watched/r2") == [(s, s / 8) for s in (1, 2, 3, 4)]
    pictures = board(tmp_path).Images("look")
    assert [(p.step, p.width, p.height) for p in pictures] == [(2, 6, 4), (4, 6, 4)]
    assert '"seed": 3' in board(tmp_path).Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("checkpoint", [0, 2])
def test_a_resumed_run_logs_every_step_once(checkpoint: int, tmp_path: Path) -> None:
    """Killed at step 5, four lines after the checkpoint of step 2 (or before any); resumed; killed; resumed again."""
    logged(tmp_path, 0, 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    logged(tmp_path, checkpoint, 3)
    logged(tmp_path, checkpoint, 7)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert scalars(tmp_path, "loss") == [(s, pytest.approx(1 / s)) for s in range(1, 8)]
    assert [picture.step for picture in board(tmp_path).Images("look")] == [2, 4, 6]


def test_nothing_is_lost_when_a_run_is_killed(tmp_path: Path) -> None:
    """What was written is on disk at once: no close, no flush, as after kill -9."""
    book = Logbook(tmp_path)
    book.write(1, {"loss": 0.5})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert scalars(tmp_path, "loss") == [(1, 0.5)]
    book.__exit__(None, None, None)


def test_of_many_processes_one_keeps_the_book(tmp_path: Path) -> None:
    with Logbook(tmp_path / "run", quiet=True) as book:
        book.picture("look", tmp_path / "picture.png")
        book.write(1, {"loss": 0.5})
    assert not list(tmp_path.iterdir())


def test_read_metrics_while_a_run_writes(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lr": 1}\n{"step": 3, "lr": 2, "r2": 0.5}\n{"step": 4, "l')
    assert read_metrics(tmp_path) == {"lr": ([1, 3], [1.0, 2.0]), "r2": ([3], [0.5])}


def test_positions_are_figures_of_their_own() -> None:
    assert by_position({"a": 1.0, "p": [2.0, 3.0]}) == {"a": 1.0, "p_0": 2.0, "p_1": 3.0}


# --- trackers -------------------------------------------------------------------------------------


class Told(ModuleType):
    """Stands in for trackio and wandb, which share an interface: remembers what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        self.started: list[dict[str, Any]] = []
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[dict[str, Any]] = []
        self.Settings, self.Image = dict, Path

    def init(self, **settings: Any) -> None:
        self.started.append(settings)

    def log(self, figures: dict[str, Any], step: int) -> None:
        self.sent.append((step, figures))

    def finish(self, **how: Any) -> None:
        self.ended.append(how)


@pytest.fixture(params=["trackio", "wandb"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told(request.param)
    monkeypatch.setitem(sys.modules, request.param, told)
    return told


def test_a_tracker_is_sent_every_step_once(tracker: Told, tmp_path: Path) -> None:
    name: Any = tracker.__name__
    (tmp_path / "run.json").write_text('{"seed": 3}')
    logged(tmp_path, 0, 5, tracker=name)
    logged(tmp_path, 2, 3, tracker=name)  # resumed, and killed before it came as far again
    logged(tmp_path, 2, 7, tracker=name)
    assert [step for step, _ in tracker.sent] == [1, 2, 3, 4, 5, 6, 7]
    assert tracker.sent[5] == (6, {"loss": 1 / 6, "watched/r2": 6 / 8, "look": tmp_path / "picture_6.png"})
    one, *again = [settings["name"] for settings in tracker.started]
    assert one.startswith(tmp_path.name)
    assert again == [one, one], "one run for the tracker, however often it is resumed"
    assert all(s["resume"] == "allow" and s["config"] == {"seed": 3} for s in tracker.started)
    assert len(tracker.ended) == 3


def test_a_run_that_fails_is_not_finished_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", told := Told("wandb"))
    with pytest.raises(ZeroDivisionError), Logbook(tmp_path, tracker="wandb"):
        raise ZeroDivisionError
    assert told.ended == [{"exit_code": 1}]


def test_a_tracker_that_does_not_start(tracker: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(tracker, "init", refuse)
    with pytest.raises(LapaError, match=f"{tracker.__name__} .*: no network"):
        Logbook(tmp_path, tracker=tracker.__name__)  # type: ignore[arg-type]


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require("none")
    with pytest.raises(LapaError, match=r"--log wandb .*: pip install wandb"):
        require("wandb")


# --- the console ----------------------------------------------------------------------------------


def test_the_console_says_units_time_left_and_what_it_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, *(100.0 + 8 * i for i in range(1, 200))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("LAQ", 2000, done=1000) as bar:
        for step in range(1001, 1100):
            bar.update(step, {"loss": 0.25, "mse": 0.25, "perplexity": 7.5})
    first, *more, last = capsys.readouterr().err.splitlines()
    assert re.search(r"^LAQ: 1,002 .*2,000 .*2 h 13 min .*0\.125 .*loss 0\.25, perplexity 7\.5$", first)
    assert 10 < len(more) < 50, "fewer and fewer lines"
    assert re.search(r"^LAQ: 99 steps .*13 min 20 s, 0\.124 ", last)


def test_only_one_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("LAQ", 2, quiet=True) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.21, "3.2 s"), (45.4, "45 s"), (119.6, "2 min 00 s"), (11100, "3 h 05 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words
