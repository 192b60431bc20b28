"""The way back: the newest committed checkpoint whose every byte proves to be the right one.

Everything arrives in a hidden folder beside its place, is verified while it arrives, made
durable, and then takes its place by one rename: a kill at any moment leaves the old or the new.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from syncd.commitlog import CommitLog
from syncd.errors import Conflict, Corrupt, NotFound, Permanent
from syncd.profiles import COMPANION, by_name
from syncd.records import CommitRecord, FileEntry, Layout
from syncd.stores.base import ObjectStore

STAGING = ".syncd-restore-"
"""Beginning of the names of folders in which a restore is under way."""

REPLACED = ".syncd-replaced"
"""Folder beside a restored checkpoint for what was in its place; no scan looks into it."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Replace(enum.Enum):
    """What becomes of something that is where a checkpoint belongs."""

    NO = "it stays, and the restore is refused"
    KEEP = "it is put aside, under a hidden name"
    DROP = "it is deleted"


@dataclass
class Restored:
    """What a restore did."""

    record: CommitRecord | None = None
    rejected: list[str] = field(default_factory=list)
    """Newer commits that were not intact: which, and why."""

    put_aside: Path | None = None
    """Where that lies now which was in the checkpoint's place."""

    companions: list[CommitRecord] = field(default_factory=list)


