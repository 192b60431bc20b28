"""What the threads of the bytes take of processors that the trainer wants, too.

They have the lowest niceness: beside a busy thread of the trainer they run for a hundredth of the
time. But that comes in slices of milliseconds, and a step of training whose threads meet at a
barrier waits for each of them. So while processors are wanted they rest between two blocks, and
run for a small share of all processors' time at most. That is bounded from below as well.

To be scheduled as idle, which Linux offers, costs a step no less, and starves: who is not let run
may hold Python's lock, for which the rest of the daemon then waits, for minutes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from syncd.clock import Clock, SystemClock

log = logging.getLogger(__name__)

_SHARE = 0.01
"""What they run for of the time of all processors, while those are wanted."""

_WANTED = 5.0
"""Seconds that they wait for each that they run, from which on others want the processors. Beside
a busy thread it is some 70, that much heavier it is; of each other they wait for less than one."""

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

_NICEST = 19


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
        self._hurry_until = self._free_at = self._told = float("-inf")

    def pool(self, count: int, name: str) -> Executor:
        """At most ``count`` threads, which are made when they are needed; so are theirs."""
        return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=self._join)

    def _join(self) -> None:
        if self.lenient:
            with suppress(OSError):  # of this thread only, and for good: nobody may take it back
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)

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
        with self._lock:
            self._ran += ran
            self._waited += waited
            wanted = self._waited > _WANTED * self._ran
            if self._ran > _LOOK_BACK:
                self._ran, self._waited = self._ran / 2, self._waited / 2
            if wanted:
                self._tell(now)
                self._free_at = max(self._free_at, now) + ran / (_SHARE * self._cores)
                return self._free_at
        return now

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
