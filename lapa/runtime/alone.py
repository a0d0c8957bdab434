"""One process at a time in a folder: two that write the same files would mix them."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lapa.contracts import LapaError

_held: dict[Path, int] = {}  # a lock goes with its process, however that ends


def hold(folder: Path) -> None:
    """Keep other processes out of `folder`, which is made, until `let_go`; what this process holds it may hold again.

    Raises LapaError while another process holds it. On a disk that knows no locks it says so, and does not hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if place in _held:
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise LapaError(f"Another lapa writes to {folder}. Wait for it, or give another --out.") from None
        print(f"Note: {folder} lies on a disk without locks ({error.strerror}): two commands must not write to it at "
              "the same time.", file=sys.stderr)  # fmt: skip
    else:
        _held[place] = descriptor


def let_go() -> None:
    """Let other processes into all folders that this one holds."""
    while _held:
        os.close(_held.popitem()[1])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for the length of a with-block."""
    before = set(_held)
    hold(folder)
    try:
        yield
    finally:
        for place in _held.keys() - before:
            os.close(_held.pop(place))