class Restorer:
    """Brings checkpoints from a store into a root."""

    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        workers: Executor,
        on_bytes: Callable[[str, int], None] = lambda _key, _count: None,
        on_begin: Callable[[CommitRecord], None] = lambda _record: None,
    ) -> None:
        """``on_begin`` hears of each commit that is about to be fetched, ``on_bytes`` of bytes."""
        self._store = store
        self._layout = layout
        self._workers = workers
        self._on_bytes = on_bytes
        self._on_begin = on_begin
        self._log = CommitLog(store, layout)

    def commits(self) -> list[CommitRecord | Corrupt]:
        """Every commit, newest first; a broken record comes as its error."""
        return list(self._log.newest_first())

    def restore_newest(
        self,
        commits: Sequence[CommitRecord | Corrupt],
        root: Path,
        replace: Replace = Replace.NO,
    ) -> Restored:
        """Restore the first of ``commits`` that is intact, and the companions it had.

        Permanent if its place is taken and ``replace`` does not allow to take it.
        """
        result = Restored()
        candidates = [c for c in commits if isinstance(c, Corrupt) or not _companion(c)]
        if not any(isinstance(c, CommitRecord) for c in candidates):
            candidates = list(commits)
        for commit in candidates:
            if isinstance(commit, Corrupt):
                result.rejected.append(commit.message)
                continue
            try:
                result.put_aside = self.restore(commit, root, replace)
            except (Corrupt, ValueError, OverflowError) as error:
                result.rejected.append(f"{commit.checkpoint} (commit {commit.seq}): {error}")
                continue
            result.record = commit
            result.companions = self._restore_companions(commit, commits, root)
            break
        return result

    def restore(
        self, record: CommitRecord, root: Path, replace: Replace = Replace.NO
    ) -> Path | None:
        """Restore one commit; Corrupt if any byte of it is not the right one.

        Returns where that lies now which was in its place, if it was kept.
        """
        target = root / record.checkpoint
        places = [target, *(root / record.below(entry.path) for entry in record.files)]
        taken = next((place for place in places if os.path.lexists(place)), None)
        if replace is Replace.NO and taken:
            raise Permanent(
                f"{taken} is there already",
                hint="restore with --force to replace it, or --to another directory",
            )
        _check_parents(root, record.checkpoint)
        root.mkdir(parents=True, exist_ok=True)
        _check_space(root, record)
        self._on_begin(record)
        staging = root / f"{STAGING}{record.seq}-{secrets.token_hex(4)}"
        staging.mkdir()
        try:
            content = staging / "content"
            self._fetch_all(record, content)
            target.parent.mkdir(parents=True, exist_ok=True)
            put = _put_beside if record.beside else _put_in_place
            old = put(content, target, staging / "replaced")
            _point_tracker(record, root)
            if old and replace is Replace.KEEP:
                folder = target.parent / REPLACED
                folder.mkdir(exist_ok=True)
                return old.rename(folder / f"{target.name}-{secrets.token_hex(4)}")
            return None
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _fetch_all(self, record: CommitRecord, content: Path) -> None:
        paths = [entry.path for entry in record.files] + [link.path for link in record.links]
        lone = "" in paths
        if not lone:
            content.mkdir()
        folders = {content}
        for path in paths:
            folder = (content / path).parent
            if not lone:
                folder.mkdir(parents=True, exist_ok=True)
                while folder != content:
                    folders.add(folder)
                    folder = folder.parent
        jobs = [
            self._workers.submit(self.fetch, record, entry, content / entry.path)
            for entry in record.files
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
            for job in jobs:
                if not job.cancelled():
                    job.exception()
        for link in record.links:
            (content / link.path).symlink_to(link.target)
        for folder in folders if not lone else ():
            _sync(folder)

    def fetch(self, record: CommitRecord, entry: FileEntry, path: Path) -> None:
        """Bring one file, verified and durable; look in each place where its content can be."""
        name = entry.path or record.checkpoint
        reason = "the object is gone"
        plain = self._layout.plain(record.below(entry.path))
        kept = self._layout.version(record.seq, record.below(entry.path))
        for key in dict.fromkeys((entry.key, kept, plain)):
            try:
                size, sha256 = self._download(key, path, entry.size)
            except NotFound:
                continue
            except Conflict:
                reason = "it was replaced while it was read"
                continue
            if (size, sha256) == (entry.size, entry.sha256):
                path.chmod(entry.mode | 0o200)
                os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
                path.chmod(entry.mode)
                return
            reason = (
                f"{size} bytes where the commit has {entry.size}"
                if size != entry.size
                else "its SHA-256 is not the one of the commit"
            )
        raise Corrupt(f"{name}: {reason}")

    def _download(self, key: str, path: Path, limit: int) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            for chunk in self._store.read(key):
                digest.update(chunk)
                size += len(chunk)
                if size > limit:
                    break  # longer than committed: no need to fill the disk with it
                file.write(chunk)
                self._on_bytes(key, len(chunk))
            file.flush()
            os.fsync(file.fileno())
        return size, digest.hexdigest()

    def verify(self, record: CommitRecord) -> None:
        """Read every object of a commit back and prove it, writing nothing; Corrupt if not."""
        self._on_begin(record)
        list(self._workers.map(lambda entry: self._prove(record, entry), record.files))

    def _prove(self, record: CommitRecord, entry: FileEntry) -> None:
        kept = self._layout.version(record.seq, record.below(entry.path))
        plain = self._layout.plain(record.below(entry.path))
        for key in dict.fromkeys((entry.key, kept, plain)):
            digest, size = hashlib.sha256(), 0
            try:
                for chunk in self._store.read(key):
                    digest.update(chunk)
                    size += len(chunk)
                    self._on_bytes(key, len(chunk))
            except (NotFound, Conflict):
                continue
            if (size, digest.hexdigest()) == (entry.size, entry.sha256):
                return
        raise Corrupt(f"{entry.path or record.checkpoint}: no object has the committed content")

    def _restore_companions(
        self, record: CommitRecord, commits: Iterable[CommitRecord | Corrupt], root: Path
    ) -> list[CommitRecord]:
        """Bring the small files and links that lay beside a checkpoint, where nothing is yet."""
        above = {str(parent) for parent in PurePosixPath(record.checkpoint).parents}
        done: list[CommitRecord] = []
        seen: set[str] = set()
        for commit in commits:
            if isinstance(commit, Corrupt) or not _companion(commit) or commit.checkpoint in seen:
                continue
            seen.add(commit.checkpoint)
            place = root / commit.checkpoint
            beside = str(PurePosixPath(commit.checkpoint).parent) in above
            if not beside or os.path.lexists(place):
                continue
            if commit.links and not (place.parent / commit.links[0].target).exists():
                continue  # it points to a checkpoint that was not brought back
            try:
                self.restore(commit, root)
            except Corrupt:
                continue
            done.append(commit)
        return done


def clear_staging(root: Path) -> None:
    """Remove what restores that were killed have left; only while no other one is running."""
    if root.is_dir():
        for leftover in root.glob(f"{STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _companion(record: CommitRecord) -> bool:
    return record.profile == COMPANION.name


def _check_parents(root: Path, checkpoint: str) -> None:
    """No folder on the way may be a link: what a record names stays under the root."""
    folder = root
    for part in PurePosixPath(checkpoint).parts[:-1]:
        folder /= part
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise Permanent(f"{folder} is in the way: it is no directory")


def _check_space(root: Path, record: CommitRecord) -> None:
    free = shutil.disk_usage(root).free
    if free < record.size:
        raise Permanent(
            f"{record.checkpoint} needs {record.size / 1e6:.0f} MB and {root} has "
            f"{free / 1e6:.0f} MB free",
            hint="free some space, or restore --to a larger disk",
        )


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _put_in_place(content: Path, target: Path, replaced: Path) -> Path | None:
    """One rename, also where something is there: the two change places. Where that is now."""
    old: Path | None = None
    if not os.path.lexists(target):
        content.rename(target)
    elif _exchange(content, target):
        old = content
    else:
        # only file systems without an atomic exchange: a moment in which neither is there
        old = target.rename(replaced)
        content.rename(target)
    _sync(target.parent)
    return old


def _put_beside(content: Path, target: Path, replaced: Path) -> Path | None:
    """Files that lie in one folder with others: ``target``, which names them, comes last.

    One that was there goes first. So whoever finds it finds all the others that belong to it.
    """
    names = sorted((path.name for path in content.iterdir()), key=target.name.__eq__)
    replaced.mkdir()
    for name in reversed(names):
        if os.path.lexists(target.with_name(name)):
            target.with_name(name).rename(replaced / name)
    for name in names:
        if name == target.name:
            _sync(target.parent)
        (content / name).rename(target.with_name(name))
    _sync(target.parent)
    return replaced if any(replaced.iterdir()) else None


def _exchange(one: Path, other: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return bool(renameat2(*names, _RENAME_EXCHANGE) == 0)


def _point_tracker(record: CommitRecord, root: Path) -> None:
    """Have the profile's tracker name the checkpoint that was brought back."""
    profile = by_name(record.profile)
    if profile is None or not profile.tracker:
        return
    path = PurePosixPath(record.checkpoint)
    tracker = root / path.parent / profile.tracker
    fresh = tracker.with_name(f"{STAGING}{secrets.token_hex(4)}")
    if profile.tracks == "link":
        fresh.symlink_to(path.name)
    else:
        digits = "".join(filter(str.isdigit, path.name))
        fresh.write_text(str(int(digits or 0)) if profile.tracks == "number" else path.name)
    fresh.replace(tracker)
