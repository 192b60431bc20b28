"""The plain names: brought up to the newest commit by copies within the store.

They are for people and plain tools; no restore depends on them. What an older commit names there
is put aside first. A machine may sleep between any two requests here and wake up long after
another has taken over: nothing it then does harms what a commit names.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from contextlib import suppress

from syncd.clock import Clock
from syncd.errors import NotFound, Permanent
from syncd.journal import Journal
from syncd.records import CommitRecord, Layout
from syncd.stores.base import ObjectStore

log = logging.getLogger(__name__)

_LOOK_AGAIN = 5.0
"""Seconds of refreshing after which it is asked again whether another writer has taken over."""


class PlainNames:
    """Plain keys that wait for newer content, and how they get it."""

    def __init__(
        self,
        store: ObjectStore,
        journal: Journal,
        layout: Layout,
        clock: Clock,
        in_power: Callable[[], bool],
    ) -> None:
        """``in_power`` tells whether this writer's commit is the newest, or raises Fenced."""
        self._store = store
        self._journal = journal
        self._layout = layout
        self._clock = clock
        self._in_power = in_power

    def find_stale(self, learnt: set[int]) -> None:
        """Of commits that this journal did not make: assume that their plain keys wait.

        Their writer may have died between its commit and its refresh.
        """
        for seq in sorted(learnt):
            record = self._journal.commit(seq, self._layout)
            newest = record and self._journal.newest_commit(self._layout, record.checkpoint)
            if record and newest and newest.seq == seq:
                before = self._journal.newest_commit(self._layout, record.checkpoint, before=seq)
                self.mark_stale(record, before)
            elif record:
                self._doubt(record)

    def _doubt(self, record: CommitRecord) -> None:
        """A plain key that was ever refreshed, be it by a request that is late, proves nothing."""
        for entry in record.files:
            plain = self._layout.plain_of(record, entry)
            if entry.key != plain:
                self._journal.doubt(plain)

    def mark_stale(self, record: CommitRecord, base: CommitRecord | None) -> None:
        """A commit was made on top of ``base``: which plain keys are behind it."""
        plain = {self._layout.plain_of(record, entry): entry for entry in record.files}
        moved = [(key, entry.key) for key, entry in plain.items() if entry.key != key]
        moved += [(key, "") for key in self._doubt_all(record, base)]
        self._journal.add_stale(record, moved)

    def doubt_learnt(self, learnt: set[int]) -> None:
        """Of commits that another made, who refreshes their plain keys: those prove nothing."""
        for seq in sorted(learnt):
            record = self._journal.commit(seq, self._layout)
            if record:
                checkpoint = record.checkpoint
                base = self._journal.newest_commit(self._layout, checkpoint, before=seq)
                self._doubt_all(record, base)

    def _doubt_all(self, record: CommitRecord, base: CommitRecord | None) -> set[str]:
        """Doubt what a commit on top of ``base`` has moved; the keys that are let go."""
        self._doubt(record)
        if base is None:
            return set()
        old = {self._layout.plain_of(base, entry) for entry in base.files}
        gone = old - {self._layout.plain_of(record, entry) for entry in record.files}
        for key in gone:
            self._journal.doubt(key)
        return gone

    def refresh(self) -> None:
        """Bring the plain keys up to the newest commit, by copies within the store.

        What an older commit still names at a plain key is first put where a restore of that
        commit looks for it. A writer that has lost the log in the meantime touches nothing.
        """
        looked = None
        for key, source, _seq in self._journal.stale():
            now = self._clock.monotonic()
            if looked is None or now > looked + _LOOK_AGAIN:
                if not self._in_power():
                    return
                looked = now
            try:
                self._preserve(key)
                if source:
                    self._store.copy(source, key)
                else:
                    self._store.delete([key])
            except Permanent as error:
                # pruned meanwhile, or no possible name: restores do not need it
                log.warning("%s is not refreshed: %s", key, error.message)
            self._journal.refreshed(key)

    def _preserve(self, key: str) -> None:
        """Copy what commits name at a plain key to where a restore of them looks for it."""
        path = key.removeprefix(self._layout.checkpoints)
        for seq, _sha256 in self._journal.named_by(key):
            beside = self._store.list(self._layout.beside(seq))
            if any(self._layout.kept_for(info.key) == (seq, path) for info in beside):
                continue
            with suppress(NotFound):
                self._store.copy(key, self._layout.kept(seq, path, secrets.token_hex(4)))
