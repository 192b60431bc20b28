"""What goes first, and what is older than what: the order of the commits of one root.

The newest checkpoint is what the user would lose, so it goes first; whatever follows it must not
pass for newer. Near the end of a grace period, what can still be committed goes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from syncd.commit import Publisher
from syncd.detect import Detector
from syncd.journal import Journal, Root
from syncd.profiles import COMPANION
from syncd.series import is_milestone, series
from syncd.units import Unit

_BROUGHT = 60 * 10**9
"""Nanoseconds between modification and change that tell a file that was copied here, its time of
modification kept, from one that was written here."""

_MOST_AT_START = 100_000
"""Checkpoints of which it is remembered that they lay here at the start."""

_MOST_AGES = 10_000
"""Committed checkpoints of which it is remembered when they were saved."""

_SLICE = 30.0
"""Seconds at a time that the first of a series is sent before another series may come between."""

_MARGIN = 0.9
"""Share of the time left that a transfer is planned to take: a record has to follow it."""


def next_index(
    pending: Sequence[Unit], seconds: float | None, rate: float | None, left: Callable[[Unit], int]
) -> tuple[int, bool]:
    """Which of ``pending``, oldest first, is to be committed next, and whether it will be in time.

    With ``seconds`` left (None: no end is in sight) and ``rate`` bytes per second (None: not
    known), the newest that can still be sent goes first; if none can, the newest all the same:
    what is sent of it need not be sent again. ``left`` says how many bytes of one have to travel.
    """
    if seconds is not None and rate:
        for index in reversed(range(len(pending))):
            if left(pending[index]) <= rate * seconds * _MARGIN:
                return index, True
        return len(pending) - 1, False
    return len(pending) - 1, True


_Age = tuple[float, int, int, str]


class Newest:
    """The newest committed checkpoints of each series on disk, as many as retention keeps.

    What was saved while this daemon watched is newer than all that was there before, in the order
    in which it was seen to change, whatever the clocks say: one that was ahead and is set back
    makes no old checkpoint newer than the next ones. Of what was there the times of the files tell.
    """

    def __init__(
        self,
        keep: int | None,
        every: int | None = None,
        since: Callable[[Unit], float] = lambda _: -math.inf,
    ) -> None:
        """``keep`` of each series stay in the store (None: all), and multiples of ``every``.

        ``since`` tells since when a checkpoint has been as it is, on the monotonic clock.
        """
        self._keep = keep
        self._every = every
        self._since = since
        self._watching = math.inf
        self._safe: dict[str, dict[str, _Age]] = {}
        self._ages: dict[str, _Age] = {}

    def watch(self, now: float) -> None:
        """All that was there has been looked at."""
        self._watching = min(self._watching, now)

    def note(self, unit: Unit, just_now: bool = False) -> None:
        """This one is on disk and committed: ``just_now``, or some time before."""
        if self._keep is None or unit.companion:
            return
        known = self._ages.get(unit.path)
        if just_now:
            age = self._age(unit)
        else:
            age = known if known and known[1:] == unit.written else (0.0, *unit.written)
        self._ages.pop(unit.path, None)
        self._ages[unit.path] = age
        if len(self._ages) > _MOST_AGES:
            del self._ages[next(iter(self._ages))]
        mine = self._safe.setdefault(series(unit.path), {})
        mine[unit.path] = age
        if len(mine) > self._keep:
            del mine[min(mine, key=lambda path: mine[path])]

    def _age(self, unit: Unit) -> _Age:
        return max(0.0, self._since(unit) - self._watching), *unit.written

    def forget(self, gone: Callable[[str], bool]) -> None:
        """Those are looked at anew."""
        for mine in self._safe.values():
            for path in [path for path in mine if gone(path)]:
                del mine[path]

    def outlived(self, unit: Unit) -> bool:
        """Whether as many newer ones of its series are committed as retention keeps."""
        if is_milestone(unit.path, self._every):
            return False
        mine, age = self._safe.get(series(unit.path), {}), self._age(unit)
        newer = sum(other > age for other in mine.values())
        return self._keep is not None and newer >= self._keep

    def superseded(self, pending: Sequence[Unit]) -> set[str]:
        """Of those that wait: what retention would drop as soon as it is in the store."""
        gone: set[str] = set()
        if self._keep is None:
            return gone
        waiting: dict[str, dict[str, _Age]] = {}
        for unit in pending:
            if not unit.companion:
                waiting.setdefault(series(unit.path), {})[unit.path] = self._age(unit)
        for name, mine in waiting.items():
            ages = {**self._safe.get(name, {}), **mine}
            order = sorted(ages, key=lambda path: ages[path], reverse=True)
            left_out = set(order[self._keep :]) & mine.keys()
            gone |= {path for path in left_out if not is_milestone(path, self._every)}
        return gone


class Turns:
    """Which checkpoint of each series is under way, and finished before its next one is begun.

    What another series saves meanwhile may come between, and what was sent is kept. If its own
    next ones came first, none would ever arrive where each takes longer than the time between two
    saves: RVC writes a small extract after each pair, which is newer than the pair.
    """

    def __init__(self) -> None:
        self._begun: dict[str, tuple[str, str]] = {}
        self._done: dict[str, tuple[int, int, str]] = {}

    def note(self, unit: Unit) -> None:
        """This one is committed: older ones of its series are a backlog."""
        mine = series(unit.path)
        self._done[mine] = max(unit.written, self._done.get(mine, unit.written))

    def begin(self, unit: Unit) -> None:
        """This one is sent now; it has its turn if it is the newest of its series so far."""
        mine = series(unit.path)
        if not unit.companion and self._done.get(mine, unit.written) <= unit.written:
            self._begun[mine] = unit.path, unit.signature

    def has(self, unit: Unit) -> bool:
        """Whether it is the turn of this one."""
        return self._begun.get(series(unit.path)) == (unit.path, unit.signature)

    def end(self, unit: Unit, done: bool) -> None:
        """It is committed (``done``), or its turn is over without that."""
        if done:
            self.note(unit)
        if done or self.has(unit):
            self._begun.pop(series(unit.path), None)

    def instead(self, pending: Sequence[Unit], index: int) -> int:
        """The one whose turn it is in the series of the one that was chosen."""
        mine = series(pending[index].path)
        own = (i for i, u in enumerate(pending) if series(u.path) == mine and self.has(u))
        return next(own, index) if mine in self._begun else index

    def may_precede(self, other: Unit, unit: Unit, passed: float) -> bool:
        """Whether ``other`` may be sent before ``unit``, so many seconds under way, has arrived.

        Of what goes in one request all is lost when it is stopped, so it is left some time.
        """
        if not self.has(unit):
            return True
        return passed >= _SLICE and series(other.path) != series(unit.path)


class Seniority:
    """Finds the place of a checkpoint among the commits, by times of one clock only."""

    def __init__(self, journal: Journal, detector: Detector) -> None:
        self._journal = journal
        self._detector = detector
        self._at_start: dict[str, str] = {}

    def was_here(self, unit: Unit) -> None:
        """This checkpoint lay in the root, uncommitted, when it was first looked at."""
        if len(self._at_start) < _MOST_AT_START:
            self._at_start[unit.path] = unit.signature

    def behind(self, unit: Unit, publisher: Publisher) -> int:
        """Number of the oldest commit of something written after this checkpoint; 0 for none."""
        behind = 0
        if not unit.companion:
            for root in self._journal.roots(COMPANION.name):
                if not self._later(root, unit, publisher):
                    break
                behind = root.seq
        return behind

    def _later(self, root: Root, unit: Unit, publisher: Publisher) -> bool:
        """Whether what a commit holds was written after ``unit``.

        The times are those of files that one machine has written, or the changes that this
        machine's kernel noted, of a file that a restore has brought here. A clock that was set
        back does not make a new checkpoint an old one.
        """
        modified, changed, _ = unit.written
        fresh = changed - modified < _BROUGHT
        if fresh and publisher.moments.of(root.seq) < self._detector.since(unit):
            return False
        if root.writer not in publisher.lives:
            if root.changed is None:
                return self._is_leftover(unit, publisher) and root.written > modified
            if fresh:
                return root.changed > changed
        return root.written > modified

    def _is_leftover(self, unit: Unit, publisher: Publisher) -> bool:
        """Whether a checkpoint lay here before this daemon took over from another machine.

        It is committed, but must not pass for newer than what that machine has done since.
        """
        return publisher.took_over and self._at_start.get(unit.path) == unit.signature
