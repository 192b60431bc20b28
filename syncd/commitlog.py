"""The commit log: one object per commit, created with put-if-absent, numbered without gaps."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice

from syncd import compacted
from syncd.errors import Conflict, Corrupt, Fenced, Locked, NeedsOperator, NotFound, StoreError
from syncd.numbering import draw_slot
from syncd.records import CommitRecord, Layout, parse_record
from syncd.sealed import Sealed
from syncd.stores.base import IfAbsent, ObjectInfo, ObjectStore

_RECORD_LIMIT = 256 * 1024 * 1024
"""Bytes of the largest record that is read: a tampered bucket must not fill the memory."""

_AHEAD = 128
"""Records that are read ahead, at most."""

_SMALL = 512 * 1024
"""Bytes of a record that is read together with others: so many of them must fit in the memory."""

_REPLACED = 3
"""How often a record may be replaced while it is read: it happens once in its life."""


class CommitLog:
    """Reads and appends commit records; order is by ``seq``, never by a clock."""

    def __init__(self, store: ObjectStore, layout: Layout) -> None:
        self._store = store
        self.layout = layout
        self._listed: dict[int, ObjectInfo] = {}
        self._compacted = compacted.Compacted(layout)

    def numbers(self) -> list[int]:
        """The numbers of all commits, ascending."""
        return sorted(self.sizes())

    def sizes(self) -> dict[int, int]:
        """The numbers of all commits, each with the size of its record in bytes."""
        found = ((self.layout.seq_of(i.key), i) for i in self._store.list(self.layout.commits))
        self._listed = {seq: info for seq, info in found if seq is not None}
        return {seq: info.size for seq, info in self._listed.items()}

    @contextmanager
    def many(self, numbers: Collection[int]) -> Iterator[None]:
        """While so many are recalled: it may be worth two requests to have most at once."""
        if len(numbers) >= compacted.EVERY:
            self._compacted = compacted.load(self._store, self.layout)
        try:
            yield
        finally:
            self._compacted = compacted.Compacted(self.layout)

    def recall(self, seq: int) -> CommitRecord:
        """As :meth:`read`, but as the record was when the log was listed last."""
        return self._at_hand(seq) or self.read(seq)

    def _at_hand(self, seq: int) -> CommitRecord | None:
        info = self._listed.get(seq)
        return self._compacted.record(seq, info) if info else None

    def read(self, seq: int) -> CommitRecord:
        """One record; NotFound if it is gone, Corrupt if it cannot be trusted.

        Retention puts a claim in the place of some: one that is replaced while it is read is
        read again.
        """
        for _ in range(_REPLACED):
            with suppress(Conflict):
                return self._read(seq)
        return self._read(seq)

    def _read(self, seq: int) -> CommitRecord:
        chunks, size = [], 0
        for chunk in self._store.read(self.layout.commit(seq)):
            size += len(chunk)
            if size > _RECORD_LIMIT:
                raise Corrupt(f"commit {seq} is larger than any record can be")
            chunks.append(chunk)
        return parse_record(b"".join(chunks), seq, self.layout.prefix)

    def newest_first(
        self,
        numbers: Sequence[int] | None = None,
        claims: bool = False,
        ahead: bool = False,
    ) -> Iterator[CommitRecord | Corrupt]:
        """Every readable commit, what was written last first; a broken one comes as its error.

        Claims are left out, unless they are asked for. A record that retention deletes meanwhile
        is passed over. One that is ``behind`` another comes after it, though its number is
        higher. ``numbers`` are those to read, ascending, where they are known. ``ahead`` reads
        many at a time, the more the further this comes.
        """
        known = self.numbers() if numbers is None else numbers
        with self.many(known):
            yield from self._newest_first(reversed(known), claims, ahead)

    def _newest_first(
        self, wanted: Iterable[int], claims: bool, ahead: bool
    ) -> Iterator[CommitRecord | Corrupt]:
        later: list[CommitRecord] = []
        for seq, record in self._many(wanted) if ahead else self._each(wanted):
            yield from _due(later, seq)
            if record is None:
                continue
            if isinstance(record, Corrupt):
                yield record
            elif record.behind:
                later.append(record)
            elif claims or not record.is_claim:
                yield record
        yield from _due(later, 0)

    def _each(self, wanted: Iterable[int]) -> Iterator[tuple[int, CommitRecord | Corrupt | None]]:
        return ((seq, self._try(seq)) for seq in wanted)

    def _many(self, wanted: Iterable[int]) -> Iterator[tuple[int, CommitRecord | Corrupt | None]]:
        """A log of thousands must not take thousands of times the store's delay."""
        left, width = iter(wanted), 1
        while batch := list(islice(left, width)):
            at_hand = {seq: self._at_hand(seq) for seq in batch}
            asked = [self.layout.commit(seq) for seq in batch if not at_hand[seq]]
            answers = iter(self._store.read_each((key, _SMALL + 1) for key in asked))
            for seq in batch:
                if record := at_hand[seq]:
                    yield seq, record
                    continue
                answer = next(answers)
                if isinstance(answer, StoreError) or len(answer) > _SMALL:
                    yield seq, self._try(seq)  # by itself: whatever is the matter with it
                    continue
                try:
                    yield seq, parse_record(answer, seq, self.layout.prefix)
                except Corrupt as error:
                    yield seq, error
            width = min(_AHEAD, width * 2)

    def _try(self, seq: int) -> CommitRecord | Corrupt | None:
        try:
            return self.recall(seq)
        except NotFound:
            return None
        except Corrupt as error:
            return error

    def draw_slot(self, writer: str) -> int:
        """Numbers for a writer that no other one uses, where no condition keeps others off."""
        return draw_slot(self._store, self.layout, writer, random.SystemRandom())

    @property
    def sealed(self) -> bool:
        """Whether only who has the key can write records that are read here."""
        return isinstance(self._store, Sealed)

    def accounts_for(self, seq: int, numbers: Iterable[int]) -> bool:
        """Whether a sealed log has this number, or a claim that says that it was pruned."""
        above = min((number for number in numbers if number >= seq), default=None)
        if above is None:
            return False
        try:
            record = self.read(above)
        except (NotFound, Corrupt):
            return False
        return above == seq or (record.since is not None and record.since <= seq)

    @property
    def fences(self) -> bool:
        """Whether the store refuses a second writer."""
        return self._store.capabilities.put_if_absent

    def append(self, record: CommitRecord) -> None:
        """Make ``record`` the newest commit, or raise Fenced if its number is taken.

        Finding one's own record there is success: only its acknowledgement was lost. Where the
        store knows no condition, the number must be the writer's own.
        """
        absent = IfAbsent() if self._store.capabilities.put_if_absent else None
        try:
            self._store.put(self.layout.commit(record.seq), record.to_json(), absent)
        except Conflict:
            try:
                winner = self.read(record.seq)
            except (NotFound, Corrupt):
                raise fenced(record.seq) from None
            if winner != record:
                raise fenced(record.seq, winner.writer) from None

    def being_pruned(self) -> Iterator[CommitRecord]:
        """Commits that are out of the log while their objects are being deleted."""
        prefix = self.layout.prefix
        keys = [info.key for info in self._store.list(self.layout.pruning)]
        answers = self._store.read_each((key, _SMALL + 1) for key in keys)
        for key, answer in zip(keys, answers, strict=True):
            name = key.removeprefix(self.layout.pruning).removesuffix(".json")
            with suppress(NotFound, Corrupt, ValueError):
                if not isinstance(answer, bytes) or len(answer) > _SMALL:
                    yield parse_record(b"".join(self._store.read(key)), int(name), prefix)
                else:
                    yield parse_record(answer, int(name), prefix)


