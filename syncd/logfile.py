"""A log file as it is at one look: its kind, its whole records, and the fingerprint of a part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from syncd.errors import Changed, Permanent
from syncd.filestat import Stat
from syncd.logframes import HEAD, Broken, Kind, kind_of, last_edge, reader

SIDE = 512 * 1024
"""Bytes at the beginning and at the end that a fingerprint is made of: of 1 MiB it is of all."""


def fingerprint(read: Callable[[int, int], bytes], size: int) -> str:
    """What tells the first ``size`` bytes of something from others; Changed if it is shorter."""
    digest = hashlib.sha256(b"%d:" % size)
    start = max(size - SIDE, min(SIDE, size))
    for at, count in ((0, min(SIDE, size)), (start, size - start)):
        data = read(at, count)
        if len(data) != count:
            raise Changed(f"it ended before {size} bytes")
        digest.update(data)
    return digest.hexdigest()


class LogFile:
    """One open file; what is said of it holds also when its name goes to another meanwhile."""

    def __init__(self, path: str, place: Path) -> None:
        """``path`` is its name in the store; Changed if it is gone, Permanent if unreadable."""
        self.path = path
        self.place = place
        try:
            self.fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Changed(f"{place} vanished before it could be read") from None
        except OSError as error:
            raise Permanent(
                f"{place} cannot be read: {error.strerror}", hint="check its permissions"
            ) from error
        self._read = reader(self.fd)
        self._edges: list[int] = []
        try:
            self.stat = self._stat()
            self.kind = kind_of(Path(path).name, self.read(0, min(HEAD, self.stat.size)))
        except BaseException:
            os.close(self.fd)
            raise

    def _stat(self) -> Stat:
        try:
            return Stat.of(os.fstat(self.fd))
        except OSError as error:  # of a network file system that has lost it
            raise Permanent(f"{self.place} cannot be read: {error.strerror}") from error

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, start: int, count: int) -> bytes:
        """Exactly these bytes; Changed if the file was cut, Permanent if it cannot be read."""
        try:
            data = self._read(start, count)
        except OSError as error:
            raise Permanent(f"{self.place} cannot be read: {error.strerror}") from error
        if len(data) < count:
            raise Changed(f"{self.place} became shorter while it was read")
        if count > SIDE and hasattr(os, "posix_fadvise"):  # the trainer needs the memory
            os.posix_fadvise(self.fd, start, count, os.POSIX_FADV_DONTNEED)
        return data

    def print(self, size: int) -> str:
        """Fingerprint of the first ``size`` bytes."""
        return fingerprint(self.read, size)

    def holds(self, size: int, mark: str) -> bool:
        """Whether it begins with ``size`` bytes of this fingerprint."""
        try:
            return size <= self.stat.size and self.print(size) == mark
        except Changed:
            return False

    def edge(self, known: int, end: int) -> int:
        """Where the last whole record before ``end`` ends; one begins at ``known``."""
        try:
            return self._edge(known, end)
        except Broken as broken:
            return broken.edge

    def _edge(self, known: int, end: int) -> int:
        start = max((edge for edge in (known, *self._edges) if edge <= end), default=0)
        self._edges.append(last_edge(self.kind, self.read, start, end))
        return self._edges[-1]

    def end(self, known: int, whole: bool) -> int:
        """How many of its bytes may be sent; one of its records begins at ``known``.

        ``whole``: a line goes though it is not ended yet. A record that lacks its end never goes;
        but what holds no records, though it seemed to, goes as it is.
        """
        size = self.stat.size
        try:
            edge = self._edge(known, size)
        except Broken as broken:
            return size if whole else broken.edge
        framed = self.kind in (Kind.TFRECORD, Kind.WANDB)
        return edge if framed or not whole else size
