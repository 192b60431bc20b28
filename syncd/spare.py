"""What the threads of the bytes take of processors that the trainer wants, too.

They run at the daemon's niceness, beside a busy thread of the trainer for a tenth of the time. But
that comes in slices of milliseconds, and a step of training whose threads meet at a barrier waits
for each of them. So while others want all processors they rest between two blocks, and run for a
small share of the time of all processors. That is bounded from below as well.

Nicer than the daemon's other threads, or scheduled as idle, they would cost a step less, and
starve: who is not let run may hold Python's lock, for which the others then wait, for minutes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from syncd.clock import Clock, SystemClock

log = logging.getLogger(__name__)

_SHARE = 0.01
"""What they run for of the time of all processors, while those are wanted."""

_SAVED_UP = 1.0
"""Seconds of running that are free after a pause: a checkpoint of some 200 MB is not held back."""

_WANTED = 0.3
"""Seconds that they wait for each that they run, from which on they take what others want. Beside
threads that are always busy it is nine, that much heavier those are."""

_PAUSE, _IDLE = 0.5, 0.15
"""Seconds in which none of them came by, and the share of the processors' time that nobody used
in them, below which others want it: a store on this machine, which works when they do, does not."""

_SPREE = 3.0
"""Seconds without a pause after which all of them make one, if others may want the processors."""

_LOOK_BACK = 0.1
"""Seconds of running after which what was before counts half."""

_LOOK = 0.002
"""Seconds of running that are worth a look at how long they waited."""

_SLICE = 1.0
"""Seconds after which who rests looks whether there is time for it still."""

_HURRY = 600.0
"""Seconds for which nothing rests once there is no time."""

_AGAIN = 600.0
"""Seconds after which it is said again that there is little time."""


class Spare:
    """Holds back what takes more of the processors than the trainer can spare."""

    def __init__(self, lenient: bool, clock: Clock | None = None) -> None:
        """``lenient``: a trainer may be beside it; else nothing is held back."""
        self.lenient = lenient
        self._clock = clock or SystemClock()
        self._cores = processors()
        self._lock = threading.Lock()
        self._here = threading.local()
        self._ran = self._waited = 0.0
        self._busy = False
        self._came_by, self._used = self._clock.monotonic(), _used()
        self._looked, self._pause_until = self._came_by, float("-inf")
        self._hurry_until = self._free_at = self._told = float("-inf")

    def hurry(self) -> None:
        """There is no time to rest now."""
        self._hurry_until = self._clock.monotonic() + _HURRY

    def rest(self, halt: threading.Event) -> None:
        """Called by a thread of the bytes between two blocks; returns at once if ``halt`` is set.

        While others want the processors it waits until what it did since it was here last is no
        more than its share.
        """
        if not self.lenient:
            return
        until = self._charge()
        while (left := until - self._clock.monotonic()) > 0 and not self._in_a_hurry():
            if self._clock.wait(halt, min(left, _SLICE)):
                return

    def _in_a_hurry(self) -> bool:
        return self._clock.monotonic() < self._hurry_until

    def _charge(self) -> float:
        """When this thread may go on."""
        now = self._clock.monotonic()
        before: tuple[float, float] = getattr(self._here, "times", (0.0, 0.0))
        if _run_time() - before[0] < _LOOK:
            return now
        self._here.times = times = _times()
        ran, waited = times[0] - before[0], times[1] - before[1]
        used = _used()
        with self._lock:
            self._come_by(now, used)
            self._ran += ran
            self._waited += waited
            wanted = self._waited > _WANTED * self._ran
            if now < self._pause_until or (wanted and now - self._looked >= _SPREE):
                self._pause_until = now + 1.2 * _PAUSE
            if self._ran > _LOOK_BACK:
                self._ran, self._waited = self._ran / 2, self._waited / 2
            if wanted and self._busy:
                self._tell(now)
                share = _SHARE * self._cores
                self._free_at = max(self._free_at, now - _SAVED_UP / share) + ran / share
                return max(self._free_at, self._pause_until)
            return max(now, self._pause_until)

    def _come_by(self, now: float, used: tuple[float, float]) -> None:
        """Learn from a pause how busy the processors are without these threads."""
        if now - self._came_by >= _PAUSE:
            idle, whole = (after - before for after, before in zip(used, self._used, strict=True))
            self._busy = whole > 0 and idle < _IDLE * whole
            self._looked, self._pause_until = now, float("-inf")
        self._came_by, self._used = now, used

    def _tell(self, now: float) -> None:
        if now - self._told > _AGAIN:
            self._told = now
            log.info("every core is busy: what is sent takes a small share of them only")


def _run_time() -> float:
    """Seconds that this thread has run."""
    return time.thread_time()


def _times() -> tuple[float, float]:
    """Seconds that this thread has run, and has waited for a processor.

    Where nothing tells, it has never waited.
    """
    with suppress(OSError, ValueError):
        ran, waited = Path("/proc/thread-self/schedstat").read_text().split()[:2]
        return int(ran) / 1e9, int(waited) / 1e9
    return _run_time(), 0.0


def _used(stat: Path = Path("/proc/stat")) -> tuple[float, float]:
    """How long the processors that this process may use had nothing to do, and in all, so far."""
    idle = whole = 0
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    with suppress(OSError, ValueError, IndexError):
        for line in stat.read_text().splitlines():
            name, *spent = line.split()
            if name in mine:
                idle += int(spent[3]) + int(spent[4])  # waiting for a disk as well
                whole += sum(map(int, spent[:8]))
    return idle, whole


def processors(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """How many this process may use: those it may run on, or what its container is allowed."""
    count = float(len(os.sched_getaffinity(0)))
    quotas: list[Callable[[], list[str]]] = [
        lambda: (cgroup / "cpu.max").read_text().split(),
        lambda: [(cgroup / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period")],
    ]
    for quota in quotas:
        with suppress(OSError, ValueError):  # "max", or another kind of cgroup
            allowed, period = map(int, quota())
            if allowed > 0:
                count = min(count, allowed / period)
    return count
