"""Publishing where several machines save one checkpoint together, each its own shards.

Each sends its files and puts a part record. Whoever then sees the parts of all, and that they are
of one save, appends the one commit record that names every file; no machine speaks to another but
through the store. A checkpoint of which one part never comes is never committed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from syncd.clock import Clock
from syncd.commit import Publisher
from syncd.errors import Awaits, Conflict, Corrupt, GaveWay, NeedsOperator, NotFound, Permanent
from syncd.journal import Journal
from syncd.parts import (
    FRESH,
    Part,
    StoreClock,
    all_ranks,
    due,
    folder_of,
    key_of,
    missing,
    new_part,
    newest,
    parse_part,
    rank_in,
    whole,
)
from syncd.ranks import RankSeat, same_files
from syncd.records import CommitRecord, Layout
from syncd.seat import Seat
from syncd.series import series, step_of
from syncd.snapshot import Snapshot
from syncd.stores.base import ObjectStore
from syncd.transfer import Transfer
from syncd.units import Unit

log = logging.getLogger(__name__)

_SOONEST, _LATEST, _IDLE = 1.0, 15.0, 60.0
"""Seconds between looks for the parts of others: at first, at most, and once it is of no use."""

_CLOCK_VALID = 600.0
"""Seconds for which the store's time is known well enough."""

_TOKENS = itertools.count(1)

_ONE_FOLDER = "save into one folder for each step, such as step_000100, on every machine"


