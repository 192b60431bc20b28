"""Bytes on their way back: written in place once, and hashed as they come."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future

from syncd.errors import Corrupt, Transient
from syncd.packing import unpack
from syncd.records import FileEntry
from syncd.stores.base import ObjectStore

MIB = 1024 * 1024
BY_RANGES = 64 * MIB
"""Bytes of the smallest object that is fetched by ranges, several at a time."""

_RANGE = 8 * MIB
_AHEAD = 6
"""Ranges that are under way or wait for the hash: what is held in memory."""

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


def ahead(
    store: ObjectStore, key: str, size: int, version: str, workers: Executor
) -> Iterator[bytes]:
    """The bytes of a large object in order, by ranges that are fetched side by side."""
    flying: deque[Future[list[bytes]]] = deque()

    def fetch(start: int) -> list[bytes]:
        return [*store.read(key, start, min(_RANGE, size - start), version)]

    try:
        for start in range(0, size, _RANGE):
            if len(flying) >= _AHEAD:
                yield from flying.popleft().result()
            flying.append(workers.submit(fetch, start))
        while flying:
            yield from flying.popleft().result()
    finally:
        for job in flying:
            job.cancel()


def fetch_ranges(
    store: ObjectStore, key: str, fd: int, limit: int, on_bytes: OnBytes, workers: Executor
) -> tuple[int, str]:
    """The same for a large object, by ranges side by side; ``workers`` wait for no other job.

    Each range is written where it belongs as it comes, and hashed when its turn has come.
    """
    info = store.head(key)
    if info.size != limit:
        return info.size, ""
    os.ftruncate(fd, 0)
    os.ftruncate(fd, info.size)
    digest = hashlib.sha256()
    flying: deque[Future[list[bytes]]] = deque()

    def fetch(start: int) -> list[bytes]:
        count, chunks = min(_RANGE, info.size - start), []
        at = start
        for chunk in store.read(key, start, count, info.version):
            _write(fd, chunk, at)
            at += len(chunk)
            chunks.append(chunk)
            on_bytes(key, len(chunk))
        if at != start + count:
            raise Transient(f"{key} ended at {at} of {info.size} bytes")
        return chunks

    try:
        for start in range(0, info.size, _RANGE):
            if len(flying) >= _AHEAD:
                _hash(digest, flying.popleft())
            flying.append(workers.submit(fetch, start))
        while flying:
            _hash(digest, flying.popleft())
    finally:
        for job in flying:
            job.cancel()
        for job in flying:
            if not job.cancelled():
                job.exception()  # nobody may write to the file once it is closed
    return info.size, digest.hexdigest()


def _hash(digest: hashlib._Hash, job: Future[list[bytes]]) -> None:
    for chunk in job.result():
        digest.update(chunk)


def _write(fd: int, chunk: bytes, at: int) -> None:
    if chunk[0] == 0 and chunk == _ZEROS[: len(chunk)]:
        return
    view = memoryview(chunk)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
