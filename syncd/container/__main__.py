"""`python -m syncd.container`: catches SIGTERM before anything slow is imported."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def _leave(signum: int, _frame: FrameType | None) -> None:
    """Nothing runs yet, so there is nothing to stop: leave with the shell's code for the signal."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    # As PID 1 a process without a handler never hears SIGTERM at all.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)

    from syncd.container.launcher import main

    sys.exit(main(sys.argv[1:]))
