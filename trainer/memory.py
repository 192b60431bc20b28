"""Memory that is freed goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def return_large_blocks() -> None:
    """Let each allocation of 8 MB or more be a mapping of its own (glibc; elsewhere: nothing).

    By itself glibc stops doing so once such a block was freed, and the tensors of a generation,
    large and of all sizes, leave holes: a tenth of the peak. Smaller blocks stay on the heap, where
    they are quicker.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, 8 << 20)
        library.mallopt(TRIM_THRESHOLD, 64 << 20)
