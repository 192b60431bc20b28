"""Which checkpoint a machine goes on from: the one on disk, or one of the store's."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from syncd.alongside import Along, Occupied, cut_off, is_companion, noted, places_on_disk
from syncd.config import Settings
from syncd.errors import Corrupt, Permanent
from syncd.journal import Journal
from syncd.lock import AlreadyRunning, lock_state
from syncd.ondisk import newest_local, on_disk
from syncd.opening import JOURNAL, open_journal, store_identity
from syncd.parts import of_rank
from syncd.place import alone, clear_staging, keep
from syncd.records import CommitRecord, Layout
from syncd.restore import Restorer
from syncd.restored import LetGo, Replace, Restored, is_meant
from syncd.scan import scan
from syncd.seat import newest_seen
from syncd.series import series, step_of
from syncd.trackers import may_track, point
from syncd.transfer import Transfer
from syncd.units import Unit, units
from syncd.unproven import UnprovenRestorer

_OK, _UNREACHABLE, _NOT_INTACT = 0, 1, 3

_LET_GO = 5
"""Times that a restore begins anew because retention deletes what it is fetching."""
_DELETED = "syncd: retention deletes each commit before it has come: raise SYNCD_KEEP_LAST"

_NEW = "nothing to restore, a new training can start"

_TOO_SMALL = " (free some space, or restore --to a larger disk)"
_REMEDY = {
    errno.ENOSPC: _TOO_SMALL,
    errno.EDQUOT: _TOO_SMALL,
    errno.EIO: " (the disk fails: restore --to another one)",
    errno.EROFS: " (mount it writable, or restore --to another disk)",
    errno.EACCES: " (give this user write permission there)",
}


@dataclass(frozen=True)
class Request:
    """What a person asks of a restore: into which directory, which checkpoint, how much."""

    to: Path | None = None
    at: str | None = None
    everything: bool = False
    force: bool = False
    own: bool = False
    """Only what this machine had sent, and the first one, where several save together."""

    @property
    def is_plain(self) -> bool:
        """Whether it is the newest checkpoint that is asked for, into its place or another."""
        return self.at is None and not self.everything


class Comeback:
    """One run of ``python -m syncd restore``."""

    def __init__(
        self,
        settings: Settings,
        restorer: Restorer,
        transfer: Transfer,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._restorer = restorer
        self._transfer = transfer
        self._say = say
        self._layout = Layout(settings.cloud_prefix)
        self.found_nothing = False
        """Whether the store has turned out to hold nothing that was asked for."""

    def run(self, request: Request, commits: Sequence[CommitRecord | Corrupt] | None = None) -> int:
        """Decide, restore, and say what was done; the exit code of the command.

        ``commits`` are those to choose from, where the store was asked already. The errors of a
        store that is out of reach are raised.
        """
        root = request.to or self._settings.checkpoint_dir
        try:
            with alone(root, lambda: self._say(f"syncd: {root}: waiting for another restore")):
                clear_staging(root)
                found = self._restorer.commits() if commits is None else list(commits)
                for _ in range(_LET_GO):
                    try:
                        return self._run(root, request, found)
                    except LetGo as gone:
                        self._say(f"syncd: retention has deleted {gone} meanwhile: looking again")
                        found = self._restorer.commits()
                self._say(_DELETED)
                return _UNREACHABLE
        except Permanent as error:
            self._say(f"syncd: {error.explain()}")
            return _UNREACHABLE
        except OSError as error:
            self._say(
                f"syncd: {error.filename or root}: {error.strerror or error}; nothing was "
                f"restored, what was there is untouched{_REMEDY.get(error.errno or 0, '')}"
            )
            return _UNREACHABLE

    def _run(self, root: Path, request: Request, commits: list[CommitRecord | Corrupt]) -> int:
        at, everything, force = request.at, request.everything, request.force
        if self._settings.encrypt_key:
            journal = self._settings.state_dir / JOURNAL
            self._restorer.check_memory(newest_seen(journal, store_identity(self._settings)))
        if self._restorer.parting:
            self._say(f"syncd: WARNING: {self._restorer.parting.words()}")
        chosen = [c for c in commits if at is None or is_meant(c, at)]
        if at is not None and not chosen:
            words = f"has no checkpoint {at!r}; python -m syncd ls shows all"
            self._say(f"syncd: {self._settings.title} {words}")
            self.found_nothing = True
            return _UNREACHABLE
        if not commits:
            return self._without_commits(root, force)
        texts = [c for c in commits if isinstance(c, CommitRecord) and is_companion(c)]
        if at is None and len(texts) == len(commits):  # nothing of what they name has arrived
            commits = chosen = [c for c in texts if not may_track(c.checkpoint)]
            if not commits:
                self.found_nothing = True
                self._say(f"syncd: {self._settings.title} holds no checkpoint: {_NEW}")
                return _OK
        rank = self._settings.rank
        if rank is not None:
            if request.own:
                chosen = [c if isinstance(c, Corrupt) else of_rank(c, rank) for c in chosen]
            if request.is_plain:
                return self._together(root, chosen, force)
        if at is None and not everything and not force:
            self._go_on(root, commits)
        newest = next((c for c in commits if isinstance(c, CommitRecord)), None)
        local = newest_local(self._settings, root)
        if local and at is None and not everything:
            wins = self._local_wins(root, local, newest, force)
            if wins:
                self._point(root, [local.path], fresh=False)
                return _OK
        replace = Replace.DROP if force else Replace.KEEP if at is None else Replace.NO
        results = self._restore(chosen, root, everything, replace)
        self._settle(results, root)
        return self._report(results, root)

    def _settle(self, results: list[Restored], root: Path) -> None:
        """What is to be done once all is in its place."""
        there = [one.record for one in results if one.record]
        there += [one for result in results for one in (*result.along.brought, *result.along.there)]
        named = [one.checkpoint for one in there if not is_companion(one)]
        changed = self._point(root, named, fresh=True)
        self._remember(root, results, changed)

    def _point(self, root: Path, checkpoints: Sequence[str], fresh: bool) -> set[str]:
        """Have trackers name what is there; the paths of those that were written anew."""
        done = point(root, checkpoints, fresh)
        for path, name in done.names.items():
            self._say(f"syncd: {path} names {name} now: what it named is not here, or older")
        for words in done.failed:
            self._say(f"syncd: WARNING: it is not known what this names: {words}")
        return set(done.names)

    def _go_on(self, root: Path, commits: list[CommitRecord | Corrupt]) -> None:
        """With a restore that was cut off when the checkpoint itself was in its place already."""
        half = cut_off(root, commits)
        if half and on_disk(root, half):
            self._say(f"syncd: going on with the restore of {half.checkpoint}, which was cut off")
            with noted(root, half):
                result = Restored(half, along=self._restorer.bring_along(half, commits, root))
            self._settle([result], root)
            self._tell(result.along)

    def _together(self, root: Path, commits: list[CommitRecord | Corrupt], force: bool) -> int:
        """All machines go on from one commit: what lies on one disk alone counts for nothing."""
        newest = next(
            (c for c in commits if isinstance(c, CommitRecord) and not is_companion(c)), None
        )
        if newest and not force and on_disk(root, newest):
            self._say(f"syncd: {newest.checkpoint} is on disk as committed; going on from it")
            self._go_on(root, commits)
            self._put_aside(root, newest, commits)
            self._point(root, [newest.checkpoint], fresh=True)
            return _OK
        results = self._restore(commits, root, False, Replace.DROP if force else Replace.KEEP)
        if results[0].record:
            self._put_aside(root, results[0].record, commits)
        self._settle(results, root)
        return self._report(results, root)

    def _put_aside(
        self, root: Path, record: CommitRecord, commits: list[CommitRecord | Corrupt]
    ) -> None:
        """Later steps that were never committed: other machines may not have them at all."""
        known = {c.checkpoint for c in commits if isinstance(c, CommitRecord)}
        tree = scan(root, self._settings.exclude)
        for unit in list(units(tree)) if tree else ():
            later = step_of(unit.path) > step_of(record.checkpoint)
            if unit.companion or not later or unit.path in known:
                continue
            if series(unit.path) == series(record.checkpoint):
                for path in places_on_disk(unit):
                    if not os.path.lexists(root / path):
                        continue
                    place = keep(root / path, root / path)
                    self._say(f"syncd: {path} was never committed: put aside as {place}")

    def _restore(
        self,
        commits: list[CommitRecord | Corrupt],
        root: Path,
        everything: bool,
        replace: Replace,
    ) -> list[Restored]:
        if not everything:
            return [self._restorer.restore_newest(commits, root, replace)]
        results, seen, occupied = [], set(), Occupied()
        for commit in commits:
            if isinstance(commit, Corrupt) or commit.checkpoint in seen:
                continue
            seen.add(commit.checkpoint)
            if occupied.lies_at(commit):
                self._say(
                    f"syncd: {commit.checkpoint} stays in the store: what is newer lies there"
                )
                continue
            if on_disk(root, commit):
                self._say(f"syncd: {commit.checkpoint} is there already, as committed")
                occupied.take(commit)
                continue
            same = [
                c
                for c in commits
                if isinstance(c, CommitRecord)
                and c.checkpoint == commit.checkpoint
                and not occupied.lies_at(c)
            ]
            results.append(result := self._restorer.restore_newest(same, root, replace))
            if result.record:
                occupied.take(result.record)
        return results

    def _report(self, results: list[Restored], root: Path) -> int:
        for result in results:
            for words in result.rejected:
                self._say(f"syncd: NOT INTACT, passed over: {words}")
            record = result.record
            where = " of the mirror" if self._settings.is_mirror else ""
            if record:
                self._say(
                    f"syncd: restored {record.checkpoint} (commit {record.seq}{where} of "
                    f"{record.committed_at}) to {root / record.checkpoint}: "
                    f"{len(record.files)} files, {record.size / 1e6:.1f} MB, every byte verified"
                )
            if result.put_aside:
                self._say(f"syncd: what was there before is kept as {result.put_aside}")
            self._tell(result.along)
        if not results or any(result.record for result in results):
            return _OK
        self._say(f"syncd: nothing in {self._settings.title} is intact; nothing was restored")
        return _NOT_INTACT

    def _tell(self, along: Along) -> None:
        for words in along.rejected:
            self._say(f"syncd: NOT INTACT, passed over: {words}")
        for other in along.brought:
            self._say(f"syncd: and beside it {other.checkpoint}")
        for other in along.not_newest:
            self._say(
                f"syncd: {other.checkpoint} is as of then (commit {other.seq}); what is newer "
                "stays in the store"
            )
        for words in along.left_out:
            self._say(f"syncd: WARNING: not brought beside it: {words}")

    # -- what is on disk

    def _local_wins(
        self, root: Path, local: Unit, newest: CommitRecord | None, force: bool
    ) -> bool:
        ahead = newest is not None and self._store_is_ahead(root, local, newest)
        if ahead and newest:
            if force or self._settings.resume_from == "newest":
                self._say(f"syncd: the store is ahead of {local.path}: taking {newest.checkpoint}")
                return False
            self._say(
                f"syncd: WARNING: the store is AHEAD: {newest.checkpoint} (commit {newest.seq} of "
                f"{newest.committed_at}) is not on this disk"
            )
            self._say(
                f"syncd: going on from the local {local.path}; set RESUME_FROM=newest, or run "
                "python -m syncd restore --force, to take the store's"
            )
            return True
        if force:
            return False
        self._say(f"syncd: {local.path} is on disk already; going on from it")
        return True

    def _store_is_ahead(self, root: Path, local: Unit, newest: CommitRecord) -> bool:
        """Whether the newest commit holds something that this disk does not.

        By the commit that the local checkpoint is, where that is known. A local
        checkpoint that was never committed as it is counts by its time of writing.
        """
        if on_disk(root, newest):
            return False
        committed = self._committed_as(local)
        if committed is not None:
            return newest.rank > committed.rank
        return max((entry.mtime_ns for entry in newest.files), default=0) > local.written[0]

    def _committed_as(self, local: Unit) -> CommitRecord | None:
        try:
            with lock_state(self._settings.lock_dir):
                journal = open_journal(self._settings)
                try:
                    if journal.is_safe(local.path, local.signature):
                        return journal.commit(journal.safe_seq(local.path) or 0, self._layout)
                finally:
                    journal.close()
        except (AlreadyRunning, OSError, sqlite3.Error):
            pass
        return None

    # -- the journal of this machine

    def _remember(self, root: Path, results: list[Restored], changed: set[str]) -> None:
        """Seed the journal, so that nothing that was just brought here goes up again."""
        if root.absolute() != self._settings.checkpoint_dir.absolute():
            return
        try:
            with lock_state(self._settings.lock_dir):
                journal = open_journal(self._settings)
                try:
                    self._seed(journal, root, results, changed)
                finally:
                    journal.close()
        except (AlreadyRunning, OSError, sqlite3.Error):
            return  # the daemon that runs here, or comes, looks for itself

    def _seed(
        self, journal: Journal, root: Path, results: list[Restored], changed: set[str]
    ) -> None:
        tree = scan(root, self._settings.exclude)
        on_disk = {unit.path: unit for unit in units(tree)} if tree else {}
        for result in results:
            for record in (result.record, *result.along.brought):
                unit = on_disk.get(record.checkpoint) if record else None
                if record is None or unit is None or unit.path in changed:
                    continue
                digests = {entry.path: entry.sha256 for entry in record.files}
                journal.add_digests(
                    (unit.below(path), stat.text(), digests[path])
                    for path, stat in unit.files
                    if path in digests
                )
                if digests.keys() == {path for path, _ in unit.files}:
                    journal.mark_safe(unit.path, unit.signature, record.seq, unit.changed)

    # -- a bucket without commits

    def _without_commits(self, root: Path, force: bool) -> int:
        unproven = UnprovenRestorer(self._transfer.store, self._layout, self._transfer.files)
        objects, under_way = unproven.find()
        if self._settings.encrypt_key:  # each was sealed, but what belongs together a commit tells
            objects, under_way = [], [*objects, *under_way]
        if under_way:
            self._say(
                f"syncd: passed over {len(under_way)} files that were being sent when their "
                "machine was lost: no commit names them"
            )
        if not objects:
            empty = "holds no checkpoint" if under_way else "is empty"
            self.found_nothing = True
            self._say(f"syncd: {self._settings.title} {empty}: {_NEW}")
            return _OK
        local = newest_local(self._settings, root)
        if local and not force:
            self._say(f"syncd: {local.path} is on disk already; going on from it")
            return _OK
        result = unproven.restore(objects, root)
        for path in result.restored:
            self._say(
                f"syncd: restored {path}, UNPROVEN: it was put into the bucket without a commit"
            )
        for words in result.refused:
            self._say(f"syncd: refused {words}")
        if result.restored:
            self._say("syncd: the formats were checked; the first flush commits what is on disk")
        return _OK if result.restored else _NOT_INTACT
