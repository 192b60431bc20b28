"""Is a checkpoint complete? Proven, never assumed from one event.

A checkpoint is complete when its profile's marker is there, parses and is not older than the
members; every member passes its format's check; nobody has one open for writing; and it has
been quiet for long enough. Whether it stayed unchanged while it was read is for the publisher
to find out, after the read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from syncd.clock import Clock
from syncd.formats import check_file, check_json, proves_its_end
from syncd.profiles import Unit, digest_of

_NO_LEASE_QUIET = 0.5
"""Seconds of quiet for a marked checkpoint where no lease can tell that writers are gone."""

_PROVEN_QUIET = 0.1
"""Seconds of quiet for a lone file that is closed and whole by its own format."""

_STALE_MARKER = 5
"""How many times SYNCD_SETTLE completes a checkpoint whose marker is older than a member."""


@dataclass(frozen=True)
class Verdict:
    """What is known of one checkpoint's revision.

    ``reason`` says in words what is missing; ``again`` is the number of seconds after which
    another look is worth while (None: only when something changes).
    """

    complete: bool
    profile: str = ""
    reason: str = ""
    again: float | None = None
    failed: bool = False
    """It will not become complete by waiting: it cannot be read."""


@dataclass
class _Seen:
    signature: str
    since: float
    faults: str | None = None
    failed: bool = False
    checked: bool = False


def writer_at(path: Path) -> bool | None:
    """Whether a process has the file open for writing; None where that cannot be told.

    A read lease is refused while there is a writer. It is given back at once, so that a writer
    that opens the file in this instant waits for microseconds.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(fd)
    return False


class Detector:
    """Remembers since when each checkpoint has been as it is, and judges it."""

    def __init__(
        self,
        root: Path,
        settle: float,
        clock: Clock,
        writer: Callable[[Path], bool | None] = writer_at,
    ) -> None:
        self._root = root
        self._settle = settle
        self._clock = clock
        self._writer = writer
        self._seen: dict[str, _Seen] = {}

    def forget_missing(self, paths: set[str]) -> None:
        """Drop what is known of checkpoints that are no longer there."""
        for path in self._seen.keys() - paths:
            del self._seen[path]

    def since(self, unit: Unit) -> float:
        """Since when a checkpoint has been as it is, on the monotonic clock."""
        return self._look(unit).since

    def judge(self, unit: Unit) -> Verdict:
        """Decide on one revision of a checkpoint."""
        seen = self._look(unit)
        profile = unit.profile
        if not unit.files and not unit.links:
            return Verdict(False, reason="has no files yet")
        names = {path for path, _ in unit.files}
        if profile.blocked_by and profile.blocked_by in names:
            return Verdict(False, reason=f"{profile.blocked_by} says it is still being saved")
        label, marked, settle = profile.name, profile.renamed, self._settle
        if profile.marker:
            problem = self._marker_problem(unit, profile.marker)
            if problem:
                return Verdict(False, reason=problem)
            marked = not self._late_members(unit, profile.marker)
            settle *= _STALE_MARKER  # an old marker in a directory that is being written again
        if profile.tracker:
            marked = self._tracked(unit)
            label += "" if marked else ", marker absent"
        quiet = self._clock.monotonic() - seen.since
        if unit.lone and quiet < settle and self._proven(unit, seen):
            settle = min(settle, _PROVEN_QUIET)
        if not marked and quiet < settle:
            return Verdict(False, reason="changed just now", again=settle - quiet)
        return self._judge_members(unit, seen, label, quiet)

    def _proven(self, unit: Unit, seen: _Seen) -> bool:
        """Whether a lone file's format shows its end, and a lease that its writer has closed it.

        Of a file that is overwritten again and again, no revision ever stays quiet for long.
        """
        path = self._root / unit.path
        if self._writer(path) is not False or not proves_its_end(path):
            return False
        if not seen.checked:
            seen.faults, seen.checked = self._fault(unit, seen), True
        return not seen.faults

    def _judge_members(self, unit: Unit, seen: _Seen, label: str, quiet: float) -> Verdict:
        writers = [self._writer(self._root / unit.below(path)) for path, _ in unit.files]
        if any(writers):
            return Verdict(False, reason="a process has it open for writing", again=self._settle)
        least = 0.0 if unit.profile.renamed else min(_NO_LEASE_QUIET, self._settle)
        if None in writers and quiet < least:
            return Verdict(False, reason="changed just now", again=least - quiet)
        if not seen.checked:
            seen.faults = self._fault(unit, seen)
            seen.checked = True
        if seen.faults:
            return Verdict(False, reason=seen.faults, failed=seen.failed)
        return Verdict(True, profile=label)

    def _look(self, unit: Unit) -> _Seen:
        signature = unit.signature
        if unit.unfinished:
            signature += digest_of([f"{path}={stat.text()}" for path, stat in unit.unfinished])
        seen = self._seen.get(unit.path)
        if seen is None or seen.signature != signature:
            now = self._clock.monotonic()
            if seen is None:  # what was last changed long ago has been quiet since then
                stats = [stat for _, stat in (*unit.files, *unit.unfinished)]
                newest = max((stat.ctime_ns for stat in stats), default=0) / 1e9
                now -= max(0.0, self._clock.now() - newest)
            seen = self._seen[unit.path] = _Seen(signature, now)
        return seen

    def _fault(self, unit: Unit, seen: _Seen) -> str | None:
        for path, _ in unit.files:
            try:
                fault = check_file(self._root / unit.below(path))
            except FileNotFoundError:
                return f"{unit.below(path)} is gone"
            except OSError as error:
                seen.failed = True
                return f"{unit.below(path)} cannot be read: {error.strerror}"
            if fault:
                return f"{unit.below(path)} is {fault}"
        return None

    def _marker_problem(self, unit: Unit, marker: str) -> str | None:
        if marker not in {path for path, _ in unit.files}:
            return f"its last file, {marker}, is not there yet"
        if not marker.endswith(".json"):
            return None
        try:
            with (self._root / unit.below(marker)).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                fault = check_json(file, size) if size else "empty"
        except OSError as error:
            return f"its last file, {marker}, cannot be read: {error.strerror}"
        return f"its last file, {marker}, is {fault}" if fault else None

    @staticmethod
    def _late_members(unit: Unit, marker: str) -> bool:
        """Whether a member is younger than the marker: the old marker of a reused directory."""
        stats = dict(unit.files)
        return any(stat.mtime_ns > stats[marker].mtime_ns for stat in stats.values())

    def _tracked(self, unit: Unit) -> bool:
        """Whether the tracker names this checkpoint, or a later one."""
        if not unit.tracker:
            return False
        tracker = self._root / unit.tracker
        try:
            text = str(tracker.readlink()) if tracker.is_symlink() else tracker.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return False
        named, own = (re.search(r"(\d+)\D*$", t) for t in (text, unit.path))
        return bool(named and own and int(named[1]) >= int(own[1]))
