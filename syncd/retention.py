"""Retention: what may go, in the store and on disk. Never the newest good checkpoint.

A deletion in the store begins by taking the record out of the log, so that there is never a
record whose objects are gone; the record waits under ``pruning/`` until they are, so that a
crash half way leaves nothing behind for ever.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from syncd.alongside import Companions, is_companion
from syncd.clock import Clock
from syncd.commitlog import CommitLog
from syncd.errors import Changed, Corrupt, NotFound
from syncd.filestat import Stat
from syncd.numbering import STEP
from syncd.parts import all_parts, all_ranks
from syncd.place import keep as keep_aside
from syncd.records import CommitRecord, Layout
from syncd.series import is_milestone, series, step_of
from syncd.sqlitefiles import sides_of
from syncd.stores.base import ObjectStore, PendingUpload
from syncd.units import Unit

log = logging.getLogger(__name__)

UPLOAD_GRACE = 24 * 3600.0
"""Seconds after which an unfinished upload is nobody's any more."""


_STALE_VIEW = 300.0
"""Seconds after which what was seen of a store is too old to delete anything by it."""


def is_forgotten(upload: PendingUpload, now: float) -> bool:
    """Whether an upload is so old that no machine goes on with it any more."""
    return upload.started < now - UPLOAD_GRACE


def doomed(
    records: Iterable[CommitRecord], keep: int | None, every: int | None = None
) -> list[CommitRecord]:
    """Which commits go when the newest ``keep`` of each series stay (None: all stay).

    ``records`` come newest first. The newest of all always stays, and so does the newest of each
    writer that could not be fenced: it may be alive, and lean on what it committed last. Of a
    checkpoint whose step is a multiple of ``every`` the newest commit stays for ever. And with each
    stays the text that a restore would bring beside it, though there is newer one.
    """
    records = list(records)
    kept: Counter[str] = Counter()
    milestones: set[str] = set()
    lives: set[tuple[str, str]] = set()
    going = []
    for record in records:
        mine = series(record.checkpoint)
        life = (mine, record.writer)
        leaned_on = record.after is not None and life not in lives
        lives.add(life)
        milestone = record.checkpoint not in milestones and is_milestone(record.checkpoint, every)
        milestones.add(record.checkpoint)
        if keep is not None and kept[mine] >= keep and not (leaned_on or milestone):
            going.append(record)
        kept[mine] += 1
    if going:
        gone = {record.seq for record in going}
        belong = _belonging([one for one in records if one.seq not in gone], records)
        going = [record for record in going if record.seq not in belong]
    return going


def _belonging(staying: Iterable[CommitRecord], records: Sequence[CommitRecord]) -> set[int]:
    """Numbers of the texts that a restore of any of those that stay would bring beside it.

    Those in the folders above it, as of its time; and those of its step.
    """
    texts = Companions(records)
    in_folder: defaultdict[str, list[str]] = defaultdict(list)
    for path in texts.paths:
        in_folder[str(PurePosixPath(path).parent)].append(path)
    belong: set[int] = set()
    for record in staying:
        if is_companion(record):
            continue
        step = step_of(record.checkpoint)
        for folder in PurePosixPath(record.checkpoint).parents:
            for path in in_folder.get(str(folder), ()):
                if "#" not in series(path) or step_of(path) == step:
                    belong.update(one.seq for one in texts.as_of(record, path)[:1])
    return belong


@dataclass(frozen=True)
class Pruned:
    """What a pruning removed, or would remove."""

    commits: tuple[CommitRecord, ...]
    objects: tuple[str, ...]
    uploads: tuple[str, ...]


