"""What has to travel: for each file of a checkpoint, the cheapest way to have it in the store.

A file that the last commit holds already is referenced. Content that lies in the store under
another key is copied there. Only the rest is sent, and never over anything that a commit names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from syncd.errors import Permanent
from syncd.journal import Journal, Sent
from syncd.profiles import Unit
from syncd.records import CommitRecord, FileEntry, Layout
from syncd.scan import Stat
from syncd.snapshot import Snapshot

_KEY_LIMIT = 1024
"""Bytes of the longest key that all of the stores take."""


@dataclass(frozen=True)
class Step:
    """One file: where it lies, and how its content gets to ``key``.

    Exactly one of these says how: ``keep`` (the entry of the last commit), ``adopt`` (sent
    earlier, not committed yet), ``copy_from`` (a key with the same content), or none: send it.
    ``source`` is the file to read, and ``seen`` its stat: those of a snapshot, where one was taken.
    """

    path: str
    stat: Stat
    plain: str
    spare: str
    source: Path
    seen: Stat
    plain_free: bool = False
    keep: FileEntry | None = None
    adopt: Sent | None = None
    copy_from: str | None = None
    sha256: str | None = None


class Planner:
    """Plans by the journal alone: no request is made to plan."""

    def __init__(
        self, root: Path, journal: Journal, layout: Layout, digest: Callable[[Path, Stat], str]
    ) -> None:
        self._root = root
        self._journal = journal
        self._layout = layout
        self._digest = digest

    def plan(
        self,
        unit: Unit,
        base: CommitRecord | None,
        seq: int,
        publication: str,
        taken: Snapshot | None = None,
    ) -> Iterator[Step]:
        """The steps that make commit ``seq`` of ``unit`` on top of ``base``.

        ``publication`` names this attempt, so that no two of them share a spare key. What is
        ``taken`` is read from there.
        """
        before = {entry.path: entry for entry in base.files} if base else {}
        for path, stat in unit.files:
            step = self._step(unit, path, stat, seq, publication)
            copy = taken.locate(path) if taken else None
            step = replace(step, source=copy[0], seen=copy[1]) if copy else step
            yield self._shorten(step, unit, before.get(path))

    def left(self, unit: Unit) -> int:
        """Bytes of a checkpoint that have to travel, as far as the journal tells."""
        left = 0
        for path, stat in unit.files:
            full = unit.below(path)
            sha256 = self._journal.digest(full, stat.text())
            there = sha256 is not None and self._journal.object_with(stat.size, sha256)
            if not there and not self._journal.find_sent(full, stat.text()):
                left += stat.size - self._journal.bytes_arrived(full, stat.text())
        return left

    def _step(self, unit: Unit, path: str, stat: Stat, seq: int, publication: str) -> Step:
        full = unit.below(path)
        plain = self._layout.plain(full)
        spare = self._layout.version(seq, full, publication)
        _check_key(plain, spare)
        return Step(path, stat, plain, spare, self._root / full, stat)

    def _shorten(self, step: Step, unit: Unit, before: FileEntry | None) -> Step:
        """The same step, the cheapest way."""
        full, stat = unit.below(step.path), step.stat
        sha256 = self._journal.digest(full, stat.text())
        if sha256 is None and self._journal.has_size(stat.size):
            sha256 = self._digest(step.source, step.seen)
        free = not self._journal.is_taken(unit.path) and not self._journal.named_by(step.plain)
        step = replace(step, plain_free=free, sha256=sha256)
        if sha256 is not None:
            same = before and (before.size, before.sha256) == (stat.size, sha256)
            if before and same and self._journal.holds(before.key, sha256):
                return replace(step, keep=before)
            source = self._journal.object_with(stat.size, sha256)
            if source:
                return replace(step, copy_from=source)
        sent = self._journal.find_sent(full, stat.text())
        return replace(step, adopt=sent, sha256=sent.sha256) if sent else step


def _check_key(*keys: str) -> None:
    for key in keys:
        size = len(key.encode())
        if size > _KEY_LIMIT:
            raise Permanent(
                f"the key {key!r} has {size} bytes, and stores take {_KEY_LIMIT}",
                hint="shorten the path or CLOUD_PREFIX",
            )
