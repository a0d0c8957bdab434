"""Other processes of this machine, which end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "LAPA_PARENT"  # in a step's environment: the process id of the plan
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """In a step: be asked to stop (SIGTERM) when the process that runs the plan dies, however it dies. Linux only."""
    parent = os.environ.pop(PARENT, "")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before we asked
            sys.exit(128 + signal.SIGTERM)
