"""One checkpoint root on its way to the store: look, judge, send, commit, tidy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from syncd.backlog import PACED, SUPERSEDED, Backlog, Look
from syncd.clock import Clock
from syncd.commit import Publisher
from syncd.detect import Detector
from syncd.errors import Awaits, Busy, Changed, Corrupt, GaveWay, Permanent, SyncdError
from syncd.health import Health, Waiting
from syncd.journal import Journal
from syncd.order import Newest, Seniority, Turns, next_index
from syncd.others import Others, as_part, printable
from syncd.records import CommitRecord, Layout
from syncd.running import Pacer, at_rest, hold_still
from syncd.siblings import Committed
from syncd.snapshot import Snapshot, Snapshots
from syncd.survey import Part, Survey
from syncd.units import Unit
from syncd.watch import Watcher

log = logging.getLogger(__name__)

Ends = Callable[[], "float | None"]
"""When all must be over, on the monotonic clock; None while no end is in sight."""

_POSTPONE = 30.0
"""Seconds after which a checkpoint that failed by itself is tried again."""

_BUSY_LONG = 300.0
_BUSY_HINT = "let its writer end its transactions, or use PRAGMA journal_mode=wal"

_UNREADABLE = Permanent(
    "a file or folder in it cannot be read", hint="give the user of syncd read permission"
)

_NOT_UTF8 = Permanent(
    "a file name is not UTF-8",
    hint="object stores take UTF-8 names only: rename it, or add it to SYNCD_EXCLUDE",
)

_STALLED = 5.0
"""Seconds without a byte taken by the store after which what is newer may go first, if a request
has failed meanwhile. Else they tell nothing: a part takes as long as the line is thin."""


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
        layout: Layout | None = None,
        keep_every: int | None = None,
        rank: int | None = None,
    ) -> None:
        """``keep_last``, ``keep_every``: what retention keeps in the store; ``rank`` of several."""
        self._rank = rank
        self._root = root
        self._journal = journal
        self._health = health
        self._clock = clock
        self._survey = Survey(root, clock, exclude, self._was_committed, joined=rank is None)
        self._backlog = Backlog(clock, printable)
        committed = Committed(journal, layout, rank) if layout else None
        self._detector = Detector(
            root, settle, clock, exclude=exclude, committed=committed, whole=rank is None
        )
        self._given_up: dict[str, tuple[str, str]] = {}
        self._postponed: dict[str, float] = {}
        self._busy: dict[str, float] = {}
        """Since when databases were locked each time they were to be copied."""
        self._others = Others(clock, health, self._backlog)
        self._unreadable: dict[str, str] = {}
        self._seniority = Seniority(journal, self._detector)
        self._newest = Newest(keep_last, keep_every, self._detector.since)
        self._turns, self.pacer = Turns(), Pacer(clock)
        self._superseded: dict[str, Unit] = {}
        self._snapshots = snapshots if rank is None else None  # of several, none proves the others
        self._sending: tuple[str, str] | None = None
        """Path and signature of what is being sent: it needs no judge meanwhile."""

        self.gives_way: Callable[[], bool] = lambda: False
        """Whether what is being sent has to wait for another store."""

        self.failed_at: Callable[[], float] = lambda: float("-inf")
        """When a request was not answered the last time, on the monotonic clock."""

    def watch(self, watcher: Watcher) -> None:
        """From now on look where this one says that something has changed."""
        self._survey.watcher = watcher

    def _was_committed(self, path: str) -> bool:
        return self._journal.safe_seq(path) is not None

    def look(self, thorough: bool = False) -> Look:
        """Look at what may have changed, and judge what is not committed; no request is made.

        ``thorough`` looks at everything, though no event calls for it and it was done just now.
        """
        for path in self._backlog.due():
            self._survey.changed(path)
        part = self._survey.part(
            self._backlog.trackers(),
            thorough or not self._detector.watching or self._backlog.exhausted,
        )
        if part:
            self._go_through(part)
        look = self._backlog.look()
        waiting = [unit for unit, _ in look.pending if not self._turns.has(unit)]
        self._coalesce(look, self._newest.superseded(waiting))
        look.cost, look.due = self._survey.cost if part else 0.0, self._survey.due_in()
        self._report(look)
        return look

    def _go_through(self, part: Part) -> None:
        if part.everything:
            self._backlog.left_out = False
        self._newest.forget(part.covers)
        waiting = set()
        for found in self._survey.look(part):
            unit = as_part(found, self._rank)
            if self._waits(unit, part):
                waiting.add(unit.path)
        known = self._backlog.paths() | self._given_up.keys() | self._postponed.keys()
        known |= self._others.paths()
        for path in known - waiting:
            if part.covers(path):
                self._backlog.drop(path)
                self._forgive(path)
        self._detector.forget_missing(self._backlog.paths())
        self._detector.watching = True
        self._newest.watch(self._clock.monotonic())
        self._tell_unreadable(part)

    def _waits(self, unit: Unit, part: Part) -> bool:
        """Judge one checkpoint; whether it is to be committed, now or later."""
        hidden = any(_within(path, unit.path) for path in part.unreadable)
        if not unit.nameable:
            self._give_up(unit, _NOT_UTF8)
        elif hidden:
            self._give_up(unit, _UNREADABLE)
        elif self._is_done(unit):
            return False
        if not self._detector.watching:
            self._seniority.was_here(unit)
        signature, reason = self._given_up.get(unit.path, ("", ""))
        if signature == unit.signature and (hidden or reason != _UNREADABLE.explain()):
            self._backlog.blocked(unit, reason)
            return True
        self._given_up.pop(unit.path, None)  # it is another revision: judged afresh
        retry = self._postponed.get(unit.path, 0.0)
        if retry > self._clock.monotonic():
            self._backlog.blocked(unit, "failed; tried again soon", retry)
            return True
        if self._others.wait(unit):
            return True
        if self._only_logs(unit) and (due := self.pacer.until(unit)):
            self._backlog.blocked(unit, PACED, due)
            return True
        if self._sending != (unit.path, unit.signature) and not self._backlog.is_older(unit):
            verdict = self._detector.judge(unit)
            self._backlog.judged(unit, verdict)
            if verdict.failed:
                self._give_up(unit, Permanent(verdict.reason, hint=_UNREADABLE.hint))
        return True

    def _is_done(self, unit: Unit) -> bool:
        """Whether all of it is committed, be it with more that is gone by now."""
        if not self._journal.is_safe(unit.path, unit.signature):
            return self._detector.only_lost(unit)
        for learn in (self._newest.note, self._turns.note, self._detector.learn):
            learn(unit)
        return True

    def _only_logs(self, unit: Unit) -> bool:
        """Whether nothing has changed since the commit but logs, memories and databases in use."""
        if not (unit.running or unit.memories) or at_rest(self._root, unit):
            return False
        return self._was_committed(unit.path) if unit.lone else self._detector.only_logs(unit)

    def is_obsolete(self, unit: Unit) -> bool:
        """Whether a complete checkpoint was not sent, for newer ones that are committed by now."""
        left_out = self._superseded.get(unit.path)
        same = left_out is not None and left_out.signature == unit.signature
        return same and self._newest.outlived(unit)

    def obsolete_files(self) -> set[str]:
        """Files, by their path under the root, of all checkpoints that are obsolete."""
        gone = (unit for unit in self._superseded.values() if self.is_obsolete(unit))
        return {unit.below(path) for unit in gone for path, _ in unit.files}

    def _coalesce(self, look: Look, gone: set[str]) -> None:
        """A checkpoint that was superseded while it waited is not sent only to be deleted."""
        self._superseded = {u.path: u for u, _ in look.pending if u.path in gone}
        for unit, _ in look.pending if gone else ():
            if unit.path in gone:
                look.incomplete.append(Waiting(unit.path, unit.size, SUPERSEDED))
        look.pending = [(unit, profile) for unit, profile in look.pending if unit.path not in gone]

    def _tell_unreadable(self, part: Part) -> None:
        """Folders that cannot be looked into; each is a reason for red, by itself too."""
        before, bad = self._unreadable, dict(part.unreadable)
        bad.update((p, words) for p, words in before.items() if p not in bad and not part.lists(p))
        for path in before.keys() - bad.keys():
            self._health.green(f"unreadable {printable(path)}")
        for path, words in bad.items():
            self._health.red(f"unreadable {printable(path)}", words, _UNREADABLE.hint)
        self._unreadable = bad

    def _report(self, look: Look) -> None:
        self._backlog.tell_restless(self._health)
        pending = [Waiting(unit.path, unit.size, "waits for its turn") for unit, _ in look.pending]
        self._health.waiting(pending[::-1], look.incomplete)

    def choose(self, look: Look, publisher: Publisher, ends: Ends) -> tuple[int, bool]:
        """Which of the pending checkpoints goes next, and whether that is likely to be in time."""
        pending = [unit for unit, _ in look.pending]
        end = ends()
        seconds = None if end is None else max(0.0, end - self._clock.monotonic())
        at, in_time = next_index(pending, seconds, publisher.rate(), publisher.left)
        return (self._turns.instead(pending, at) if seconds is None else at), in_time

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
        began = self._clock.monotonic()
        try:
            behind = self._seniority.behind(unit, publisher)
            self._health.sending(printable(unit.path), unit.size)
            asked = self._asking(unit, behind, publisher, ends)
            self._turns.begin(unit)
            alone = self._only_logs(unit)
            if self._snapshots:
                unit, taken = hold_still(
                    self._root, unit, self._snapshots, self._journal, partial(self._must_stop, ends)
                )
            self._sending = unit.path, unit.signature
            record = publisher.publish(unit, profile, behind, asked, taken)
        except Changed as change:
            self._changed(unit, change)
        except GaveWay as reason:
            log.info("%s waits: %s", unit.path, reason.message)
            look.pending[:] = self.look().pending
        except Awaits as reason:
            self._others.await_for(unit, reason)
            now = self._backlog.look()
            look.incomplete, look.again, look.retry = now.incomplete, now.again, now.retry
        except Permanent as error:
            self._give_up(unit, error)
        except (Corrupt, OSError) as error:
            self._postpone(unit, error)
        except SyncdError:
            self._turns.end(unit, done=False)
            raise
        else:
            self._forgive(unit.path)
            self.pacer.committed(unit, alone, self._clock.monotonic() - began)
            if self._snapshots:
                self._snapshots.sent(unit, taken)
        finally:
            self._health.sending("", 0)
            self._sending = None
            if taken:
                taken.drop()
        self._settle(unit)
        if record:
            self._tell(record, unit.companion)
        self._report(look)
        return record

    def _settle(self, unit: Unit) -> None:
        """A checkpoint had its turn: it is safe by now, or is to be looked at again."""
        if self._journal.is_safe(unit.path, unit.signature):
            self._backlog.drop(unit.path)
            self._newest.note(unit, just_now=True)
            self._turns.end(unit, done=True)
            self._detector.learn(unit)
            self._survey.lively(unit.path)
        else:
            self._survey.changed(unit.path)

    def _asking(
        self, unit: Unit, behind: int, publisher: Publisher, ends: Ends
    ) -> Callable[[], bool]:
        """A question to be asked while ``unit`` is sent: does something more urgent wait?

        A newer checkpoint does, than one of a backlog or one of which the store does not answer;
        but none pushes away what was the newest when its transfer began (see Turns, too).
        """
        began = checked = self._clock.monotonic()

        def more_urgent() -> bool:
            nonlocal checked
            if self.gives_way():
                return True
            now = self._clock.monotonic()
            if now - checked < 1.0:
                return False
            checked = now
            look = self.look()
            if ends() is not None and look.pending:
                return look.pending[self.choose(look, publisher, ends)[0]][0].path != unit.path
            pending = [one for one, _ in look.pending if unit.companion or not one.companion]
            if not pending:
                return False
            moved = max(began, self._health.last_progress())
            stalled = moved < now - _STALLED and self.failed_at() >= moved
            newer = [u for u in pending if u.path != unit.path and u.written > unit.written]
            if stalled and newer:
                self._turns.end(unit, done=False)
                return True
            return behind > 0 and any(self._turns.may_precede(u, unit, now - began) for u in newer)

        return more_urgent

    def _must_stop(self, ends: Ends) -> bool:
        end = ends()
        return self.gives_way() or (end is not None and self._clock.monotonic() >= end)

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

    def _changed(self, unit: Unit, change: Changed) -> None:
        """It was another one before its transfer ended."""
        log.info("%s: %s; looking again", unit.path, change.message)
        if isinstance(change, Busy):  # each try takes seconds, in which nothing else is sent
            now = self._clock.monotonic()
            self._postponed[unit.path] = now + _POSTPONE
            if now - self._busy.setdefault(unit.path, now) >= _BUSY_LONG:
                self._health.red(f"skipped {printable(unit.path)}", change.message, _BUSY_HINT)
        elif self._snapshots:
            self._snapshots.changed(unit)

    def _give_up(self, unit: Unit, error: SyncdError) -> None:
        """Skip one checkpoint until it changes; everything else goes on."""
        name, entry = printable(unit.path), (unit.signature, error.explain())
        if self._given_up.get(unit.path) == entry:
            return  # said already
        self._given_up[unit.path] = entry
        if self._health.red(f"skipped {name}", f"{name}: {error.message}", error.hint):
            log.error("%s is not copied: %s", name, error.explain())

    def _forgive(self, path: str) -> None:
        """Nothing is wrong with this checkpoint any more, or it is gone."""
        self._given_up.pop(path, None)
        self._postponed.pop(path, None)
        self._busy.pop(path, None)
        self._others.forget(path)
        if self._health.green(f"skipped {printable(path)}"):
            log.info("%s: nothing is wrong with it any more", printable(path))

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
        failed |= self._others.failures()
        return {**failed, **{path: reason for path, (_, reason) in self._given_up.items()}}


def _within(path: str, unit: str) -> bool:
    """Whether a folder is a checkpoint's, or one below it."""
    return path == unit or path.startswith(f"{unit}/")
