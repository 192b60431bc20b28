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


_SLICE = 1.0
"""Seconds after which who waits looks whether the limit is another one by now."""


class RateLimit:
    """Bytes per second at most, of all transfers together; None: no limit.

    Bytes go once the time is over that they may take: then no burst precedes the wait, and what
    was sent by any moment is at most the rate times the time. Unused time is not saved up.
    """

    def __init__(self, rate: int | None, clock: Clock, stop: threading.Event) -> None:
        self.rate = rate
        self.clock = clock
        self._stop = stop
        self._lock = threading.Lock()
        self._at = clock.monotonic()
        self._all, self._logs = _Queue(), _Queue()

    def change(self, rate: int | None) -> None:
        """Another limit from now on, also for those who wait."""
        with self._lock:
            self._tick()
            self.rate = rate

    def take(self, count: int, halt: threading.Event | None = None) -> None:
        """Wait until ``count`` bytes may go; GaveWay if ``halt`` is set before.

        What cannot be halted is a log: a quarter of the rate is theirs, however many parts of a
        checkpoint wait. What comes later waits so much longer, and the rate is kept.
        """
        with self._lock:
            self._tick()
            place = self._all.join(count)
            own = self._logs.join(count) if halt is None else None
        while left := self._seconds(place, own):
            if not self.clock.wait(halt or self._stop, min(left, _SLICE)):
                continue
            if halt is None:
                return  # it is all over: what can still go goes
            with self._lock:
                self._all.leave(count)
            raise GaveWay("stopped before its turn came")

    def _seconds(self, place: float, own: float | None) -> float:
        """How long the turn of who stands there is away, as things are."""
        with self._lock:
            self._tick()
            left = self._all.before(place)
            seconds = left / self.rate if self.rate else 0.0
            if own is not None and self.rate:
                seconds = min(seconds, self._logs.before(own) / (self.rate * _LOGS))
        return seconds

    def _tick(self) -> None:
        now = self.clock.monotonic()
        may = self.rate * (now - self._at) if self.rate else float("inf")
        self._at = now
        self._all.pass_on(may)
        self._logs.pass_on(may * _LOGS)


class _Queue:
    """Bytes that want to go, one behind the other."""

    def __init__(self) -> None:
        self._joined = self._passed = 0.0

    def join(self, count: int) -> float:
        """Stand at the end; the place is the number of the last of these bytes."""
        self._joined += count
        return self._joined

    def leave(self, count: int) -> None:
        """Bytes that stood in it go away: the others move up."""
        self.pass_on(count)

    def pass_on(self, count: float) -> None:
        """So many bytes may go."""
        self._passed = min(self._joined, self._passed + count)

    def before(self, place: float) -> float:
        """Bytes that are still to go until those at ``place`` have gone; less than one is none."""
        left = place - self._passed
        return left if left >= 1 else 0.0


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
