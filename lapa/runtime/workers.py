"""Other processes of this machine, which end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import lapa

SAME_PACKAGE = (  # found beside this one, and nowhere else: a folder called lapa may lie where the user works
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); import lapa; del sys.path[0]; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
PARENT = "LAPA_PARENT"  # in a step's environment: the process id of the plan
PR_SET_PDEATHSIG = 1


def start(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE ARGUMENTS` with this very package, whatever lies in the working directory.

    module: "lapa" or a module of it. environment: in place of the present one. log: where its output and its errors go.
    """
    beside = str(Path(lapa.__file__).parents[1])
    command = [sys.executable, "-P", "-c", SAME_PACKAGE, beside, module, *arguments]
    both = {"stdout": log, "stderr": subprocess.STDOUT} if log else {}
    return subprocess.Popen(command, env=environment, **both)  # type: ignore[call-overload]


def until_all_have_ended(processes: Sequence[subprocess.Popen[bytes]], look: Callable[[], object]) -> list[int]:
    """Call `look` ten times a second until all have ended. Returns their exit codes, negative where a signal ended one.

    Where `look` raises, and on Ctrl-C, those that still run are stopped first.
    """
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            look()
    finally:
        stop(processes)
    return [process.wait() for process in processes]


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask all to stop (SIGTERM), and wait until they have."""
    asked = list(processes)
    for process in asked:
        process.terminate()
    for process in asked:
        process.wait()


def end_with_parent() -> None:
    """In a step: be asked to stop (SIGTERM) when the process that runs the plan dies, however it dies. Linux only."""
    parent = os.environ.pop(PARENT, "")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before we asked
            sys.exit(128 + signal.SIGTERM)
