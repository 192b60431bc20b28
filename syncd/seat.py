"""The writer's seat at the commit log: who may write, how it is found out, who has to stop.

A writer is one life of one daemon. It knows the log by its journal, takes the next number by
put-if-absent, and is fenced as soon as another one has taken it. On a store that ignores
put-if-absent each writer has numbers of its own, nobody is fenced, and that is told.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from syncd.clock import Clock
from syncd.commitlog import CommitLog, fenced, refuse_locked, rolled_back
from syncd.errors import Corrupt, Fenced, NotFound
from syncd.journal import Journal
from syncd.numbering import next_in_slot
from syncd.parting import parting
from syncd.records import UNREADABLE, CommitRecord, Layout, check_record
from syncd.series import series

_TOOK_OVER = "took over"
"""Fact of the journal: its machine has gone on after another one."""

_UNDER_WAY = "append under way"
"""Fact of the journal: a record was sent to the log, and its outcome is not known."""


class Seat:
    """What one writer knows of the log, and its right to continue it."""

    def __init__(
        self,
        log: CommitLog,
        journal: Journal,
        layout: Layout,
        clock: Clock,
        writer: str,
        home: str,
        readers: Executor,
    ) -> None:
        """``home`` names the place of the journal: a copy of it, in another place, is not ours."""
        self._log = log
        self._journal = journal
        self._layout = layout
        self._clock = clock
        self._writer = writer
        self._home = home
        self._readers = readers
        self._slot: int | None = None
        self._used = 0
        self._others: set[str] = set()
        self.on_learnt: Callable[[set[int]], None] = lambda _numbers: None
        """Hears the numbers of commits that others have made."""
        self.took_over = False
        """Whether the log was begun or continued by another machine when this writer joined it, or
        one of those before it that used its journal."""
        self.lives: frozenset[str] = frozenset((writer,))
        """Ids of this writer and of those before it that used its journal: one machine's."""

    def join(self) -> list[Corrupt]:
        """Learn what the commit log holds and take the place of its last writer.

        Returns the records that cannot be read. Where another machine's daemon wrote the newest
        commit, a claim is written after it: should that one be alive, its next commit collides
        with the claim and it is fenced, rather than this one that was started later. So it is
        with a journal that was copied from another machine, and where a commit was under way
        of which it is not known whether it may still arrive.
        """
        broken = self._learn(self._log.sizes())
        for record in self._log.being_pruned():  # what dies with them may have been at plain keys
            self._journal.take(record.checkpoint)
        if not self._log.fences:
            self._slot = self._log.draw_slot(self._writer)
        here = self._journal.get("home") in (None, self._home)
        claimed = False
        while not claimed:
            head = self._journal.head()
            newest = self._journal.commit(head, self._layout) if head else None
            ours = newest is None or newest.writer in (self._writer, *self._journal.writers())
            self.took_over |= not ours
            sure = ours and (here or not newest) and not self._journal.get(_UNDER_WAY)
            claimed = (sure and self._slot is None) or self._claim()
        self.took_over |= self._journal.get(_TOOK_OVER) == "yes"
        if self.took_over:
            self._journal.remember(_TOOK_OVER, "yes")
        self._journal.remember("home", self._home)
        self.lives = frozenset((*self._journal.writers(), self._writer))
        self._journal.add_writer(self._writer)
        return broken

    def _claim(self) -> bool:
        claim = CommitRecord(self.next_number(), "", self._writer, self.now(), "claim")
        try:
            self.append(claim)
        except Fenced:
            self._learn(self._log.sizes())
            return False
        sizes = self._log.sizes()
        if max(sizes, default=0) == claim.seq or self._slot is not None:
            return True
        self._learn(sizes)  # it fell into a gap that pruning has left while this machine slept
        return False

    def look(self) -> bool:
        """One request: has another writer committed, has somebody pruned, is the log there?

        Whether the newest record is this writer's; Fenced if the log has been continued by
        another one. Where the store cannot fence, what others write is learnt and told.
        """
        sizes, head = self._log.sizes(), self._journal.head()
        known = self._forget_vanished(sizes)
        news = sizes.keys() - known
        if news:
            self._learn(sizes)
        for seq in sorted(news):
            record = self._journal.commit(seq, self._layout)
            newer = seq > head or head not in sizes
            if record is None or record.writer in self.lives:
                continue
            if self._slot is not None:
                self._others.add(record.writer)
            elif newer:
                raise fenced(seq, record.writer)
        if self._slot is None or not (newest := self._journal.commit(max(sizes), self._layout)):
            return True
        return newest.writer == self._writer

    def rivals(self) -> str:
        """What other writers do to the same log at the same time, in words; "" for nothing."""
        if not self._others:
            return ""
        known = (self._journal.commit(seq, self._layout) for seq in self._journal.known_commits())
        parted = parting(record for record in known if record)
        names = ", ".join(sorted(self._others))
        return parted.words() if parted else f"another machine (writer {names}) writes here as well"

    def leans(self, base: CommitRecord) -> bool:
        """Whether retention, by whomever, keeps a commit until there is a newer one of its kind.

        Only on such a one may another commit lean: on any other it could be let go by a machine
        that has not seen that its objects are needed again.
        """
        mine = series(base.checkpoint)
        if self._slot is not None and base.writer != self._writer:
            return False
        same = (
            rank
            for checkpoint, writer, rank in self._journal.ranks()
            if series(checkpoint) == mine and (self._slot is None or writer == self._writer)
        )
        return max(same, default=base.rank) == base.rank

    def next_number(self) -> int:
        """The number for this writer's next record."""
        head = self._journal.head()
        if self._slot is None:
            return head + 1
        return next_in_slot(self._slot, max(head, self._used))

    def append(self, record: CommitRecord) -> CommitRecord:
        """Make a record the newest of the log; Fenced if another writer was there first."""
        if self._slot is not None:
            record = replace(record, after=self._journal.head())
        self._used = record.seq  # whatever becomes of it: a number is used for one record only
        check_record(record, record.seq)  # what no reader would trust must not be written
        self._journal.remember(_UNDER_WAY, "yes")
        self._log.append(record)
        with self._journal.transaction():
            self._journal.add_commit(record)
            self._journal.remember(_UNDER_WAY, "")
        return record

    def now(self) -> str:
        """The time for a record."""
        moment = datetime.datetime.fromtimestamp(self._clock.now(), datetime.timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    # -- what is known of the log

    def _learn(self, sizes: Mapping[int, int]) -> list[Corrupt]:
        known = self._forget_vanished(sizes)
        broken: list[Corrupt] = []
        pruned: list[int] = []

        def read(seq: int) -> CommitRecord | None:
            try:
                return self._log.recall(seq)
            except NotFound:
                pruned.append(seq)
                return None
            except Corrupt as error:
                broken.append(error)
                return CommitRecord(seq, "", UNREADABLE, "", "")

        unknown = sorted(sizes.keys() - known)
        with self._log.many(unknown):
            found = list(self._readers.map(read, unknown))
        if not any(self._journal.known_commits().values()) and not any(map(_readable, found)):
            refuse_locked(broken)
        with self._journal.transaction():  # else a death in between trusts what is stale by now
            for record in found:
                if record:
                    self._journal.add_commit(record)
            self.on_learnt(self._journal.known_commits().keys() - known)
        return self._learn(self._log.sizes()) if pruned else broken  # it has gone on meanwhile

    def _forget_vanished(self, sizes: Mapping[int, int]) -> set[int]:
        """Forget commits that are gone from the log; return those that are known and there.

        They were pruned by somebody, or the store was emptied. Pruning leaves a newer commit of
        the same series; where there is none, what this disk has of it is not safe any more. It
        never removes the highest number: without it the log is another one, and nothing that
        was known of it holds. A record of another size has been replaced by a claim.
        """
        known = self._journal.known_commits()
        vanished = known.keys() - sizes.keys()
        vanished |= {seq for seq, size in known.items() if size and sizes.get(seq, size) != size}
        if not vanished:
            return set(known)
        if max(known) not in sizes:
            seen = max((seq for seq, size in known.items() if size), default=0)
            if self._log.sealed and seen and not self._log.accounts_for(seen, sizes):
                raise rolled_back(seen, max(sizes, default=0))
            vanished = set(known)
        self._journal.drop_commits(vanished)
        left: dict[str, int] = {}
        for record in self._journal.commits(self._layout):
            left.setdefault(series(record.checkpoint), record.seq)
        for checkpoint, seq in self._journal.safe():
            if seq in vanished and left.get(series(checkpoint), 0) < seq:
                self._journal.forget_safe(checkpoint)
        return known.keys() - vanished


def _readable(record: CommitRecord | None) -> bool:
    return record is not None and record.writer != UNREADABLE


def newest_seen(journal: Path, store: str) -> int:
    """The highest number of a commit that a journal knows of a store; 0: it knows of none."""
    if not journal.exists():
        return 0
    with contextlib.suppress(sqlite3.Error):
        database = sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(database):
            ours = database.execute("SELECT value FROM meta WHERE name = 'store'").fetchone()
            if ours == (store,):
                sql = "SELECT MAX(seq) FROM commits WHERE writer != ?"
                return int(database.execute(sql, (UNREADABLE,)).fetchone()[0] or 0)
    return 0
