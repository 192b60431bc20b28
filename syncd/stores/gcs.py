"""Google Cloud Storage.

Whole objects, copies and listings go through google-cloud-storage; the chunks of a resumable
upload and streamed reads through the same session, as the library has no call for one of them.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from syncd.errors import Conflict, Corrupt, NeedsOperator, NotFound, Permanent, Transient
from syncd.stores.base import (
    Buffer,
    Capabilities,
    Condition,
    IfAbsent,
    IfVersion,
    ObjectInfo,
    PendingUpload,
    SideBySide,
)
from syncd.stores.wire import (
    CHUNK,
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    checked_key,
    enlarge,
    quiet,
    side_by_side,
)

try:
    import google_crc32c
    import requests
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from urllib3.exceptions import HTTPError

    from syncd.stores import gcsappend
    from syncd.stores.gcserrors import status_of, translate
    from syncd.stores.gcslogin import open_session
    from syncd.stores.gcsupload import GCSUpload, base64_crc32c
except ImportError as missing:
    raise NeedsOperator(
        "google-cloud-storage is not installed", hint="pip install 'syncd[gcs]'"
    ) from missing

_T = TypeVar("_T")
_FAILURES = (
    GoogleAPIError,
    GoogleAuthError,
    requests.RequestException,
    HTTPError,
    OSError,
    ValueError,
)
_TIMEOUT = (CONNECT_TIMEOUT, READ_TIMEOUT)
_NO_RETRY: dict[str, Any] = {"retry": None, "timeout": _TIMEOUT}


class GCSStore(SideBySide):
    """A bucket; the version of an object is its generation."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Makes no request: looking for credentials may already ask the machine's own server."""
        super().__init__()
        quiet("google", "urllib3")
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
        self.no_retry = _NO_RETRY
        self._name = bucket
        self._environ = environ
        self._bucket_seen = False
        self._lock = threading.Lock()
        self._opened: tuple[Any, Any] | None = None

    def _open(self) -> tuple[Any, Any]:
        with self._lock:
            if not self._opened:
                session = open_session(self._environ)
                enlarge(session)
                host = self._environ.get("STORAGE_EMULATOR_HOST")
                if host and "://" not in host:
                    host = f"http://{host}"
                client = storage.Client(
                    project=self._environ.get("GOOGLE_CLOUD_PROJECT") or "syncd",
                    credentials=session.credentials,
                    _http=session,
                    client_options={"api_endpoint": host} if host else None,
                )
                self._opened = client, session
            return self._opened

    def ask(self, what: str, request: Callable[[Any], _T]) -> _T:
        """Make a request of the bucket; what the SDK raises becomes an error of this package."""
        try:
            client, _ = self._open()
            answer = request(client.bucket(self._name))
        except _FAILURES as error:
            raise self._translated(error, what) from error
        self._bucket_seen = True
        return answer

    def _translated(self, error: Exception, what: str) -> Exception:
        """A missing object is told from a missing bucket by a look at the bucket."""
        if status_of(error) != 404 or self._bucket_seen:
            return translate(error, what)
        try:
            client, _ = self._open()
            next(iter(client.list_blobs(self._name, max_results=1, **_NO_RETRY)), None)
        except _FAILURES as reason:
            return translate(reason, what, of_bucket=True)
        self._bucket_seen = True
        return translate(error, what)

    def send(self, what: str, method: str, url: str, **parameters: Any) -> Any:
        """Make a request that the library has no call for; the answer may be any but 4xx, 5xx."""
        try:
            client, session = self._open()
            if url.startswith("/"):
                url = client.api_endpoint + url
            answer = session.request(method, url, timeout=_TIMEOUT, **parameters)
            answer.raise_for_status()
        except _FAILURES as error:
            raise self._translated(error, what) from error
        return answer

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. The server verifies the crc32c sent along."""
        blob = self.ask(
            f"putting {key}",
            lambda bucket: _upload(bucket.blob(checked_key(key)), data, conditions(condition)),
        )
        if blob.crc32c != base64_crc32c(google_crc32c.value(bytes(data))):
            raise Corrupt(f"{key} arrived with another checksum", hint="it is sent again")
        return _info(blob)

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
            url = self.ask(
                what,
                lambda bucket: bucket.blob(checked_key(key)).create_resumable_upload_session(
                    size=size,
                    content_type="application/octet-stream",
                    if_generation_match=int(generation),
                    **_NO_RETRY,
                ),
            )
        except Conflict as error:
            raise Transient(f"{what}: it was replaced at this moment") from error
        return GCSUpload(self, key, str(url), size, generation)

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
        return _info(gcsappend.compose(self, checked_key(key), base, tail, aside))

    # -- reading

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore."""
        if length is not None and length <= 0:
            return
        what = f"reading {key}"
        headers = {"Accept-Encoding": "identity"}
        if start or length is not None:
            last = "" if length is None else start + length - 1
            headers["Range"] = f"bytes={start}-{last}"
        query = {"alt": "media", **({"ifGenerationMatch": version} if version else {})}
        path = f"/download/storage/v1/b/{quote(self._name)}/o/{quote(checked_key(key), safe='')}"
        try:
            answer = self.send(
                what,
                "GET",
                path,
                params=query,
                headers=headers,
                stream=True,
            )
        except Permanent as error:
            if status_of(error.__cause__) == 416:
                return  # from the very end of an object there is nothing to read
            raise
        if "Range" in headers and answer.status_code != 206:
            raise Permanent(f"{self.name} does not answer ranges of {key}")
        left = int(answer.headers["Content-Length"])
        try:
            while left > 0:
                chunk = answer.raw.read(min(CHUNK, left))
                if not chunk:
                    raise Transient(f"{key} broke off {left} bytes before its end")
                left -= len(chunk)
                yield chunk
        except _FAILURES as error:
            raise translate(error, what) from error
        finally:
            answer.close()

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""

        def load(bucket: Any) -> Any:
            blob = bucket.blob(checked_key(key))
            blob.reload(**_NO_RETRY)
            return blob

        return _info(self.ask(f"looking at {key}", load))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        what = f"listing {self.name}"
        try:
            client, _ = self._open()
            for blob in client.list_blobs(self._name, prefix=prefix or None, **_NO_RETRY):
                yield _info(blob)
        except _FAILURES as error:
            raise translate(error, what, of_bucket=True) from error

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. Within a bucket the first call mostly rewrites all of it."""

        def rewrite(bucket: Any) -> Any:
            old, new = bucket.blob(checked_key(source)), bucket.blob(checked_key(target))
            token, wanted = None, conditions(condition)
            while True:
                token, _, _ = new.rewrite(old, token=token, **wanted, **_NO_RETRY)
                if token is None:
                    return new

        return _info(self.ask(f"copying {source} to {target}", rewrite))

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore. One by one: a batch is as many operations, and none is atomic."""
        side_by_side(keys, self._delete)

    def _delete(self, key: str) -> None:
        name = checked_key(key)
        with contextlib.suppress(NotFound):
            self.ask(f"deleting {key}", lambda bucket: bucket.blob(name).delete(**_NO_RETRY))

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore: none. Google lists no sessions; they cost nothing and end in a week."""
        del prefix
        return iter(())

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore: a session's address is the end of its id."""
        GCSUpload(self, upload.key, upload.id.rpartition(" ")[2], 0, "0").discard()

    def close(self) -> None:
        """See ObjectStore."""
        if self._opened:
            self._opened[0].close()


def conditions(condition: Condition) -> dict[str, int]:
    """The parameters of a request that make it conditional."""
    if isinstance(condition, IfVersion):
        return {"if_generation_match": int(condition.version)}
    return {"if_generation_match": 0} if isinstance(condition, IfAbsent) else {}


def _upload(blob: Any, data: Buffer, wanted: Mapping[str, int]) -> Any:
    blob.upload_from_file(
        io.BytesIO(data),
        size=len(data),
        content_type="application/octet-stream",
        checksum="crc32c",
        **wanted,
        **_NO_RETRY,
    )
    return blob


def _info(blob: Any) -> ObjectInfo:
    modified = blob.updated.timestamp() if blob.updated else 0.0
    return ObjectInfo(blob.name, int(blob.size), str(blob.generation), modified)
