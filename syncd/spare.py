"""Threads for the bytes that take what nobody else wants of the processor, but do not starve.

The lowest niceness is not enough: a thread of the trainer that wakes up may have to wait for the
end of our slice, and with it all its threads that meet at a barrier. Linux lets a thread that is
scheduled as idle go at once. Where the trainer keeps every core busy for long, that is next to
nothing, so the work goes on in threads of the ordinary kind then. The threads that starve find
that out themselves: one of them mostly holds Python's lock, for which all the others wait.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from syncd.clock import Clock, SystemClock
from syncd.errors import GaveWay

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_WINDOW = 5.0
"""Seconds over which it is seen whether the threads get anything done."""

_WAITED, _RAN = 0.5, 0.03
"""They starve when together they have waited for more than this part of it, and run for less than
that."""

_PROBE, _ROUNDS = 3.0, 20_000
"""Seconds in which an idle thread does some 10 ms of work, unless every core is busy."""

_PRESSED = 600.0
"""Seconds for which the work goes on in ordinary threads once it has starved."""


class Spare:
    """Whether only spare time is taken; shared by the pools of one connection."""

    def __init__(self, lenient: bool, clock: Clock | None = None) -> None:
        """``lenient``: a trainer may be beside it; else all threads are ordinary ones."""
        self._clock = clock or SystemClock()
        self._pressed_until = float("-inf") if lenient else float("inf")
        self._on = False
        self._joined = False
        self._since = 0.0
        self._before: dict[str, tuple[float, float]] = {}
        self._asking = threading.Lock()
        self._here = threading.local()

    @property
    def lenient(self) -> bool:
        """Whether work that begins now waits for spare time."""
        return self._on and self._clock.monotonic() >= self._pressed_until

    def join(self) -> None:
        """Called by each idle thread at its beginning."""
        with suppress(OSError):  # not everywhere may one: then it is an ordinary thread
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            self._joined = self._here.idle = True

    def hurry(self) -> None:
        """There is no time to wait for spare time."""
        self._pressed_until = max(self._pressed_until, self._clock.monotonic() + _PRESSED)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While this lasts somebody asks whether it starves: only then may anything be idle."""
        self._on = True
        self._mark(self._times())
        if self.lenient and not self._answers():
            self._press()
        try:
            yield
        finally:
            self._on = False

    def _answers(self) -> bool:
        """Whether an idle thread gets to run now, at work that does not hold Python's lock."""
        done = threading.Event()

        def work() -> None:
            self.join()
            hashlib.pbkdf2_hmac("sha256", b"any", b"any", _ROUNDS)
            done.set()

        threading.Thread(target=work, name="probe", daemon=True).start()
        return done.wait(_PROBE)

    def starves(self) -> bool:
        """Whether idle threads have had next to nothing of late; then ordinary ones come next.

        To be asked now and then.
        """
        if not self._asking.acquire(blocking=False):
            return False  # who asks already may be one that starves
        try:
            passed = self._clock.monotonic() - self._since
            return self.lenient and passed >= _WINDOW and self._starved(passed)
        finally:
            self._asking.release()

    def look(self) -> None:
        """Called by the threads of the bytes between two blocks.

        GaveWay in an idle one where idle ones starve: the rest goes on in an ordinary one.
        """
        if not getattr(self._here, "idle", False):
            return
        self.starves()
        if self._clock.monotonic() < self._pressed_until:
            raise GaveWay("there was no spare time to send it in")

    def _starved(self, passed: float) -> bool:
        times = self._times()
        pairs = [(times[task], self._before.get(task, (0.0, 0.0))) for task in times]
        ran = sum(now[0] - before[0] for now, before in pairs)
        waited = sum(now[1] - before[1] for now, before in pairs)
        starving = waited > _WAITED * passed and ran < _RAN * passed
        self._mark(times)
        if starving:
            self._press()
        return starving

    def _press(self) -> None:
        self.hurry()
        log.info("every core is busy: what is sent no longer waits for spare time")

    def _mark(self, times: dict[str, tuple[float, float]]) -> None:
        self._since, self._before = self._clock.monotonic(), times

    def _times(self) -> dict[str, tuple[float, float]]:
        """Seconds that each idle thread has run, and has waited for a processor.

        Of those, too, that an idle one has made, and that wait while it waits for them. What has
        ended by now got its time: it is left out.
        """
        times: dict[str, tuple[float, float]] = {}
        with suppress(OSError):
            for task in Path("/proc/self/task").iterdir() if self._joined else ():
                with suppress(OSError, ValueError, IndexError):
                    if os.sched_getscheduler(int(task.name)) == os.SCHED_IDLE:
                        ran, waited = (task / "schedstat").read_text().split()[:2]
                        times[task.name] = int(ran) / 1e9, int(waited) / 1e9
        return times


def _ordinary() -> None:
    """Called by each ordinary thread at its beginning: an idle one may have made it."""
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_IDLE:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Pool(Executor):
    """Two pools of threads as one: idle ones, and ordinary ones for when those starve."""

    def __init__(self, count: int, name: str, spare: Spare) -> None:
        """At most ``count`` threads of either kind, which are made when they are needed."""
        self._spare = spare
        self._idle = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=spare.join)
        self._ordinary = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_ordinary)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """See Executor."""
        pool = self._idle if self._spare.lenient else self._ordinary
        return pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor."""
        self._idle.shutdown(wait, cancel_futures=cancel_futures)
        self._ordinary.shutdown(wait, cancel_futures=cancel_futures)
