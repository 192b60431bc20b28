"""The way back: the newest committed checkpoint whose every byte proves to be the right one.

Everything arrives in a hidden folder beside its place, is verified while it arrives, made
durable, and then takes its place by one rename: a kill at any moment leaves the old or the new.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path, PurePosixPath

from syncd.alongside import Along, bring_along, is_companion, noted, places_of
from syncd.commitlog import CommitLog, refuse_locked, removed, rolled_back
from syncd.errors import Conflict, Corrupt, NotFound, Permanent, SyncdError
from syncd.fetch import BY_RANGES, Ranges, content, fetch_stream, proven
from syncd.inflight import WIDEST
from syncd.parting import Parting, parting
from syncd.place import (
    Note,
    check_parents,
    nameable,
    new_staging,
    remove,
    take_place,
)
from syncd.profiles import by_name
from syncd.records import CommitRecord, FileEntry, Layout
from syncd.restored import Damaged, LetGo, Replace, Restored
from syncd.stores.base import ObjectStore
from syncd.stores.durable import sync_folder

_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_TOGETHER = 1024 * 1024
"""Bytes of the largest file that is fetched together with others."""

_GROUP = 256
"""Small files that are fetched by one worker before it looks whether the others have failed."""

_GROUPS = 4
"""Workers for such groups; of each many files are under way."""


class Restorer:
    """Brings checkpoints from a store into a root."""

    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        workers: Executor,
        on_bytes: Callable[[str, int], None] = lambda _key, _count: None,
        on_begin: Callable[[CommitRecord], None] = lambda _record: None,
        concurrency: int | None = None,
    ) -> None:
        """``on_begin`` hears of each commit that is about to be fetched, ``on_bytes`` of bytes.

        ``concurrency``: how many ranges of large files are fetched at a time.
        """
        self._store = store
        self._layout = layout
        self._workers = workers
        self._on_bytes = on_bytes
        self._on_begin = on_begin
        self._ranges = Ranges(store, concurrency or WIDEST)
        self._log = CommitLog(store, layout)
        self._numbers: list[int] = []
        self.parting: Parting | None = None
        """Histories that go on side by side, as far as the last look at the commits has shown."""

        self.mirrored = False
        """Whether another store may hold intact what is not so here."""

    def commits(self) -> list[CommitRecord | Corrupt]:
        """Every commit, newest first; a broken record comes as its error."""
        numbers = self._numbers = self._log.numbers()
        found = list(self._log.newest_first(numbers, claims=True, ahead=True))
        broken = [item for item in found if isinstance(item, Corrupt)]
        if len(broken) == len(found):
            refuse_locked(broken)
        self.parting = parting(item for item in found if isinstance(item, CommitRecord))
        commits = [item for item in found if isinstance(item, Corrupt) or not item.is_claim]
        gone = removed(found, numbers) if self._log.sealed else None
        return [gone, *commits] if gone else commits

    def check_memory(self, seen: int) -> None:
        """NeedsOperator if the log lacks a commit that this machine has seen, and nobody says why.

        Only of a sealed log that can be said; it is asked after :meth:`commits`.
        """
        if seen and self._log.sealed and not self._log.accounts_for(seen, self._numbers):
            raise rolled_back(seen, max(self._numbers, default=0))

    def restore_newest(
        self,
        commits: Sequence[CommitRecord | Corrupt],
        root: Path,
        replace: Replace = Replace.NO,
    ) -> Restored:
        """Restore the first of ``commits`` that is intact, and what lay beside it.

        Permanent if its place is taken and ``replace`` does not allow to take it. LetGo if
        retention has deleted one meanwhile, and there are others by now. Damaged at the first
        that is not intact, where it is ``mirrored``.
        """
        result = Restored()
        candidates = [c for c in commits if isinstance(c, Corrupt) or not is_companion(c)]
        if not any(isinstance(c, CommitRecord) for c in candidates):
            candidates = list(commits)
        for commit in candidates:
            if isinstance(commit, Corrupt):
                result.rejected.append(commit.message)
                continue
            try:
                with noted(root, commit):
                    result.put_aside = self.restore(commit, root, replace)
                    result.record = commit
                    result.along = self.bring_along(commit, commits, root)
            except (Corrupt, ValueError, OverflowError) as error:
                name = f"{commit.checkpoint} (commit {commit.seq})"
                if commit.seq not in self._log.numbers():
                    raise LetGo(name) from None
                if self.mirrored:
                    raise Damaged(commit, f"{name}: {error}") from None
                result.rejected.append(f"{name}: {error}")
                continue
            break
        return result

    def bring_along(
        self, record: CommitRecord, commits: Sequence[CommitRecord | Corrupt], root: Path
    ) -> Along:
        """Bring what lay beside a checkpoint that was restored, as far as nothing is there."""
        return bring_along(
            record,
            commits,
            root,
            # the trainer's next save needs as much again
            lambda c: self.restore(c, root, room=0 if is_companion(c) else record.size),
        )

    def restore(
        self, record: CommitRecord, root: Path, replace: Replace = Replace.NO, room: int = 0
    ) -> Path | None:
        """Restore one commit; Corrupt if any byte of it is not the right one.

        ``room`` bytes stay free on the disk. Returns where that lies now which was in its place,
        if it was kept.
        """
        with nameable(record.checkpoint):
            check_parents(root, record.checkpoint)
            with suppress(FileNotFoundError):
                (root / record.checkpoint).lstat()
        if replace is Replace.NO:
            self._check_free(root, record)
        root.mkdir(parents=True, exist_ok=True)
        self._check_space(root, record, room)
        self._on_begin(record)
        staging = new_staging(root)
        try:
            content = staging / "content"
            self._fetch_all(record, content)
            inode = content.lstat().st_ino
            beside = [entry.path for entry in record.files] if record.beside else []
            if replace is Replace.NO:
                self._check_free(root, record)  # a trainer may have written there meanwhile
            keep = replace is not Replace.DROP
            note = Note(record.checkpoint, inode, keep, *_tracker(record), beside)
            return take_place(staging, root, note)
        finally:
            remove(staging)

    @staticmethod
    def _check_free(root: Path, record: CommitRecord) -> None:
        taken = next((root / p for p in places_of(record) if os.path.lexists(root / p)), None)
        if taken:
            raise Permanent(
                f"{taken} is there already",
                hint="restore with --force to replace it, or --to another directory",
            )

    def _check_space(self, root: Path, record: CommitRecord, room: int) -> None:
        free = shutil.disk_usage(root).free - room
        if free >= record.size:
            return
        for entry in record.files:
            if not self._has_size(record, entry):
                raise Corrupt(f"{entry.path or record.checkpoint}: no object has the size it says")
        raise Permanent(
            f"{record.checkpoint} needs {record.size / 1e6:.0f} MB and {root} has "
            f"{free / 1e6:.0f} MB free",
            hint="free some space, or restore --to a larger disk",
        )

    def _has_size(self, record: CommitRecord, entry: FileEntry) -> bool:
        for key in self._keys(record, entry):
            with suppress(Permanent):
                if self._store.head(key).size == entry.at_rest:
                    return True
        return False

    def _fetch_all(self, record: CommitRecord, content: Path) -> None:
        paths = [entry.path for entry in record.files] + [link.path for link in record.links]
        lone = "" in paths
        folders = set() if lone else {content}
        if not lone:
            content.mkdir()
        for path in paths if not lone else ():
            folder = (content / path).parent
            if folder in folders:
                continue
            with nameable(path):
                folder.mkdir(parents=True, exist_ok=True)
            while folder != content:
                folders.add(folder)
                folder = folder.parent
        together, alone = self._sorted(record)
        over = threading.Event()
        jobs = [
            self._workers.submit(self._fetch_groups, record, share, content, over)
            for share in (together[n::_GROUPS] for n in range(_GROUPS))
        ]
        jobs += [
            self._workers.submit(self.fetch, record, entry, content / entry.path) for entry in alone
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            over.set()
            for job in jobs:
                job.cancel()
            for job in jobs:
                if not job.cancelled():
                    job.exception()
        for link in record.links:
            with nameable(link.path or record.checkpoint):
                (content / link.path).symlink_to(link.target)
        for folder in folders:
            sync_folder(folder)

    def _sorted(self, record: CommitRecord) -> tuple[list[list[FileEntry]], list[FileEntry]]:
        """Small files in groups, and all others."""
        small = [entry for entry in record.files if entry.size <= _TOGETHER]
        alone = [entry for entry in record.files if entry.size > _TOGETHER]
        step = min(_GROUP, 8 * _TOGETHER // max([1, *(entry.size for entry in small)]))
        return [small[at : at + step] for at in range(0, len(small), step)], alone

    def _keys(self, record: CommitRecord, entry: FileEntry) -> Iterable[str]:
        """Each place where the content of a file can be, without repetition.

        What was put aside is looked for only where the first place does not hold it.
        """
        yield entry.key
        plain = self._layout.plain_of(record, entry)
        if entry.key != plain:
            yield plain
        wanted = (record.seq, plain.removeprefix(self._layout.checkpoints))
        for info in self._store.list(self._layout.beside(record.seq)):
            if self._layout.kept_for(info.key) == wanted and info.key != entry.key:
                yield info.key

    def fetch(self, record: CommitRecord, entry: FileEntry, path: Path) -> None:
        """Bring one file, verified and durable; look in each place where its content can be.

        Corrupt if it is nowhere, or can have no such name here; OSError if the disk fails.
        """
        name = entry.path or record.checkpoint
        reason = "the object is gone"
        with nameable(name):
            fd = os.open(path, _FRESH, 0o600)
        try:
            for key in self._keys(record, entry):
                try:
                    size, sha256 = self._download(key, fd, entry)
                except NotFound:
                    continue
                except Conflict:
                    reason = "it was replaced while it was read"
                    continue
                except (Permanent, Corrupt) as error:
                    reason = error.message
                    continue
                if (size, sha256) == (entry.size, entry.sha256):
                    _finish(fd, entry, name)
                    return
                reason = (
                    f"{size} bytes where the commit has {entry.size}"
                    if size != entry.size
                    else "its SHA-256 is not the one of the commit"
                )
        finally:
            os.close(fd)
        raise Corrupt(f"{name}: {reason}")

    def _fetch_groups(
        self,
        record: CommitRecord,
        groups: Iterable[Sequence[FileEntry]],
        folder: Path,
        over: threading.Event,
    ) -> None:
        for group in groups:
            if not over.is_set():  # another one has failed, and with it all
                self._fetch_together(record, group, folder)

    def _fetch_together(
        self, record: CommitRecord, entries: Sequence[FileEntry], folder: Path
    ) -> None:
        """Bring small files, many at a time; what is not as it should be goes its way alone."""
        wanted = [(entry.key, entry.at_rest + 1) for entry in entries]
        for entry, answer in zip(entries, self._store.read_each(wanted), strict=True):
            path, name = folder / entry.path, entry.path or record.checkpoint
            found = None if isinstance(answer, SyncdError) else proven(entry, answer)
            if found is None:
                self.fetch(record, entry, path)
                continue
            with nameable(name):
                fd = os.open(path, _FRESH, 0o600)
            try:
                with memoryview(found) as view:
                    done = 0
                    while done < len(view):
                        done += os.write(fd, view[done:])
                _finish(fd, entry, name)
            finally:
                os.close(fd)
            self._on_bytes(entry.key, entry.size)

    def _download(self, key: str, fd: int, entry: FileEntry) -> tuple[int, str]:
        if entry.encoding or entry.size < BY_RANGES:
            return fetch_stream(self._content(key, entry), fd, entry.size)
        info = self._store.head(key)
        if info.size != entry.size:
            return info.size, ""
        return info.size, self._ranges.write(info, fd, self._on_bytes)

    def _content(self, key: str, entry: FileEntry) -> Iterator[bytes]:
        """What an object holds of a file, in order."""
        if entry.encoding and entry.stored >= BY_RANGES:
            chunks = self._ranges.read(self._store.head(key))
        else:
            chunks = self._store.read(key)
        return content(entry, chunks, self._on_bytes)

    def verify(self, record: CommitRecord) -> None:
        """Read every object of a commit back and prove it, writing nothing; Corrupt if not."""
        self._on_begin(record)
        list(self._workers.map(lambda entry: self._prove(record, entry), record.files))

    def _prove(self, record: CommitRecord, entry: FileEntry) -> None:
        for key in self._keys(record, entry):
            digest, size = hashlib.sha256(), 0
            try:
                for chunk in self._content(key, entry):
                    digest.update(chunk)
                    size += len(chunk)
            except (Permanent, Corrupt):
                continue
            if (size, digest.hexdigest()) == (entry.size, entry.sha256):
                return
        raise Corrupt(f"{entry.path or record.checkpoint}: no object has the committed content")


def _finish(fd: int, entry: FileEntry, name: str) -> None:
    """Give a file that is whole its time and mode, and make it durable."""
    with nameable(name):
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    os.fchmod(fd, entry.mode)
    os.fsync(fd)


def _tracker(record: CommitRecord) -> tuple[str, str]:
    """Where the profile's tracker lies under the root, and what names this checkpoint there."""
    profile = by_name(record.profile)
    path = PurePosixPath(record.checkpoint)
    if profile is None or not profile.tracker or not re.fullmatch(profile.directory, path.name):
        return "", ""
    tracker = str(path.parent / profile.tracker)
    if profile.tracks == "link":
        return tracker, f"->{path.name}"
    digits = "".join(re.findall("[0-9]", path.name))
    return tracker, str(int(digits or 0)) if profile.tracks == "number" else path.name
