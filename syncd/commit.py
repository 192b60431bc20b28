"""Publishing a checkpoint: its files, then one record, then the plain names.

The record is the moment at which the checkpoint becomes the recovery point. Before it nothing
that a commit names has been touched, so a machine may die between any two requests.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from syncd.clock import Clock
from syncd.commitlog import CommitLog
from syncd.errors import Changed, Conflict, Corrupt, GaveWay, Permanent, SyncdError
from syncd.filestat import Stat
from syncd.journal import Held, Journal, Sent
from syncd.moments import Moments
from syncd.pathrules import SUFFIXES, encoding_of, link_stays_inside
from syncd.plainnames import PlainNames
from syncd.plan import Planner, Step
from syncd.profiles import COMPANION
from syncd.reader import digest_file
from syncd.records import CommitRecord, FileEntry, Layout, LinkEntry
from syncd.retention import UPLOAD_GRACE
from syncd.seat import Seat
from syncd.snapshot import Snapshot
from syncd.stores.base import Condition, IfAbsent, ObjectInfo, ObjectStore
from syncd.transfer import Small, Transfer
from syncd.units import Unit

_ASK_AGAIN = 0.25
"""Seconds between two looks whether something more urgent waits."""

_NOTED = 256
"""Files sent together after which the journal is told."""

_ATTEMPTS = itertools.count(1)
"""Numbers the attempts of this process: no two share a key, whatever arrives late."""


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
        home: str = "",
    ) -> None:
        """``home`` names the place of the journal: a copy of it, in another place, is not ours."""
        self._root = root
        self._store = store
        self._journal = journal
        self._layout = layout
        self._transfer = transfer
        self._clock = clock
        self._writer = writer
        self._planner = Planner(root, journal, layout, digest_file)
        self.moments = Moments()
        self.log = CommitLog(store, layout)
        self._seat = self._take_seat(home)
        self._names = PlainNames(store, journal, layout, clock, self._seat.look)
        self._seat.on_learnt = self._names.find_stale

    def _take_seat(self, home: str) -> Seat:
        args = self.log, self._journal, self._layout, self._clock, self._writer, home
        return Seat(*args, self._transfer.files)

    def join_log(self) -> list[Corrupt]:
        """Take the place of the log's last writer; the records that cannot be read."""
        broken = self._seat.join()
        self.moments.joined(self._journal.head(), self._clock.monotonic())
        return broken

    @property
    def took_over(self) -> bool:
        """Whether another machine had begun or continued the log when this writer joined it."""
        return self._seat.took_over

    @property
    def lives(self) -> frozenset[str]:
        """Ids of this writer and of those before it that used its journal: one machine's."""
        return self._seat.lives

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
        self._seat.look()
        if give_way():  # that may have taken hours, while a store was down
            raise GaveWay("something more urgent waits")
        base = self._journal.newest_commit(self._layout, unit.path)
        seq = self._seat.next_number()
        leans_on = base if base and self._seat.leans(base) else None
        entries, links = self._bring(unit, leans_on, seq, give_way, taken, self.log.fences)
        if base and _digests(base.files) == _digests(entries) and set(base.links) == set(links):
            self._journal.mark_safe(unit.path, unit.signature, base.seq, unit.changed)
            return None
        record = CommitRecord(
            seq,
            unit.path,
            self._writer,
            self._seat.now(),
            profile,
            entries,
            links,
            behind,
            unit.beside,
        )
        record = self._seat.append(record)
        self.moments.begun(record.seq, began)
        self._journal.mark_safe(unit.path, unit.signature, record.seq, unit.changed)
        self._names.mark_stale(record, base)
        self.refresh()
        return record

    def _bring(
        self,
        unit: Unit,
        leans_on: CommitRecord | None,
        seq: int,
        give_way: Callable[[], bool],
        taken: Snapshot | None,
        plain: bool,
    ) -> tuple[tuple[FileEntry, ...], tuple[LinkEntry, ...]]:
        """Have all files in the store, unchanged; ``plain``: at their own names where free."""
        publication = f"{self._writer}.{next(_ATTEMPTS)}"
        steps = list(self._planner.plan(unit, leans_on, seq, publication, taken))
        if not plain:  # no name is safe that another writer has too
            steps = [replace(step, plain_free=False) for step in steps]
        together = [step for step in steps if step.small]
        alone = [step for step in steps if not step.small]
        send = self._transfer.files.submit
        small = [send(self._carry_out_together, unit, together)] if together else []
        large = [send(self._carry_out, unit, step) for step in alone]
        jobs: list[Future[Any]] = [*small, *large]
        try:
            self._await(jobs, give_way)
            done = {step.path: job.result() for step, job in zip(alone, large, strict=True)}
            for job in small:
                done.update((entry.path, entry) for entry in job.result())
            entries = tuple(done[step.path] for step in steps)
        finally:
            for job in jobs:
                job.cancel()
            self._transfer.halt.set()  # one has failed, or all is done: nobody needs the others
            wait(jobs)
            self._transfer.halt.clear()
            self._transfer.room.rest()
        links = tuple(
            LinkEntry(path, target)
            for path, target in unit.links
            if link_stays_inside(path or unit.path, target)
        )
        if not entries and not links:
            raise Permanent(
                "its links lead out of the checkpoint", hint="nothing of it could be restored"
            )
        if taken is None or not taken.whole:  # else all was as it is there when it was taken
            self._check_unchanged(unit)
        self._journal.add_digests(
            (unit.below(step.path), step.stat.text(), entry.sha256)
            for step, entry in zip(steps, entries, strict=True)
        )
        return entries, links

    def _await(self, jobs: list[Future[Any]], give_way: Callable[[], bool]) -> None:
        """Wait until all are done or one has failed; GaveWay if it goes on better anew."""
        waiting = set(jobs)
        while waiting:
            done, waiting = wait(waiting, _ASK_AGAIN, FIRST_EXCEPTION)
            if any(job.exception() for job in done):
                return
            if waiting and give_way():
                raise GaveWay("something more urgent waits")

    def refresh(self) -> None:
        """Bring the plain keys up to the newest commit, where they are not yet."""
        self._names.refresh()

    def rivals(self) -> str:
        """What other writers do to the same log, where none can be fenced; "" for nothing."""
        return self._seat.rivals()

    def left(self, unit: Unit) -> int:
        """Bytes of a checkpoint that have to travel, as far as is known."""
        return self._planner.left(unit)

    def rate(self) -> float | None:
        """Bytes per second that the link has been taking; None until that is known."""
        return self._transfer.pace.rate()

    def recovery_point(self) -> CommitRecord | None:
        """The commit that a restore would take, companions left out."""
        return self._journal.recovery_point(self._layout, without_profile=COMPANION.name)

    def _check_unchanged(self, unit: Unit) -> None:
        for path, seen in unit.files:
            if path in unit.running:
                continue  # what was read was it at that time; it is written to all the time
            try:
                now = Stat.of(os.lstat(self._root / unit.below(path)))
            except OSError:
                raise Changed(f"{unit.below(path)} vanished while it was read") from None
            if now != seen:
                raise Changed(f"{unit.below(path)} changed while it was read")

    # -- many small files

    def _carry_out_together(self, unit: Unit, steps: list[Step]) -> list[FileEntry]:
        """Send small files, again under other keys where those are taken; alone what fails."""
        small = (
            Small(step.source, step.plain, step.seen, IfAbsent(), step.pack)
            if step.plain_free
            else Small(step.source, step.spare, step.seen, None, step.pack)
            for step in steps
        )
        entries: list[FileEntry | None] = []
        sent: list[Sent] = []
        taken: dict[int, Step] = {}
        try:
            for step, answer in zip(steps, self._transfer.send_each(small), strict=True):
                if isinstance(answer, Permanent):
                    if step.plain_free and isinstance(answer, Conflict):
                        taken[len(entries)] = replace(step, plain_free=False)
                    entries.append(None)
                    continue
                if isinstance(answer, SyncdError):
                    raise answer
                sha256, info = answer
                full = unit.below(step.path)
                if step.sha256 not in (None, sha256):
                    raise Changed(f"{full} changed while it was read")
                sent.append(Sent(info.key, full, step.stat.text(), sha256, info.version))
                entries.append(_entry(step, _held(info, full, sha256)))
                if len(sent) >= _NOTED:  # a life that ends here sends no more than these again
                    self._journal.add_all_sent(sent)
                    sent.clear()
        finally:
            self._journal.add_all_sent(sent)
        again = self._carry_out_together(unit, [*taken.values()]) if taken else []
        for at, entry in zip(taken, again, strict=True):
            entries[at] = entry
        return [
            entry or self._carry_out(unit, step) for step, entry in zip(steps, entries, strict=True)
        ]

    # -- one file

    def _carry_out(self, unit: Unit, step: Step) -> FileEntry:
        held: Held | None = None
        if before := step.keep:
            held = Held(before.key, before.sha256, before.encoding, before.stored)
        elif step.adopt:
            held = self._adopt(step.adopt, step)
        elif step.copy_from:
            held = self._copy(step.copy_from, step)
        return _entry(step, held or self._send(unit, step))

    def _adopt(self, sent: Sent, step: Step) -> Held | None:
        """Where a file lies that was sent earlier; None if it is not there any more.

        What was sent for a number that another commit has taken since, or long ago, is nobody's,
        and pruning may delete it at any moment: it is copied.
        """
        folder = step.spare[: len(self._layout.beside(0))]
        end = SUFFIXES[encoding_of(sent.key, sent.path)]
        in_place = sent.key.startswith(folder) or (sent.key == step.plain + end and step.plain_free)
        usable = not end or step.pack  # else another file has that name by now
        with suppress(Permanent):
            found = self._store.head(sent.key)
            if usable and found.version == sent.version:
                if in_place and found.modified > self._clock.now() - UPLOAD_GRACE / 2:
                    return _held(found, sent.path, sent.sha256)
                if in_place or sent.key.startswith(self._layout.versions):
                    info = self._store.copy(sent.key, step.spare + end)
                    self._journal.drop_sent(sent.key)
                    self._journal.add_sent(replace(sent, key=info.key, version=info.version))
                    return _held(info, sent.path, sent.sha256)
        self._journal.drop_sent(sent.key)
        return None

    def _copy(self, source: Held, step: Step) -> Held | None:
        """Copy within the store; None if what was to be copied is not there as expected."""
        end = SUFFIXES[source.encoding]
        info: ObjectInfo | None = None
        if end and not step.pack:
            return None
        try:
            if step.plain_free and self._store.capabilities.conditional_copy:
                with suppress(Conflict):
                    info = self._store.copy(source.key, step.plain + end, IfAbsent())
            info = info or self._store.copy(source.key, step.spare + end)
        except Permanent:
            self._journal.doubt(source.key)
            return None
        return replace(source, key=info.key) if info.size == source.stored else None

    def _send(self, unit: Unit, step: Step) -> Held:
        full = unit.below(step.path)
        large = self._transfer.in_parts(step.seen.size)
        plain_free = step.plain_free and (self._store.capabilities.upload_if_absent or not large)
        if large and (done := self._go_on(step, full, plain_free)):
            return done
        places: list[tuple[str, Condition]] = [(step.plain, IfAbsent())] if plain_free else []
        for key, condition in (*places, (step.spare, None)):
            name = full, step.stat.text()
            try:
                sha256, info = self._transfer.send(
                    step.source, key, step.seen, condition, name=name, pack=step.pack
                )
            except Permanent:
                # left there by a life that was cut short, or by another writer; or no possible
                # name beside what is there (a directory store cannot hold both 'p' and 'p/q')
                if key == step.spare:
                    raise
                continue
            self._note_sent(step, full, sha256, info)
            return _held(info, full, sha256)
        raise Conflict(f"{step.spare} cannot be written")

    def _note_sent(self, step: Step, full: str, sha256: str, info: ObjectInfo) -> Sent:
        sent = Sent(info.key, full, step.stat.text(), sha256, info.version)
        if step.sha256 not in (None, sha256):
            self._journal.drop_uploads_to(info.key)
            raise Changed(f"{full} changed while it was read")
        self._journal.add_sent(sent)
        return sent

    def _go_on(self, step: Step, full: str, plain_free: bool) -> Held | None:
        """Finish what an earlier attempt began to send; None if there is no such thing any more.

        Its object has the key of that attempt, and comes to this one as all do that were sent
        earlier. A plain key that others may write by now is not touched.
        """
        begun = self._journal.find_upload(full, step.stat.text())
        if begun is None or self._transfer.uploads is None:
            return None
        plain = begun.key == step.plain + SUFFIXES[encoding_of(begun.key, full)]
        if not (plain_free if plain else begun.key.startswith(self._layout.versions)):
            self._transfer.uploads.abort(begun)
            return None
        with suppress(Permanent):
            condition = IfAbsent() if plain else None
            done = self._transfer.resume(step.source, begun, step.seen, condition)
            if done:
                return self._adopt(self._note_sent(step, full, *done), step)
        return None


def _held(info: ObjectInfo, path: str, sha256: str) -> Held:
    """What an object is that was made for the file ``path``."""
    encoding = encoding_of(info.key, path)
    return Held(info.key, sha256, encoding, info.size)


def _entry(step: Step, held: Held) -> FileEntry:
    mode, written = step.stat.mode & 0o777, step.stat.mtime_ns
    stored = held.stored if held.encoding else 0
    return FileEntry(
        step.path, held.key, step.seen.size, held.sha256, mode, written, held.encoding, stored
    )


def _digests(entries: Iterable[FileEntry]) -> set[tuple[str, int, str]]:
    return {(entry.path, entry.size, entry.sha256) for entry in entries}
