"""Time, in one place, so that six hours of outage take a second in a test."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the rest of the package knows of time."""

    def now(self) -> float:
        """Wall-clock seconds since the epoch: for people, never for order."""
        ...

    def monotonic(self) -> float:
        """Seconds that only ever grow: for intervals and deadlines."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until ``event`` is set or ``seconds`` have passed; say whether it is set."""
        ...

    def sleep(self, seconds: float) -> None:
        """Do nothing for ``seconds``."""
        ...


class SystemClock:
    """The real one."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some fixed point."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block until the event or the time-out."""
        return event.wait(max(0.0, seconds))

    def sleep(self, seconds: float) -> None:
        """Block for ``seconds``."""
        time.sleep(max(0.0, seconds))
