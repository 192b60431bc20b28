"""Publishing a checkpoint: its files, then one record, then the plain names.

The record is the moment at which the checkpoint becomes the recovery point. Before it nothing
that a commit names has been touched, so a machine may die between any two requests.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from pathlib import Path

from syncd.clock import Clock
from syncd.commitlog import CommitLog
from syncd.errors import Changed, Conflict, Corrupt, Fenced, GaveWay, NotFound, Permanent
from syncd.journal import Journal, Sent
from syncd.plan import Planner, Step
from syncd.profiles import COMPANION, Unit
from syncd.records import (
    CommitRecord,
    FileEntry,
    Layout,
    LinkEntry,
    check_record,
    link_stays_inside,
)
from syncd.retention import series
from syncd.scan import Stat
from syncd.snapshot import Snapshot
from syncd.stores.base import Condition, IfAbsent, ObjectStore
from syncd.transfer import Transfer, digest_file

log = logging.getLogger(__name__)

_ASK_AGAIN = 0.25
"""Seconds between two looks whether something more urgent waits."""


class Publisher:
    """The one writer of this daemon's life."""

    def __init__(
        self,
        root: Path,
        store: ObjectStore,
        journal: Journal,
        layout: Layout,
        transfer: Transfer,
        clock: Clock,
        writer: str,
    ) -> None:
        self._root = root
        self._store = store
        self._journal = journal
        self._layout = layout
        self._transfer = transfer
        self._clock = clock
        self._writer = writer
        self._planner = Planner(root, journal, layout, digest_file)
        self._attempts = itertools.count(1)
        self._began: dict[int, float] = {}
        self.log = CommitLog(store, layout)
        self.took_over = False
        """Whether the log was begun or continued by another machine when this writer joined it."""
        self.lives: frozenset[str] = frozenset((writer,))
        """Ids of this writer and of those before it that used its journal: one machine's."""

    def join_log(self) -> list[Corrupt]:
        """Learn what the commit log holds and take the place of its last writer.

        Returns the records that cannot be read. Where another machine's daemon wrote the newest
        commit, a claim is written after it: should that one be alive, its next commit collides
        with the claim and it is fenced, rather than this one that was started later.
        """
        known = self._journal.known_commits()
        broken = self._learn()
        self._find_stale(self._journal.known_commits() - known)
        claimed = False
        while not claimed:
            head = self._journal.head()
            newest = self._journal.commit(head, self._layout) if head else None
            ours = newest is None or newest.writer in (self._writer, *self._journal.writers())
            self.took_over |= not ours
            claimed = ours or self._claim(head + 1)
        self.lives = frozenset((*self._journal.writers(), self._writer))
        self._journal.add_writer(self._writer)
        return broken

    def _learn(self) -> list[Corrupt]:
        numbers, known = set(self.log.numbers()), self._journal.known_commits()
        self._forget_vanished(known - numbers)
        broken: list[Corrupt] = []

        def read(seq: int) -> CommitRecord | None:
            try:
                return self.log.read(seq)
            except NotFound:
                return None
            except Corrupt as error:
                broken.append(error)
                return CommitRecord(seq, "", "unreadable", "", "")

        for record in self._transfer.files.map(read, sorted(numbers - known)):
            if record:
                self._journal.add_commit(record)
        return broken

    def _forget_vanished(self, vanished: set[int]) -> None:
        """Commits that are gone from the log: pruned by somebody, or the store was emptied.

        Pruning leaves a newer commit of the same series. Where there is none, what this disk
        has of it is not safe any more.
        """
        if not vanished:
            return
        self._journal.drop_commits(vanished)
        left: dict[str, int] = {}
        for record in self._journal.commits(self._layout):
            left.setdefault(series(record.checkpoint), record.seq)
        for checkpoint, seq in self._journal.safe():
            if seq in vanished and left.get(series(checkpoint), 0) < seq:
                self._journal.forget_safe(checkpoint)

    def _claim(self, seq: int) -> bool:
        claim = CommitRecord(seq, "", self._writer, self._now(), "claim")
        try:
            self.log.append(claim)
        except Fenced:
            self._learn()
            return False
        self._journal.add_commit(claim)
        return True

    def _now(self) -> str:
        moment = datetime.datetime.fromtimestamp(self._clock.now(), datetime.timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def publish(
        self,
        unit: Unit,
        profile: str,
        behind: int = 0,
        give_way: Callable[[], bool] = lambda: False,
        taken: Snapshot | None = None,
    ) -> CommitRecord | None:
        """Commit this revision of a checkpoint; None if its content is committed already.

        ``behind`` is the number of a commit of something that was written later, if any.
        ``give_way`` is asked now and then, in this thread; when it says so, GaveWay is raised
        once what is under way has stopped. Members that are ``taken`` are read from there.

        Changed if it changed meanwhile: nothing was committed, and what was sent is found again
        by the next attempt.
        """
        began = self._clock.monotonic()
        self._look_at_log()
        if give_way():  # that may have taken hours, while a store was down
            raise GaveWay("something more urgent waits")
        base = self._journal.newest_commit(self._layout, unit.path)
        seq = self._journal.head() + 1
        publication = f"{self._writer}.{next(self._attempts)}"
        steps = list(self._planner.plan(unit, base, seq, publication, taken))
        jobs = [self._transfer.files.submit(self._carry_out, unit, step) for step in steps]
        try:
            self._await(jobs, give_way)
            entries = tuple(job.result() for job in jobs)
        finally:
            for job in jobs:
                job.cancel()
            self._transfer.halt.set()  # one has failed, or all is done: nobody needs the others
            wait(jobs)
            self._transfer.halt.clear()
        links = tuple(
            LinkEntry(path, target)
            for path, target in unit.links
            if link_stays_inside(path or unit.path, target)
        )
        if not entries and not links:
            raise Permanent(
                "its links lead out of the checkpoint", hint="nothing of it could be restored"
            )
        if taken is None:  # else all was as it is in the snapshot at the moment it was taken
            self._check_unchanged(unit)
        self._journal.add_digests(
            (unit.below(step.path), step.stat.text(), entry.sha256)
            for step, entry in zip(steps, entries, strict=True)
        )
        if base and _content(base) == (_digests(entries), set(links)):
            self._journal.mark_safe(unit.path, unit.signature, base.seq, unit.changed)
            return None
        record = CommitRecord(
            seq,
            unit.path,
            self._writer,
            self._now(),
            profile,
            tuple(entries),
            links,
            behind,
            unit.beside,
        )
        self._append(record)
        self._began[seq] = began
        self._journal.mark_safe(unit.path, unit.signature, seq, unit.changed)
        self._mark_stale(record, base)
        self.refresh()
        return record

    @staticmethod
    def _await(jobs: list[Future[FileEntry]], give_way: Callable[[], bool]) -> None:
        """Wait until all are done or one has failed; GaveWay if something more urgent comes."""
        waiting = set(jobs)
        while waiting:
            done, waiting = wait(waiting, _ASK_AGAIN, FIRST_EXCEPTION)
            if any(job.exception() for job in done):
                return
            if waiting and give_way():
                raise GaveWay("something more urgent waits")

    def _look_at_log(self) -> None:
        """One request: has another writer committed, has somebody pruned, is the log there?"""
        numbers, known = set(self.log.numbers()), self._journal.known_commits()
        if max(numbers, default=0) > self._journal.head():
            raise _fenced(max(numbers))
        self._forget_vanished(known - numbers)

    def left(self, unit: Unit) -> int:
        """Bytes of a checkpoint that have to travel, as far as is known."""
        return self._planner.left(unit)

    def rate(self) -> float | None:
        """Bytes per second that the link has been taking; None until that is known."""
        return self._transfer.pace.rate()

    def began(self, seq: int) -> float:
        """When this life began to publish a commit, on the monotonic clock; never: infinity."""
        return self._began.get(seq, math.inf)

    def recovery_point(self) -> CommitRecord | None:
        """The commit that a restore would take, companions left out."""
        return self._journal.recovery_point(self._layout, without_profile=COMPANION.name)

    def _append(self, record: CommitRecord) -> None:
        check_record(record, record.seq)  # what no reader would trust must not be written
        self.log.append(record)
        self._journal.add_commit(record)

    def _check_unchanged(self, unit: Unit) -> None:
        for path, seen in unit.files:
            try:
                now = Stat.of(os.lstat(self._root / unit.below(path)))
            except OSError:
                raise Changed(f"{unit.below(path)} vanished while it was read") from None
            if now != seen:
                raise Changed(f"{unit.below(path)} changed while it was read")

    # -- one file

    def _carry_out(self, unit: Unit, step: Step) -> FileEntry:
        if step.keep:
            key, sha256 = step.keep.key, step.keep.sha256
        elif step.adopt and self._still_there(step.adopt):
            key, sha256 = step.adopt.key, step.adopt.sha256
        elif step.copy_from and step.sha256 and (copied := self._copy(step.copy_from, step)):
            key, sha256 = copied, step.sha256
        else:
            key, sha256 = self._send(unit, step)
        return FileEntry(
            step.path, key, step.stat.size, sha256, step.stat.mode & 0o777, step.stat.mtime_ns
        )

    def _still_there(self, sent: Sent) -> bool:
        try:
            if self._store.head(sent.key).version == sent.version:
                return True
        except NotFound:
            pass
        self._journal.drop_sent(sent.key)
        return False

    def _copy(self, source: str, step: Step) -> str | None:
        """Copy within the store; None if what was to be copied is not there as expected."""
        try:
            if step.plain_free and self._store.capabilities.conditional_copy:
                with suppress(Conflict):
                    info = self._store.copy(source, step.plain, IfAbsent())
                    return step.plain if info.size == step.stat.size else None
            info = self._store.copy(source, step.spare)
        except Permanent:
            self._journal.doubt(source)
            return None
        return step.spare if info.size == step.stat.size else None

    def _send(self, unit: Unit, step: Step) -> tuple[str, str]:
        full = unit.below(step.path)
        absent: Condition = IfAbsent() if self._store.capabilities.put_if_absent else None
        for key, condition in ((step.plain, absent), (step.spare, None)):
            if key == step.plain and not step.plain_free:
                continue
            try:
                sha256, info = self._transfer.send(step.source, key, step.seen, condition)
            except Permanent:
                # left there by a life that was cut short, or by another writer; or no possible
                # name beside what is there (a directory store cannot hold both 'p' and 'p/q')
                if key == step.spare:
                    raise
                continue
            if step.sha256 not in (None, sha256):
                raise Changed(f"{full} changed while it was read")
            self._journal.add_sent(Sent(key, full, step.stat.text(), sha256, info.version))
            return key, sha256
        raise Conflict(f"{step.spare} cannot be written")

    # -- the plain names

    def _find_stale(self, learnt: set[int]) -> None:
        """Of commits that this journal did not make: assume that their plain keys wait.

        Their writer may have died between its commit and its refresh.
        """
        for seq in sorted(learnt):
            record = self._journal.commit(seq, self._layout)
            for entry in record.files if record else ():
                plain = self._layout.plain(record.below(entry.path)) if record else ""
                self._journal.doubt(plain, entry.sha256)
            newest = record and self._journal.newest_commit(self._layout, record.checkpoint)
            if record and newest and newest.seq == seq:
                before = self._journal.newest_commit(self._layout, record.checkpoint, before=seq)
                self._mark_stale(record, before)

    def _mark_stale(self, record: CommitRecord, base: CommitRecord | None) -> None:
        plain = {self._layout.plain(record.below(entry.path)): entry for entry in record.files}
        for key, entry in plain.items():
            if entry.key != key:
                self._journal.doubt(key, entry.sha256)
        moved = [(key, entry.key) for key, entry in plain.items() if entry.key != key]
        if base:
            old = {self._layout.plain(base.below(entry.path)) for entry in base.files}
            moved += [(key, "") for key in old - plain.keys()]
        self._journal.add_stale(record, moved)

    def refresh(self) -> None:
        """Bring the plain keys up to the newest commit, by copies within the store.

        What an older commit still names at a plain key is first put where a restore of that
        commit looks for it. A writer that has lost the log in the meantime touches nothing.
        """
        stale = self._journal.stale()
        if not stale:
            return
        head = max(self.log.numbers(), default=0)
        if head > self._journal.head():
            raise _fenced(head)
        for key, source, _seq in stale:
            try:
                self._preserve(key, source)
                self._journal.doubt(key, self._content(source))
                if source:
                    self._store.copy(source, key)
                else:
                    self._store.delete([key])
            except Permanent as error:
                # pruned meanwhile, or no possible name: restores do not need it
                log.warning("%s is not refreshed: %s", key, error.message)
            self._journal.refreshed(key)

    def _content(self, key: str) -> str:
        """SHA-256 that the commits say a key holds; "" for none."""
        named = self._journal.named_by(key) if key else []
        return named[-1][1] if named else ""

    def _preserve(self, key: str, source: str) -> None:
        path = key.removeprefix(self._layout.checkpoints)
        content = self._content(source)
        for seq, sha256 in self._journal.named_by(key):
            kept = self._layout.version(seq, path)
            if sha256 != content and not self._exists(kept):
                with suppress(NotFound):
                    self._store.copy(key, kept)

    def _exists(self, key: str) -> bool:
        try:
            self._store.head(key)
        except NotFound:
            return False
        return True


def _fenced(seq: int) -> Fenced:
    return Fenced(
        f"commit {seq} was written by another machine",
        hint="two machines write to one prefix: stop one of them, or give each its own "
        "CLOUD_PREFIX; local files are untouched",
    )


def _digests(entries: Iterable[FileEntry]) -> set[tuple[str, int, str]]:
    return {(entry.path, entry.size, entry.sha256) for entry in entries}


def _content(record: CommitRecord) -> tuple[set[tuple[str, int, str]], set[LinkEntry]]:
    return _digests(record.files), set(record.links)
