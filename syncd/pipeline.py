"""One checkpoint root on its way to the store: look, judge, send, commit, tidy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from syncd.clock import Clock
from syncd.commit import Publisher
from syncd.detect import Detector
from syncd.errors import Changed, Corrupt, Permanent, SyncdError
from syncd.health import Health, Waiting
from syncd.journal import Journal, Root
from syncd.profiles import COMPANION, Unit, units
from syncd.records import CommitRecord
from syncd.scan import Scanner

log = logging.getLogger(__name__)

_SMALL = 32 * 1024 * 1024
"""Bytes of a backlog that is gone so quickly that the oldest may go first."""

_POSTPONE = 30.0
"""Seconds after which a checkpoint that failed by itself is tried again."""

_UNREADABLE = Permanent(
    "a file or folder in it cannot be read", hint="give the user of syncd read permission"
)

_NOT_UTF8 = Permanent(
    "a file name is not UTF-8",
    hint="object stores take UTF-8 names only: rename it, or add it to SYNCD_EXCLUDE",
)

_BROUGHT = 60 * 10**9
"""Nanoseconds between modification and change that tell a file that was copied here, its time of
modification kept, from one that was written here."""

_SCAN_SHARE = 100
"""A scan that takes t seconds is repeated after at least 100 t: at most 1 % of a core."""


@dataclass
class Look:
    """What one scan of the root found that is not committed yet."""

    pending: list[tuple[Unit, str]] = field(default_factory=list)
    """Complete checkpoints, oldest first, each with the profile to record."""

    incomplete: list[Waiting] = field(default_factory=list)
    again: float | None = None
    """Seconds after which something may have become complete by quiet alone."""

    retry: float | None = None
    """Seconds after which something that failed is tried again."""

    cost: float = 0.0

    @property
    def pending_bytes(self) -> int:
        """Bytes of all pending checkpoints."""
        return sum(unit.size for unit, _ in self.pending)

    def next_interval(self, shortest: float) -> float:
        """Seconds until the next scan, if no event comes first."""
        interval = min(max(shortest, self.cost * _SCAN_SHARE), 60.0)
        soon = [seconds for seconds in (self.again, self.retry) if seconds is not None]
        return min([interval, *(max(0.02, seconds) for seconds in soon)])


class Pipeline:
    """Finds checkpoints that are complete and not committed, and commits them."""

    def __init__(
        self,
        root: Path,
        journal: Journal,
        health: Health,
        clock: Clock,
        settle: float,
        exclude: tuple[str, ...] = (),
    ) -> None:
        self._root = root
        self._journal = journal
        self._health = health
        self._clock = clock
        self._exclude = exclude
        self._detector = Detector(root, settle, clock)
        self._given_up: dict[str, tuple[str, str]] = {}
        self._postponed: dict[str, float] = {}
        self._unreadable_before: set[str] = set()
        self._at_start: dict[str, str] | None = None

    def look(self) -> Look:
        """Scan the root and judge what is not committed; no request is made."""
        began = self._clock.monotonic()
        scanner = Scanner(self._root, self._exclude)
        tree = scanner.top()
        look = Look()
        found = list(units(tree)) if tree else []
        unreadable = self._unreadable(scanner.unreadable)
        self._detector.forget_missing({unit.path for unit in found})
        if self._at_start is None:
            self._at_start = {unit.path: unit.signature for unit in found}
        for unit in sorted(found, key=lambda unit: unit.written):
            hidden = any(_within(path, unit.path) for path in unreadable)
            if not unit.nameable:
                self._give_up(unit, _NOT_UTF8)
            elif hidden:
                self._give_up(unit, _UNREADABLE)
            elif self._journal.is_safe(unit.path, unit.signature):
                self._forgive(unit.path)
                continue
            signature, reason = self._given_up.get(unit.path, ("", ""))
            if signature == unit.signature and (hidden or reason != _UNREADABLE.explain()):
                name = _printable(unit.path)
                look.incomplete.append(Waiting(name, unit.size, reason))
                continue
            self._given_up.pop(unit.path, None)  # it is another revision: judged afresh
            wait = self._postponed.get(unit.path, 0.0) - self._clock.monotonic()
            if wait > 0:
                look.incomplete.append(Waiting(unit.path, unit.size, "failed; tried again soon"))
                look.retry = min(wait, look.retry or wait)
                continue
            verdict = self._detector.judge(unit)
            if verdict.complete:
                look.pending.append((unit, verdict.profile))
                continue
            look.incomplete.append(Waiting(unit.path, unit.size, verdict.reason))
            if verdict.failed:
                self._give_up(unit, Permanent(verdict.reason, hint=_UNREADABLE.hint))
            if verdict.again is not None:
                look.again = min(verdict.again, look.again or verdict.again)
        gone = (self._given_up.keys() | self._postponed.keys()) - {unit.path for unit in found}
        for path in gone:
            self._forgive(path)
        look.cost = self._clock.monotonic() - began
        self._report(look)
        return look

    def _unreadable(self, bad: dict[str, str]) -> list[str]:
        """Folders that cannot be looked into; each is a reason for red, by itself too."""
        for path in self._unreadable_before - bad.keys():
            self._health.green(f"unreadable {_printable(path)}")
        for path, words in bad.items():
            self._health.red(f"unreadable {_printable(path)}", words, _UNREADABLE.hint)
        self._unreadable_before = set(bad)
        return list(bad)

    def _report(self, look: Look) -> None:
        pending = [Waiting(unit.path, unit.size, "waits for its turn") for unit, _ in look.pending]
        self._health.waiting(pending[::-1], look.incomplete)

    def commit_next(self, look: Look, publisher: Publisher) -> CommitRecord | None:
        """Commit one of the pending checkpoints and take it off the list.

        The newest goes first, since it is what the user would lose; older ones that follow say
        that they are behind it. A backlog that is small goes oldest first.
        """
        small = look.pending_bytes <= _SMALL
        unit, profile = look.pending.pop(0 if small else -1)
        record: CommitRecord | None = None
        try:
            record = publisher.publish(unit, profile, self._behind(unit, publisher))
        except Changed as change:
            log.info("%s: %s; looking again", unit.path, change.message)
        except Permanent as error:
            self._give_up(unit, error)
        except (Corrupt, OSError) as error:
            self._postpone(unit, error)
        else:
            self._forgive(unit.path)
        if record:
            self._tell(record, unit.companion)
        self._report(look)
        return record

    def _behind(self, unit: Unit, publisher: Publisher) -> int:
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

        Only times of one clock are compared: those of files that one machine has written, or
        the changes that this machine's kernel noted, of a file that a restore has brought here.
        A clock that was set back does not make a new checkpoint an old one.
        """
        modified, changed, _ = unit.written
        fresh = changed - modified < _BROUGHT
        if root.writer not in publisher.lives:
            if root.changed is None:
                return self._is_leftover(unit, publisher) and root.written > modified
            if fresh:
                return root.changed > changed
        elif fresh and publisher.began(root.seq) < self._detector.since(unit):
            return False
        return root.written > modified

    def _is_leftover(self, unit: Unit, publisher: Publisher) -> bool:
        """Whether a checkpoint lay here before this daemon took over from another machine.

        It is committed, but must not pass for newer than what that machine has done since.
        """
        return publisher.took_over and (self._at_start or {}).get(unit.path) == unit.signature

    def _tell(self, record: CommitRecord, companion: bool) -> None:
        if not companion:
            self._health.committed(record)
        log.info(
            "committed %s as %d: %d files, %.1f MB",
            record.checkpoint,
            record.seq,
            len(record.files),
            record.size / 1e6,
        )

    def _give_up(self, unit: Unit, error: SyncdError) -> None:
        """Skip one checkpoint until it changes; everything else goes on."""
        name, entry = _printable(unit.path), (unit.signature, error.explain())
        if self._given_up.get(unit.path) == entry:
            return  # said already
        self._given_up[unit.path] = entry
        if self._health.red(f"skipped {name}", f"{name}: {error.message}", error.hint):
            log.error("%s is not copied: %s", name, error.explain())

    def _forgive(self, path: str) -> None:
        """Nothing is wrong with this checkpoint any more, or it is gone."""
        self._given_up.pop(path, None)
        self._postponed.pop(path, None)
        if self._health.green(f"skipped {_printable(path)}"):
            log.info("%s: nothing is wrong with it any more", _printable(path))

    def _postpone(self, unit: Unit, error: Corrupt | OSError) -> None:
        """Something went wrong with this one checkpoint only: the others go first now."""
        words = error.explain() if isinstance(error, Corrupt) else f"cannot be read: {error}"
        self._postponed[unit.path] = self._clock.monotonic() + _POSTPONE
        if self._health.red(
            f"skipped {unit.path}", f"{unit.path}: {words}", "tried again by itself"
        ):
            log.error("%s waits: %s", unit.path, words)

    def failures(self) -> dict[str, str]:
        """Complete checkpoints that cannot be copied, and why."""
        failed = dict.fromkeys(self._postponed, "failed; it is tried again by itself")
        return {**failed, **{path: reason for path, (_, reason) in self._given_up.items()}}

    def flush(
        self, publisher: Publisher, give_up: Callable[[], bool], patience: float = 0.0
    ) -> Look:
        """Commit everything complete; newest first.

        What may become complete by quiet alone is waited for, ``patience`` seconds at most: a
        file that is always being written must not hold up a flush for ever.
        """
        until = self._clock.monotonic() + patience
        look = self.look()
        while not give_up():
            if look.pending:
                self.commit_next(look, publisher)
                if look.pending:
                    continue
            elif not self._pause(look.again, until, give_up):
                break
            look = self.look()
        return look

    def _pause(self, seconds: float | None, latest: float, give_up: Callable[[], bool]) -> bool:
        """Wait so long, if that is worth while; say whether to look again."""
        until = self._clock.monotonic() + (seconds or 0.0)
        if seconds is None or until > latest:
            return False
        while not give_up() and (left := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(left, 0.1))
        return not give_up()


def _within(path: str, unit: str) -> bool:
    """Whether a folder is a checkpoint's, or one below it."""
    return path == unit or path.startswith(f"{unit}/")


def _printable(path: str) -> str:
    """A path as text that any stream takes."""
    return path.encode(errors="backslashreplace").decode()
