"""How many bytes go: at most, where a limit is set, and how many did."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from syncd.clock import Clock
from syncd.errors import GaveWay

_WINDOW = 60.0
"""Seconds of sending after which what was measured before counts half."""

_LEAST = 0.2
"""Seconds of sending that are needed to tell a pace."""

_LOGS = 0.25
"""Share of a limited rate that the logs have, if they need it."""


class RateLimit:
    """A token bucket of bytes per second, shared by all transfers; None: no limit."""

    def __init__(self, rate: int | None, clock: Clock, stop: threading.Event) -> None:
        self.rate = rate
        self.clock = clock
        self._stop = stop
        self._lock = threading.Lock()
        self._free_at = self._logs_free_at = 0.0

    def take(self, count: int, halt: threading.Event | None = None) -> None:
        """Wait until ``count`` bytes may go; GaveWay if ``halt`` is set before.

        What cannot be halted is a log: of it a quarter of the rate may go at once, however many
        parts of a checkpoint wait. They wait so much longer, and the rate is kept.
        """
        if not self.rate:
            return
        with self._lock:
            now = self.clock.monotonic()
            start = max(now, self._free_at)
            cost = count / self.rate
            if halt is None:
                own = max(now, self._logs_free_at)
                start = min(start, own)
                self._logs_free_at = own + cost / _LOGS
                self._free_at = max(now, self._free_at) + cost
            else:
                self._free_at = start + cost
        if self.clock.wait(halt or self._stop, start - now) and halt:
            with self._lock:
                self._free_at -= cost
            raise GaveWay("stopped before its turn came")


class Pace:
    """Bytes per second of the link while there is something to send."""

    def __init__(self, limit: RateLimit) -> None:
        self._clock = limit.clock
        self._limit = limit
        self._lock = threading.Lock()
        self._active = 0
        self._began = 0.0
        self._seconds = self._bytes = 0.0

    @contextmanager
    def sending(self, count: int) -> Iterator[None]:
        """Around each request that carries ``count`` bytes of a body; a failure counts for none."""
        with self._lock:
            self._tick()
            self._active += 1
        try:
            yield
        except BaseException:
            count = 0
            raise
        finally:
            with self._lock:
                self._tick()
                self._active -= 1
                self._bytes += count

    def _tick(self) -> None:
        now = self._clock.monotonic()
        if self._active:
            self._seconds += now - self._began
        self._began = now
        if self._seconds > _WINDOW:
            self._seconds, self._bytes = self._seconds / 2, self._bytes / 2

    def rate(self) -> float | None:
        """Bytes per second, or None until that is known; never more than the limit."""
        with self._lock:
            self._tick()
            known = self._bytes / self._seconds if self._seconds >= _LEAST else None
        limit = self._limit.rate
        return min(known or limit, limit) if limit else known
