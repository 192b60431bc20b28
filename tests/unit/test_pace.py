"""SYNCD_BWLIMIT: never more than it says, never much less, and another one while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from syncd.errors import GaveWay
from syncd.pace import RateLimit
from tests.clocks import FakeClock


def limited(rate: int | None, clock: FakeClock) -> RateLimit:
    return RateLimit(rate, clock, threading.Event())


def test_no_moment_has_seen_more_than_the_rate_allows() -> None:
    clock, sizes = FakeClock(), [8000, 1, 500, 3000, 0, 8000] * 5
    limit, began, gone = limited(1000, clock), clock.monotonic(), 0
    for size in sizes:
        limit.take(size, threading.Event())
        gone += size
        assert gone - 1 <= 1000 * (clock.monotonic() - began) <= gone + 1


def test_time_in_which_nothing_was_sent_is_not_saved_up() -> None:
    clock = FakeClock()
    limit = limited(1000, clock)
    limit.take(1000)
    clock.sleep(3600)
    began = clock.monotonic()
    for _ in range(10):
        limit.take(1000, threading.Event())
    assert clock.monotonic() - began == pytest.approx(10)


def test_without_a_limit_nobody_waits() -> None:
    clock = FakeClock()
    limited(None, clock).take(10**12, threading.Event())
    assert not clock.waits


def test_what_gave_way_leaves_its_time_to_the_others() -> None:
    clock, halt = FakeClock(), threading.Event()
    limit = limited(1000, clock)
    halt.set()
    with pytest.raises(GaveWay):
        limit.take(1_000_000, halt)
    began = clock.monotonic()
    limit.take(2000, threading.Event())
    assert clock.monotonic() - began == pytest.approx(2)


class Waking(FakeClock):
    """Does something when somebody has waited so often."""

    def __init__(self, at: int, do: Callable[[], None]) -> None:
        super().__init__()
        self._at = at
        self._do = do

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if len(self.waits) == self._at:
            self._do()
        return super().wait(event, seconds)


@pytest.mark.parametrize(("rate", "seconds"), [(10_000, 5 + 9.5), (500, 5 + 190), (None, 6)])
def test_another_limit_counts_at_once_for_who_waits(rate: int | None, seconds: float) -> None:
    """Of 100 seconds at the old rate five are over."""
    clock = Waking(5, lambda: limit.change(rate))
    limit, began = limited(1000, clock), clock.monotonic()
    limit.take(100_000, threading.Event())
    assert clock.monotonic() - began == pytest.approx(seconds, abs=1)


class Standing(FakeClock):
    """Time stands still for parts of a checkpoint, which can be halted: they wait till then."""

    def __init__(self, halt: threading.Event, parts: int) -> None:
        super().__init__()
        self._halt = halt
        self.there = threading.Barrier(parts + 1)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if event is not self._halt:
            return super().wait(event, seconds)
        self.there.wait()
        return event.wait(60)


def test_logs_have_a_quarter_of_the_rate_however_many_parts_wait() -> None:
    halt, parts = threading.Event(), 4
    clock = Standing(halt, parts)
    limit = limited(1000, clock)
    with ThreadPoolExecutor(parts) as pool:
        jobs = [pool.submit(limit.take, 100_000, halt) for _ in range(parts)]
        clock.there.wait()  # 400 seconds are wanted by now
        began = clock.monotonic()
        for _ in range(100):
            limit.take(50)
        halt.set()
    assert clock.monotonic() - began == pytest.approx(20, rel=0.01), "5,000 bytes at a quarter"
    assert [type(job.exception()) for job in jobs] == [GaveWay] * parts
