"""The way of the bytes: one pass over each file that digests and sends at once.

Memory is bounded by the number of parts in flight, whatever the size of a file. What has been
read is given back to the page cache, so that the trainer keeps its own.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from syncd.errors import (
    Changed,
    Corrupt,
    GaveWay,
    NotFound,
    Permanent,
    SyncdError,
    Transient,
)
from syncd.pace import Pace, RateLimit
from syncd.scan import Stat
from syncd.stores.base import Body, Condition, ObjectInfo, ObjectStore
from syncd.uploadrows import Begun
from syncd.uploads import Flight, OtherBytes, Uploads

MIB = 1024 * 1024
SINGLE_PUT = 8 * MIB
"""Files up to this size go in one request."""

_VANISHES = 3
"""How often an upload may vanish in the store before that is called a failure."""
_GROUP = 256
"""Small files that are read before the answers of the first are waited for."""


class Transfer:
    """Sends files to a store, several at a time."""

    def __init__(
        self,
        store: ObjectStore,
        concurrency: int,
        limit: RateLimit,
        on_bytes: Callable[[str, int], None] = lambda _key, _count: None,
        halt: threading.Event | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        """``on_bytes(key, count)`` hears of every body that the store has taken.

        While ``halt`` is set, what is under way stops at its next part, with GaveWay; logs go on.
        Without ``uploads`` each upload in parts begins anew.
        """
        self.uploads = uploads
        self.store = store
        self.halt = halt or threading.Event()
        self._limit = limit
        self.pace = Pace(limit)
        self._on_bytes = on_bytes
        self.files = ThreadPoolExecutor(concurrency, thread_name_prefix="file")
        self._parts = ThreadPoolExecutor(concurrency, thread_name_prefix="part")
        self._window = threading.BoundedSemaphore(concurrency + 2)

    def close(self) -> None:
        """Let the worker threads go; nothing new may be started."""
        self.files.shutdown(wait=False, cancel_futures=True)
        self._parts.shutdown(wait=False, cancel_futures=True)

    def send(
        self,
        path: Path,
        key: str,
        seen: Stat,
        condition: Condition = None,
        growing: bool = False,
        name: tuple[str, str] = ("", ""),
    ) -> tuple[str, ObjectInfo]:
        """Send one file as it was when ``seen``; return its SHA-256 and the object.

        Changed if the file is another one by now; Conflict if the condition fails; the object
        is made whole or not at all. Of a ``growing`` file, a log, the bytes that were there when
        it was seen are sent, and that more have come since is no fault. Under ``name``, a path
        and a stat, an upload that could not be finished is found by ``resume``.
        """
        halt = None if growing else self.halt
        with _open(path, seen, growing) as file:
            if not self.in_parts(seen.size):
                data = file.read_exactly(seen.size)
                sha256 = hashlib.sha256(data).hexdigest()
                file.check()
                self._limit.take(len(data), halt)
                with self.pace.sending(len(data)):
                    info = self.store.put(key, data, condition)
                self._on_bytes(key, len(data))
                return sha256, info
            for _ in range(_VANISHES):
                file.rewind()
                flight = self._begin(key, seen.size, name)
                with suppress(NotFound):
                    return self._send_parts(file, flight, seen.size, condition, halt)
        raise Transient(
            f"uploads of {key} vanish before they are finished",
            hint="look for who aborts them: a rule of the bucket, or another machine",
        )

    def resume(
        self, path: Path, begun: Begun, seen: Stat, condition: Condition
    ) -> tuple[str, ObjectInfo] | None:
        """Go on with an upload of an earlier attempt, as ``send`` does; None: it has to begin anew.

        The file is read from its beginning: a part that arrived is left out only if what is
        read is, up to its end, what was read when it was sent.
        """
        with _open(path, seen) as file:
            flight = self.uploads.take_up(begun) if self.uploads else None
            if flight:
                with suppress(NotFound, OtherBytes):
                    return self._send_parts(file, flight, seen.size, condition, self.halt)
        return None

    def _begin(self, key: str, size: int, name: tuple[str, str]) -> Flight:
        part = self.part_size(size)
        if self.uploads:
            return self.uploads.begin(key, size, part, *name)
        return Flight(self.store.start_upload(key, size), part)

    def put(self, key: str, data: bytes, condition: Condition) -> ObjectInfo:
        """Send what a log holds."""
        self._limit.take(len(data))
        with self.pace.sending(len(data)):
            info = self.store.put(key, data, condition)
        self._on_bytes(key, len(data))
        return info

    def append(self, key: str, base: ObjectInfo, tail: bytes, aside: str) -> ObjectInfo:
        """Send what a log has more than its object."""
        self._limit.take(len(tail))
        with self.pace.sending(len(tail)):
            info = self.store.append(key, base, tail, aside)
        self._on_bytes(key, len(tail))
        return info

    def send_each(self, small: Iterable[Small]) -> Iterator[tuple[str, ObjectInfo] | SyncdError]:
        """Send small files, many under way at a time; what became of each, in their order.

        Everything is as in ``send``, but that the errors of single files are not raised. GaveWay
        is, and what the store refuses for every file alike.
        """
        for group in _groups(small):
            read = [_read_small(item) for item in group]
            bodies = [
                Body(item.key, found[0], item.condition)
                for item, found in zip(group, read, strict=True)
                if not isinstance(found, SyncdError)
            ]
            total = sum(len(body.data) for body in bodies)
            self._limit.take(total, self.halt)
            if self.halt.is_set():
                raise GaveWay("stopped between two files")
            with self.pace.sending(total):
                answers = iter([*self.store.put_each(bodies)])
            for item, found in zip(group, read, strict=True):
                answer = found if isinstance(found, SyncdError) else next(answers)
                if isinstance(answer, SyncdError):
                    yield answer
                elif not isinstance(found, SyncdError):
                    self._on_bytes(item.key, len(found[0]))
                    yield found[1], answer

    def _send_parts(
        self,
        file: _Reader,
        flight: Flight,
        size: int,
        condition: Condition,
        halt: threading.Event | None,
    ) -> tuple[str, ObjectInfo]:
        flying: list[Future[None]] = []
        finishing = False
        try:
            sha256 = self._send_missing(file, flight, size, halt, flying)
            finishing = True
            return sha256, flight.finish(condition)
        except BaseException as error:
            for job in flying:
                job.cancel()
            wait(flying)  # a part that is under way must not meet an upload that is gone
            # a part that was damaged on its way is sent again; an object is not mended
            lost = isinstance(error, Changed | Permanent) or (
                finishing and isinstance(error, Corrupt)
            )
            flight.abort() if lost else flight.leave()
            raise

    def _send_missing(
        self,
        file: _Reader,
        flight: Flight,
        size: int,
        halt: threading.Event | None,
        flying: list[Future[None]],
    ) -> str:
        """Have all parts arrive; the SHA-256 of the file. What is under way is in ``flying``."""
        digest = hashlib.sha256()
        for number, data in enumerate(_read_parts(file, size, flight.part), start=1):
            digest.update(data)
            file.check()  # a revision that is gone is not worth another part
            if halt and halt.is_set():
                raise GaveWay(f"{flight.key} was stopped before part {number}")
            so_far = digest.hexdigest()
            if flight.holds(number, so_far, data):
                continue
            self._window.acquire()
            job = self._parts.submit(self._send_part, flight, number, so_far, data, halt)
            job.add_done_callback(lambda _job: self._window.release())
            flying.append(job)
            if not self.store.capabilities.parallel_parts:
                job.result()
            elif any(done.done() and done.exception() for done in flying):
                break
        for job in flying:
            job.result()
        file.check()
        return digest.hexdigest()

    def _send_part(
        self,
        flight: Flight,
        number: int,
        so_far: str,
        data: bytes,
        halt: threading.Event | None,
    ) -> None:
        self._limit.take(len(data), halt)
        if halt and halt.is_set():
            raise GaveWay(f"{flight.key} was stopped before part {number}")
        with self.pace.sending(len(data)):
            flight.send(number, so_far, data)
        self._on_bytes(flight.key, len(data))

    @staticmethod
    def in_parts(size: int) -> bool:
        """Whether a file of ``size`` bytes goes up in parts."""
        return size > SINGLE_PUT

    def part_size(self, size: int) -> int:
        """Bytes of each part of an upload of ``size`` bytes, within the store's limits."""
        can = self.store.capabilities
        wanted = max(SINGLE_PUT, can.min_part_size, -(-size // can.max_parts))
        part = -(-wanted // can.part_multiple) * can.part_multiple
        if part > can.max_part_size:
            raise Permanent(f"{size} bytes are more than {self.store.name} can hold in one object")
        return part


def _read_parts(file: _Reader, size: int, part: int) -> Iterator[bytes]:
    left = size
    while left:
        count = min(part, left)
        yield file.read_exactly(count)
        left -= count


@dataclass(frozen=True)
class Small:
    """A file that goes in one request, as it was when ``seen``."""

    path: Path
    key: str
    seen: Stat
    condition: Condition = None


def _groups(small: Iterable[Small]) -> Iterator[list[Small]]:
    """Files that are held in memory together: several hundred, of a few MiB in all."""
    group: list[Small] = []
    size = 0
    for item in small:
        if group and (len(group) >= _GROUP or size + item.seen.size > SINGLE_PUT):
            yield group
            group, size = [], 0
        group.append(item)
        size += item.seen.size
    if group:
        yield group


def _read_small(item: Small) -> tuple[bytes, str] | SyncdError:
    try:
        with _open(item.path, item.seen) as file:
            data = file.read_exactly(item.seen.size)
            file.check()
    except SyncdError as error:
        return error
    return data, hashlib.sha256(data).hexdigest()


def digest_file(path: Path, seen: Stat) -> str:
    """SHA-256 of a file; Changed if it is not, or does not stay, what was seen."""
    digest = hashlib.sha256()
    with _open(path, seen) as file:
        left = seen.size
        while left:
            data = file.read_exactly(min(MIB, left))
            digest.update(data)
            left -= len(data)
        file.check()
    return digest.hexdigest()


class _Reader:
    """A file that notices when it is no longer the one that was seen."""

    def __init__(self, fd: int, path: Path, seen: Stat, growing: bool) -> None:
        self._fd = fd
        self._path = path
        self._seen = seen
        self._growing = growing
        self._given_back = 0

    def __enter__(self) -> _Reader:
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


def _open(path: Path, seen: Stat, growing: bool = False) -> _Reader:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Changed(f"{path} vanished before it could be read") from None
    except OSError as error:
        raise Permanent(
            f"{path} cannot be read: {error.strerror}", hint="check its permissions"
        ) from error
    reader = _Reader(fd, path, seen, growing)
    try:
        reader.check()
    except Changed:
        os.close(fd)
        raise
    return reader
