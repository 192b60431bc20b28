"""What has to travel: for each file of a checkpoint, the cheapest way to have it in the store.

A file that the last commit holds already is referenced. Content that lies in the store under
another key is copied there. Only the rest is sent, and never over anything that a commit names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from syncd.delta import mark_at
from syncd.errors import Permanent
from syncd.filestat import Stat
from syncd.journal import Held, Journal, Sent
from syncd.pathrules import SUFFIXES, ZSTD
from syncd.reader import open_seen
from syncd.records import CommitRecord, FileEntry, Layout
from syncd.snapshot import Snapshot
from syncd.units import Unit

_KEY_LIMIT = 1024
"""Bytes of the longest key that all of the stores take."""

_TOGETHER = 1024 * 1024
"""Bytes of the largest file that is sent together with others."""

_PACKED = SUFFIXES[ZSTD]


@dataclass
class Step:
    """One file: where it lies, and how its content gets to ``key``.

    Exactly one of these says how: ``keep`` (the entry of the last commit), ``adopt`` (sent
    earlier, not committed yet), ``copy_from`` (one with the same content), or none: send it.
    ``source`` is the file to read, and ``seen`` its stat: those of a snapshot, where one was taken.
    What is compressed has an end behind ``plain`` or ``spare``; it is not to ``pack`` where another
    file has that name.
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
    copy_from: Held | None = None
    sha256: str | None = None
    pack: bool = True

    @property
    def small(self) -> bool:
        """Whether it sends a file that goes together with others."""
        sends = not (self.keep or self.adopt or self.copy_from)
        return sends and self.seen.size <= _TOGETHER


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
        known = _Known(self._journal, self._layout, unit)
        names = {path for path, _ in unit.files}
        for path, stat in unit.files:
            step = self._step(unit, path, stat, seq, publication)
            copy = taken.locate(path) if taken else None
            step = replace(step, source=copy[0], seen=copy[1]) if copy else step
            step.pack = path + _PACKED not in names
            yield self._shorten(step, unit, before.get(path), known)

    def left(self, unit: Unit) -> int:
        """Bytes of a checkpoint that have to travel, as far as the journal tells."""
        left = 0
        known = _Known(self._journal, self._layout, unit)
        for path, stat in unit.files:
            full = unit.below(path)
            sha256 = known.digest(full, stat)
            there = sha256 is not None and self._journal.object_with(stat.size, sha256)
            if not there and not known.sent(full, stat):
                left += stat.size - self._journal.bytes_arrived(full, stat.text())
        return left

    def _step(self, unit: Unit, path: str, stat: Stat, seq: int, publication: str) -> Step:
        full = unit.below(path)
        plain = self._layout.plain(full)
        spare = self._layout.version(seq, full, publication)
        _check_key(plain, spare)
        return Step(path, stat, plain, spare, self._root / full, stat)

    def _shorten(self, step: Step, unit: Unit, before: FileEntry | None, known: _Known) -> Step:
        """The same step, the cheapest way."""
        full, stat, size = unit.below(step.path), step.stat, step.seen.size
        sha256 = known.digest(full, stat)
        if sha256 is None and known.has_size(size) and self._may_be_there(step, known):
            sha256 = self._digest(step.source, step.seen)
        step.plain_free, step.sha256 = known.is_free(step.plain), sha256
        if sha256 is not None:
            same = before and (before.size, before.sha256) == (size, sha256)
            if before and same and self._journal.holds(before.key, sha256):
                return replace(step, keep=before)
            source = self._journal.object_with(size, sha256)
            if source:
                return replace(step, copy_from=source)
        sent = known.sent(full, stat)
        return replace(step, adopt=sent, sha256=sent.sha256) if sent else step

    @staticmethod
    def _may_be_there(step: Step, known: _Known) -> bool:
        """Whether an object begins and ends as this file, as far as is known.

        A trainer's checkpoints have the same size, as a rule: each would be read once more, only
        to find that it is another one.
        """
        ends, size = known.ends_of(step.seen.size), step.seen.size
        if ends is None:
            return True
        with open_seen(step.source, step.seen) as file:
            for part in {part for part, _, _ in ends}:
                last = (size - 1) // part * part
                places = ((0, min(part, size)), (last, size - last))
                mine = (part, *(mark_at(file.sample, at, count) for at, count in places))
                if mine in ends:
                    return True
        return False


class _Known:
    """What the journal knows of the files of one checkpoint, asked for all of them at once."""

    def __init__(self, journal: Journal, layout: Layout, unit: Unit) -> None:
        paths = [unit.below(path) for path, _ in unit.files]
        self._journal = journal
        self._digests = journal.digests_of(paths)
        self._sent = journal.sent_of(paths)
        plain = [layout.plain(path) for path in paths]
        self._named = journal.named_of([*plain, *(key + _PACKED for key in plain)])
        self._taken = journal.is_taken(unit.path)
        self._sizes: dict[int, bool] = {}
        self._ends: dict[int, set[tuple[int, str, str]] | None] = {}

    def digest(self, path: str, stat: Stat) -> str | None:
        """SHA-256 of a file whose stat is still what it was when it was read."""
        seen, sha256 = self._digests.get(path, ("", ""))
        return sha256 if seen and seen == stat.text() else None

    def sent(self, path: str, stat: Stat) -> Sent | None:
        """An object that holds this revision of a file already."""
        return self._sent.get((path, stat.text())) if self._sent else None

    def has_size(self, size: int) -> bool:
        """Whether any committed object has this size: only then can content be there already."""
        if size not in self._sizes:
            self._sizes[size] = self._journal.has_size(size)
        return self._sizes[size]

    def ends_of(self, size: int) -> set[tuple[int, str, str]] | None:
        """How the objects of this size begin and end (:meth:`UploadRows.ends_of`)."""
        if size not in self._ends:
            self._ends[size] = self._journal.ends_of(size)
        return self._ends[size]

    def is_free(self, plain: str) -> bool:
        """Whether no commit names this key, or ever named one of this checkpoint."""
        return not self._taken and self._named.isdisjoint((plain, plain + _PACKED))


def _check_key(*keys: str) -> None:
    for key in keys:
        size = len(key.encode())
        if size > _KEY_LIMIT:
            raise Permanent(
                f"the key {key!r} has {size} bytes, and stores take {_KEY_LIMIT}",
                hint="shorten the path or CLOUD_PREFIX",
            )
