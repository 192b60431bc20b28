"""Whose turn it is, of several series that share a line."""

from __future__ import annotations

from syncd.filestat import Stat
from syncd.order import Turns
from syncd.profiles import COMPANION, LONE, Profile
from syncd.units import Unit


def unit(path: str, written: int, profile: Profile = LONE) -> Unit:
    stat = Stat(size=1, mtime_ns=written, ctime_ns=written, inode=written, mode=0o644)
    return Unit(path, profile, (("", stat),))


OLD, NEW, SMALL = unit("run/G_200.pth", 1), unit("run/G_400.pth", 3), unit("w/voice_e1.pth", 2)


def test_what_is_begun_is_finished_before_the_next_of_its_series() -> None:
    turns = Turns()
    assert turns.instead([OLD, SMALL, NEW], 2) == 2, "nothing is begun"
    turns.begin(OLD)
    assert turns.instead([OLD, SMALL, NEW], 2) == 0
    assert turns.instead([OLD, SMALL], 1) == 1, "another series goes first if it is newer"
    assert turns.instead([SMALL, NEW], 1) == 1, "it is gone"
    turns.end(OLD, done=True)
    turns.begin(NEW)
    assert turns.has(NEW)


def test_another_series_may_come_between_but_not_at_once() -> None:
    turns = Turns()
    turns.begin(OLD)
    assert not turns.may_precede(NEW, OLD, 3600)
    assert not turns.may_precede(SMALL, OLD, 1)
    assert turns.may_precede(SMALL, OLD, 40)


def test_backlog_of_a_series_has_no_turn() -> None:
    turns = Turns()
    turns.note(NEW)  # committed by an earlier daemon
    turns.begin(OLD)
    assert not turns.has(OLD)
    assert turns.may_precede(SMALL, OLD, 0)


def test_another_revision_and_a_text_have_no_turn() -> None:
    turns = Turns()
    text = unit("config.json", 5, COMPANION)
    turns.begin(text)
    turns.begin(OLD)
    assert not turns.has(text)
    assert not turns.has(unit("run/G_200.pth", 9))


def test_turn_that_is_over_is_nobodys() -> None:
    """As after an outage: then the newest goes first."""
    turns = Turns()
    turns.begin(OLD)
    turns.end(OLD, done=False)
    assert turns.instead([OLD, NEW], 1) == 1
