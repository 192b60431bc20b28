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

_KEY_LIMIT = 1024
"""Bytes of the longest key that all of the stores take."""


@dataclass(frozen=True)
class Step:
    """One file: where it lies, and how its content gets to ``key``.

    Exactly one of these says how: ``keep`` (the entry of the last commit), ``adopt`` (sent
    earlier, not committed yet), ``copy_from`` (a key with the same content), or none: send it.
    ``key`` is None where the plain key is taken and ``spare`` has to be used.
    """

    path: str
    stat: Stat
    plain: str
    spare: str
    plain_free: bool
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
        self, unit: Unit, base: CommitRecord | None, seq: int, publication: str
    ) -> Iterator[Step]:
        """The steps that make commit ``seq`` of ``unit`` on top of ``base``.

        ``publication`` names this attempt, so that no two of them share a spare key.
        """
        before = {entry.path: entry for entry in base.files} if base else {}
        for path, stat in unit.files:
            yield self._step(unit, path, stat, before.get(path), seq, publication)

    def _step(
        self,
        unit: Unit,
        path: str,
        stat: Stat,
        before: FileEntry | None,
        seq: int,
        publication: str,
    ) -> Step:
        full = unit.below(path)
        plain = self._layout.plain(full)
        spare = self._layout.version(seq, full, publication)
        _check_key(plain, spare)
        sha256 = self._journal.digest(full, stat.text())
        if sha256 is None and self._journal.has_size(stat.size):
            sha256 = self._digest(self._root / full, stat)
        step = Step(
            path,
            stat,
            plain,
            spare,
            plain_free=before is None and not self._journal.named_by(plain),
            sha256=sha256,
        )
        if sha256 is not None:
            if before and (before.size, before.sha256) == (stat.size, sha256):
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
