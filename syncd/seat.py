"""The writer's seat at the commit log: who may write, how it is found out, who has to stop.

A writer is one life of one daemon. It knows the log by its journal, takes the next number by
put-if-absent, and is fenced as soon as another one has taken it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from syncd.clock import Clock
from syncd.commitlog import CommitLog, fenced
from syncd.errors import Corrupt, Fenced, NotFound
from syncd.journal import Journal
from syncd.records import UNREADABLE, CommitRecord, Layout, check_record
from syncd.retention import series

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
        self.on_learnt: Callable[[set[int]], None] = lambda _numbers: None
        """Hears the numbers of commits that others have made."""
        self.took_over = False
        """Whether the log was begun or continued by another machine when this writer joined it."""
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
        here = self._journal.get("home") in (None, self._home)
        claimed = False
        while not claimed:
            head = self._journal.head()
            newest = self._journal.commit(head, self._layout) if head else None
            ours = newest is None or newest.writer in (self._writer, *self._journal.writers())
            self.took_over |= not ours
            sure = ours and (here or not newest) and not self._journal.get(_UNDER_WAY)
            claimed = sure or self._claim()
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
        if max(sizes, default=0) == claim.seq:
            return True
        self._learn(sizes)  # it fell into a gap that pruning has left while this machine slept
        return False

    def look(self) -> bool:
        """One request: has another writer committed, has somebody pruned, is the log there?

        True, or Fenced if the log has been continued by another writer.
        """
        sizes, head = self._log.sizes(), self._journal.head()
        known = self._forget_vanished(sizes)
        news = sizes.keys() - known
        if news:
            self._learn(sizes)
        for seq in sorted(news):
            record = self._journal.commit(seq, self._layout)
            newer = seq > head or head not in sizes
            if newer and record and record.writer not in self.lives:
                raise fenced(seq, record.writer)
        return True

    def next_number(self) -> int:
        """The number for this writer's next record."""
        return self._journal.head() + 1

    def append(self, record: CommitRecord) -> None:
        """Make a record the newest of the log; Fenced if another writer was there first."""
        check_record(record, record.seq)  # what no reader would trust must not be written
        self._journal.remember(_UNDER_WAY, "yes")
        self._log.append(record)
        with self._journal.transaction():
            self._journal.add_commit(record)
            self._journal.remember(_UNDER_WAY, "")

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
                return self._log.read(seq)
            except NotFound:
                pruned.append(seq)
                return None
            except Corrupt as error:
                broken.append(error)
                return CommitRecord(seq, "", UNREADABLE, "", "")

        for record in self._readers.map(read, sorted(sizes.keys() - known)):
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
            vanished = set(known)
        self._journal.drop_commits(vanished)
        left: dict[str, int] = {}
        for record in self._journal.commits(self._layout):
            left.setdefault(series(record.checkpoint), record.seq)
        for checkpoint, seq in self._journal.safe():
            if seq in vanished and left.get(series(checkpoint), 0) < seq:
                self._journal.forget_safe(checkpoint)
        return known.keys() - vanished
