"""What is on disk and not committed, as it was when it was last looked at."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from syncd.clock import Clock
from syncd.detect import Verdict
from syncd.health import Health, Waiting
from syncd.units import Unit

log = logging.getLogger(__name__)

_RESTLESS = (
    "save less often or in one go, or keep what is written all the time elsewhere; what no "
    "training goes on from belongs in SYNCD_EXCLUDE"
)

PACED = "only logs, a memory or a database have changed, and were sent just now"
SUPERSEDED = "superseded: newer ones wait, and SYNCD_KEEP_LAST would drop it at once"
"""What is not incomplete, though it is not sent now."""

_LONG = 1800.0
"""Seconds of being written to after which nobody may rely on its becoming complete."""

_SOON = 300.0
"""The same, after which the log says so."""

_LATELY = 600.0
"""Seconds since its last change for which it counts as being written to."""

_MOST_FILES = 50_000
"""Files of complete checkpoints that are remembered; each takes about half a kilobyte. What is
older than that is found again once these are committed."""


@dataclass
class Look:
    """What is not committed yet."""

    pending: list[tuple[Unit, str]] = field(default_factory=list)
    """Complete checkpoints, oldest first, each with the profile to record."""

    incomplete: list[Waiting] = field(default_factory=list)
    touched: dict[str, int] = field(default_factory=dict)
    """When each incomplete one was changed last, its logs apart, in ns since the epoch."""

    again: float | None = None
    """Seconds after which something may have become complete by quiet alone."""

    retry: float | None = None
    """Seconds after which something that failed is tried again."""

    due: float = 0.0
    """Seconds after which there is something to look at, though no event comes."""

    cost: float = 0.0
    """Seconds that the last scan took."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of all pending checkpoints."""
        return sum(unit.size for unit, _ in self.pending)

    def next_interval(self, longest: float) -> float:
        """Seconds until the next look, if no event comes first."""
        soon = [seconds for seconds in (self.due, self.again, self.retry) if seconds is not None]
        return min([longest, *(max(0.02, seconds) for seconds in soon)])


@dataclass
class _Entry:
    size: int
    tracker: str | None
    reason: str = ""
    unit: Unit | None = None
    """The checkpoint, where it is complete."""

    profile: str = ""
    again: float | None = None
    retry: float | None = None
    """When another look is worth while, on the monotonic clock."""

    since: float | None = None
    """Since when no look has found it complete, on the monotonic clock."""

    changed: float = 0.0
    """When it was changed last, in seconds since the epoch."""

    last: str = ""
    """The file that was changed last, its logs apart."""

    touched: int = 0
    """The same as ``changed``, its logs apart and by whichever clock says later, in nanoseconds."""


