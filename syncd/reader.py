"""A file that is read once and notices when it is no longer the one that was seen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from syncd.errors import Changed, Permanent
from syncd.filestat import Stat

_PIECE = 1024 * 1024


def digest_file(path: Path, seen: Stat) -> str:
    """SHA-256 of a file; Changed if it is not, or does not stay, what was seen."""
    digest = hashlib.sha256()
    with open_seen(path, seen) as file:
        left = seen.size
        while left:
            data = file.read_exactly(min(_PIECE, left))
            digest.update(data)
            left -= len(data)
        file.check()
    return digest.hexdigest()


class Reader:
    """A file that notices when it is no longer the one that was seen."""

    def __init__(self, fd: int, path: Path, seen: Stat, growing: bool = False) -> None:
        self._fd = fd
        self._path = path
        self._seen = seen
        self._growing = growing
        self._given_back = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        os.close(self._fd)

    def read_exactly(self, count: int) -> bytes:
        """The next ``count`` bytes; Changed if the file ends before."""
        chunks = []
        while count:
            try:
                chunk = os.read(self._fd, count)
            except OSError as error:
                raise Permanent(f"{self._path} cannot be read: {error.strerror}") from error
            if not chunk:
                raise Changed(f"{self._path} became shorter while it was read")
            chunks.append(chunk)
            count -= len(chunk)
        self._give_back()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def sample(self, start: int, count: int) -> bytes:
        """Some bytes out of their order; fewer where the file ends."""
        try:
            return os.pread(self._fd, count, start)
        except OSError as error:
            raise Permanent(f"{self._path} cannot be read: {error.strerror}") from error

    def rewind(self) -> None:
        """Read from the beginning again."""
        self._given_back = os.lseek(self._fd, 0, os.SEEK_SET)

    def _give_back(self) -> None:
        if hasattr(os, "posix_fadvise"):
            position = os.lseek(self._fd, 0, os.SEEK_CUR)
            os.posix_fadvise(
                self._fd,
                self._given_back,
                position - self._given_back,
                os.POSIX_FADV_DONTNEED,
            )
            self._given_back = position

    def check(self) -> None:
        """Changed unless the file is still the one that was seen."""
        if not self._growing and Stat.of(os.fstat(self._fd)) != self._seen:
            raise Changed(f"{self._path} changed while it was read")


def open_again(fd: int, path: Path, seen: Stat) -> Reader:
    """Read a file that is open as ``fd``, a log: that it has become longer is no fault.

    Not by its name, which goes to another file when logs are rotated.
    """
    reader = Reader(os.dup(fd), path, seen, growing=True)
    reader.rewind()
    return reader


def open_seen(path: Path, seen: Stat) -> Reader:
    """Open a file that has been ``seen``; Changed if it is another one by now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Changed(f"{path} vanished before it could be read") from None
    except OSError as error:
        raise Permanent(
            f"{path} cannot be read: {error.strerror}", hint="check its permissions"
        ) from error
    reader = Reader(fd, path, seen)
    try:
        reader.check()
    except Changed:
        os.close(fd)
        raise
    return reader
