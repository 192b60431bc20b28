"""The threads of the bytes take little of processors that others want, but do not starve."""

from __future__ import annotations

import hashlib
import heapq
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from syncd import spare as module
from syncd.cores import Cores
from syncd.spare import Spare
from tests.clocks import FakeClock
from tests.e2e.processes import every_core_busy


class Scripted:
    """Says how long each thread has run and has waited: what ``work`` adds up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._here = threading.local()
        self.clock = FakeClock()
        self.idle = 0.0
        """The part of all time that the processors had nothing to do in."""
        monkeypatch.setattr(module, "run_time", lambda: self.times()[0])
        monkeypatch.setattr(module, "thread_times", self.times)
        monkeypatch.setattr(module, "Cores", lambda: self)

    count = 2.0

    def used(self) -> tuple[float, float]:
        """Seconds that the processors had nothing to do, and seconds in all."""
        return self.idle * self.clock.now(), self.clock.now()

    def times(self) -> tuple[float, float]:
        return getattr(self._here, "times", (0.0, 0.0))

    def work(self, ran: float, waited: float) -> None:
        before = self.times()
        self._here.times = before[0] + ran, before[1] + waited

    def pressed(self) -> Spare:
        """One that has nothing saved up, beside somebody who wants all processors."""
        spare = Spare(lenient=True, clock=self.clock)
        self.clock.sleep(60)
        self.rests(spare, 1.0, 10.0)
        return spare

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
    spare = scripted.pressed()
    for _ in range(20):  # 0.02 s of two processors' 2 s are 1 %
        assert scripted.rests(spare, 0.02, 0.2) == pytest.approx(1.0)
    assert scripted.rests(spare, 0.2, 2.0) == pytest.approx(10.0)


def test_who_works_only_when_they_do_does_not_hold_them_back(scripted: Scripted) -> None:
    """A store on this machine: the processors are idle while these threads pause."""
    scripted.idle = 0.5
    spare = Spare(lenient=True, clock=scripted.clock)
    scripted.clock.sleep(60)
    for _ in range(20):
        assert scripted.rests(spare, 0.2, 2.0) == 0


def test_who_never_pauses_does_so_to_see_whether_others_want_the_processors(
    scripted: Scripted,
) -> None:
    spare = Spare(lenient=True, clock=scripted.clock)
    rests = []
    for _ in range(60):
        scripted.clock.sleep(0.1)
        rests.append(scripted.rests(spare, 0.1, 0.1))
    first = next(at for at, rest in enumerate(rests) if rest)
    assert first in (29, 30)  # after three seconds
    assert rests[first] == pytest.approx(0.6)
    assert rests[-1] == pytest.approx(0.1 / 0.02 - 0.1)  # they do


def test_what_is_saved_up_is_free_after_a_pause(scripted: Scripted) -> None:
    spare = Spare(lenient=True, clock=scripted.clock)
    scripted.clock.sleep(60)
    assert [scripted.rests(spare, 0.2, 2.0) for _ in range(6)] == pytest.approx([0] * 5 + [10])
    scripted.clock.sleep(25)
    assert [scripted.rests(spare, 0.2, 2.0) for _ in range(3)] == pytest.approx([0, 0, 5])


def test_those_that_hardly_wait_do_not_rest(scripted: Scripted) -> None:
    spare = Spare(lenient=True, clock=scripted.clock)
    scripted.clock.sleep(60)
    for _ in range(20):
        assert scripted.rests(spare, 0.2, 0.04) == 0


def test_what_was_long_ago_counts_for_nothing(scripted: Scripted) -> None:
    """Once the trainer is done they send as fast as they can, within a second of work."""
    spare = scripted.pressed()
    for _ in range(20):
        assert scripted.rests(spare, 0.03, 2.0) > 0
    rests = [scripted.rests(spare, 0.03, 0.0) for _ in range(30)]
    assert rests[-1] == 0


def test_all_of_them_together_have_one_share(scripted: Scripted) -> None:
    spare = scripted.pressed()
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
    lenient = scripted.pressed()
    lenient.hurry()
    assert scripted.rests(lenient, 0.3, 30.0) == 0
    scripted.clock.sleep(601)
    assert scripted.rests(lenient, 3.0, 30.0) > 0
    alone = Spare(lenient=False, clock=scripted.clock)
    scripted.clock.sleep(60)
    assert scripted.rests(alone, 3.0, 30.0) == 0


def test_what_is_done_in_a_hurry_is_owed_to_nobody(scripted: Scripted) -> None:
    spare = scripted.pressed()
    with spare.hurrying():
        assert sum(scripted.rests(spare, 0.05, 0.2) for _ in range(1200)) == 0
    assert scripted.rests(spare, 0.05, 0.2) == pytest.approx(2.5)


def test_nobody_rests_for_longer_than_a_minute(scripted: Scripted) -> None:
    assert scripted.rests(scripted.pressed(), 30.0, 300.0) == pytest.approx(60)


def test_who_rests_goes_on_when_there_is_no_time_any_more(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = scripted.pressed()
    wait = scripted.clock.wait

    def hurried(event: threading.Event, seconds: float) -> bool:
        spare.hurry()
        return wait(event, seconds)

    monkeypatch.setattr(scripted.clock, "wait", hurried)
    assert scripted.rests(spare, 1.0, 10.0) == pytest.approx(1.0)  # where it looks the next time


@pytest.mark.parametrize(("idle", "least", "most"), [(0.6, 0.7, 1.0), (0.0, 0.0, 0.1)])
def test_threads_out_of_step_pause_together(
    scripted: Scripted, idle: float, least: float, most: float
) -> None:
    """Each takes another time for its blocks; how many they send, by how many they could."""
    scripted.idle = idle
    spare = Spare(lenient=True, clock=scripted.clock)
    chance = random.Random(1)
    threads = [SimpleNamespace(times=(0.0, 0.0), here=SimpleNamespace()) for _ in range(8)]
    due = [(0.0, n, True) for n in range(len(threads))]
    mine, sent, began = [0.0] * len(threads), 0, scripted.clock.now()
    while (now := due[0][0]) < 600:
        _, number, arrives = heapq.heappop(due)
        scripted.clock.sleep(max(0.0, began + now - scripted.clock.now()))
        thread = threads[number]
        scripted._here, spare._here = thread, thread.here  # type: ignore[assignment]
        if arrives:
            scripted.work(0.02, 0.02)
            mine[number] = spare._charge()
        left = spare._left(mine[number])
        sent += left <= 0
        after = 0.04 + chance.expovariate(5) if left <= 0 else left
        heapq.heappush(due, (now + after, number, left <= 0))
    assert least < sent / 600 / (8 / 0.24) < most


def test_what_is_to_stop_does_not_rest_to_the_end(scripted: Scripted) -> None:
    spare = scripted.pressed()
    scripted.work(30.0, 3000.0)
    stopped = threading.Event()
    stopped.set()
    before = scripted.clock.now()
    spare.rest(stopped)
    assert scripted.clock.now() == before


@pytest.mark.parametrize("told", [True, False])
def test_where_nothing_tells_how_long_threads_wait_none_rests(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Beside somebody who wants all, with nothing saved up."""
    clock = FakeClock()
    monkeypatch.setattr(Cores, "used", lambda _: (0.0, clock.now()))
    monkeypatch.setattr(module, "_SAVED_UP", 0.0)
    spare = Spare(lenient=True, clock=clock)
    clock.sleep(60)
    del clock.waits[:]

    def read(self: Path) -> str:
        assert self == Path("/proc/thread-self/schedstat")
        if not told:
            raise FileNotFoundError(str(self))
        return "1000000000 9000000000 5\n"

    monkeypatch.setattr(Path, "read_text", read)
    hashlib.sha256(bytes(20_000_000))
    spare.rest(threading.Event())
    assert bool(clock.waits) == told


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

    with ThreadPoolExecutor(3) as workers:
        for _ in range(3):
            workers.submit(work)
        try:
            yield took
        finally:
            stop.set()


@pytest.mark.alone
def test_beside_busy_cores_they_take_their_share_and_no_less() -> None:
    seconds, cores = 15.0, Cores().count
    with every_core_busy():
        spare = Spare(lenient=True)
        time.sleep(1)  # it sees how busy they are without it
        with hashing(spare) as took:
            time.sleep(seconds)  # what is measured, not waited for
    assert 0.02 < sum(took) < 1.0 + 2 * 0.01 * cores * seconds


@pytest.mark.alone
def test_beside_nobody_they_take_what_there_is() -> None:
    seconds, cores = 3.0, Cores().count
    with hashing(Spare(lenient=True)) as took:
        time.sleep(seconds)
    assert sum(took) > 0.3 * min(3, cores) * seconds
