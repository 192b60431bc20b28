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
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from syncd.clock import Clock, SystemClock
from syncd.cores import Cores, run_time, thread_times

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

_PAUSE_LONGEST = 2.0
"""Seconds after which a pause ends, though some thread came by late, with a block of its own."""

_LONGEST = 60.0
"""Seconds that a thread rests at most, whatever was done."""

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
        self._cores = Cores()
        self._lock = threading.Lock()
        self._here = threading.local()
        self._ran = self._waited = 0.0
        self._busy = False
        self._came_by, self._used = self._clock.monotonic(), self._cores.used()
        self._looked = self._came_by
        self._pause_began = self._pause_until = math.inf
        self._hurry_until = self._free_at = self._told = -math.inf
        self._hurried = 0

    def hurry(self) -> None:
        """There is no time to rest for a while; whoever rests goes on."""
        self._hurry_until = self._clock.monotonic() + _HURRY

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """There is no time to rest meanwhile."""
        with self._lock:
            self._hurried += 1
        try:
            yield
        finally:
            with self._lock:
                self._hurried -= 1

    def rest(self, halt: threading.Event) -> None:
        """Called by a thread of the bytes between two blocks; returns at once if ``halt`` is set.

        While others want the processors it waits until what it did since it was here last is no
        more than its share.
        """
        if not self.lenient:
            return
        mine = self._charge()
        while not self._in_a_hurry() and (left := self._left(mine)) > 0:
            if self._clock.wait(halt, min(left, _SLICE)):
                return

    def _in_a_hurry(self) -> bool:
        return self._hurried > 0 or self._clock.monotonic() < self._hurry_until

    def _left(self, mine: float) -> float:
        """Seconds until a thread may go on that has its share at ``mine``; all wait in a pause."""
        now = self._clock.monotonic()
        with self._lock:
            if self._pause_began < math.inf:
                if now < self._pause_until:
                    return max(mine, self._pause_until) - now
                self._come_by(now, True)  # the first that goes on: nobody has run meanwhile
                self._looked, self._pause_began = now, math.inf
        return mine - now

    def _charge(self) -> float:
        """When this thread may go on."""
        now = self._clock.monotonic()
        before: tuple[float, float] = getattr(self._here, "times", (0.0, 0.0))
        if run_time() - before[0] < _LOOK:
            return now
        self._here.times = times = thread_times()
        ran, waited = times[0] - before[0], times[1] - before[1]
        if self._in_a_hurry():
            return now  # what is done then is owed to nobody
        with self._lock:
            self._ran += ran
            self._waited += waited
            wanted = self._waited > _WANTED * self._ran
            self._come_by(now, wanted)
            self._mind_pause(now, wanted)
            if self._ran > _LOOK_BACK:
                self._ran, self._waited = self._ran / 2, self._waited / 2
            if not (wanted and self._busy):
                return now
            self._tell(now)
            share = _SHARE * self._cores.count
            self._free_at = max(self._free_at, now - _SAVED_UP / share) + ran / share
            self._free_at = min(self._free_at, now + _LONGEST)
            return self._free_at

    def _mind_pause(self, now: float, wanted: bool) -> None:
        """Have all pause if it is time to; who was amid a block when they began makes it longer."""
        if self._pause_began == math.inf and wanted and now - self._looked >= _SPREE:
            self._pause_began = now
        if self._pause_began < math.inf:
            self._pause_until = min(now + 1.2 * _PAUSE, self._pause_began + _PAUSE_LONGEST)

    def _come_by(self, now: float, wanted: bool) -> None:
        """Learn from a pause how busy the processors are without these threads, if that matters."""
        if not wanted:
            self._came_by = math.inf  # to ask takes a while where there are many
            return
        used = self._cores.used()
        if now - self._came_by >= _PAUSE:
            idle, whole = (after - before for after, before in zip(used, self._used, strict=True))
            self._busy = whole > 0 and idle < _IDLE * whole
            self._looked = now
        self._came_by, self._used = now, used

    def _tell(self, now: float) -> None:
        if now - self._told > _AGAIN:
            self._told = now
            log.info("every core is busy: what is sent takes a small share of them only")
