"""Is a checkpoint complete? Proven, never assumed from one event.

A checkpoint is complete when its writer has done its last act, as far as that is known; every
member passes its format's check and every shard that is named is there; nobody has one open for
writing; it has been quiet for long enough; and, where the last act is not proven, it lacks nothing
that the one before it has. Whether it stayed unchanged while it was read is for the publisher
to find out, after the read.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from syncd.clock import Clock
from syncd.filestat import Stat
from syncd.formats import check_file, proves_its_end
from syncd.lastact import Act, LastAct, emptied_for, last_act, marked_unfinished
from syncd.manner import Manner
from syncd.pathrules import member
from syncd.recipe import state_to_come
from syncd.scan import Folder, Scanner
from syncd.series import step_of
from syncd.shards import NAMES_OTHERS, named_beside, shard_missing
from syncd.siblings import Committed, Rewrites, Siblings
from syncd.sqlitefiles import in_peace
from syncd.together import is_a_part
from syncd.units import Unit, digest_of

_NO_LEASE_QUIET = 0.5
"""Seconds of quiet for a marked checkpoint where no lease can tell that writers are gone."""

_PROVEN_QUIET = 0.1
"""Seconds of quiet for a lone file that is closed and whole by its own format."""

_MARKED = 1.0
"""Seconds after which it is looked whether a file that says "still saving" is gone."""

_FIRST = 5
"""How many times SYNCD_SETTLE completes what has a weak sign of its last act, or no sign and no
checkpoint before it to compare with."""

_BUSY = 30
"""How many times SYNCD_SETTLE all else in a directory must have rested in which a database is being
written: that may be a part of the save."""

_ALONE = 150
"""How many times SYNCD_SETTLE completes a checkpoint whose marker never came, where nothing earlier
shows what a whole one has. Five minutes, unless set otherwise."""


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

    flagged: bool = False
    """Complete by its looks only: the writer's last act was waited for in vain."""


@dataclass
class _Seen:
    signature: str
    since: float
    """Since when it has not been seen to change."""

    as_it_is: float
    """Since when it has not changed, by the clock of its file system where that tells."""

    core: str
    rests: float
    """Since when all has been as it is but what may be written to all the time."""

    moves: float
    """Since when it has never been seen to be quiet for long."""

    bare: str
    saved: float
    """Since when all has been as it is but for its memories, too."""

    calm: bool = False
    faults: str | None = None
    failed: bool = False
    checked: bool = False


def writer_at(path: Path) -> bool | None:
    """Whether a process has the file open for writing; None where that cannot be told.

    A read lease is refused while there is a writer. It is given back at once, so that a writer
    that opens the file in this instant waits for microseconds.
    """
    with in_peace(path):
        return _writer_at(path)


