"""Bytes on their way back: written in place once, and hashed as they come."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from syncd.errors import Corrupt, Transient
from syncd.inflight import MIB, Room
from syncd.packing import unpack
from syncd.records import FileEntry
from syncd.stores.base import ObjectInfo, ObjectStore

BY_RANGES = 64 * MIB
"""Bytes of the smallest object that is fetched by ranges, several at a time."""

_RANGE = 8 * MIB
_ZEROS = bytes(MIB)

OnBytes = Callable[[str, int], None]


def content(
    entry: FileEntry, chunks: Iterable[bytes], on_bytes: OnBytes = lambda _key, _count: None
) -> Iterator[bytes]:
    """What an object holds of a file, whose bytes at rest come as ``chunks``."""

    def heard() -> Iterator[bytes]:
        for chunk in chunks:
            on_bytes(entry.key, len(chunk))
            yield chunk

    return unpack(heard(), entry.size) if entry.encoding else heard()


def proven(entry: FileEntry, stored: bytes) -> bytes | None:
    """What a small object holds of a file, if that is what the commit says."""
    try:
        found = b"".join(content(entry, [stored]))
    except Corrupt:
        return None
    right = len(found) == entry.size and hashlib.sha256(found).hexdigest() == entry.sha256
    return found if right else None


def fetch_stream(chunks: Iterable[bytes], fd: int, limit: int) -> tuple[int, str]:
    """Write what comes to a file, from its beginning; its size and SHA-256.

    Where it is nothing but zeros the file gets a hole, as it had. What is longer than
    ``limit`` is not fetched to its end.
    """
    digest, size = hashlib.sha256(), 0
    os.ftruncate(fd, 0)
    for chunk in chunks:
        digest.update(chunk)
        if size + len(chunk) > limit:
            return size + len(chunk), digest.hexdigest()
        _write(fd, chunk, size)
        size += len(chunk)
    os.ftruncate(fd, size)
    return size, digest.hexdigest()


class Ranges:
    """Fetches large objects by ranges, several at a time, of all objects together."""

    def __init__(self, store: ObjectStore, concurrency: int) -> None:
        """``concurrency``: how many ranges at a time."""
        self._store = store
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="range")
        self._room = Room(concurrency)

    def read(self, info: ObjectInfo) -> Iterator[bytes]:
        """The bytes of an object in their order."""

        def fetch(start: int, count: int) -> list[bytes]:
            return [*self._store.read(info.key, start, count, info.version)]

        for chunks in self._in_order(info.size, fetch):
            yield from chunks

    def write(self, info: ObjectInfo, fd: int, on_bytes: OnBytes) -> str:
        """Write an object to a file, each range where it belongs as it comes; its SHA-256.

        A range is hashed when its turn has come.
        """
        os.ftruncate(fd, 0)
        os.ftruncate(fd, info.size)
        digest = hashlib.sha256()

        def fetch(start: int, count: int) -> list[bytes]:
            chunks, at = [], start
            for chunk in self._store.read(info.key, start, count, info.version):
                _write(fd, chunk, at)
                at += len(chunk)
                chunks.append(chunk)
                on_bytes(info.key, len(chunk))
            if at != start + count:
                raise Transient(f"{info.key} ended at {at} of {info.size} bytes")
            return chunks

        for chunks in self._in_order(info.size, fetch):
            for chunk in chunks:
                digest.update(chunk)
        return digest.hexdigest()

    def _in_order(
        self, size: int, fetch: Callable[[int, int], list[bytes]]
    ) -> Iterator[list[bytes]]:
        """What is fetched of ``size`` bytes; ``fetch`` waits for nothing that waits for this."""
        flying: deque[tuple[int, Future[list[bytes]]]] = deque()

        def next_of_all() -> Iterator[list[bytes]]:
            count, job = flying[0]
            yield job.result()
            flying.popleft()
            self._room.give(count)

        try:
            for start in range(0, size, _RANGE):
                count = min(_RANGE, size - start)
                while not (taken := self._room.take_at_once(count)) and flying:
                    yield from next_of_all()
                if not taken:  # others have it, who wait for nothing of this
                    self._room.take(count)
                flying.append((count, self._workers.submit(fetch, start, count)))
            while flying:
                yield from next_of_all()
        finally:
            for _, job in flying:
                job.cancel()
            for count, job in flying:
                if not job.cancelled():
                    job.exception()  # nobody may write to the file once it is closed
                self._room.give(count)


def _write(fd: int, chunk: bytes, at: int) -> None:
    if chunk[0] == 0 and chunk == _ZEROS[: len(chunk)]:
        return
    view = memoryview(chunk)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
