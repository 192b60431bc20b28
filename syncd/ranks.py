"""The seat of one of several machines: all of them append to one log, and each holds its rank.

A rank is held by a claim of its own, numbered and put if absent. Who finds a higher one there has
been replaced, and stops. The log itself belongs to all ranks: a number that is taken is no fence,
the next one is tried.
"""

from __future__ import annotations

import json
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace

from syncd.clock import Clock
from syncd.commitlog import CommitLog
from syncd.errors import Conflict, Corrupt, Fenced, NotFound
from syncd.journal import Journal
from syncd.parts import all_ranks
from syncd.profiles import COMPANION
from syncd.records import CommitRecord, Layout, check_record
from syncd.seat import Seat
from syncd.stores.base import IfAbsent, ObjectStore


class RankSeat(Seat):
    """What one of several machines knows of the log, and its right to its rank."""

    def __init__(
        self,
        log: CommitLog,
        journal: Journal,
        layout: Layout,
        clock: Clock,
        writer: str,
        home: str,
        readers: Executor,
        *,
        store: ObjectStore,
        rank: int,
        world: int,
    ) -> None:
        super().__init__(log, journal, layout, clock, writer, home, readers)
        self._store = store
        self._rank = rank
        self._world = world
        self.claim = 0
        """The number by which this machine holds its rank."""

    def join(self) -> list[Corrupt]:
        """Learn what the log holds and take the rank, unless this machine has it already."""
        broken = self._learn(self._log.sizes())
        for record in self._log.being_pruned():
            self._journal.take(record.checkpoint)
        here = self._journal.get("home") in (None, self._home)
        while not self.claim:
            number = self.claims().get(self._rank, 0)
            holder = self._holder(number) if number else ""
            if here and holder in self._journal.writers():
                self.claim = number
                break
            self.took_over |= bool(number)
            text = json.dumps({"rank": self._rank, "writer": self._writer})
            with suppress(Conflict):
                self._store.put(self._key(number + 1), text.encode(), IfAbsent())
                self.claim = number + 1
        self._journal.remember("home", self._home)
        self.lives = frozenset((*self._journal.writers(), self._writer))
        self._journal.add_writer(self._writer)
        return broken

    def _key(self, number: int) -> str:
        return f"{all_ranks(self._layout)}{self._rank}-of-{self._world}/{number:020d}.json"

    def _holder(self, number: int) -> str:
        try:
            document = json.loads(b"".join(self._store.read(self._key(number))))
            return str(document["writer"])
        except (NotFound, ValueError, KeyError, TypeError):
            return ""

    def claims(self) -> dict[int, int]:
        """The number by which each rank is held now; one request."""
        found: dict[int, int] = {}
        folder = all_ranks(self._layout)
        for info in self._store.list(folder):
            place, _, name = info.key.removeprefix(folder).partition("/")
            rank, _, world = place.partition("-of-")
            number = name.removesuffix(".json")
            if world == str(self._world) and rank.isdigit() and number.isdigit():
                found[int(rank)] = max(found.get(int(rank), 0), int(number))
        return found

    def look(self) -> bool:
        """Learn what others have committed; Fenced if another machine has this rank by now.

        Whether the newest record is this writer's.
        """
        held = self.claims().get(self._rank, 0)
        if held > self.claim:
            raise Fenced(
                f"another machine has taken SYNCD_RANK={self._rank}",
                hint="stop one of the two, or give each machine a rank of its own; "
                "local files are untouched",
            )
        sizes = self._log.sizes()
        if sizes.keys() - self._forget_vanished(sizes):
            self._learn(sizes)
        newest = self._journal.commit(max(sizes), self._layout) if sizes else None
        return newest is None or newest.writer == self._writer

    def rivals(self) -> str:
        """Nobody is a rival of those that work together."""
        return ""

    def append(self, record: CommitRecord) -> CommitRecord:
        """Make a record the newest, with whichever number is free.

        Where another machine has committed the very same meanwhile, it is that one's record. Where
        it has committed what was written later, the record stands behind that.
        """
        behind = record.behind
        while True:
            there = self._journal.newest_commit(self._layout, record.checkpoint)
            if there and same_files(there, record):
                return there
            passed = self._later_than(record)
            behind = min(behind, passed) if behind and passed else behind or passed
            record = replace(record, seq=self.next_number(), behind=behind)
            if record.behind >= record.seq:
                record = replace(record, behind=0)
            check_record(record, record.seq)
            try:
                self._log.append(record)
            except Fenced:
                self._learn(self._log.sizes())
                continue
            self._journal.add_commit(record)
            return record

    def _later_than(self, record: CommitRecord) -> int:
        """Number of the oldest of the newest commits that were written after a record; or 0."""
        behind = 0
        for root in self._journal.roots(COMPANION.name):
            other = self._journal.commit(root.seq, self._layout)
            if other is None or not written_later(other, record):
                break
            behind = root.seq
        return behind


def written_later(one: CommitRecord, other: CommitRecord) -> bool:
    """Whether each file of ``one`` that ``other`` has, too, was written after that.

    A file of one name is of one machine: no two clocks are compared.
    """
    times = {entry.path: entry.mtime_ns for entry in other.files}
    both = [(e.mtime_ns, times[e.path]) for e in one.files if e.path in times]
    return bool(both) and all(here > there for here, there in both)


def same_files(one: CommitRecord, other: CommitRecord) -> bool:
    """Whether two records hold the same."""
    content = [{(e.path, e.size, e.sha256) for e in record.files} for record in (one, other)]
    return content[0] == content[1] and set(one.links) == set(other.links)
