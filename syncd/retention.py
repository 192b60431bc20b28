"""Retention: what may go, in the store and on disk. Never the newest good checkpoint.

A deletion in the store begins by taking the record out of the log, so that there is never a
record whose objects are gone; the record waits under ``pruning/`` until they are, so that a
crash half way leaves nothing behind for ever.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from syncd.clock import Clock
from syncd.commitlog import CommitLog
from syncd.errors import Corrupt, NotFound
from syncd.profiles import Unit
from syncd.records import CommitRecord, Layout, parse_record
from syncd.stores.base import ObjectStore

log = logging.getLogger(__name__)

UPLOAD_GRACE = 24 * 3600.0
"""Seconds after which an unfinished upload is nobody's any more."""


def series(checkpoint: str) -> str:
    """What a checkpoint is one of: its path with the numbers of the last part left out.

    >>> series("run7/gen-000015")
    'run7/gen-#'
    """
    parent, slash, name = checkpoint.rpartition("/")
    return parent + slash + re.sub(r"\d+", "#", name)


def doomed(records: Iterable[CommitRecord], keep: int | None) -> list[CommitRecord]:
    """Which commits go when the newest ``keep`` of each series stay (None: all stay).

    ``records`` come newest first. The newest of all always stays.
    """
    kept: Counter[str] = Counter()
    going = []
    for record in records:
        mine = series(record.checkpoint)
        if keep is not None and kept[mine] >= keep:
            going.append(record)
        kept[mine] += 1
    return going


@dataclass(frozen=True)
class Pruned:
    """What a pruning removed, or would remove."""

    commits: tuple[CommitRecord, ...]
    objects: tuple[str, ...]
    uploads: tuple[str, ...]


class Retention:
    """Tidies one prefix of a store."""

    def __init__(self, store: ObjectStore, layout: Layout, clock: Clock) -> None:
        self._store = store
        self._layout = layout
        self._clock = clock
        self._log = CommitLog(store, layout)

    def prune(self, keep: int | None, dry_run: bool = False) -> Pruned:
        """Delete commits beyond ``keep`` per series, orphaned versions and forgotten uploads.

        If any record cannot be read, nothing is deleted: it may name objects that are needed.
        """
        numbers = set(self._log.numbers())
        records = list(self._log.newest_first())
        broken = [record for record in records if isinstance(record, Corrupt)]
        if broken:
            raise Corrupt(
                f"nothing was pruned: {broken[0].message}",
                hint="delete or restore the broken record first",
            )
        sound = [record for record in records if isinstance(record, CommitRecord)]
        going = doomed(sound, keep)
        staying = [record for record in sound if record not in going]
        needed = {key for record in staying for key in self._keys(record)}
        objects = {key for record in going for key in self._keys(record)} - needed
        for record in going:
            if not dry_run:
                self._take_out(record)
        interrupted = self._interrupted()
        for record in interrupted:
            objects |= set(self._keys(record)) - needed
        objects |= self._orphans(numbers, needed)
        uploads = [
            upload
            for upload in self._store.pending_uploads(f"{self._layout.prefix}/")
            if upload.started < self._clock.now() - UPLOAD_GRACE
        ]
        if not dry_run:
            self._store.delete(sorted(objects))
            for upload in uploads:
                self._store.discard_upload(upload)
            self._store.delete(
                [self._layout.pruned(record.seq) for record in (*going, *interrupted)]
            )
        return Pruned(tuple(going), tuple(sorted(objects)), tuple(u.key for u in uploads))

    def _keys(self, record: CommitRecord) -> set[str]:
        """Every object that exists for a commit: named, under its own name, or put aside."""
        keys = {entry.key for entry in record.files}
        for entry in record.files:
            keys.add(self._layout.plain(record.below(entry.path)))
            keys.add(self._layout.version(record.seq, record.below(entry.path)))
        return keys

    def _take_out(self, record: CommitRecord) -> None:
        self._store.put(self._layout.pruned(record.seq), record.to_json())
        self._store.delete([self._layout.commit(record.seq)])

    def _interrupted(self) -> list[CommitRecord]:
        """Commits that were taken out of the log by a pruning that did not end."""
        found = []
        for info in self._store.list(self._layout.pruning):
            name = info.key.removeprefix(self._layout.pruning).removesuffix(".json")
            try:
                data = b"".join(self._store.read(info.key))
                found.append(parse_record(data, int(name), self._layout.prefix))
            except (NotFound, Corrupt, ValueError):
                continue
        return found

    def _orphans(self, numbers: set[int], needed: set[str]) -> set[str]:
        """Versions that no commit names: of attempts that were given up, at numbers long taken."""
        head = max(numbers, default=0)
        orphans = set()
        for info in self._store.list(self._layout.versions):
            number = info.key.removeprefix(self._layout.versions)[:20]
            if info.key not in needed and number.isdigit() and int(number) <= head:
                orphans.add(info.key)
        return orphans


_ASIDE = ".syncd-prune-"


def _remove(root: Path, unit: Unit) -> None:
    """Delete a checkpoint so that nobody, the trainer least of all, ever sees half of one."""
    path = root / unit.path
    for leftover in path.parent.glob(f"{_ASIDE}*"):  # of a daemon that was killed in here
        shutil.rmtree(leftover, ignore_errors=True)
    if unit.lone or unit.beside:
        path.unlink(missing_ok=True)  # of files beside each other first the one that names them
        for member, _ in unit.files:
            (root / unit.below(member)).unlink(missing_ok=True)
        return
    aside = path.with_name(f"{_ASIDE}{secrets.token_hex(4)}")
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def prune_local(
    root: Path,
    on_disk: Sequence[Unit],
    keep: int | None,
    is_safe: Callable[[Unit], bool],
) -> list[str]:
    """Delete checkpoints on disk beyond the newest ``keep`` of each series; return their paths.

    Only what is committed as it lies there is ever deleted, and never the newest of a series.
    """
    if keep is None:
        return []
    by_series: dict[str, list[Unit]] = defaultdict(list)
    for unit in on_disk:
        if not unit.companion:
            by_series[series(unit.path)].append(unit)
    gone = []
    for members in by_series.values():
        for unit in sorted(members, key=lambda unit: unit.written, reverse=True)[keep:]:
            if not is_safe(unit):
                continue
            try:
                _remove(root, unit)
            except OSError as error:
                log.warning("%s stays on disk: %s", unit.path, error.strerror)
                continue
            gone.append(unit.path)
    return gone