class Backlog:
    """Checkpoints that wait: complete ones for their turn, others for what they lack."""

    def __init__(self, clock: Clock, printable: Callable[[str], str]) -> None:
        self._clock = clock
        self._printable = printable
        self._entries: dict[str, _Entry] = {}
        self._ages: list[tuple[tuple[int, int, str], str]] = []
        self._files = 0
        self._told: set[str] = set()
        self.left_out = False
        """Whether there are more than are remembered."""

    def paths(self) -> set[str]:
        """Paths of all that wait."""
        return set(self._entries)

    def trackers(self) -> Mapping[str, str | None]:
        """Paths of all that wait, each with its tracker."""
        return {path: entry.tracker for path, entry in self._entries.items()}

    def due(self) -> list[str]:
        """What is to be looked at now because time has passed."""
        now = self._clock.monotonic()
        return [
            path
            for path, entry in self._entries.items()
            if any(at is not None and at <= now for at in (entry.again, entry.retry))
        ]

    def is_older(self, unit: Unit) -> bool:
        """Whether this one is older than all that are remembered, and there is no room for it."""
        self._tidy()
        old = self._files >= _MOST_FILES and bool(self._ages) and unit.written < self._ages[0][0]
        self.left_out |= old
        return old

    def judged(self, unit: Unit, verdict: Verdict) -> None:
        """A checkpoint was looked at; complete ones wait for their turn from now on."""
        again = None if verdict.again is None else self._clock.monotonic() + verdict.again
        entry = _Entry(unit.size, unit.tracker, verdict.reason, again=again, touched=unit.touched)
        if verdict.complete:
            entry.unit, entry.profile, entry.again = unit, verdict.profile, None
        elif not unit.companion:
            before = self._entries.get(unit.path)
            entry.since = before.since if before else None
            entry.since = self._clock.monotonic() if entry.since is None else entry.since
            entry.changed, entry.last = unit.changed / 1e9, unit.newest
        self._put(unit, entry)

    def blocked(
        self, unit: Unit, reason: str, retry: float | None = None, again: float | None = None
    ) -> None:
        """A checkpoint cannot be committed; ``retry`` is the time when it is tried again.

        ``again`` is one that a flush waits for as well.
        """
        touched = unit.touched
        entry = _Entry(unit.size, unit.tracker, reason, again=again, retry=retry, touched=touched)
        self._put(unit, entry)

    def _put(self, unit: Unit, entry: _Entry) -> None:
        self.drop(unit.path)
        self._entries[unit.path] = entry
        if entry.unit is None:
            return
        self._files += max(1, len(unit.files))
        heapq.heappush(self._ages, (unit.written, unit.path))
        while self._files > _MOST_FILES and len(self._ages) > 1:
            self._tidy()
            self.drop(heapq.heappop(self._ages)[1])
            self.left_out = True

    def _tidy(self) -> None:
        """Drop from the ages what does not wait any more."""
        while self._ages:
            written, path = self._ages[0]
            entry = self._entries.get(path)
            if entry and entry.unit and entry.unit.written == written:
                return
            heapq.heappop(self._ages)

    def drop(self, path: str) -> None:
        """It is committed, or gone."""
        entry = self._entries.pop(path, None)
        if entry and entry.unit:
            self._files -= max(1, len(entry.unit.files))

    def restless(self, long: float | None = None) -> dict[str, str]:
        """What is still written to, and was never complete for so long; the last file of each."""
        now, moment = self._clock.monotonic(), self._clock.now()
        long = _LONG if long is None else long
        return {
            self._printable(path): self._printable(entry.last)
            for path, entry in self._entries.items()
            if entry.since is not None
            and now - entry.since >= long
            and moment - entry.changed < _LATELY
        }

    def tell_restless(self, health: Health) -> None:
        """What is never complete is never safe, and nothing else would say so."""
        soon = self.restless(_SOON)
        for path in soon.keys() - self._told:
            words = f"{path} has been written to for five minutes and was never complete"
            log.warning("%s; the last was %s (%s)", words, soon[path], _RESTLESS)
        self._told = set(soon)
        restless = {f"restless {path}": path for path in self.restless()}
        for reason in health.reasons("restless "):
            if reason.code not in restless:
                health.green(reason.code)
        for code, path in restless.items():
            words = f"{path} has been written to for half an hour and was never complete"
            if health.red(code, words, _RESTLESS):
                log.warning("%s (%s)", words, _RESTLESS)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    @property
    def exhausted(self) -> bool:
        """Whether all complete ones that were remembered are committed, and there are more."""
        return self.left_out and not self._files

    def look(self) -> Look:
        """All that waits."""
        found, now = Look(), self._clock.monotonic()
        for path, entry in self._entries.items():
            if entry.unit:
                found.pending.append((entry.unit, entry.profile))
            else:
                name = self._printable(path)
                found.incomplete.append(Waiting(name, entry.size, entry.reason))
                found.touched[name] = entry.touched
        found.pending.sort(key=lambda item: item[0].written)
        again = [e.again for e in self._entries.values() if e.again is not None]
        retry = [e.retry for e in self._entries.values() if e.retry is not None]
        found.again = max(0.0, min(again) - now) if again else None
        found.retry = max(0.0, min(retry) - now) if retry else None
        return found
