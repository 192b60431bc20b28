"""Memory that is freed goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of mallopt(3)


def return_large_blocks() -> None:
    """Let each allocation of 4 MB or more be a mapping of its own (glibc; elsewhere: nothing).

    By itself glibc stops doing so once such a block was freed, and the tensors of a generation,
    large and of all sizes, leave holes: a tenth of the peak, and another one in each run. Smaller
    blocks stay on the heap, where they are quicker (from 1 MB on it costs half as much again); on
    one heap, since each thread that has allocated once would keep another.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, 4 << 20)
        library.mallopt(TRIM_THRESHOLD, 16 << 20)
        library.mallopt(ARENA_MAX, 1)
