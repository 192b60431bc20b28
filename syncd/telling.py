"""Words for a person, where they can be written.

A full disk, a closed terminal or a reader that is gone must neither end a process nor decide its
exit code: what is told is no more than the account of the work.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def say(text: str) -> None:
    """A line on stderr: stdout is for answers."""
    if sys.stderr:
        with suppress(OSError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def let_go(*streams: TextIO | None) -> None:
    """Write what is left, or forget it: Python would try once more, and end with 120 for it."""
    for stream in filter(None, streams):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
