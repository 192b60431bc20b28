"""A store with two roads: a lean one of ours, and the cloud's SDK for what that does not know.

The SDK is only loaded then. Both have the same calls, and every decision is made above them.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from syncd.errors import NeedsOperator, NotFound, StoreError, Transient
from syncd.stores.base import Body, ObjectInfo, PendingUpload, SideBySide
from syncd.stores.http1 import Strange
from syncd.stores.wire import side_by_side

_T = TypeVar("_T")


class Road(Protocol):
    """What every road has."""

    def read(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> tuple[int, Iterator[Any]]:
        """How many bytes come, and the bytes."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects of that prefix."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Many(Protocol):
    """What a lean road has besides: many small objects, many in flight."""

    def put_each(self, bodies: Iterable[Body]) -> Iterator[tuple[Body, ObjectInfo | Exception]]:
        """Put small objects; what became of each, in their order."""
        ...

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | Exception]:
        """Read small objects, each up to so many bytes; what became of each, in order."""
        ...


_R = TypeVar("_R", bound=Road)
_M = TypeVar("_M", bound=Many)


def open_lean(told: Callable[[], _M | None]) -> _M | None:
    """The lean road, if the settings tell all that it needs."""
    try:
        return told()
    except OSError as error:
        raise NeedsOperator(
            f"the authorities that TLS is to trust cannot be read ({type(error).__name__})",
            hint="correct REQUESTS_CA_BUNDLE",
        ) from None


class TwoRoads(SideBySide, Generic[_R]):
    """What is the same of Google's and Azure's stores."""

    name: str

    def __init__(self, lean: _R | None, many: Many | None) -> None:
        """``lean`` and ``many`` are the same road, or there is none of ours."""
        super().__init__()
        self._lean = lean
        self._many = many
        self._sdk: _R | None = None

    @abstractmethod
    def _make_sdk(self) -> _R:
        """Load the SDK."""

    @abstractmethod
    def _failures(self) -> tuple[type[Exception], ...]:
        """What a request can raise; of libraries, only if they were loaded."""

    @abstractmethod
    def _status_of(self, error: BaseException | None) -> int:
        """The HTTP status of an answer that was raised, 0 for what is none."""

    @abstractmethod
    def _translated(self, error: Exception, what: str, key: str) -> StoreError:
        """The error of this package for one that was met while doing ``what`` with a key."""

    @abstractmethod
    def _listing_failed(self, error: Exception) -> StoreError:
        """The same, of a listing."""

    def _open(self) -> _R:
        if self._sdk is None:  # a second one, of two threads, is let go of
            self._sdk = self._make_sdk()
        return self._sdk

    def _only_sdk(self) -> None:
        self._lean = self._many = None

    def ask(self, what: str, key: str, request: Callable[[_R], _T]) -> _T:
        """Make a request by the road that knows the way; its error becomes one of this package."""
        try:
            return self._ask(request)
        except self._failures() as error:
            raise self._translated(error, what, key) from error

    def _ask(self, request: Callable[[_R], _T]) -> _T:
        lean = self._lean
        if lean:
            with contextlib.suppress(Strange):
                return request(lean)
            self._only_sdk()
        return request(self._open())

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore."""
        many = self._many
        if many is None:
            yield from super().put_each(bodies)
            return
        for body, answer in many.put_each(bodies):
            if isinstance(answer, ObjectInfo | StoreError):
                yield answer
            elif isinstance(answer, Strange):
                self._only_sdk()
                yield from super().put_each([body])
            elif self._status_of(answer) == 401:
                yield from super().put_each([body])  # with a new token
            else:
                yield self._translated(answer, f"putting {body.key}", body.key)

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """See ObjectStore."""
        waiting, many = list(wanted), self._many
        if many is None:
            yield from super().read_each(waiting)
            return
        for one, answer in zip(waiting, many.read_each(waiting), strict=True):
            if isinstance(answer, Exception):
                yield from super().read_each([one])  # for whatever is wrong with it
            else:
                yield answer

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore."""
        if length is not None and length <= 0:
            return
        what = f"reading {key}"
        try:
            left, chunks = self.ask(what, key, lambda road: road.read(key, start, length, version))
        except StoreError as error:
            if self._status_of(error.__cause__) == 416:
                return  # from the very end of an object there is nothing to read
            raise
        try:
            for chunk in chunks:
                left -= len(chunk)
                yield chunk
        except self._failures() as error:
            raise self._translated(error, what, key) from error
        if left:
            raise Transient(f"{key} broke off {left} bytes before its end")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        lean, some = self._lean, False
        try:
            if lean:
                for info in lean.list(prefix):
                    some = True
                    yield info
                return
        except Strange:
            self._only_sdk()
            if some:
                raise Transient(f"listing {self.name}: a page is not understood") from None
        except self._failures() as error:
            raise self._listing_failed(error) from error
        try:
            yield from self._open().list(prefix)
        except self._failures() as error:
            raise self._listing_failed(error) from error

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore. One by one: a batch is as many operations, and may need more rights."""
        side_by_side(keys, self._delete)

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            self.ask(f"deleting {key}", key, lambda road: road.delete(key))

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore: none are listed. They cost nothing, and end within a week."""
        del prefix
        return iter(())

    def close(self) -> None:
        """See ObjectStore."""
        for road in (self._lean, self._sdk):
            if road:
                road.close()
