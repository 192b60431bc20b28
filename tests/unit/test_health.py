"""When waiting is too long, and what health remembers. A slow link is no fault."""

from __future__ import annotations

import pytest

from syncd.health import Health, Waiting
from syncd.lag import PATIENCE, Lag
from syncd.records import CommitRecord
from tests.clocks import FakeClock

MB = 10**6


def commit(seq: int, name: str, behind: int = 0) -> CommitRecord:
    return CommitRecord(seq, name, "w", "2027-01-15T08:00:00.000Z", "trainer", behind=behind)


class Watched:
    """A health whose second hand is turned by hand."""

    def __init__(self, bound: float | None = None, bwlimit: int | None = None) -> None:
        self.clock = FakeClock()
        self.health = Health(self.clock, lag=Lag(bound, bwlimit))
        self.turned: list[str] = []
        self.health.listener = lambda event, _record: self.turned.append(event)

    def complete(self, *names: str, size: int = 100 * MB) -> None:
        self.health.waiting([Waiting(name, size, "waits") for name in names], [])

    def pass_time(self, seconds: float, taken: int = 0) -> bool:
        """Second after second, with so many bytes taken in each; whether all of it was green."""
        green = True
        for _ in range(int(seconds)):
            self.clock.sleep(1)
            if taken:
                self.health.sent("key", taken)
            self.health.beat()
            green &= self.health.snapshot()["healthy"]
        return green

    @property
    def words(self) -> str:
        return " ".join(reason.message for reason in self.health.reasons())


def test_store_that_takes_nothing_turns_red_in_time_and_green_again() -> None:
    watched = Watched()
    watched.complete("one")
    assert watched.pass_time(PATIENCE)
    assert not watched.pass_time(2)
    assert "one is complete and not safe: the store has taken nothing" in watched.words
    watched.health.committed(commit(1, "one"))
    watched.complete()
    watched.pass_time(1)
    assert watched.turned == ["red", "committed", "green"]


def test_slow_link_that_makes_progress_is_no_fault() -> None:
    watched = Watched()
    watched.complete("one", size=3600 * MB // 10)
    assert watched.pass_time(3600, taken=MB // 10)
    assert watched.health.snapshot()["lag_seconds"] == 3600


def test_part_that_takes_minutes_at_the_users_own_limit_is_no_fault() -> None:
    watched = Watched(bwlimit=10_000)
    watched.complete("one")
    assert watched.pass_time(2 * PATIENCE)


def test_bytes_that_flow_and_commit_nothing_turn_red() -> None:
    watched = Watched()
    watched.complete("one", size=10 * MB)
    assert not watched.pass_time(600, taken=MB)
    assert "were sent and nothing was committed" in watched.words


@pytest.mark.parametrize(("bound", "green"), [(60.0, False), (float("inf"), True)])
def test_bound_of_the_users_own_counts_whatever_moves(bound: float, green: bool) -> None:
    watched = Watched(bound)
    watched.complete("one")
    assert watched.pass_time(59, taken=MB)
    assert watched.pass_time(1000, taken=MB // 100) is green
    assert ("SYNCD_MAX_LAG=60 s" in watched.words) is not green


def test_what_was_superseded_counts_and_what_is_older_does_not() -> None:
    watched = Watched()
    watched.complete("one")
    watched.pass_time(50)
    watched.health.waiting([Waiting("two", 1, "")], [Waiting("one", 1, "superseded")])
    watched.pass_time(50)
    assert watched.health.snapshot()["lag_seconds"] == 100
    watched.health.committed(commit(1, "two"))
    watched.complete("one")
    assert watched.health.snapshot()["lag_seconds"] == 0
    assert watched.pass_time(2 * PATIENCE)  # a backlog that follows at its leisure


def test_checkpoint_that_is_written_again_goes_on_waiting() -> None:
    watched = Watched()
    watched.complete("last.pt")
    watched.pass_time(100)
    watched.health.waiting([], [Waiting("last.pt", 1, "changed just now")])
    watched.pass_time(100)
    watched.complete("last.pt")
    assert watched.health.snapshot()["lag_seconds"] == 200
    watched.complete()  # deleted by its writer: there is nothing that could be lost
    assert watched.health.snapshot()["lag_seconds"] == 0


def test_known_cause_is_named_alone() -> None:
    watched = Watched(60)
    watched.health.red("unreachable", "the store cannot be reached", "wait")
    watched.complete("one")
    watched.pass_time(100)
    assert [reason.code for reason in watched.health.reasons()] == ["unreachable"]
    watched.health.green("unreachable")
    watched.pass_time(1)
    assert [reason.code for reason in watched.health.reasons()] == ["waiting"]


def test_daemon_that_looks_no_more_is_red() -> None:
    watched = Watched()
    watched.complete()
    assert watched.pass_time(1800)
    assert not watched.pass_time(2)
    assert "nobody has looked" in watched.words


def test_what_is_under_way_and_the_time_left() -> None:
    watched = Watched()
    assert watched.health.snapshot()["under_way"] is None
    watched.health.sending("one", 100 * MB)
    watched.pass_time(10, taken=MB)
    way = watched.health.snapshot()["under_way"]
    assert (way["checkpoint"], way["bytes"], way["total"]) == ("one", 10 * MB, 100 * MB)
    assert way["seconds_left"] == pytest.approx(90, rel=0.2)
    watched.health.sending("", 0)
    assert watched.health.snapshot()["under_way"] is None


def test_history_is_bounded_and_tells_the_course_of_things() -> None:
    watched = Watched()
    for number in range(1, 120):
        watched.health.committed(commit(number, f"gen-{number}"))
        watched.health.red("store", f"fault {number}")
        watched.health.green("store")
    watched.pass_time(60, taken=MB)
    history = watched.health.history()
    assert len(history["checkpoints"]) == len(history["faults"]) == 50
    assert history["checkpoints"][-1]["checkpoint"] == "gen-119"
    assert [sample["throughput"] for sample in history["samples"]] == [MB] * 5
