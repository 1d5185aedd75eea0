"""The process's memory between steps.

Every step frees what it allocated. By default glibc hands large blocks back to the system at once,
and the next step pays a page fault for each of the same pages: 15 % of a small model's step.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""mallopt(3)'s names for its parameters."""
KEPT_BYTES = 1 << 30
LARGEST_BLOCK = 1 << 25
"""The largest value that glibc takes; blocks beyond it are always the system's."""


def keep_freed_memory() -> None:
    """Let glibc keep up to a gigabyte of freed memory; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
