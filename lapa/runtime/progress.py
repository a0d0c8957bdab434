"""Progress of a long step: a bar with the time left on a terminal, a line now and then in a log, what it took at the
end, and a small file that `lapa demo` reads from the steps it runs side by side."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from lapa.artefacts.folder import replacing
from lapa.contracts import Logs

# What of the logs is shown, where there is room.
SHOWN = {"loss": "loss", "error_over_copy": "error/copy", "perplexity": "perplexity", "perplexity_0": "perplexity_0",
         "accuracy": "accuracy"}  # fmt: skip
BAR = 16  # characters of the bar
SOON = 10.0  # seconds to the first line in a log; the gaps grow with the run, to a thirtieth of it


class Progress:
    """Context manager; `update(done, logs)` as often as you like. `unit` is what is counted."""

    def __init__(
        self,
        title: str,
        total: int,
        out: Path | None = None,
        done: int = 0,
        quiet: bool = False,
        unit: str = "steps",
    ) -> None:
        self.title, self.total, self.quiet, self.unit = title, total, quiet, unit
        self.first = self.done = done
        self.file = out / "progress" if out and not quiet else None
        self.started = self._told = self._wrote = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.quiet:
            self._bar = RichProgress(
                TextColumn("{task.description}"), BarColumn(BAR), MofNCompleteColumn(), TextColumn(self.unit),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[logs]}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.first, logs="")
        return self

    def update(self, done: int, logs: Logs | None = None) -> None:
        """Say that `done` of `total` are done."""
        now, self.done = time.monotonic(), done
        shown = [f"{words} {logs[name]:.3g}" for name, words in SHOWN.items() if name in logs] if logs else []
        if self._bar:
            taken = len(f"{self.title} {self.total}/{self.total} {self.unit} 0:00:00 left 0:00:00 ") + BAR + 2
            room = self._bar.console.width - taken  # rich would squeeze all columns alike, the times too
            while shown and len("  ".join(shown)) > room:
                shown.pop()
            self._bar.update(self._task, completed=done, logs="  ".join(shown))
        elif not self.quiet and now - self._told > max(SOON, (now - self.started) / 30):
            rate = (done - self.first) / (now - self.started)
            fast = [f"{duration((self.total - done) / rate)} left", f"{rate:.3g} a second"] if rate else []
            said = [f"{done:,} of {self.total:,} {self.unit}", *fast, *shown]
            print(f"{self.title}: {', '.join(said)}", file=sys.stderr, flush=True)
            self._told = now
        if self.file and (now - self._wrote > 0.5 or done == self.total):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as temporary:  # another process reads it while we write
                temporary.write_text(f"{done} {self.total}")
            self._wrote = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self.file:
            self.file.unlink(missing_ok=True)
        done, took = self.done - self.first, time.monotonic() - self.started
        if kind is None and done and not self.quiet:
            rate = f", {done / took:.3g} a second" if took > 1 else ""
            print(f"{self.title}: {done:,} {self.unit} in {duration(took)}{rate}.", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """ "3.2 s", "45 s", "2 min 10 s" or "3 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