def refuse_locked(broken: Iterable[Corrupt]) -> None:
    """NeedsOperator if the key is what is wrong with records of which none can be read."""
    for error in broken:
        if isinstance(error, Locked):
            raise NeedsOperator(f"no commit can be opened: {error.message}", hint=error.hint)


def rolled_back(known: int, found: int) -> NeedsOperator:
    """The error for a log that ends before what this machine has seen of it."""
    return NeedsOperator(
        f"the commit log was rolled back: this machine has seen commit {known}, which is gone; "
        f"it ends with {found}",
        hint="somebody deleted commits: look into it. If it was you, on purpose, delete "
        "journal.sqlite in SYNCD_STATE_DIR",
    )


def removed(records: Iterable[CommitRecord | Corrupt], numbers: Iterable[int]) -> Corrupt | None:
    """What is wrong with a sealed log that lacks records which nobody with the key has pruned.

    Where writers have numbers of their own there are gaps anyway, and nothing can be said.
    """
    sound = [record for record in records if isinstance(record, CommitRecord)]
    if any(record.after is not None for record in sound):
        return None
    head = max((record.seq for record in sound), default=0)
    there = [(record.since or record.seq, record.seq) for record in sound]
    there += [(seq, seq) for seq in numbers if seq < head]  # unreadable ones are named by others
    expected, missing, spans = 1, 0, []
    for first, last in sorted(there):
        if first > expected:
            missing += first - expected
            spans.append(f"{expected}" if first == expected + 1 else f"{expected} to {first - 1}")
        expected = max(expected, last + 1)
    if not missing:
        return None
    some = ", ".join(spans[:5]) + (", …" if len(spans) > 5 else "")
    return Corrupt(
        f"{missing} commits were removed, and by nobody who has the key: {some}",
        hint="look into who else can write to the bucket",
    )


def fenced(seq: int, writer: str = "unknown") -> Fenced:
    """The error for a writer that finds ``seq`` in the log and did not put it there."""
    return Fenced(
        f"commit {seq} was written by another machine (writer {writer})",
        hint="two machines write to one prefix: stop one of them, or give each its own "
        "CLOUD_PREFIX; local files are untouched",
    )


def _due(later: list[CommitRecord], seq: int) -> list[CommitRecord]:
    """Take from ``later`` what comes before commit ``seq``, in order."""
    due = sorted((r for r in later if r.behind > seq), key=lambda r: r.rank, reverse=True)
    later[:] = [record for record in later if record.behind <= seq]
    return due
