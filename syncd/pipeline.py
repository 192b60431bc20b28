"""One checkpoint root on its way to the store: look, judge, send, commit, tidy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from syncd.clock import Clock
from syncd.commit import Publisher
from syncd.detect import Detector
from syncd.errors import Changed, Corrupt, GaveWay, Permanent, SyncdError
from syncd.health import Health, Waiting
from syncd.journal import Journal
from syncd.order import Seniority, next_index, superseded
from syncd.profiles import Unit, units
from syncd.records import CommitRecord
from syncd.scan import Scanner, Stat
from syncd.snapshot import NoRoom, Snapshot, Snapshots

log = logging.getLogger(__name__)

Ends = Callable[[], "float | None"]
"""When all must be over, on the monotonic clock; None while no end is in sight."""

_POSTPONE = 30.0
"""Seconds after which a checkpoint that failed by itself is tried again."""

_UNREADABLE = Permanent(
    "a file or folder in it cannot be read", hint="give the user of syncd read permission"
)

_NOT_UTF8 = Permanent(
    "a file name is not UTF-8",
    hint="object stores take UTF-8 names only: rename it, or add it to SYNCD_EXCLUDE",
)

_STALLED = 5.0
"""Seconds without a byte taken by the store after which what is newer may go first."""

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
        keep_last: int | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """``keep_last`` is what retention keeps in the store: nothing more is sent."""
        self._root = root
        self._journal = journal
        self._health = health
        self._clock = clock
        self._exclude = exclude
        self._detector = Detector(root, settle, clock)
        self._given_up: dict[str, tuple[str, str]] = {}
        self._postponed: dict[str, float] = {}
        self._unreadable_before: set[str] = set()
        self._seniority = Seniority(journal, self._detector)
        self._keep_last = keep_last
        self._snapshots = snapshots
        self._restless: set[str] = set()

    def look(self) -> Look:
        """Scan the root and judge what is not committed; no request is made."""
        began = self._clock.monotonic()
        scanner = Scanner(self._root, self._exclude)
        tree = scanner.top()
        look = Look()
        complete: list[str] = []
        found = list(units(tree)) if tree else []
        unreadable = self._unreadable(scanner.unreadable)
        self._detector.forget_missing({unit.path for unit in found})
        if self._seniority.at_start is None:
            self._seniority.at_start = {unit.path: unit.signature for unit in found}
        for unit in sorted(found, key=lambda unit: unit.written):
            hidden = any(_within(path, unit.path) for path in unreadable)
            if not unit.nameable:
                self._give_up(unit, _NOT_UTF8)
            elif hidden:
                self._give_up(unit, _UNREADABLE)
            elif self._journal.is_safe(unit.path, unit.signature):
                self._forgive(unit.path)
                self._note(complete, unit)
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
                self._note(complete, unit)
                continue
            look.incomplete.append(Waiting(unit.path, unit.size, verdict.reason))
            if verdict.failed:
                self._give_up(unit, Permanent(verdict.reason, hint=_UNREADABLE.hint))
            if verdict.again is not None:
                look.again = min(verdict.again, look.again or verdict.again)
        gone = (self._given_up.keys() | self._postponed.keys()) - {unit.path for unit in found}
        for path in gone:
            self._forgive(path)
        self._restless &= {unit.path for unit in found}
        self._coalesce(look, superseded(complete, self._keep_last))
        look.cost = self._clock.monotonic() - began
        self._report(look)
        return look

    def _note(self, complete: list[str], unit: Unit) -> None:
        if self._keep_last is not None and not unit.companion:
            complete.append(unit.path)

    @staticmethod
    def _coalesce(look: Look, gone: set[str]) -> None:
        """A checkpoint that was superseded while it waited is not sent only to be deleted."""
        for unit, _ in look.pending if gone else ():
            if unit.path in gone:
                words = "superseded: newer ones wait, and SYNCD_KEEP_LAST would drop it at once"
                look.incomplete.append(Waiting(unit.path, unit.size, words))
        look.pending = [(unit, profile) for unit, profile in look.pending if unit.path not in gone]

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

    def choose(self, look: Look, publisher: Publisher, ends: Ends) -> tuple[int, bool]:
        """Which of the pending checkpoints goes next, and whether that is likely to be in time."""
        pending = [unit for unit, _ in look.pending]
        return next_index(pending, self._seconds(ends), publisher.rate(), publisher.left)

    def _seconds(self, ends: Ends) -> float | None:
        end = ends()
        return None if end is None else max(0.0, end - self._clock.monotonic())

    def commit_next(
        self, look: Look, publisher: Publisher, ends: Ends = lambda: None
    ) -> CommitRecord | None:
        """Commit one of the pending checkpoints and take it off the list.

        The newest goes first, since it is what the user would lose; older ones that follow say
        that they are behind it. ``ends`` tells when all must be over, on the monotonic clock:
        then what can still be committed goes first.
        """
        unit, profile = look.pending.pop(self.choose(look, publisher, ends)[0])
        record: CommitRecord | None = None
        taken: Snapshot | None = None
        try:
            behind = self._seniority.behind(unit, publisher)
            taken = self._snapshot(unit)
            asked = self._asking(unit, behind, publisher, ends)
            record = publisher.publish(unit, profile, behind, asked, taken)
        except Changed as change:
            log.info("%s: %s; looking again", unit.path, change.message)
            self._restless.add(unit.path)
        except GaveWay as reason:
            log.info("%s waits: %s", unit.path, reason.message)
            look.pending[:] = self.look().pending
        except Permanent as error:
            self._give_up(unit, error)
        except (Corrupt, OSError) as error:
            self._postpone(unit, error)
        else:
            self._forgive(unit.path)
            if taken is None:
                self._restless.discard(unit.path)
        finally:
            if taken:
                taken.drop()
        if record:
            self._tell(record, unit.companion)
        self._report(look)
        return record

    def _snapshot(self, unit: Unit) -> Snapshot | None:
        """A copy of a checkpoint that changed while it was sent the last time."""
        if unit.path not in self._restless or self._snapshots is None:
            return None

        def is_known(path: str, stat: Stat) -> bool:
            return self._journal.digest(unit.below(path), stat.text()) is not None

        try:
            taken = self._snapshots.take(unit, is_known)
        except (NoRoom, OSError) as error:
            log.warning("%s is sent without a snapshot: %s", unit.path, error)
            return None
        log.info("%s changes faster than it can be sent: a snapshot of it is sent", unit.path)
        return taken

    def _asking(
        self, unit: Unit, behind: int, publisher: Publisher, ends: Ends
    ) -> Callable[[], bool]:
        """A question to be asked while ``unit`` is sent: does something more urgent wait?

        A newer checkpoint is more urgent than one of a backlog, and than one of which the store
        takes nothing. It does not push away one that was the newest when its transfer began:
        else none would ever arrive where each takes longer than the time between two saves.
        """
        began = checked = self._clock.monotonic()
        cost = 0.0

        def more_urgent() -> bool:
            nonlocal checked, cost
            now = self._clock.monotonic()
            if now - checked < max(1.0, cost * _SCAN_SHARE):
                return False
            checked = now
            look = self.look()
            cost = look.cost
            pending = [other for other, _ in look.pending]
            if not pending:
                return False
            if ends() is not None:
                return pending[self.choose(look, publisher, ends)[0]].path != unit.path
            stalled = max(began, self._health.last_progress()) < now - _STALLED
            return (behind > 0 or stalled) and pending[-1].written > unit.written

        return more_urgent

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
        self,
        publisher: Publisher,
        give_up: Callable[[], bool],
        patience: float = 0.0,
        ends: Ends = lambda: None,
        only_in_time: bool = False,
    ) -> Look:
        """Commit everything complete; newest first.

        What may become complete by quiet alone is waited for, ``patience`` seconds at most: a
        file that is always being written must not hold up a flush for ever. ``only_in_time``
        leaves what is not likely to be committed before the time ``ends`` says.
        """
        until = self._clock.monotonic() + patience
        look = self.look()
        while not give_up():
            if look.pending:
                if only_in_time and not self.choose(look, publisher, ends)[1]:
                    break
                self.commit_next(look, publisher, ends)
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
