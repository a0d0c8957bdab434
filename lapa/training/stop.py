"""Being asked to stop: SIGTERM (a scheduler, a container) and SIGINT (Ctrl-C) end a run after the present step.

A file `finish` in the folder of the run (`lapa stop RUN`) ends it early and keeps it: the artefact is written from
where it is. Who removes the file can go on with --resume.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lapa.artefacts.folder import FINISH, write_json

AT_ONCE = 1.0  # seconds: torchrun passes on a Ctrl-C that its processes have had from the terminal already


class Finish:
    """Looks, at most once in `every` seconds, whether the run in `out` is to be ended early and kept."""

    def __init__(self, out: Path, every: float = 1.0) -> None:
        self.file, self.every = out / FINISH, every
        self._asked, self._looked = self.file.exists(), time.monotonic()

    def asked(self) -> bool:
        """Whether it is; once it is, it stays so."""
        if not self._asked and time.monotonic() - self._looked >= self.every:
            self._asked, self._looked = self.file.exists(), time.monotonic()
        return self._asked

    def keep(self, step: int, steps: int) -> None:
        """Note in the file where the run has ended, for the artefact to tell."""
        write_json(self.file, {"step": step, "steps": steps})


class Stopped(Exception):
    """Raised in the middle of something that may be left undone, see `Stop.interrupts`."""


class Stop:
    """Context manager: remembers the first signal in `asked` (0: none); a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.interrupts = False
        """raise Stopped out of what is running, instead of only remembering"""
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background
                    self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since > AT_ONCE:
            self.__exit__()
            os.kill(os.getpid(), number)
        elif not self.asked:
            self.asked, self._since = number, time.monotonic()
            if self.interrupts:
                raise Stopped


def leave(number: int) -> NoReturn:
    """End as the signal would have: KeyboardInterrupt for Ctrl-C, else exit code 128 + number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
