"""A directory as a store: a mounted volume, a network share, the demo's bucket.

Every object is a file under its own name. It is written aside, made durable, and takes its name
by a link (only if absent) or a rename, so that no reader ever sees half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from syncd.errors import Conflict, NeedsOperator, NotFound, Permanent, StoreError, Transient
from syncd.stores.base import (
    Body,
    Buffer,
    Capabilities,
    Condition,
    IfAbsent,
    IfVersion,
    ObjectInfo,
    PendingUpload,
    SideBySide,
)
from syncd.stores.directoryupload import DirectoryUpload, translate
from syncd.stores.durable import NO_LINKS, copy_file, fault_of, sync_folder
from syncd.stores.wire import CHUNK, checked_key

_ASIDE = ".syncd-tmp"
"""Folder inside the store for objects that are not whole yet; never listed."""

_WRITE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


class DirectoryStore(SideBySide):
    """Objects as files below one directory."""

    _at_once = 4  # more are in each other's way where a disk answers at once

    def __init__(self, root: Path) -> None:
        """No look at the directory is taken before the first request."""
        super().__init__()
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - without following links
        self.name = f"file://{self._root}"
        self.capabilities = Capabilities(
            conditional_copy=True,
            min_part_size=1,
            max_part_size=1 << 40,
            max_parts=1 << 30,
            append_from=0,
            metered=False,
        )
        self._swap = threading.Lock()
        self._own, self._numbers = secrets.token_hex(8), itertools.count()
        """What the names of this process begin with in the folder aside, and how they go on."""

    # -- paths

    def _path(self, key: str) -> Path:
        parts = checked_key(key).split("/")
        if any(part in ("", ".", "..") for part in parts) or parts[0] == _ASIDE:
            raise Permanent(f"{key!r} cannot be the name of a file")
        return self._root / key

    def _aside(self) -> Path:
        """A fresh path for an object that is not whole yet, in a folder that is there."""
        folder = self._root / _ASIDE
        if not folder.is_dir():
            if not self._root.parent.is_dir():
                raise self._absent()
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise translate(error, str(self._root)) from error
        return self._fresh()

    def _fresh(self) -> Path:
        return self._root / _ASIDE / f"{self._own}{next(self._numbers):x}"

    def _absent(self) -> NeedsOperator:
        return NeedsOperator(
            f"the directory {self._root} does not exist",
            hint="mount the volume, or correct CLOUD_BUCKET",
        )

    def _info(self, key: str, stat: os.stat_result) -> ObjectInfo:
        version = f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ino}"
        return ObjectInfo(key, stat.st_size, version, stat.st_mtime)

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        return self._put(Body(key, data, condition), durable=True)

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore. A folder is made durable once, for all that come into it."""
        todo = list(bodies)
        answers = [*self._each(todo, lambda body: self._put(body, durable=False))]
        faults: dict[Path, OSError | None] = {}
        for body, answer in zip(todo, answers, strict=True):
            if isinstance(answer, StoreError):
                yield answer
                continue
            folder = self._path(body.key).parent
            if folder not in faults:
                faults[folder] = fault_of(folder)
            fault = faults[folder]
            if isinstance(fault, FileNotFoundError):  # another one has tidied it away
                yield Transient(f"{body.key}: its directory is gone")
            else:
                yield translate(fault, body.key) if fault else answer

    def _put(self, body: Body, durable: bool) -> ObjectInfo:
        target, aside = self._path(body.key), self._fresh()
        try:
            try:
                fd = os.open(aside, _WRITE, 0o666)
            except (FileNotFoundError, NotADirectoryError):  # mostly it is there: no look before
                aside = self._aside()
                fd = os.open(aside, _WRITE, 0o666)
            try:
                with memoryview(body.data) as view:
                    done = 0
                    while done < len(view):
                        done += os.write(fd, view[done:])
                os.fsync(fd)
            finally:
                os.close(fd)
            return self.settle(aside, target, body.key, body.condition, durable)
        except OSError as error:
            raise translate(error, body.key) from error
        finally:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                aside.unlink()

    def settle(
        self, aside: Path, target: Path, key: str, condition: Condition, durable: bool = True
    ) -> ObjectInfo:
        """Give a whole object its name; ``durable``: the name outlives a power cut from then on.

        That there is room for it is seen to where there is none: mostly there is.
        """
        for _ in range(50):
            try:
                info = self._name(aside, target, key, condition)
                if durable:
                    sync_folder(target.parent)
                return info
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                with contextlib.suppress(FileNotFoundError):  # it was empty, and tidied away
                    self._make_room(target, key)
        raise Transient(f"{key}: its directory vanishes again and again")

    def _make_room(self, target: Path, key: str) -> None:
        missing = [folder for folder in target.parents if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            if not any(folder.is_file() for folder in target.parents):
                raise FileNotFoundError(key) from None  # it went between two looks at it
            raise Permanent(
                f"{key}: a part of this name is an object already",
                hint="a directory cannot hold both 'p' and 'p/q'",
            ) from None
        for folder in missing:
            sync_folder(folder.parent)
        if target.is_dir():
            raise Permanent(
                f"{key}: other objects lie below this name",
                hint="a directory cannot hold both 'p' and 'p/q'",
            )

    def _name(self, aside: Path, target: Path, key: str, condition: Condition) -> ObjectInfo:
        info = self._info(key, aside.stat())
        if isinstance(condition, IfAbsent):
            self._link(aside, target, key)
        elif isinstance(condition, IfVersion):
            with self._swapping():
                try:
                    current = self._info(key, target.stat()).version
                except FileNotFoundError:
                    current = ""
                if current != condition.version:
                    raise Conflict(f"{key} is another version by now")
                aside.replace(target)
        else:
            aside.replace(target)
        return info

    @staticmethod
    def _link(aside: Path, target: Path, key: str) -> None:
        try:
            os.link(aside, target)
        except FileExistsError:
            if target.is_dir():
                raise IsADirectoryError(key) from None
            if target.samefile(aside):
                return  # a killed process had come to here
            raise Conflict(f"{key} exists already") from None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:  # no hard links here: the name is taken first, and filled by the rename
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                raise Conflict(f"{key} exists already") from None
            aside.replace(target)

    @contextlib.contextmanager
    def _swapping(self) -> Iterator[None]:
        """Compare and swap is a read and a write: nobody may come between."""
        with self._swap, (self._root / _ASIDE / "swap.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def start_upload(self, key: str, size: int, copies: bool = False) -> DirectoryUpload:
        """See ObjectStore."""
        del copies
        target, aside = self._path(key), self._aside()
        try:
            return DirectoryUpload(self.settle, key, aside, target, size, fresh=True)
        except OSError as error:
            raise translate(error, key) from error

    def resume_upload(
        self, key: str, upload_id: str, size: int, tags: Mapping[int, str]
    ) -> DirectoryUpload:
        """See ObjectStore."""
        del tags
        aside = self._root / _ASIDE / Path(upload_id).name
        try:
            return DirectoryUpload(self.settle, key, aside, self._path(key), size, fresh=False)
        except OSError as error:
            raise translate(error, key) from error

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """See ObjectStore.

        The object is copied within the kernel, file systems that can share its blocks, and the
        longer one takes its name: an append in place, killed half way, would leave a torn one.
        """
        del aside
        whole = self._aside()
        try:
            with self._path(key).open("rb") as old:
                if self._info(key, os.fstat(old.fileno())).version != base.version:
                    raise Conflict(f"{key} is another version by now")
                copy_file(old, whole, tail)
            return self.settle(whole, self._path(key), key, IfVersion(base.version))
        except FileNotFoundError:
            raise Conflict(f"{key} is not there any more") from None
        except OSError as error:
            raise translate(error, key) from error
        finally:
            whole.unlink(missing_ok=True)

    # -- reading

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                before = self._info(key, os.fstat(file.fileno()))
                if version not in (None, before.version):
                    raise Conflict(f"{key} is another version by now")
                end = before.size if length is None else min(before.size, start + length)
                file.seek(start)
                left = max(0, end - start)
                while left:
                    chunk = file.read(min(CHUNK, left))
                    if not chunk:
                        raise Transient(f"{key} ended before its length")
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise self._missing(key) or translate(error, key) from error

    def _missing(self, key: str) -> StoreError | None:
        """Tell a missing directory from a missing object in it."""
        if not self._root.is_dir() and not self._root.parent.is_dir():
            return self._absent()
        return NotFound(f"there is no {key}") if not self._path(key).is_file() else None

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        path = self._path(key)
        try:
            stat = path.stat()
        except OSError as error:
            raise self._missing(key) or translate(error, key) from error
        if path.is_dir():
            raise NotFound(f"there is no {key}")
        return self._info(key, stat)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        if ".." in prefix.split("/") or prefix.startswith("/"):
            raise Permanent(f"{prefix!r} leads out of the directory")
        folder = self._root / prefix.rpartition("/")[0]
        if not self._root.is_dir():
            if not self._root.parent.is_dir():
                raise self._absent()
            return
        pending = [folder]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    found = list(entries)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise translate(error, prefix) from error
            for entry in found:
                key = Path(entry.path).relative_to(self._root).as_posix()
                if key.split("/", 1)[0] == _ASIDE:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        if key.startswith(prefix) or prefix.startswith(f"{key}/"):
                            pending.append(Path(entry.path))
                    elif key.startswith(prefix):
                        yield self._info(key, entry.stat())

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        aside = self._aside()
        try:
            with self._path(source).open("rb") as old:
                copy_file(old, aside)
            return self.settle(aside, self._path(target), target, condition)
        except FileNotFoundError:
            raise NotFound(f"there is no {source}") from None
        except OSError as error:
            raise translate(error, source) from error
        finally:
            aside.unlink(missing_ok=True)

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore. Folders that become empty go too."""
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
            except (NotADirectoryError, IsADirectoryError):
                continue
            except OSError as error:
                raise translate(error, key) from error
            for folder in path.parents:
                if folder == self._root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore: what was being written when a writer was killed."""
        del prefix
        folder = self._root / _ASIDE
        if folder.is_dir():
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.name != "swap.lock":
                        yield PendingUpload("?", path.name, path.stat().st_mtime)

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore."""
        (self._root / _ASIDE / Path(upload.id).name).unlink(missing_ok=True)

    def close(self) -> None:
        """See ObjectStore: nothing is held."""
