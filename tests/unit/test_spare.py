"""The threads of the bytes leave the processor to others, and do not starve for ever."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncd.errors import GaveWay
from syncd.filestat import Stat
from syncd.pace import RateLimit
from syncd.spare import Pool, Spare
from syncd.stores.directory import DirectoryStore
from syncd.transfer import Small, Transfer
from tests.clocks import FakeClock
from tests.e2e.processes import every_core_busy, wait_until


def policy() -> int:
    return os.sched_getscheduler(0)


@contextmanager
def pool(spare: Spare) -> Iterator[Pool]:
    made = Pool(2, "file", spare)
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture(autouse=True)
def spare_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is some, whatever else the machine has to do, but for a test that has it alone."""
    if not request.node.get_closest_marker("alone"):
        monkeypatch.setattr(Spare, "_answers", lambda _: True)


def test_idle_only_while_somebody_asks_whether_it_starves() -> None:
    spare = Spare(lenient=True)
    with pool(spare) as workers:
        assert workers.submit(policy).result() == os.SCHED_OTHER
        with spare.taken():
            assert workers.submit(policy).result() == os.SCHED_IDLE
            spare.hurry()
            assert workers.submit(policy).result() == os.SCHED_OTHER
        assert workers.submit(policy).result() == os.SCHED_OTHER
    assert policy() == os.SCHED_OTHER  # the thread that asks is what it was


def test_where_no_trainer_is_near_all_are_ordinary() -> None:
    spare = Spare(lenient=False)
    with pool(spare) as workers, spare.taken():
        assert workers.submit(policy).result() == os.SCHED_OTHER
        assert list(workers.map(str, range(3))) == ["0", "1", "2"]


def test_threads_that_have_nothing_to_do_do_not_starve() -> None:
    clock = FakeClock()
    spare = Spare(lenient=True, clock=clock)
    with pool(spare) as workers, spare.taken():
        workers.submit(policy).result()
        clock.sleep(60)
        assert not spare.starves()
        assert spare.lenient


def test_idle_threads_that_come_and_go_are_not_taken_for_starving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that has ended takes its time along: what is left is not less than nothing."""
    clock = FakeClock()
    spare = Spare(lenient=True, clock=clock)
    seen = iter(
        (
            {"old": (2.0, 0.0), "new": (0.0, 0.0)},  # seconds run, and waited
            {"new": (0.3, 4.0)},  # ran 0.3 of 6: not -1.7
            {"new": (0.4, 9.0)},  # 0.1 of 6
        )
    )
    monkeypatch.setattr(spare, "_times", lambda: next(seen))
    with spare.taken():
        clock.sleep(6)
        assert not spare.starves()
        clock.sleep(6)
        assert spare.starves()
        assert not spare.lenient


def test_where_nothing_tells_how_long_threads_wait_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    spare = Spare(lenient=True, clock=clock)
    with pool(spare) as workers:
        with spare.taken():
            workers.submit(policy).result()

        def none_there(self: Path) -> Iterator[Path]:
            raise FileNotFoundError(str(self))

        monkeypatch.setattr(Path, "iterdir", none_there)
        with spare.taken():
            assert workers.submit(policy).result() == os.SCHED_IDLE
            clock.sleep(60)
            assert not spare.starves()


def test_an_idle_thread_makes_no_idle_threads_of_the_ordinary_pool() -> None:
    spare = Spare(lenient=True)
    with pool(spare) as workers, spare.taken():

        def hurried() -> Future[int]:
            spare.hurry()
            return workers.submit(policy)

        assert workers.submit(hurried).result().result() == os.SCHED_OTHER


def in_a_thread(work: Callable[[], int]) -> int:
    """What a store does with many small objects."""
    with ThreadPoolExecutor(1) as more:
        return more.submit(work).result()


@pytest.mark.alone
@pytest.mark.parametrize("way", [lambda work: work(), in_a_thread], ids=["alone", "in a thread"])
def test_where_every_core_becomes_busy_ordinary_ones_go_on(
    way: Callable[[Callable[[], int]], int],
) -> None:
    """They have two cores and four processes against them, as long as they are idle."""
    spare, stop = Spare(lenient=True), threading.Event()

    block = bytes(1 << 18)

    def work() -> int:
        while not stop.is_set():
            hashlib.sha256(block)  # as all that takes long, it lets other threads run meanwhile
        return policy()

    with pool(spare) as workers, spare.taken(), every_core_busy():
        try:
            waiting: Future[int] = workers.submit(way, work)
            wait_until(spare.starves, "it starves", 60)
            stop.set()  # as all that is under way is told then
            assert workers.submit(policy).result(60) == os.SCHED_OTHER
        finally:
            stop.set()
    assert waiting.result() == os.SCHED_IDLE


def test_an_idle_thread_that_starves_finds_it_out_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold what whoever asks it from outside waits for; an ordinary one never gives way."""
    clock = FakeClock()
    spare = Spare(lenient=True, clock=clock)
    seen = iter(({"one": (0.0, 0.0)}, {"one": (0.1, 5.9)}))
    monkeypatch.setattr(spare, "_times", lambda: next(seen))
    with pool(spare) as workers, spare.taken():
        workers.submit(spare.look).result()
        clock.sleep(6)
        spare.look()
        for _ in range(2):  # the next one, too, that is idle still
            with pytest.raises(GaveWay):
                workers._idle.submit(spare.look).result()
        assert workers.submit(policy).result() == os.SCHED_OTHER
        workers.submit(spare.look).result()


def test_small_files_that_had_their_turn_are_told_of_before_the_rest_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the store took meanwhile: it is not asked again whether there is spare time."""
    small = []
    for number in range(4):
        (path := tmp_path / str(number)).write_bytes(b"x")
        small.append(Small(path, f"k/{number}", Stat.of(os.lstat(path))))
    limit = RateLimit(None, FakeClock(), threading.Event())
    transfer = Transfer(DirectoryStore(tmp_path / "bucket"), 1, limit)
    looks = iter((False, True))

    def look() -> None:
        if next(looks):
            raise GaveWay("no spare time")

    monkeypatch.setattr(transfer.spare, "look", look)
    answers = transfer.send_each(small)
    assert [next(answers), next(answers)]
    with pytest.raises(GaveWay):
        next(answers)
    assert {path.name for path in (tmp_path / "bucket/k").iterdir()} == {"0", "1"}
    transfer.close()


@pytest.mark.alone
def test_where_every_core_is_busy_nothing_is_idle_from_the_beginning() -> None:
    spare = Spare(lenient=True)
    with every_core_busy():
        for _ in range(10):  # a thread may be let run early by luck
            with spare.taken():
                if not spare.lenient:
                    return
    pytest.fail("an idle thread wakes up in time")
