"""Google Cloud Storage: a bucket.

Requests go by the lean road (``gcslean``) where that knows the way, else by the SDK, which is
only loaded then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from syncd.errors import Conflict, NeedsOperator, NotFound, StoreError, Transient
from syncd.stores.base import (
    Buffer,
    Capabilities,
    Condition,
    ObjectInfo,
    PendingUpload,
)
from syncd.stores.gcserrors import status_of, translate
from syncd.stores.roads import TwoRoads, open_lean
from syncd.stores.wire import check_installed, checked_key

try:
    from syncd.stores import gcsappend, gcslean
    from syncd.stores.gcsobjects import Objects
    from syncd.stores.gcsupload import GCSUpload
except ImportError as missing:  # of the checksum, which comes with the SDK
    raise NeedsOperator(
        "google-cloud-storage is not installed", hint="pip install 'syncd[gcs]'"
    ) from missing

_T = TypeVar("_T")


class GCSStore(TwoRoads[Objects]):
    """A bucket; the version of an object is its generation."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Makes no request: looking for credentials may already ask the machine's own server."""
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
        lean = open_lean(lambda: gcslean.told(bucket, environ))
        super().__init__(lean, lean)

    def _make_sdk(self) -> Objects:
        from syncd.stores import gcssdk

        return gcssdk.Sdk(self._name, self._environ)

    def ask(self, what: str, key: str, request: Callable[[Objects], _T]) -> _T:
        """See TwoRoads."""
        answer = super().ask(what, key, request)
        self._bucket_seen = True
        return answer

    def _failures(self) -> tuple[type[Exception], ...]:
        sdk = sys.modules.get("syncd.stores.gcssdk")
        login = sys.modules.get("google.auth.exceptions")
        return (
            gcslean.Refused,
            OSError,
            ValueError,
            *((login.GoogleAuthError,) if login else ()),
            *(sdk.FAILURES if sdk else ()),
        )

    def _status_of(self, error: BaseException | None) -> int:
        return status_of(error)

    def _listing_failed(self, error: Exception) -> StoreError:
        return translate(error, f"listing {self.name}", of_bucket=True)

    def _translated(self, error: Exception, what: str, key: str) -> StoreError:
        """A missing object is told from a missing bucket by a look at the bucket."""
        if status_of(error) != 404 or self._bucket_seen:
            return translate(error, what)
        try:
            self._ask(lambda objects: objects.look(key))
        except self._failures() as reason:
            if status_of(reason) != 403:  # who may not list has met a bucket all the same
                return translate(reason, what, of_bucket=True)
        self._bucket_seen = True
        return translate(error, what)

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. The server verifies the crc32c sent along, and tells its own."""
        return self.ask(f"putting {key}", key, lambda objects: objects.put(key, data, condition))

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

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        return self.ask(f"looking at {key}", key, lambda objects: objects.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        for info in super().list(prefix):
            self._bucket_seen = True
            yield info

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        return self.ask(
            f"copying {source} to {target}",
            source,
            lambda objects: objects.rewrite(source, target, condition),
        )

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore: a session's address is the end of its id."""
        GCSUpload(self, upload.key, upload.id.rpartition(" ")[2], 0, "0").discard()
