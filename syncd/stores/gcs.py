"""Google Cloud Storage: a bucket.

Requests go by the lean road (``gcslean``) where that knows the way, else by the SDK, which is
only loaded then.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from syncd.errors import Conflict, NeedsOperator, NotFound, StoreError, Transient
from syncd.stores.base import (
    Body,
    Buffer,
    Capabilities,
    Condition,
    ObjectInfo,
    PendingUpload,
    SideBySide,
)
from syncd.stores.gcserrors import status_of, translate
from syncd.stores.http1 import Strange
from syncd.stores.wire import check_installed, checked_key, side_by_side

try:
    from syncd.stores import gcsappend, gcslean
    from syncd.stores.gcsobjects import Objects
    from syncd.stores.gcsupload import GCSUpload
except ImportError as missing:  # of the checksum, which comes with the SDK
    raise NeedsOperator(
        "google-cloud-storage is not installed", hint="pip install 'syncd[gcs]'"
    ) from missing

_T = TypeVar("_T")


class GCSStore(SideBySide):
    """A bucket; the version of an object is its generation."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Makes no request: looking for credentials may already ask the machine's own server."""
        super().__init__()
        check_installed("google.cloud.storage", "google-cloud-storage", "gcs")
        self.name = f"gs://{bucket}"
        self.capabilities = Capabilities(
            conditional_copy=True,
            parallel_parts=False,
            min_part_size=256 * 1024,
            good_part_size=16 * 1024 * 1024,  # one goes after the other's answer
            max_parts=1_000_000,
            part_multiple=256 * 1024,
            append_from=1,
            append_requests=gcsappend.REQUESTS,
        )
        self._name = bucket
        self._environ = environ
        self._bucket_seen = False
        try:
            self._lean = gcslean.told(bucket, environ)
        except OSError as error:
            raise NeedsOperator(
                f"the authorities that TLS is to trust cannot be read ({type(error).__name__})",
                hint="correct REQUESTS_CA_BUNDLE",
            ) from None
        self._sdk: Objects | None = None

    def _open(self) -> Objects:
        from syncd.stores import gcssdk

        if self._sdk is None:  # a second one, of two threads, is let go of
            self._sdk = gcssdk.Sdk(self._name, self._environ)
        return self._sdk

    def ask(self, what: str, key: str, request: Callable[[Objects], _T]) -> _T:
        """Make a request by the road that knows the way; its error becomes one of this package."""
        try:
            answer = self._ask(request)
        except _failures() as error:
            raise self._translated(error, what, key) from error
        self._bucket_seen = True
        return answer

    def _ask(self, request: Callable[[Objects], _T]) -> _T:
        lean = self._lean
        if lean:
            with contextlib.suppress(Strange):
                return request(lean)
            self._only_sdk()
        return request(self._open())

    def _only_sdk(self) -> None:
        self._lean = None

    def _translated(self, error: Exception, what: str, key: str) -> StoreError:
        """A missing object is told from a missing bucket by a look at the bucket."""
        if status_of(error) != 404 or self._bucket_seen:
            return translate(error, what)
        try:
            self._ask(lambda objects: objects.look(key))
        except _failures() as reason:
            if status_of(reason) != 403:  # who may not list has met a bucket all the same
                return translate(reason, what, of_bucket=True)
        self._bucket_seen = True
        return translate(error, what)

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. The server verifies the crc32c sent along, and tells its own."""
        return self.ask(f"putting {key}", key, lambda objects: objects.put(key, data, condition))

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore."""
        lean = self._lean
        if lean is None:
            yield from super().put_each(bodies)
            return
        for body, answer in lean.put_each(bodies):
            if isinstance(answer, Strange):
                self._only_sdk()
                yield from super().put_each([body])
            elif isinstance(answer, Exception) and status_of(answer) == 401:
                yield from super().put_each([body])  # with a new token
            elif isinstance(answer, ObjectInfo | StoreError):
                yield answer
            else:
                yield self._translated(answer, f"putting {body.key}", body.key)

    def start_upload(self, key: str, size: int, copies: bool = False) -> GCSUpload:
        """See ObjectStore.

        A session takes its precondition when it starts, ``finish`` names its own at the end. So
        the session is bound to what is there now, and any condition is judged against that.
        """
        del copies
        what = f"starting an upload of {key}"
        try:
            generation = self.head(key).version
        except NotFound:
            generation = "0"
        try:
            url = self.ask(what, key, lambda objects: objects.start_session(key, size, generation))
        except Conflict as error:
            raise Transient(f"{what}: it was replaced at this moment") from error
        return GCSUpload(self, key, url, size, generation)

    def resume_upload(
        self, key: str, upload_id: str, size: int, tags: Mapping[int, str]
    ) -> GCSUpload:
        """See ObjectStore."""
        del tags
        generation, _, url = upload_id.partition(" ")
        upload = GCSUpload(self, key, url, size, generation)
        upload.take_up()
        return upload

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """See ObjectStore."""
        return gcsappend.compose(self, checked_key(key), base, tail, aside)

    # -- reading

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """See ObjectStore."""
        waiting, lean = list(wanted), self._lean
        if lean is None:
            yield from super().read_each(waiting)
            return
        for one, answer in zip(waiting, lean.read_each(waiting), strict=True):
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
            left, chunks = self.ask(
                what, key, lambda objects: objects.read(key, start, length, version)
            )
        except StoreError as error:
            if status_of(error.__cause__) == 416:
                return  # from the very end of an object there is nothing to read
            raise
        try:
            for chunk in chunks:
                left -= len(chunk)
                yield chunk
        except _failures() as error:
            raise translate(error, what) from error
        if left:
            raise Transient(f"{key} broke off {left} bytes before its end")

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        return self.ask(f"looking at {key}", key, lambda objects: objects.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        what, lean, some = f"listing {self.name}", self._lean, False
        try:
            if lean:
                for info in lean.list(prefix):
                    some = self._bucket_seen = True
                    yield info
                return
        except Strange:
            self._only_sdk()
            if some:
                raise Transient(f"{what}: a page is not understood") from None
        except _failures() as error:
            raise translate(error, what, of_bucket=True) from error
        try:
            yield from self._open().list(prefix)
        except _failures() as error:
            raise translate(error, what, of_bucket=True) from error

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        return self.ask(
            f"copying {source} to {target}",
            source,
            lambda objects: objects.rewrite(source, target, condition),
        )

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore. One by one: a batch is as many operations, and none is atomic."""
        side_by_side(keys, self._delete)

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            self.ask(f"deleting {key}", key, lambda objects: objects.delete(key))

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore: none. Google lists no sessions; they cost nothing and end in a week."""
        del prefix
        return iter(())

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore: a session's address is the end of its id."""
        GCSUpload(self, upload.key, upload.id.rpartition(" ")[2], 0, "0").discard()

    def close(self) -> None:
        """See ObjectStore."""
        for road in (self._lean, self._sdk):
            if road:
                road.close()


def _failures() -> tuple[type[Exception], ...]:
    """What a request can raise; of libraries, only if they were loaded."""
    sdk = sys.modules.get("syncd.stores.gcssdk")
    login = sys.modules.get("google.auth.exceptions")
    return (
        gcslean.Refused,
        OSError,
        ValueError,
        *((login.GoogleAuthError,) if login else ()),
        *(sdk.FAILURES if sdk else ()),
    )