class Retention:
    """Tidies one prefix of a store."""

    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        clock: Clock,
        ours: Collection[str] = (),
    ) -> None:
        """``ours`` are ids of uploads that somebody is going to finish, and keys to be named."""
        self._store = store
        self._ours = ours
        self._layout = layout
        self._clock = clock
        self._log = CommitLog(store, layout)

    def prune(
        self,
        keep: int | None,
        dry_run: bool = False,
        *,
        every: int | None = None,
        unnamed: bool = False,
    ) -> Pruned:
        """Delete commits beyond ``keep`` per series, orphaned versions and forgotten uploads.

        Multiples of ``every`` stay (:func:`doomed`). With ``unnamed`` goes also what lies at plain
        keys, came after a daemon had begun here, and is named by no commit after a day.
        If any record cannot be read, nothing is deleted: it may name objects that are needed.
        """
        began = self._clock.now()
        # in this order: what took the place of those that are going is in the log by now
        interrupted = list(self._log.being_pruned())
        sizes = self._log.sizes()
        numbers = sorted(sizes)
        records = list(self._log.newest_first(numbers, ahead=True))
        now = self._log.sizes()
        if any(now.get(seq) != size for seq, size in sizes.items()):
            # somebody else prunes: what was the newest of its series may be missing here, and
            # what has taken its place may lean on it
            return self.prune(keep, dry_run, every=every, unnamed=unnamed)
        broken = [record for record in records if isinstance(record, Corrupt)]
        if broken:
            raise Corrupt(
                f"nothing was pruned: {broken[0].message}",
                hint="delete or restore the broken record first",
            )
        sound = [record for record in records if isinstance(record, CommitRecord)]
        going = doomed(sound, keep, every)
        staying = [record for record in sound if record not in going]
        needed = {key for record in staying for key in self._keys(record)}
        objects = {key for record in going for key in self._keys(record)} - needed
        for record in reversed(going):  # the oldest first: what is left always tells the whole
            if not dry_run:
                self._take_out(record, forever=record.seq in (1, numbers[-1]))
        for record in interrupted:
            objects |= set(self._keys(record)) - needed
        objects |= self._orphans(numbers, {record.seq for record in staying}, needed)
        if unnamed:
            objects |= self._unnamed(needed)
        objects |= self._forgotten_parts()
        uploads = [
            upload
            for upload in self._store.pending_uploads(f"{self._layout.prefix}/")
            if upload.id not in self._ours and is_forgotten(upload, self._clock.now())
        ]
        if not dry_run and self._clock.now() - began > _STALE_VIEW:
            gone = {record.seq for record in going}
            left = {seq: size for seq, size in sizes.items() if seq not in gone}
            if self._has_moved(left, numbers):  # what was to be deleted may be needed again
                return self.prune(keep, every=every, unnamed=unnamed)
        if not dry_run:
            self._store.delete(sorted(objects))
            for upload in uploads:
                self._store.discard_upload(upload)
            self._store.delete(
                [self._layout.pruned(record.seq) for record in (*going, *interrupted)]
            )
        return Pruned(tuple(going), tuple(sorted(objects)), tuple(u.key for u in uploads))

    def _has_moved(self, left: dict[int, int], numbers: list[int]) -> bool:
        """Whether the log is another one than what is ``left`` of these numbers."""
        now = self._log.sizes()
        newer = any(seq > max(numbers, default=0) for seq in now)
        return newer or any(now.get(seq) != size for seq, size in left.items())

    def _keys(self, record: CommitRecord) -> set[str]:
        """Objects that exist for a commit: named, or under its own name."""
        keys = {entry.key for entry in record.files}
        for entry in record.files:
            keys.add(self._layout.plain_of(record, entry))
        return keys

    def _take_out(self, record: CommitRecord, forever: bool) -> None:
        """Take a record out of the log; ``forever``: its number must stay taken.

        A writer that has slept since the log was empty, or one that is about to commit, must
        not find the number free: a claim takes the record's place.
        """
        self._store.put(self._layout.pruned(record.seq), record.to_json())
        claim = replace(record, checkpoint="", profile="claim", files=(), links=())
        claim = replace(claim, behind=0, beside=False, ranks=())
        if forever:
            self._store.put(self._layout.commit(record.seq), claim.to_json())
        elif self._log.sealed:
            self._sign_off(claim)
        else:
            self._store.delete([self._layout.commit(record.seq)])

    def _sign_off(self, claim: CommitRecord) -> None:
        """Say with the key that a number was pruned: a gap without that was torn by others.

        One claim stands for all numbers in a row. Those that must stay taken have their own.
        """
        before: CommitRecord | None = None
        with suppress(NotFound, Corrupt):
            before = self._log.read(claim.seq - 1)
        merges = before is not None and before.since is not None
        since = before.since if before and merges else claim.seq
        self._store.put(self._layout.commit(claim.seq), replace(claim, since=since).to_json())
        if before and merges:
            self._store.delete([self._layout.commit(before.seq)])

    def _forgotten_parts(self) -> set[str]:
        """Parts of machines that the others' never joined, with what they name after a day."""
        latest = self._clock.now() - UPLOAD_GRACE
        parts = self._store.list(all_parts(self._layout))
        return {info.key for info in parts if info.modified < latest}

    def _orphans(self, numbers: list[int], staying: set[int], needed: set[str]) -> set[str]:
        """Versions that no commit names: of attempts that were given up, at numbers long taken.

        What was put aside for a commit goes with it. Where writers go on side by side, any of
        them may still be about to name what it has sent: that stays for a day.
        """
        head = max(numbers, default=0)
        several = head >= STEP or any(True for _ in self._store.list(all_ranks(self._layout)))
        latest = self._clock.now() - (UPLOAD_GRACE if several else -UPLOAD_GRACE)
        orphans = set()
        for info in self._store.list(self._layout.versions):
            number = info.key.removeprefix(self._layout.versions)[:20]
            kept = self._layout.kept_for(info.key)
            if info.key in needed or info.key in self._ours or (kept and kept[0] in staying):
                continue
            if number.isdigit() and int(number) <= head and info.modified < latest:
                orphans.add(info.key)
        return orphans

    def _unnamed(self, needed: set[str]) -> set[str]:
        """Plain objects of uploads that were cut off, by the store's own times.

        An attempt that goes on names nothing as old as this where it lies. Where no daemon has
        marked its beginning, nothing tells them from what a person has put there.
        """
        try:
            began = self._store.head(self._layout.began).modified
        except NotFound:
            return set()
        latest = self._clock.now() - UPLOAD_GRACE
        found = self._store.list(self._layout.checkpoints)
        return {i.key for i in found if i.key not in needed and began < i.modified < latest}