class JointPublisher(Publisher):
    """One rank's publisher."""

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
        *,
        rank: int,
        world: int,
    ) -> None:
        if not store.capabilities.put_if_absent:
            raise NeedsOperator(
                f"{store.name} overwrites objects in spite of put-if-absent: several machines "
                "cannot save together there",
                hint="use another store",
            )
        self._rank = rank
        self._world = world
        self._time = StoreClock(clock)
        self._known: dict[str, Part] = {}
        """Parts by their keys: no record ever changes."""

        self._mine: dict[str, tuple[str, Part, int]] = {}
        """By checkpoint: the signature, the part of it, and the log's head when it was made."""

        self._sent_at: dict[str, float] = {}
        super().__init__(root, store, journal, layout, transfer, clock, writer, home)

    def join_log(self) -> list[Corrupt]:
        """Take this machine's rank. From then on each refreshes the plain names of its own."""
        broken = super().join_log()
        self._seat.on_learnt = self._names.doubt_learnt
        return broken

    def _take_seat(self, home: str) -> Seat:
        self._ranks = RankSeat(
            self.log,
            self._journal,
            self._layout,
            self._clock,
            self._writer,
            home,
            self._transfer.files,
            store=self._store,
            rank=self._rank,
            world=self._world,
        )
        return self._ranks

    def publish(
        self,
        unit: Unit,
        profile: str,
        behind: int = 0,
        give_way: Callable[[], bool] = lambda: False,
        taken: Snapshot | None = None,
    ) -> CommitRecord | None:
        """Send this machine's part, and commit the whole once all parts are there.

        Awaits until then: it is to be called again. None if it is committed already.
        """
        del taken  # a snapshot proves nothing about what is on disk by now
        if unit.companion:
            if self._rank == 0:
                return super().publish(unit, profile, behind, give_way)
            self._journal.mark_safe(unit.path, unit.signature, 0, unit.changed)
            return None
        if unit.lone or unit.beside:
            raise Permanent("one file cannot be a part of what several machines save together",
                            hint=_ONE_FOLDER)  # fmt: skip
        if step_of(unit.path) < 0:
            raise Permanent(
                "its name has no number: it could be any save, and those of several machines "
                "would be mixed",
                hint=_ONE_FOLDER,
            )
        self._ranks.look()
        if give_way():
            raise GaveWay("something more urgent waits")
        self._set_clock()
        signature, mine, head = self._mine.get(unit.path, ("", None, 0))
        sent_at = self._sent_at.get(unit.path, 0.0)
        stale = self._clock.monotonic() - sent_at > FRESH  # retention may be about to delete it
        if mine is None or signature != unit.signature or stale:
            mine, head = self._send_part(unit, profile, give_way), self._journal.head()
            self._mine[unit.path] = unit.signature, mine, head
            self._sent_at[unit.path] = self._clock.monotonic()
        done = self._committed(unit, mine, head)
        if done is None:
            return self._join(unit, mine, head, behind)
        point = self.recovery_point()
        return done if point and point.seq == done.seq else None  # the older ones are no news

    def _set_clock(self) -> None:
        at = self._time.set_at
        if at is None or self._clock.monotonic() - at > _CLOCK_VALID:
            name = f"{self._rank}-of-{self._world}/clock"
            self._time.set_by(self._store, all_ranks(self._layout) + name)

    def _send_part(self, unit: Unit, profile: str, give_way: Callable[[], bool]) -> Part:
        """Have the files in the store; the record follows, once it is of use."""
        seq = self._seat.next_number()
        entries, links = self._bring(unit, None, seq, give_way, None, plain=False)
        record = CommitRecord(1, unit.path, self._writer, self._seat.now(), profile, entries, links)
        if not entries and not links:
            raise Permanent("it has no files")
        written = self._time.latest_of(unit.changed)
        marked = unit.profile.name == "dcp" and unit.profile.marker is not None
        times = (written, 0.0)
        return new_part(self._rank, self._world, self._ranks.claim, times, marked, record)

    def _committed(self, unit: Unit, mine: Part, head: int) -> CommitRecord | None:
        """The commit that holds this machine's part, if somebody has made it.

        One that an earlier save of this disk is in, and that is older than the part, is not it.
        """
        base = self._journal.newest_commit(self._layout, unit.path)
        if base is None:
            return None
        earlier = base.seq <= head and self._journal.safe_seq(unit.path) == base.seq
        if earlier and not same_files(base, mine.record):
            return None
        there = {(entry.path, entry.size, entry.sha256) for entry in base.files}
        if any((e.path, e.size, e.sha256) not in there for e in mine.record.files):
            return None
        self._settled(unit, base)
        return base

    def _settled(self, unit: Unit, record: CommitRecord) -> None:
        self._journal.mark_safe(unit.path, unit.signature, record.seq, unit.changed)
        self._mine.pop(unit.path, None)
        self._sent_at.pop(unit.path, None)
        old = [key for key, p in self._known.items() if p.record.checkpoint == unit.path]
        self._store.delete(old)
        for key in old:
            del self._known[key]

    def _join(self, unit: Unit, mine: Part, head: int, behind: int) -> CommitRecord:
        """Commit the whole if all parts are there and of one save; else Awaits."""
        folder = folder_of(self._layout, unit.path)
        keys = [info.key for info in self._store.list(folder)]
        claims = self._ranks.claims()
        others = (self._part(key) for key in keys if rank_in(key, folder, self._world) is not None)
        parts = newest((part for part in others if part), claims)
        parts[self._rank] = mine
        when = due(parts)
        if mine.looked < when or not self._is_there(mine, keys):
            mine = self._look_again(unit, mine, when)
            parts[self._rank] = mine
        words = missing(parts, self._world)
        if words:
            raise self._awaits(unit, words, head)
        record = replace(
            whole(parts), writer=self._writer, committed_at=self._seat.now(), behind=behind
        )
        began, base = self._clock.monotonic(), self._journal.newest_commit(self._layout, unit.path)
        record = self._ranks.append(record)
        self.moments.begun(record.seq, began)
        self._names.mark_stale(record, base)
        self._settled(unit, record)
        self.refresh()
        return record

    def _is_there(self, mine: Part, keys: list[str]) -> bool:
        return any(self._known.get(key) == mine for key in keys)

    def _part(self, key: str) -> Part | None:
        if key not in self._known:
            try:
                data = b"".join(self._store.read(key))
                self._known[key] = parse_part(data, self._layout.prefix)
            except (NotFound, Conflict):  # its machine has a newer one by now
                return None
            except Corrupt as error:
                log.warning("%s: %s", key, error.message)
                return None
        return self._known[key]

    def _look_again(self, unit: Unit, mine: Part, when: float) -> Part:
        """See that all is on disk as it was sent, at ``when`` or later, and say so."""
        now = self._time.earliest()
        if now < when:
            raise Awaits("sent; the parts of all machines are compared soon", pause=when - now)
        self._check_unchanged(unit)
        mine = replace(mine, looked=now, claim=self._ranks.claim)
        signature, _, head = self._mine[unit.path]
        self._mine[unit.path] = signature, mine, head
        key = key_of(self._layout, mine, f"{self._writer}.{next(_TOKENS)}")
        self._store.put(key, mine.to_json())
        self._known[key] = mine
        before = [k for k, part in self._known.items() if k != key and self._older(part, mine)]
        with suppress(Permanent):
            self._store.delete(before)
        for old in before:
            del self._known[old]
        return mine

    @staticmethod
    def _older(part: Part, mine: Part) -> bool:
        """Whether it is an earlier word of this machine on the same checkpoint."""
        return (part.rank, part.record.checkpoint, part.record.writer) == (
            mine.rank, mine.record.checkpoint, mine.record.writer
        ) and part.looked < mine.looked  # fmt: skip

    def _awaits(self, unit: Unit, words: str, head: int) -> Awaits:
        """What is missing; looked for often at first, seldom once newer ones are committed."""
        point = self.recovery_point()
        passed = point is not None and point.seq > head and (
            series(point.checkpoint) != series(unit.path)
            or step_of(point.checkpoint) > step_of(unit.path)
        )  # fmt: skip
        waited = self._clock.monotonic() - self._sent_at.get(unit.path, 0.0)
        pause = _IDLE if passed else min(_LATEST, _SOONEST + waited / 10)
        return Awaits(f"sent; {words}", pause=pause, fresh=not passed)