def _writer_at(path: Path) -> bool | None:
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
        exclude: tuple[str, ...] = (),
        committed: Committed | None = None,
        whole: bool = True,
    ) -> None:
        """``whole``: all shards of a checkpoint are on this machine, where it is complete."""
        self._whole = whole
        self._root = root
        self._settle = settle
        self._clock = clock
        self._writer = writer
        self._exclude = exclude
        self._committed = committed
        self._siblings = Siblings(root, committed)
        self._rewrites = Rewrites(committed)
        self._manner = Manner(root, settle, clock, exclude)
        self._seen: dict[str, _Seen] = {}
        self.watching = False
        """Whether all that there was has been looked at: what is seen first from now on is new."""

    def forget_missing(self, paths: set[str]) -> None:
        """Drop what is known of checkpoints that are gone, or wait for nothing any more."""
        for path in self._seen.keys() - paths:
            del self._seen[path]
        self._siblings.forget_missing(paths)
        self._rewrites.forget_missing(paths)
        self._manner.forget_missing(paths)

    def learn(self, unit: Unit) -> None:
        """This one is committed as it is: what comes after it is compared with it."""
        self._siblings.learn(unit)
        self._manner.learn(unit)
        if not unit.lone:
            self._rewrites.learn(unit)

    def only_logs(self, unit: Unit) -> bool:
        """Whether nothing but its logs differs from its commit."""
        return self._rewrites.only(unit, unit.running)

    def only_lost(self, unit: Unit) -> bool:
        """Whether all that a step has is in its commit, which has more.

        Where saves go to one place it is in doubt: the next may lack the same.
        """
        return step_of(unit.path) >= 0 and self._rewrites.only_lost(unit)

    def since(self, unit: Unit) -> float:
        """Since when a checkpoint has been as it is, on the monotonic clock."""
        return self._look(unit).as_it_is

    def judge(self, unit: Unit) -> Verdict:
        """Decide on one revision of a checkpoint."""
        verdict = self._judge(unit)
        if not verdict.complete:
            return verdict
        marker = marked_unfinished(self._root, unit)
        if marker:
            wait = max(self._settle, _MARKED)
            return Verdict(False, reason=f"{marker} says it is still being saved", again=wait)
        later = emptied_for(self._root, unit)
        if later:
            return Verdict(False, reason=f"{later} has folders that are gone here")
        quiet = self._clock.monotonic() - self._look(unit).since
        state = state_to_come(self._root, unit, self._committed, quiet >= self._settle * _FIRST)
        if state:
            words = f"{state}, which belongs to it, is not in the store yet"
            return Verdict(False, reason=words, again=self._settle)
        return verdict

    def _judge(self, unit: Unit) -> Verdict:
        seen, words = self._look(unit), self._no_save(unit)
        if words:
            return Verdict(False, reason=words)
        last = last_act(self._root, unit)
        if last.act is Act.STALE and (
            self._rewrites.only_added(unit) or self._siblings.strange(unit, last.younger)
        ):
            last = LastAct(Act.LIKELY, sealed=last.sealed)
        if last.foreign and self._manner.is_usual(unit):
            last = LastAct(Act.UNKNOWN)
        if last.act in (Act.MISSING, Act.STALE):
            again = self._settle * _FIRST if last.foreign else None  # another one may come to rest
            return Verdict(False, reason=last.words, again=again)
        if last.act is Act.DONE and not self._as_listed(unit):
            return Verdict(False, reason="changed just now", again=0.0)
        return self._judge_rest(unit, seen, last)

    def _no_save(self, unit: Unit) -> str:
        """Why it is none, whatever its files are like."""
        blocker = unit.profile.blocked_by
        if not unit.files and not unit.links:
            return "has no files yet"
        saving = blocker and any(path == blocker for path, _ in unit.files)
        return f"{blocker} says it is still being saved" if saving else ""

    def _judge_rest(self, unit: Unit, seen: _Seen, last: LastAct) -> Verdict:
        """Decide by quiet, and by the members.

        A log that is open, or never rests, is not waited for: what counts is since when all else
        has been as it is. Nor is a database; in a directory only after longer, as long as it is
        written to.
        """
        now = self._clock.monotonic()
        quiet, rest, moves = now - seen.since, now - seen.rests, now - seen.moves
        if unit.running and not unit.databases:
            quiet = rest
        wait = self._wait(unit, seen, last, quiet)
        long = max(wait, self._settle * _FIRST)
        busy = self._settle * _BUSY if not unit.lone else long
        if quiet < wait and not (unit.databases and min(rest, moves) >= busy):
            again = wait - quiet
            if unit.databases:
                again = min(again, busy - min(rest, moves))
            if last.act is Act.UNKNOWN:  # what it rests like, and whether the next one is begun
                again = min(again, self._settle - quiet % self._settle)
            return Verdict(False, reason=last.words or "changed just now", again=again)
        if not unit.databases or rest >= long or last.act is Act.DONE:
            return self._judge_members(unit, seen, last, rest, unit.running)
        return self._judge_members(unit, seen, last, quiet)

    def _wait(self, unit: Unit, seen: _Seen, last: LastAct, quiet: float) -> float:
        """Seconds of quiet that complete it, by what is known of the writer's last act."""
        if last.act is Act.DONE:
            return 0.0
        alike = self._siblings.known(unit)
        if last.act is Act.ABSENT:
            return self._settle * (_FIRST if alike or last.sealed else _ALONE)
        if last.act is Act.LIKELY:
            passed = bool(last.words)  # by a tracker that names a later one
            if unit.profile.renamed:
                return self._settle
            return self._settle * (_ALONE if passed and not alike else _FIRST)
        if unit.lone:
            return self._wait_alone(unit, seen, quiet, alike)
        sure = alike or last.sealed or last.ended
        if not sure and self._settle <= quiet < self._settle * _FIRST:
            sure = self._manner.is_finished(unit, quiet) or self._rests_but_for_memories(unit, seen)
        return self._settle * (1 if sure else _FIRST)

    def _rests_but_for_memories(self, unit: Unit, seen: _Seen) -> bool:
        """Whether all has rested for long but what comes to a memory in it, one after another."""
        rest = self._clock.monotonic() - seen.saved
        return bool(unit.memories) and rest >= self._settle * _FIRST

    def _wait_alone(self, unit: Unit, seen: _Seen, quiet: float, alike: bool) -> float:
        if not alike and is_a_part(unit.path.rpartition("/")[2]):
            # the very first: after ten seconds what belongs to it is there, if anything does
            return max(self._settle, self._settle * _FIRST - (seen.since - seen.moves))
        if quiet < self._settle and self._proven(unit, seen):
            return min(self._settle, _PROVEN_QUIET)
        return self._settle

    def _as_listed(self, unit: Unit) -> bool:
        """Whether the directory holds now what the scan saw: the last act came after that."""
        listed = []
        scanner = Scanner(self._root, self._exclude, joined=self._whole)
        for prefix, folder in Folder(unit.path, scanner).walk():
            listed += [(prefix + name, stat) for name, stat in folder.files.items()]
        found, known = (
            {(path, stat) for path, stat in files if path not in unit.running}
            for files in (listed, unit.files)
        )
        return found == known

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

    def _judge_members(
        self,
        unit: Unit,
        seen: _Seen,
        last: LastAct,
        quiet: float,
        running: Collection[str] = (),
    ) -> Verdict:
        """``running`` are members that may be open for writing: they always are."""
        paths = [unit.below(path) for path, _ in unit.files if path not in running]
        writers = [self._writer(self._root / path) for path in paths]
        if any(writers):
            return Verdict(False, reason="a process has it open for writing", again=self._settle)
        least = 0.0 if unit.profile.renamed else min(_NO_LEASE_QUIET, self._settle)
        if None in writers and quiet < least:
            return Verdict(False, reason="changed just now", again=least - quiet)
        if not seen.checked:
            seen.faults = self._fault(unit, seen) or self._unnamed(unit)
            seen.checked = True
        if seen.faults:
            return Verdict(False, reason=seen.faults, failed=seen.failed)
        if last.act is not Act.DONE:
            left = self._settle * _FIRST - quiet
            doubt = self._siblings.lack(unit, left <= 0) or self._rewrites.half_way(unit, left <= 0)
            if doubt:
                return Verdict(False, reason=doubt, again=left if left > 0 else None)
        flagged = last.act is Act.ABSENT
        label = unit.profile.name + (", marker absent" if flagged else "")
        return Verdict(True, profile=label, flagged=flagged)

    def _unnamed(self, unit: Unit) -> str | None:
        """A shard that is named somewhere and is not there."""
        if not self._whole:
            return None
        names = {path for path, _ in unit.files} | {path for path, _ in unit.links}
        for path in names:
            if not path.endswith(NAMES_OTHERS):
                continue
            shards = named_beside(self._root / unit.below(path))
            folder = path.rpartition("/")[0]
            for shard in shards:
                if member(folder, shard) not in names:
                    return f"{shard}, which {unit.below(path)} names, is not there yet"
        missing = shard_missing(names)
        return f"{missing} is not there yet" if missing else None

    def _look(self, unit: Unit) -> _Seen:
        signature, core = unit.signature, unit.core
        if unit.unfinished:
            more = digest_of([f"{path}={stat.text()}" for path, stat in unit.unfinished])
            signature, core = signature + more, core + more
        seen, now = self._seen.get(unit.path), self._clock.monotonic()
        if seen is None:
            stats = [*unit.files, *unit.unfinished]
            changed = since = self._changed(stat for _, stat in stats)
            rests = self._changed(stat for path, stat in stats if path not in unit.running)
            if self.watching:  # a file server's clock may be behind, and ours be put forward
                since = rests = now
            seen = _Seen(signature, since, changed, core, rests, since, unit.bare, rests)
        elif seen.signature != signature:
            rests = seen.rests if seen.core == core else now
            moves = now if seen.calm else seen.moves
            saved = seen.saved if seen.bare == unit.bare else now
            seen = _Seen(signature, now, now, core, rests, moves, unit.bare, saved)
        elif now - seen.since >= self._settle * _FIRST:
            seen.calm = True
        self._seen[unit.path] = seen
        return seen

    def _changed(self, stats: Iterable[Stat]) -> float:
        """When any of these was changed last, on the monotonic clock; now, where there are none."""
        newest = max((stat.ctime_ns for stat in stats), default=None)
        passed = 0.0 if newest is None else max(0.0, self._clock.now() - newest / 1e9)
        return self._clock.monotonic() - passed

    def _fault(self, unit: Unit, seen: _Seen) -> str | None:
        for path, _ in unit.files:
            if path in unit.running:
                continue  # wherever it ends, it can be gone on with
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
