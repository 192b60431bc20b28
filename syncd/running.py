"""Logs and databases, which are written to all the time: when they are sent again.

A log that grows by a line in three seconds must not make a commit of each line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from syncd.clock import Clock
from syncd.detect import writer_at
from syncd.errors import Permanent
from syncd.filestat import Stat
from syncd.journal import Journal
from syncd.snapshot import NoRoom, Snapshot, Snapshots
from syncd.sqlitefiles import in_use, stat_of
from syncd.units import Unit

log = logging.getLogger(__name__)

_EVERY = 60.0
"""Seconds from one commit of nothing but logs to the next, times how many there are: three
requests a commit, 180 an hour."""

_RATE = 50_000.0
"""Bytes per second that a log may take, on the average, if it is sent whole each time."""

_DATABASE = 20.0
"""Seconds from one commit of a database in use to the next: it holds what took hours to find."""

_MEMORY = 600.0
"""Seconds from one commit of nothing but what has come to a memory to the next: each names all that
is in it, and it is of little use without what was learnt from it."""

_REST = 10.0
"""Times as long as it took to send a database it is then left alone: checkpoints wait behind it."""

_LATELY = 3600.0
"""Seconds in which something was committed that counts among these."""

_ROOM = "free space in SYNCD_STATE_DIR, or leave it out by SYNCD_EXCLUDE"

_MOST = 1000
"""Paths that are remembered."""


@dataclass
class _Last:
    at: float
    """On the monotonic clock."""

    alone: bool
    """Whether nothing but logs had changed."""

    took: float
    """Seconds that it took."""


class Pacer:
    """Remembers when what has logs in it was committed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, _Last] = {}
        self._flushes_since: float | None = None

    @contextmanager
    def hurry(self) -> Iterator[None]:
        """While this lasts each goes once at once: it is the end, perhaps."""
        before, self._flushes_since = self._flushes_since, self._clock.monotonic()
        try:
            yield
        finally:
            self._flushes_since = before

    def committed(self, unit: Unit, alone: bool, took: float = 0.0) -> None:
        """It was committed just now, in so many seconds; ``alone``: for its logs only."""
        if not (unit.running or unit.memories):
            return
        self._last.pop(unit.path, None)
        self._last[unit.path] = _Last(self._clock.monotonic(), alone, took)
        if len(self._last) > _MOST:
            del self._last[next(iter(self._last))]

    def until(self, unit: Unit) -> float | None:
        """When it may be committed again of which only logs have changed; None: at once."""
        last = self._last.get(unit.path)
        if last is None:
            return None
        if self._flushes_since is not None and last.at < self._flushes_since:
            return None
        now = self._clock.monotonic()
        lately = sum(one.alone and now - one.at < _LATELY for one in self._last.values())
        logs = unit.running - unit.databases
        size = sum(stat.size for path, stat in unit.files if path in logs)
        rest = max(_EVERY * max(1, lately), size / _RATE) if logs else _DATABASE
        if unit.memories:
            rest = max(rest, _MEMORY)
        due = last.at + max(rest, _REST * last.took if unit.databases else 0.0)
        return due if due > now else None


def running_on(root: Path, unit: Unit) -> frozenset[str]:
    """Which of these have been written to since they were seen, or are open for that.

    A database also where some of it lies beside it.
    """
    found = set()
    for path, seen in unit.files:
        if path in unit.running:
            place = root / unit.below(path)
            database = path in unit.databases
            try:
                moved = (stat_of(place) if database else Stat.of(place.lstat())) != seen
            except OSError:
                continue  # it is gone: whoever reads it finds that out
            if moved or writer_at(place) or (database and in_use(place)):
                found.add(path)
    return frozenset(found)


def at_rest(root: Path, unit: Unit) -> bool:
    """Whether there are databases in it and nobody is using one: it was saved, as anything else."""
    places = [root / unit.below(path) for path in unit.databases]
    return bool(places) and not any(writer_at(place) or in_use(place) for place in places)


def hold_still(
    root: Path,
    unit: Unit,
    snapshots: Snapshots,
    journal: Journal,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Unit, Snapshot | None]:
    """A checkpoint as it can be sent, with copies of what would not stay as it is meanwhile.

    Changed if it is another revision by now; GaveWay if a copy is to ``stop``.
    """

    def is_known(path: str, stat: Stat) -> bool:
        return journal.digest(unit.below(path), stat.text()) is not None

    running = running_on(root, unit)
    for every in (True, False) if snapshots.is_wanted(unit) else (False,):
        try:
            held, taken = snapshots.take(unit, is_known, running, every, stop)
        except (NoRoom, OSError) as error:
            if not every and running & unit.databases:
                words = f"no copy of the database in {unit.path} could be made: {error}"
                raise Permanent(words, hint=_ROOM) from None
            what = unit.path if every else f"a log of {unit.path}"
            log.warning("%s is sent without a snapshot: %s", what, error)
            continue
        if taken and taken.whole:
            log.info("%s changes faster than it can be sent: a snapshot of it is sent", unit.path)
        return held, taken
    return unit, None
