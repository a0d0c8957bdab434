"""The logbook of a run: its figures and pictures, step by step.

    RUN/metrics.jsonl   one line a logged step: the source of truth, and what `lapa inspect RUN` draws
    RUN/tensorboard     the same figures and the pictures:  tensorboard --logdir RUN
    a tracker           trackio or W&B, on request (--log trackio, --log wandb)

A resumed run continues from its checkpoint and logs the steps after it again. JSONL and TensorBoard forget those
steps first. A tracker cannot forget, so it is never sent a step twice; the steps that are repeated give the same
figures.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from lapa.artefacts.folder import read_json, replacing, write_json
from lapa.contracts import LapaError, Logs

Tracker = Literal["none", "trackio", "wandb"]
PROJECT = "lapa"  # of the trackers
FILE = "metrics.jsonl"


class Sink(Protocol):
    """One of the places that a logbook writes to."""

    def write(self, step: int, logs: Logs, pictures: Mapping[str, Path]) -> None: ...

    def close(self, failed: bool) -> None: ...


class Logbook:
    """Context manager; `write` a step's figures, `picture` what belongs to the next step that is written."""

    def __init__(self, out: Path, start: int = 0, tracker: Tracker = "none", quiet: bool = False) -> None:
        """Open the logbook of the run in `out`, which continues after step `start` (0: from the beginning).

        `quiet` writes nothing: of many processes one alone writes. Raises LapaError when the tracker is not
        installed or does not start.
        """
        self._sinks: list[Sink] = []
        self._pictures: dict[str, Path] = {}
        if quiet:
            return
        out.mkdir(parents=True, exist_ok=True)
        about = read_json(out / "run.json", "settings of the run") if (out / "run.json").exists() else {}
        sent = [_Sent(out, tracker, about)] if tracker != "none" else []  # first: if it fails, nothing has begun
        self._sinks = [_Lines(out, start), _Board(out, start, about), *sent]

    def write(self, step: int, logs: Logs) -> None:
        """Figures of optimizer step number `step` (from 1), and the pictures handed in since the last call."""
        for sink in self._sinks:
            sink.write(step, logs, self._pictures)
        self._pictures = {}

    def picture(self, name: str, path: Path) -> None:
        """A PNG on disk that shows the state at the step that is written next."""
        self._pictures[name] = path

    def __enter__(self) -> Logbook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close(failed=kind is not None)


def _text(path: Path) -> list[str]:
    """Of metrics.jsonl. A disk that was full can leave bytes that are no text in the last one."""
    return path.read_text("utf-8", "replace").splitlines()


class _Lines:
    """metrics.jsonl. Opened for each line, so that a kill can tear the last one at most."""

    def __init__(self, out: Path, start: int) -> None:
        self.path = out / FILE
        if self.path.exists():
            kept = [line for line in _text(self.path) if _step_of(line) <= start]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, logs: Logs, pictures: Mapping[str, Path]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **logs}) + "\n")

    def close(self, failed: bool) -> None:
        """Nothing is open."""


class _Board:
    """TensorBoard's event files; its readers forget what an earlier file has of the steps from `purge_step` on."""

    def __init__(self, out: Path, start: int, about: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # 0.2 s that `lapa list` need not wait

        self.writer = SummaryWriter(out / "tensorboard", purge_step=start + 1 if start else 0)
        if not start:
            self.writer.add_text("run", f"```json\n{json.dumps(about, indent=1)}\n```")

    def write(self, step: int, logs: Logs, pictures: Mapping[str, Path]) -> None:
        for name, value in logs.items():
            self.writer.add_scalar(name, value, step)
        for name, path in pictures.items():
            with Image.open(path) as picture:
                self.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()  # no checkpoint is ahead of what is on disk, so a kill leaves no gap

    def close(self, failed: bool) -> None:
        self.writer.close()


class _Sent:
    """A tracker, and in RUN/tracker.json the name of its run and the last step that it was sent."""

    def __init__(self, out: Path, kind: str, about: Mapping[str, Any]) -> None:
        require(kind)
        self.kind, self.module, self.mark = kind, importlib.import_module(kind), out / "tracker.json"
        self.sent: dict[str, Any] = read_json(self.mark, "mark of what was sent") if self.mark.exists() else {}
        if self.sent.get("kind") != kind:
            self.sent = {"kind": kind, "name": f"{out.name}-{secrets.token_hex(3)}", "step": 0}
        settings: dict[str, Any] = {"project": PROJECT, "name": self.sent["name"], "config": about, "resume": "allow"}
        if kind == "wandb":
            settings |= {"id": self.sent["name"], "dir": str(out)}
            settings |= {"settings": self.module.Settings(console="off")}  # else it captures the progress bar
        try:
            self.module.init(**settings)
        except Exception as error:  # each tracker has its own errors: no network, no login, no space
            hint = "log in with `wandb login`, or write to disk with WANDB_MODE=offline, or " if kind == "wandb" else ""
            reason = str(error).rstrip(".")
            raise LapaError(f"{kind} did not start: {reason}. To go on, {hint}leave --log {kind} out.") from error

    def write(self, step: int, logs: Logs, pictures: Mapping[str, Path]) -> None:
        if step <= self.sent["step"]:
            return
        self.sent["step"] = step
        write_json(self.mark, self.sent)  # before it is sent: a kill in between loses one point and doubles none
        self.module.log({**logs, **{name: self.module.Image(str(path)) for name, path in pictures.items()}}, step=step)

    def close(self, failed: bool) -> None:
        self.module.finish(**({"exit_code": int(failed)} if self.kind == "wandb" else {}))


def require(tracker: str) -> None:
    """Raise LapaError when a tracker is asked for that is not installed."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise LapaError(f"--log {tracker} needs the package {tracker}: pip install {tracker}")


def read_metrics(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (steps, values) of all that the run in folder `run` has logged so far; empty if nothing.

    A run may be writing while this reads: a last line that is torn is left out.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    if not (run / FILE).exists():
        return found
    for line in _text(run / FILE):
        if math.isinf(step := _step_of(line)):
            continue
        for name, value in json.loads(line).items():
            if name != "step":
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(step))
                values.append(float(value))
    return found


def by_position(figures: Mapping[str, float | list[float]]) -> Logs:
    """Lists, one figure a position of the code, as figures of their own: "perplexity_0", "perplexity_1", ..."""
    flat: Logs = {}
    for name, value in figures.items():
        flat |= {f"{name}_{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
    return flat


def _step_of(line: str) -> float:
    """The step of a line; infinity for one that a full disk or a kill has torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