_ASIDE = ".syncd-prune-"


def _check_as_seen(unit: Unit, place: Callable[[str], Path]) -> None:
    """Changed unless every file is what it was when it was found to be safe."""
    for member, seen in unit.files:
        if member not in unit.running and Stat.of(place(member).lstat()) != seen:
            raise Changed(f"{unit.below(member)} was written meanwhile")


def _remove(root: Path, unit: Unit) -> None:
    """Delete a checkpoint so that nobody, the trainer least of all, ever sees half of one.

    Changed if it was saved anew while it was asked whether it is safe: that may take hours.
    """
    path = root / unit.path
    _check_as_seen(unit, lambda member: root / unit.below(member))
    for leftover in path.parent.glob(f"{_ASIDE}*"):  # of a daemon that was killed in here
        shutil.rmtree(leftover, ignore_errors=True)
    if unit.lone or unit.beside:
        path.unlink(missing_ok=True)  # of files beside each other first the one that names them
        for member, _ in unit.files:
            (root / unit.below(member)).unlink(missing_ok=True)
        for side in sides_of(path):
            side.unlink(missing_ok=True)
        return
    aside = path.with_name(f"{_ASIDE}{secrets.token_hex(4)}")
    path.rename(aside)
    try:
        _check_as_seen(unit, lambda member: aside / member)
    except (Changed, OSError):
        try:
            aside.rename(path)
        except OSError:  # there is a new one already
            keep_aside(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def prune_local(
    root: Path,
    on_disk: Sequence[Unit],
    keep: int | None,
    is_safe: Callable[[Unit], bool],
    place: Callable[[Unit], float] = lambda _: 0.0,
) -> list[str]:
    """Delete checkpoints on disk beyond the newest ``keep`` of each series; return their paths.

    Only what is committed as it lies there is ever deleted, and never the newest of a series:
    ``place`` is that of its commit among all, and where that says nothing the files' times tell.
    """
    if keep is None:
        return []
    by_series: dict[str, list[Unit]] = defaultdict(list)
    for unit in on_disk:
        if not unit.companion:
            by_series[series(unit.path)].append(unit)
    gone = []
    for members in by_series.values():
        newest = sorted(members, key=lambda unit: (place(unit), unit.written), reverse=True)
        for unit in newest[keep:]:
            if not is_safe(unit):
                continue
            try:
                _remove(root, unit)
            except (Changed, OSError) as error:
                words = error.message if isinstance(error, Changed) else error.strerror
                log.warning("%s stays on disk: %s", unit.path, words)
                continue
            gone.append(unit.path)
    return gone
