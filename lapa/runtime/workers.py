"""Other processes of this machine, which end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
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


def end_with_parent() -> None:
    """In a step: be asked to stop (SIGTERM) when the process that runs the plan dies, however it dies. Linux only."""
    parent = os.environ.pop(PARENT, "")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before we asked
            sys.exit(128 + signal.SIGTERM)
