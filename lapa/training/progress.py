"""Progress of a long step: a bar with the time left on a terminal, a line now and then in a log, and a small file
that `lapa demo` reads from the steps it runs side by side."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from lapa.contracts import Logs

SHOWN = 3  # how many logged figures fit on the bar


class Progress:
    """Context manager; `update(done, logs)` as often as you like."""

    def __init__(self, title: str, total: int, out: Path | None = None, done: int = 0, quiet: bool = False) -> None:
        self.title, self.total, self.first, self.quiet = title, total, done, quiet
        self.file = out / "progress" if out and not quiet else None
        self.started = self._told = self._wrote = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.quiet:
            self._bar = RichProgress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[logs]}"), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.first, logs="")
        return self

    def update(self, done: int, logs: Logs | None = None) -> None:
        """Say that `done` of `total` are done."""
        now = time.monotonic()
        shown = "  ".join(f"{k} {v:.3g}" for k, v in list((logs or {}).items())[:SHOWN])
        if self._bar:
            self._bar.update(self._task, completed=done, logs=shown)
        elif now - self._told > 20 and not self.quiet:
            left = (now - self.started) / max(done - self.first, 1) * (self.total - done)
            print(f"{self.title}: {done}/{self.total}, {left:.0f} s left  {shown}", file=sys.stderr, flush=True)
            self._told = now
        if self.file and (now - self._wrote > 0.5 or done == self.total):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(f"{done} {self.total}")
            self._wrote = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self.file:
            self.file.unlink(missing_ok=True)
