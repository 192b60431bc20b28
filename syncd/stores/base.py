"""The one interface every object store is spoken to by.

Keys are whole object names in the bucket, with ``/`` between parts and no leading slash; the
layout under the prefix is no concern of a store. Every method raises only the classes of
:mod:`syncd.errors`; which class an SDK's error belongs to is decided in that store's own file.
A store never retries on its own account (the SDKs' retries are off): see ``resilient``.
All methods may be called from several threads at once.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from syncd.errors import Permanent, StoreError
from syncd.stores.wire import CONNECTIONS

_A = TypeVar("_A")
_T = TypeVar("_T")

Buffer = bytes | bytearray | memoryview
"""Bytes of a body: held in memory, so that a retry sends exactly what the first try sent."""


@dataclass(frozen=True)
class Capabilities:
    """What a store can do; the callers choose their way by these flags, never by its name.

    put_if_absent     ``put`` honours IfAbsent
    upload_if_absent  ``Upload.finish`` honours IfAbsent
    compare_and_swap  ``put`` and ``Upload.finish`` honour IfVersion
    conditional_copy  ``copy`` honours IfAbsent on its target
    parallel_parts    the parts of one Upload may be sent in any order, from several threads
    resumable         ``resume_upload`` takes up what another process has begun
    min_part_size     smallest part but the last, in bytes
    good_part_size    parts of at least this many bytes keep the line busy; 0: of any length do
    max_part_size     largest part, in bytes
    max_parts         most parts of one upload
    part_multiple     every part but the last is a multiple of this many bytes
    append_from       smallest object that ``append`` works for, in bytes; None: it cannot append
    append_requests   requests that one ``append`` makes
    copy_range        most bytes that one ``Upload.copy`` takes; 0: uploads take nothing of objects
    metered           requests cost money
    """

    put_if_absent: bool = True
    upload_if_absent: bool = True
    compare_and_swap: bool = True
    conditional_copy: bool = False
    parallel_parts: bool = True
    resumable: bool = True
    min_part_size: int = 5 * 1024 * 1024
    good_part_size: int = 0
    max_part_size: int = 5 * 1024 * 1024 * 1024
    max_parts: int = 10_000
    part_multiple: int = 1
    append_from: int | None = None
    append_requests: int = 1
    copy_range: int = 0
    metered: bool = True


@dataclass(frozen=True)
class ObjectInfo:
    """One object as the store describes it.

    ``version`` is opaque: an ETag, a generation; it changes whenever the content is replaced,
    and is what IfVersion and ``read(version=)`` take. ``modified`` is the store's own clock,
    in seconds since the epoch.
    """

    key: str
    size: int
    version: str
    modified: float


@dataclass(frozen=True)
class IfAbsent:
    """Only when no object has the key."""


@dataclass(frozen=True)
class IfVersion:
    """Only while the object is still this version (compare and swap)."""

    version: str


Condition = IfAbsent | IfVersion | None


@dataclass(frozen=True)
class Body:
    """A small object that is to be put."""

    key: str
    data: Buffer
    condition: Condition = None


@dataclass(frozen=True)
class PendingUpload:
    """An upload that was started and neither finished nor aborted; its parts may cost money."""

    key: str
    id: str
    started: float


class Upload(Protocol):
    """A large object under way, part by part; invisible under its key until ``finish``."""

    key: str
    id: str
    """With the key, all that another process needs to take it up. It may be a secret."""

    def send(self, number: int, data: Buffer) -> str:
        """Send part ``number`` (from 1). A part sent again replaces the first.

        Returns what the store calls it, "" where it does not say. Where ``parallel_parts`` is
        False, numbers must come in order, one at a time.
        """
        ...

    def holds(self, number: int, data: Buffer) -> bool:
        """Whether the store has this part of an upload that was resumed, and it need not be sent.

        Asked in the order of the numbers, about parts of which the caller knows that these very
        bytes were sent. The store's own account of what it has (length, tag, checksum) must agree.
        """
        ...

    def copy(self, number: int, source: ObjectInfo, start: int, length: int) -> str:
        """Take a range of another object, which the store copies, as part ``number``.

        As ``send``, but that it may be longer than other parts: the numbers that follow, and would
        lie in it, are left out. Conflict or NotFound if the object is another version by now, or
        gone; but not every store looks at the version, so ask for it again afterwards.
        """
        ...

    def has(self, number: int, length: int) -> bool:
        """Whether the store has this part of an upload that was resumed, which it had copied."""
        ...

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """Make the object of all parts, atomically; raise Conflict if the condition fails."""
        ...

    def abort(self) -> None:
        """Throw the parts away; never raises for an upload that is gone already."""
        ...

    def leave(self) -> None:
        """Let go of it here, and leave the parts where they are, to be resumed."""
        ...


class ObjectStore(Protocol):
    """An object store: a bucket, a container, a directory."""

    name: str
    """What a person knows it by, such as ``s3://bucket``; never holds a secret."""

    capabilities: Capabilities

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """Create or replace one object, atomically and checked end to end.

        The store verifies a checksum sent along or, where it cannot, the answer is compared
        with what was sent; a mismatch raises Corrupt. Conflict if the condition fails.
        """
        ...

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """Put several small objects; what became of each comes in their order, and none is raised.

        Many are under way at a time: the delay of the store is waited for once, not once for each.
        """
        ...

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """Read several small objects, each up to so many bytes; what became of each, in order."""
        ...

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """Make ``key`` its present content, which must be ``base``, and ``tail``; atomically.

        Only ``tail`` travels. Conflict if the object is another version by now, or gone;
        Permanent where the store cannot do this to this object. ``aside`` is a key that the
        store may use meanwhile; nothing is left there, unless the process is killed.
        """
        ...

    def start_upload(self, key: str, size: int, copies: bool = False) -> Upload:
        """Start an upload of ``size`` bytes in parts.

        ``copies``: some of them will perhaps be copied, which not every store can do in the same
        kind of upload.
        """
        ...

    def resume_upload(self, key: str, upload_id: str, size: int, tags: Mapping[int, str]) -> Upload:
        """Take up an upload that another process has begun; NotFound if it is gone.

        ``tags`` are what ``send`` has returned for the parts that arrived. Where the upload was
        finished and nobody heard of it, ``finish`` returns the object that it has made.
        """
        ...

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """Yield the bytes from ``start``, ``length`` of them or to the end, in chunks.

        NotFound if there is no such object; Conflict if ``version`` is given and the object is
        another one by now; Transient if the connection ends before the promised length.
        """
        ...

    def head(self, key: str) -> ObjectInfo:
        """Describe one object; NotFound if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with ``prefix``, across pages, in no promised order."""
        ...

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """Copy within the store, without the bytes passing through here, at any size."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that is gone already is no error."""
        ...

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """Uploads under way or forgotten below ``prefix``; empty where a store hides them."""
        ...

    def discard_upload(self, upload: PendingUpload) -> None:
        """Abort a forgotten upload, so that its parts no longer cost money."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class NoRanges:
    """``copy`` and ``has`` of an Upload to a store that copies no ranges."""

    def copy(self, number: int, source: ObjectInfo, start: int, length: int) -> str:
        """See Upload."""
        del number, start, length
        raise Permanent(f"no part of {source.key} can be copied")

    def has(self, number: int, length: int) -> bool:
        """See Upload."""
        del number, length
        return False


class SideBySide(ABC):
    """``put_each`` and ``read_each`` by a few threads, for a store that has no faster way.

    They are new ones each time, so that none stays where there is nothing to do.
    """

    _at_once = 8

    def __init__(self) -> None:
        """No more of them are at work at a time than there are connections for."""
        self._turns = threading.BoundedSemaphore(CONNECTIONS * 3 // 4)

    @abstractmethod
    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore."""
        return self._each(bodies, lambda body: self.put(body.key, body.data, body.condition))

    @abstractmethod
    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore."""

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """See ObjectStore."""
        return self._each(wanted, lambda one: b"".join(self.read(one[0], 0, one[1])))

    def _each(self, items: Iterable[_A], action: Callable[[_A], _T]) -> Iterator[_T | StoreError]:
        def answer(item: _A) -> _T | StoreError:
            try:
                with self._turns:
                    return action(item)
            except StoreError as error:
                return error

        todo = list(items)
        if len(todo) < 2:
            yield from map(answer, todo)
            return
        with ThreadPoolExecutor(min(self._at_once, len(todo)), "each") as pool:
            yield from pool.map(answer, todo)
