"""Freed memory stays with the process: a training step asks for the same blocks again and again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next request; without glibc, do nothing.

    By default it maps every block above 128 KiB afresh and hands it back when freed, so that each step pays a page
    fault for every 4 KiB of activations: a sixth of the time of a laptop-size step (docs/performance.md). Results do
    not change by a bit, and peak memory hardly."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not Linux with glibc
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
