"""A large file on its way into a directory store, and what a file system's errors mean there."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from syncd.errors import NeedsOperator, NotFound, Permanent, StoreError, Transient
from syncd.stores.base import Buffer, Condition, NoRanges, ObjectInfo

Settle = Callable[[Path, Path, str, Condition], ObjectInfo]

_OPERATOR = {
    errno.ENOSPC: "free some space on it, or set SYNCD_KEEP_LAST",
    errno.EDQUOT: "raise the quota, or set SYNCD_KEEP_LAST",
    errno.EACCES: "give this user write permission there",
    errno.EPERM: "give this user write permission there",
    errno.EROFS: "mount it writable",
    errno.ENOTDIR: "CLOUD_BUCKET must be a directory",
}


def translate(error: OSError, key: str) -> StoreError:
    """The class of an error of the file system, with a remedy where a person has to act."""
    number = error.errno or 0
    words = f"{key}: {error.strerror}"
    if number == errno.ENOENT:
        return NotFound(f"there is no {key}")
    if number in (errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ENOTEMPTY):
        return Permanent(words, hint="shorten or change the name of the file")
    if number in _OPERATOR:
        return NeedsOperator(words, hint=_OPERATOR[number])
    return Transient(words, hint="is the volume still mounted?")


class DirectoryUpload(NoRanges):
    """A large file, written in any order."""

    def __init__(
        self, settle: Settle, key: str, aside: Path, target: Path, size: int, fresh: bool
    ) -> None:
        """``settle`` gives the whole file its name; the size of all parts is checked before.

        One that is not ``fresh`` was begun by another process: OSError if it is gone.
        """
        self.key = key
        self.id = aside.name
        self._settle = settle
        self._aside = aside
        self._target = target
        how = os.O_CREAT | os.O_EXCL if fresh else os.O_NOFOLLOW
        self._fd = os.open(aside, os.O_RDWR | os.O_CLOEXEC | how, 0o644)
        self._named = not fresh and os.fstat(self._fd).st_nlink > 1
        self._size = size
        self._part = 0
        self._lengths: dict[int, int] = {}
        self._early: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def holds(self, number: int, data: Buffer) -> bool:
        """See Upload. The bytes are read: a power cut may have taken some that were written."""
        if number == 1:
            self._part = len(data)
        try:
            there = os.pread(self._fd, len(data), (number - 1) * self._part)
        except OSError as error:
            raise translate(error, self.key) from error
        if there != data or not self._part:
            return False
        self._lengths[number] = len(data)
        return True

    def send(self, number: int, data: Buffer) -> str:
        """See Upload. All parts but the last have the length of the first one."""
        with self._lock:
            if number == 1:
                self._part = len(data)
            elif not self._part:
                self._early[number] = bytes(data)  # its place is known once part 1 is
                return ""
            ready = {number: data, **(self._early if number == 1 else {})}
            if number == 1:
                self._early = {}
        for place, content in ready.items():
            self._write(place, content)
        return ""

    def _write(self, number: int, data: Buffer) -> None:
        if self._fd < 0:
            raise Permanent(f"{self.key}: the upload was given up")
        if self._named:
            raise NotFound(f"{self.key}: what was written is an object already")
        view, offset = memoryview(data), (number - 1) * self._part
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise translate(error, self.key) from error
        self._lengths[number] = len(data)

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload."""
        if sum(self._lengths.values()) != self._size:
            raise Permanent(f"{self.key}: parts are missing or too many")
        try:
            os.fsync(self._fd)
            return self._settle(self._aside, self._target, self.key, condition)
        except OSError as error:
            raise translate(error, self.key) from error
        finally:
            self._close()

    def abort(self) -> None:
        """See Upload."""
        self._close()

    def leave(self) -> None:
        """See Upload."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def _close(self) -> None:
        self.leave()
        with contextlib.suppress(OSError):
            self._aside.unlink(missing_ok=True)
