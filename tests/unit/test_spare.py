"""The threads of the bytes take little of processors that others want, but do not starve."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncd import spare as module
from syncd.spare import Spare, processors
from tests.clocks import FakeClock
from tests.e2e.processes import every_core_busy


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_threads_of_the_bytes_are_the_nicest_and_so_are_those_that_they_make() -> None:
    def of_one_more() -> int:
        with ThreadPoolExecutor(1) as more:  # what a store does with many small objects
            return more.submit(niceness).result()

    before = niceness()
    with Spare(lenient=True).pool(2, "file") as workers:
        assert workers.submit(niceness).result() == 19
        assert workers.submit(of_one_more).result() == 19
    assert niceness() == before  # the thread that asks is what it was


def test_where_no_trainer_is_near_all_are_ordinary() -> None:
    before = niceness()
    with Spare(lenient=False).pool(2, "file") as workers:
        assert workers.submit(niceness).result() == before


class Scripted:
    """Says how long each thread has run and has waited: what ``work`` adds up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._here = threading.local()
        self.clock = FakeClock()
        monkeypatch.setattr(module, "_run_time", lambda: self.times()[0])
        monkeypatch.setattr(module, "_times", self.times)
        monkeypatch.setattr(module, "processors", lambda: 2.0)

    def times(self) -> tuple[float, float]:
        return getattr(self._here, "times", (0.0, 0.0))

    def work(self, ran: float, waited: float) -> None:
        before = self.times()
        self._here.times = before[0] + ran, before[1] + waited

    def rests(self, spare: Spare, ran: float, waited: float) -> float:
        """How long a thread rests after it has done that."""
        before = self.clock.now()
        self.work(ran, waited)
        spare.rest(threading.Event())
        return self.clock.now() - before


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    return Scripted(monkeypatch)


def test_while_others_want_the_processors_they_run_for_their_share(scripted: Scripted) -> None:
    spare = Spare(lenient=True, clock=scripted.clock)
    for _ in range(20):  # 0.02 s of two processors' 2 s are 1 %
        assert scripted.rests(spare, 0.02, 0.2) == pytest.approx(1.0)
    assert scripted.rests(spare, 0.2, 2.0) == pytest.approx(10.0)


def test_those_that_wait_for_each_other_only_do_not_rest(scripted: Scripted) -> None:
    spare = Spare(lenient=True, clock=scripted.clock)
    for _ in range(20):
        assert scripted.rests(spare, 0.03, 0.06) == 0


def test_what_was_long_ago_counts_for_nothing(scripted: Scripted) -> None:
    """Once the trainer is done they send as fast as they can, within a second of work."""
    spare = Spare(lenient=True, clock=scripted.clock)
    for _ in range(20):
        assert scripted.rests(spare, 0.03, 2.0) > 0
    rests = [scripted.rests(spare, 0.03, 0.0) for _ in range(30)]
    assert rests[-1] == 0


def test_all_of_them_together_have_one_share(scripted: Scripted) -> None:
    spare = Spare(lenient=True, clock=scripted.clock)
    ends = []

    def one() -> None:
        scripted.work(0.02, 2.0)
        ends.append(spare._charge() - scripted.clock.now())

    for _ in range(3):
        thread = threading.Thread(target=one)
        thread.start()
        thread.join()
    assert ends == pytest.approx([1.0, 2.0, 3.0])


def test_nothing_rests_where_there_is_no_time_or_no_trainer(scripted: Scripted) -> None:
    lenient = Spare(lenient=True, clock=scripted.clock)
    lenient.hurry()
    assert scripted.rests(lenient, 0.3, 30.0) == 0
    scripted.clock.sleep(601)
    assert scripted.rests(lenient, 0.3, 30.0) > 0
    assert scripted.rests(Spare(lenient=False, clock=scripted.clock), 0.3, 30.0) == 0


def test_what_is_to_stop_does_not_rest_to_the_end(scripted: Scripted) -> None:
    spare = Spare(lenient=True, clock=scripted.clock)
    scripted.work(30.0, 3000.0)
    stopped = threading.Event()
    stopped.set()
    spare.rest(stopped)
    assert not scripted.clock.waits


def test_where_nothing_tells_how_long_threads_wait_none_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_there(self: Path) -> str:
        raise FileNotFoundError(str(self))

    spare = Spare(lenient=True, clock=(clock := FakeClock()))
    monkeypatch.setattr(Path, "read_text", none_there)
    hashlib.sha256(bytes(20_000_000))
    spare.rest(threading.Event())
    assert not clock.waits


def test_processors_are_those_of_the_container(tmp_path: Path) -> None:
    here = len(os.sched_getaffinity(0))
    assert processors(tmp_path) == here
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert processors(tmp_path) == here
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert processors(tmp_path) == 0.5
    (tmp_path / "cpu.max").unlink()
    (old := tmp_path / "cpu").mkdir()
    (old / "cpu.cfs_period_us").write_text("100000\n")
    for quota, count in (("-1", here), ("25000", 0.25), (f"{here + 1}00000", here)):
        (old / "cpu.cfs_quota_us").write_text(quota + "\n")
        assert processors(tmp_path) == count


@contextmanager
def hashing(spare: Spare) -> Iterator[list[float]]:
    """Threads of the bytes that have much to do; the seconds that their blocks took to run."""
    stop = threading.Event()
    took: list[float] = []
    block = bytes(1 << 22)

    def work() -> None:
        while not stop.is_set():
            began = time.thread_time()
            hashlib.sha256(block)
            spare.rest(stop)
            took.append(time.thread_time() - began)

    with spare.pool(3, "part") as workers:
        for _ in range(3):
            workers.submit(work)
        try:
            yield took
        finally:
            stop.set()


@pytest.mark.alone
def test_beside_busy_cores_they_take_their_share_and_no_less() -> None:
    seconds, cores = 15.0, processors()
    with every_core_busy(), hashing(Spare(lenient=True)) as took:
        time.sleep(seconds)  # what is measured, not waited for
    assert 0.02 < sum(took) < 2 * 0.01 * cores * seconds


@pytest.mark.alone
def test_beside_nobody_they_take_what_there_is() -> None:
    seconds, cores = 3.0, processors()
    with hashing(Spare(lenient=True)) as took:
        time.sleep(seconds)
    assert sum(took) > 0.3 * min(3, cores) * seconds
