"""Retries around a store: visible, bounded by a deadline or not at all, and one at a time.

Transient failures are tried again with exponential back-off and full jitter for as long as it
takes. While a store is down, its circuit is open: one request probes it, the others wait for
the outcome, so that an outage costs a probe now and then and no stampede.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from syncd.clock import Clock
from syncd.errors import Conflict, NotFound, Permanent, StoreError, Transient
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

_FIRST, _LONGEST = 0.5, 60.0
"""Seconds: the back-off is drawn from nothing to this, doubling at each failure."""

_LONGEST_ASKED = 300.0
"""Seconds: a store that asks for a longer pause than this is asked sooner whether it is back."""

_SLICE = 0.25
"""Seconds after which a wait looks whether it is still wanted."""

_OPEN_AFTER = 5
"""Failures in a row, of all threads together, that open the circuit."""

_COPY_TRIES = 3
"""Tries after which a range is not copied: a store may be too slow to answer in time."""


@dataclass
class Circuit:
    """How the store has been answering; ``since`` is None while it answers.

    ``failures`` counts the attempts in a row that failed; ``next_probe`` is the time, on the
    monotonic clock, before which no further one goes out once the circuit is open.
    """

    failures: int = 0
    since: float | None = None
    message: str = ""
    hint: str = ""
    next_probe: float = 0.0

    @property
    def open(self) -> bool:
        """Whether the store counts as down."""
        return self.failures >= _OPEN_AFTER


class Resilient:
    """An ObjectStore that goes on trying.

    ``deadline`` tells the time on the monotonic clock after which the last failure is raised;
    None: there is none. ``abort`` ends every wait at once. ``on_change`` hears of each failure
    and of the first success after it.
    """

    def __init__(
        self,
        store: ObjectStore,
        clock: Clock,
        abort: threading.Event,
        deadline: Callable[[], float | None] = lambda: None,
        on_change: Callable[[Circuit], None] = lambda _circuit: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._abort = abort
        self._deadline = deadline
        self._on_change = on_change
        self._lock = threading.Lock()
        self._prober: int | None = None
        self.circuit = Circuit()
        self.name = store.name
        self.capabilities = store.capabilities

    # -- the verbs

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. After a lost acknowledgement IfAbsent ends in Conflict."""
        return self.attempt(lambda: self._store.put(key, data, condition))

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore; what failed for the moment is tried again by itself, and waited for."""
        return self._each(
            list(bodies), self._store.put_each, lambda b: self.put(b.key, b.data, b.condition)
        )

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """See ObjectStore; what failed for the moment is tried again by itself, and waited for."""
        return self._each(
            list(wanted), self._store.read_each, lambda one: b"".join(self.read(one[0], 0, one[1]))
        )

    def _each(
        self,
        asked: list[_A],
        together: Callable[[Iterable[_A]], Iterator[_T | StoreError]],
        alone: Callable[[_A], _T],
    ) -> Iterator[_T | StoreError]:
        answers: Sequence[_T | StoreError | None] = [None] * len(asked)
        if self._goes_well():
            answers = [*together(asked)]
        for one, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Transient):
                self._failed(answer)
            elif answer is not None:
                self._succeeded()
                yield answer
                continue
            try:
                yield alone(one)
            except StoreError as error:
                yield error

    def _goes_well(self) -> bool:
        with self._lock:
            return not self.circuit.failures

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """See ObjectStore; what a lost acknowledgement has appended is not appended again."""
        tried = 0

        def one() -> ObjectInfo:
            nonlocal tried
            tried += 1
            try:
                return self._store.append(key, base, tail, aside)
            except Conflict:
                made = self._appended(key, base, tail) if tried > 1 else None
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
        """See ObjectStore; a reading that breaks off goes on where it was, in the same object."""
        pinned = self.head(key).version if version is None else version
        done = 0
        chunks: Iterator[bytes] = iter(())
        fresh = True

        def next_chunk() -> bytes | None:
            nonlocal chunks, fresh
            if fresh:
                left = None if length is None else length - done
                chunks, fresh = self._store.read(key, start + done, left, pinned), False
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

    # -- trying again

    def attempt(self, request: Callable[[], _T]) -> _T:
        """Make a request until it is answered, or time is over."""
        try:
            return self._one_try(request)
        except Transient as error:
            return self._try_on(request, error)

    def _try_on(self, request: Callable[[], _T], error: Transient) -> _T:
        """Go on after a first failure; until there is one, tenacity is not even loaded."""
        from tenacity import RetryCallState, Retrying, retry_if_exception_type
        from tenacity.wait import wait_random_exponential

        backoff = wait_random_exponential(multiplier=_FIRST, max=_LONGEST)
        failed: list[Transient] = [error]

        def one() -> _T:
            if failed:
                raise failed.pop()
            return self._one_try(request)

        def pause(state: RetryCallState) -> float:
            """Full jitter, or the pause that the store asked for."""
            met = state.outcome.exception() if state.outcome else None
            asked = met.retry_after if isinstance(met, Transient) else None
            wait = backoff(state)
            return max(wait, min(asked, _LONGEST_ASKED)) if asked is not None else wait

        return Retrying(
            retry=retry_if_exception_type(Transient),
            wait=pause,
            stop=lambda _state: self._over(),
            sleep=self._sleep,
            reraise=True,
        )(one)

    def _one_try(self, request: Callable[[], _T]) -> _T:
        while not self._may_go():
            if self._over():
                raise Transient(self.circuit.message, hint=self.circuit.hint)
            self._sleep(max(_FIRST, self.circuit.next_probe - self._clock.monotonic()))
        try:
            return self._observed(request)
        finally:
            with self._lock:
                if self._prober == threading.get_ident():
                    self._prober = None

    def _may_go(self) -> bool:
        """Whether the circuit is closed, or this thread's request is to be its probe."""
        with self._lock:
            if not self.circuit.open:
                return True
            due = self._clock.monotonic() >= self.circuit.next_probe
            if due and self._prober is None:
                self._prober = threading.get_ident()
                return True
            return False

    def _observed(self, request: Callable[[], _T]) -> _T:
        try:
            result = request()
        except StoreError as error:
            failed = error if isinstance(error, Transient) else error.__cause__
            if isinstance(failed, Transient):  # one of enough tries, too
                self._failed(failed)
            else:
                self._succeeded()  # a refusal is an answer: the store is there
            raise
        self._succeeded()
        return result

    def _failed(self, error: Transient) -> None:
        with self._lock:
            circuit = self.circuit
            circuit.failures += 1
            circuit.since = circuit.since or self._clock.now()
            circuit.message, circuit.hint = error.message, error.hint
            pause = min(_FIRST * 2 ** min(max(0, circuit.failures - _OPEN_AFTER), 10), _LONGEST)
            pause = max(pause, min(error.retry_after or 0.0, _LONGEST_ASKED))
            circuit.next_probe = self._clock.monotonic() + pause
        self._on_change(circuit)

    def _succeeded(self) -> None:
        with self._lock:
            if not self.circuit.failures:
                return
            self.circuit = circuit = Circuit()
        self._on_change(circuit)

    def _over(self) -> bool:
        deadline = self._deadline()
        late = deadline is not None and self._clock.monotonic() >= deadline
        return late or self._abort.is_set()

    def _sleep(self, seconds: float) -> None:
        """Wait, in slices: the deadline may be moved meanwhile."""
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0 and not self._over():
            deadline = self._deadline()
            if deadline is not None:
                left = min(left, max(0.0, deadline - self._clock.monotonic()))
            self._clock.wait(self._abort, min(left, _SLICE))


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
