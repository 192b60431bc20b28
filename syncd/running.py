"""What is written to all the time beside checkpoints: when it is sent again.

A log that grows by a line in three seconds must not make a commit of each line.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from syncd.clock import Clock
from syncd.detect import writer_at
from syncd.journal import Journal
from syncd.profiles import Unit
from syncd.scan import Stat
from syncd.snapshot import NoRoom, Snapshot, Snapshots

log = logging.getLogger(__name__)

_EVERY = 60.0
"""Seconds from one commit of nothing but such files to the next, times how many there are: three
requests a commit, 180 an hour."""

_LATELY = 3600.0
"""Seconds in which something was committed that counts among these."""

_MOST = 10_000
"""Paths that are remembered."""


@dataclass
class _Last:
    at: float
    """On the monotonic clock."""

    wall: float
    times: int = 1


class Pacer:
    """Remembers when each was committed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, _Last] = {}
        self._saved = 0
        self.hurry = False
        """Whether all goes at once: at the end."""

    def saved(self, unit: Unit) -> None:
        """A checkpoint is complete: what lies beside it may be written with it."""
        if not unit.companion:
            self._saved = max(self._saved, unit.changed)

    def committed(self, unit: Unit) -> None:
        """It was committed just now."""
        times = self._last.pop(unit.path).times + 1 if unit.path in self._last else 1
        self._last[unit.path] = _Last(self._clock.monotonic(), self._clock.now(), times)
        if len(self._last) > _MOST:
            del self._last[next(iter(self._last))]

    def until(self, unit: Unit) -> float | None:
        """When something may be committed that differs in such files only; None: at once.

        A text may go once after each save: perhaps it belongs to it.
        """
        last = self._last.get(unit.path)
        if last is None or self.hurry or (unit.companion and self._saved > last.wall * 1e9):
            return None
        now = self._clock.monotonic()
        lately = sum(1 for one in self._last.values() if one.times > 1 and now - one.at < _LATELY)
        due = last.at + _EVERY * max(1, lately)
        return due if due > now else None


def running_on(root: Path, unit: Unit) -> set[str]:
    """Which members have been written to since they were seen, or are open for that."""
    found = set()
    for path, seen in unit.files:
        if path in unit.running:
            place = root / unit.below(path)
            try:
                moved = Stat.of(place.lstat()) != seen
            except OSError:
                continue  # it is gone: whoever reads it finds that out
            if moved or writer_at(place):
                found.add(path)
    return found


def hold_still(
    root: Path, unit: Unit, snapshots: Snapshots, journal: Journal
) -> tuple[Unit, Snapshot | None]:
    """A checkpoint as it can be sent, with copies of what would not stay as it is meanwhile.

    Changed if it is another revision by now.
    """

    def is_known(path: str, stat: Stat) -> bool:
        return journal.digest(unit.below(path), stat.text()) is not None

    try:
        held, taken = snapshots.take(unit, is_known, running_on(root, unit))
    except (NoRoom, OSError) as error:
        log.warning("%s is sent without a snapshot: %s", unit.path, error)
        return unit, None
    if taken and taken.whole:
        log.info("%s changes faster than it can be sent: a snapshot of it is sent", unit.path)
    return held, taken
