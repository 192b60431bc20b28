"""Retries around a store: each verb is tried again until it is answered, as ``attempts`` says."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from syncd.clock import Clock
from syncd.errors import Conflict, NotFound, Permanent, StoreError, Transient
from syncd.stores.attempts import Attempts, Circuit
from syncd.stores.base import (
    Body,
    Buffer,
    Condition,
    ObjectInfo,
    ObjectStore,
    PendingUpload,
    Upload,
)

_T = TypeVar("_T")
_A = TypeVar("_A")

_COPY_TRIES = 3
"""Tries after which a range is not copied: a store may be too slow to answer in time."""

_REPLACED = 5
"""Times that an object may be replaced between the look at it and the reading."""


class Resilient:
    """An ObjectStore that goes on trying. For the parameters see ``Attempts``."""

    def __init__(
        self,
        store: ObjectStore,
        clock: Clock,
        abort: threading.Event,
        deadline: Callable[[], float | None] = lambda: None,
        on_change: Callable[[Circuit], None] = lambda _circuit: None,
        patience: float | None = None,
    ) -> None:
        self._store = store
        self._attempts = Attempts(clock, abort, deadline, on_change, patience)
        self.name = store.name
        self.capabilities = store.capabilities

    @property
    def circuit(self) -> Circuit:
        """How the store has been answering."""
        return self._attempts.circuit

    def attempt(self, request: Callable[[], _T]) -> _T:
        """Make a request until it is answered, or time is over."""
        return self._attempts.make(request)

    # -- the verbs

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. After a lost acknowledgement IfAbsent ends in Conflict."""
        return self.attempt(lambda: self._store.put(key, data, condition))

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore; what failed for the moment is tried again by itself, and waited for."""
        return self._each(
            bodies, self._store.put_each, lambda b: self.put(b.key, b.data, b.condition)
        )

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """See ObjectStore; what failed for the moment is tried again by itself, and waited for."""
        return self._each(
            wanted, self._store.read_each, lambda one: b"".join(self.read(one[0], 0, one[1]))
        )

    def _each(
        self,
        wanted: Iterable[_A],
        together: Callable[[Iterable[_A]], Iterator[_T | StoreError]],
        alone: Callable[[_A], _T],
    ) -> Iterator[_T | StoreError]:
        asked: list[_A] = []

        def noted() -> Iterator[_A]:
            for one in wanted:  # it may take its time to make the next while others are under way
                asked.append(one)
                yield one

        well = self._attempts.go_well()
        answers: Sequence[_T | StoreError | None]
        answers = [*together(noted())] if well else [None for _ in noted()]
        for one, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Transient):
                self._attempts.failed(answer)
            elif answer is not None:
                self._attempts.succeeded()
                yield answer
                continue
            try:
                yield alone(one)
            except StoreError as error:
                yield error

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """See ObjectStore; what a lost acknowledgement has appended is not appended again."""

        def one() -> ObjectInfo:
            try:
                return self._store.append(key, base, tail, aside)
            except Conflict:  # at the first try, too: a store may have asked by two roads
                made = self._appended(key, base, tail)
                if made is None:
                    raise
                return made

        return self.attempt(one)

    def _appended(self, key: str, base: ObjectInfo, tail: Buffer) -> ObjectInfo | None:
        """The object, if it is what an earlier try was to make of it."""
        try:
            found = self._store.head(key)
            if found.size == base.size + len(tail):
                there = b"".join(self._store.read(key, base.size, len(tail), found.version))
                return found if there == tail else None
        except (Conflict, NotFound):
            pass
        return None

    def start_upload(self, key: str, size: int, copies: bool = False) -> Upload:
        """See ObjectStore; the upload's requests are retried like all others.

        Where the first try may have begun one as well, of which nobody has heard, it is aborted.
        """
        tried = 0

        def one() -> Upload:
            nonlocal tried
            tried += 1
            return self._store.start_upload(key, size, copies)

        upload = self.attempt(one)
        if tried > 1:
            with contextlib.suppress(StoreError):
                for other in self._store.pending_uploads(key):
                    if other.key == key and other.id != upload.id:
                        self._store.discard_upload(other)
        return _ResilientUpload(upload, self)

    def resume_upload(self, key: str, upload_id: str, size: int, tags: Mapping[int, str]) -> Upload:
        """See ObjectStore."""
        upload = self.attempt(lambda: self._store.resume_upload(key, upload_id, size, tags))
        return _ResilientUpload(upload, self)

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore; a reading that breaks off goes on where it was, in the same object.

        Which one that is may be left open: then one that is replaced, or deleted, after the look
        at it and before its first byte is no Conflict: what is there by now is read.
        """
        for again in reversed(range(_REPLACED)):
            pinned = version or self.head(key).version
            chunks = self._read(key, start, length, pinned)
            try:
                first = next(chunks, None)
            except Conflict:
                if version or not again:
                    raise
                continue
            if first is not None:
                yield first
                yield from chunks
            return

    def _read(self, key: str, start: int, length: int | None, version: str) -> Iterator[bytes]:
        done = 0
        chunks: Iterator[bytes] = iter(())
        fresh = True

        def next_chunk() -> bytes | None:
            nonlocal chunks, fresh
            if fresh:
                left = None if length is None else length - done
                chunks, fresh = self._store.read(key, start + done, left, version), False
            try:
                return next(chunks, None)
            except Transient:
                fresh = True
                raise

        while length is None or done < length:
            chunk = self.attempt(next_chunk)
            if chunk is None:
                return
            done += len(chunk)
            yield chunk

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        return self.attempt(lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore; a listing that breaks off starts anew."""
        return iter(self.attempt(lambda: [*self._store.list(prefix)]))

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        return self.attempt(lambda: self._store.copy(source, target, condition))

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore."""
        wanted = list(keys)
        self.attempt(lambda: self._store.delete(wanted))

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore."""
        return iter(self.attempt(lambda: [*self._store.pending_uploads(prefix)]))

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore."""
        self.attempt(lambda: self._store.discard_upload(upload))

    def close(self) -> None:
        """See ObjectStore."""
        self._store.close()


class _ResilientUpload:
    """The parts of one upload, each retried."""

    def __init__(self, upload: Upload, store: Resilient) -> None:
        self._upload = upload
        self._store = store
        self.key = upload.key
        self.id = upload.id

    def send(self, number: int, data: Buffer) -> str:
        """See Upload."""
        return self._store.attempt(lambda: self._upload.send(number, data))

    def holds(self, number: int, data: Buffer) -> bool:
        """See Upload."""
        return self._store.attempt(lambda: self._upload.holds(number, data))

    def copy(self, number: int, source: ObjectInfo, start: int, length: int) -> str:
        """See Upload. A copy that fails again and again is Permanent: its bytes can be sent."""
        failed = 0

        def one() -> str:
            nonlocal failed
            try:
                return self._upload.copy(number, source, start, length)
            except Transient as error:
                failed += 1
                if failed < _COPY_TRIES:
                    raise
                raise Permanent(f"no part of {source.key} is copied: {error.message}") from error

        return self._store.attempt(one)

    def has(self, number: int, length: int) -> bool:
        """See Upload."""
        return self._store.attempt(lambda: self._upload.has(number, length))

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload."""
        return self._store.attempt(lambda: self._upload.finish(condition))

    def abort(self) -> None:
        """See Upload. Tried once: what it leaves is aborted later (``uploads``)."""
        self._upload.abort()

    def leave(self) -> None:
        """See Upload."""
        self._upload.leave()
