"""Being asked to stop: SIGTERM and SIGINT set a flag; the work looks at it between steps.

Importing torch takes seconds, and a signal in that time must not kill half-way: this module needs
the standard library alone and is installed before torch is imported.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(Exception):
    """Raised at a safe point after a signal; the run saves and ends."""


class Stop:
    """A flag set by a signal; `exit_code` is what the process should end with."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._put_off = False

    @property
    def asked(self) -> bool:
        """Whether somebody has asked the process to end."""
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """128 + signal number, as shells and supervisors count (143 for SIGTERM)."""
        return 128 + self.signal_number

    def install(self) -> None:
        """Handle SIGTERM and SIGINT from now on; a second SIGINT ends at once."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def check(self) -> None:
        """Raise Interrupted when somebody has asked to stop: called between steps and updates."""
        if self.asked and not self._put_off:
            raise Interrupted

    @contextlib.contextmanager
    def put_off(self) -> Iterator[None]:
        """Within this block `check` waits: others count on this process."""
        before, self._put_off = self._put_off, True
        try:
            yield
        finally:
            self._put_off = before

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


STOP = Stop()
