"""Amazon S3 and everything that speaks its language: R2, B2, MinIO, Ceph, SeaweedFS.

Requests go by the lean road (``s3lean``) where that knows the way, else by boto3, which is only
loaded then; both give the same answers, and every decision is made here.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from syncd.errors import Corrupt, NeedsOperator, NotFound, Permanent, StoreError, Transient
from syncd.stores import s3append, s3copy, s3road
from syncd.stores.base import (
    Body,
    Buffer,
    Capabilities,
    Condition,
    IfVersion,
    ObjectInfo,
    PendingUpload,
    SideBySide,
)
from syncd.stores.http1 import Strange
from syncd.stores.s3errors import code_of, refuses_checksums, status_of, translate
from syncd.stores.s3lean import Lean, Refused, can_be_in_xml
from syncd.stores.s3proof import Proof
from syncd.stores.s3upload import S3Upload, conditions, info_of, refuses_wrong, version_of
from syncd.stores.wire import CHUNK, check_installed, checked_key, server_time, side_by_side

_NEXT = {
    "list_parts": {"PartNumberMarker": "NextPartNumberMarker"},
    "list_objects_v2": {"ContinuationToken": "NextContinuationToken"},
    "list_multipart_uploads": {m: f"Next{m}" for m in ("KeyMarker", "UploadIdMarker")},
}
"""What asks for the next page of a listing, and what the last one calls it."""

_NO_BATCH = {"NotImplemented", "MissingContentMD5", "InvalidRequest", "MethodNotAllowed"}


class S3Store(SideBySide):
    """A bucket."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Makes no request; credentials are taken afresh from ``environ`` or boto3's chain."""
        super().__init__()
        check_installed("boto3", "boto3", "s3")
        self._finding_out = threading.RLock()
        self.name = f"s3://{bucket}"
        self.bucket = bucket
        self._environ = environ
        self._endpoint = s3road.endpoint_of(environ)
        self._bucket_seen = False
        self._batch_deletes = True
        self._proof = Proof(environ, partial(refuses_wrong, self))
        if bool(environ.get("AWS_ACCESS_KEY_ID")) != bool(environ.get("AWS_SECRET_ACCESS_KEY")):
            raise NeedsOperator(
                "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set",
                hint="set both, or neither to use a profile or the machine's role",
            )
        self._sdks: dict[str, tuple[Any, Any]] = {}  # by the checksums that they send
        try:
            self._lean = s3road.told(bucket, environ)
        except (OSError, ValueError) as error:
            raise translate(error, "opening the store") from None
        self._may_be_lean = True
        if self._lean is None:
            self._open()
        self.capabilities = Capabilities(
            append_from=Capabilities.min_part_size,
            append_requests=s3append.REQUESTS,
            copy_range=128 * 1024**2,
        )

    def _open(self, plain: bool | None = None) -> tuple[Any, Any]:
        from syncd.stores import s3sdk

        checksums = self._proof.checksums(plain)
        known = self._sdks.get(checksums)
        if known is None:
            known = self._sdks[checksums] = s3sdk.open_sdk(self._environ, checksums)
        return known

    def _road(self) -> Lean | None:
        """The lean road, if there is one; the SDK's credentials are asked for at first use."""
        if self._lean is None and self._may_be_lean:
            self._lean = s3road.beside(*self._open(), self.bucket, self._environ)
            self._may_be_lean = self._lean is not None
        return self._lean

    def _request(self, operation: str, parameters: Mapping[str, Any]) -> Any:
        """Make one request, by the road that knows the way; errors come as they are."""
        lean = self._road()
        if lean and lean.can(operation, parameters):
            try:
                return lean.call(operation, parameters)
            except Strange:
                self._only_sdk()
        return getattr(self._open()[0], operation)(Bucket=self.bucket, **parameters)

    def _only_sdk(self) -> None:
        self._lean, self._may_be_lean = None, False

    def ask(self, operation: str, key: str = "", **parameters: Any) -> Any:
        """Make one request; what is raised becomes an error of this package."""
        if key:
            parameters["Key"] = checked_key(key)
        try:
            answer = self._request(operation, parameters)
        except _failures() as error:
            raise translate(error, f"{operation} {key}".strip()) from error
        self._bucket_seen = True
        return answer

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        answer = self._send_body("put_object", key, data, **conditions(condition))
        return self._is_put(key, data, answer)

    def _is_put(self, key: str, data: Buffer, answer: Mapping[str, Any]) -> ObjectInfo:
        """The object that a put has made; Corrupt if the store has received another."""
        if not self._proof.arrived(key, data, answer):
            if b"".join(self.read(key, version=version_of(answer["ETag"]))) != bytes(data):
                raise Corrupt(f"{key} arrived with other content", hint="it is sent again")
            self._proof.etag_is_no_md5()
        modified = server_time(answer["ResponseMetadata"]["HTTPHeaders"])
        return ObjectInfo(key, len(data), version_of(answer["ETag"]), modified)

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore. The very first goes alone: it shows which checksums the store takes."""
        waiting, sent = iter(bodies), deque[Body]()
        if not self._proof.shown:
            yield from super().put_each(islice(waiting, 1))
        lean = self._road()
        if lean is None:
            yield from super().put_each(waiting)
            return
        for answer in lean.each("put_object", self._puts(waiting, sent)):
            body = sent.popleft()
            if isinstance(answer, Strange):
                self._only_sdk()
                yield from super().put_each([body])
            elif isinstance(answer, Exception):
                what = f"put_object {body.key}"
                yield answer if isinstance(answer, StoreError) else translate(answer, what)
            else:
                try:
                    yield self._is_put(body.key, body.data, answer)
                except StoreError as error:
                    yield error

    def _puts(self, bodies: Iterable[Body], sent: deque[Body]) -> Iterator[Mapping[str, Any]]:
        for body in bodies:
            sent.append(body)
            proof = {**self._proof.headers(body.data), **conditions(body.condition)}
            yield {"Key": body.key, "Body": body.data, **proof}

    def _send_body(self, operation: str, key: str, data: Buffer, **parameters: Any) -> Any:
        """Send a body with a checksum that the store verifies."""
        parameters |= {"Key": checked_key(key), "Body": data}
        what, plain = f"{operation} {key}", self._proof.plain
        try:
            answer = self._send_once(operation, data, parameters, plain)
        except _failures() as error:
            if plain or not self._endpoint or not refuses_checksums(error):
                raise translate(error, what) from error
            answer = self._without_checksums(operation, data, parameters, what)
        self._bucket_seen = True
        return answer

    def _send_once(
        self, operation: str, data: Buffer, parameters: Mapping[str, Any], plain: bool
    ) -> Any:
        proof = {} if "ContentMD5" in parameters else self._proof.headers(data, plain)
        proven = {**parameters, **proof}
        lean = self._road()
        if lean:
            try:
                return {**lean.call(operation, proven), "Sent": proven.get("ChecksumCRC32")}
            except Strange:
                self._only_sdk()
        proven.pop("ChecksumCRC32", None)  # the SDK computes it, in the form that it prefers
        if not plain:
            proven.pop("ContentMD5", None)  # and has told the upload of it
        proven["Body"] = data if isinstance(data, bytes | bytearray) else bytes(data)
        return getattr(self._open(plain)[0], operation)(Bucket=self.bucket, **proven)

    def _without_checksums(
        self, operation: str, data: Buffer, parameters: Mapping[str, Any], what: str
    ) -> Any:
        """Try once in the form that older stores know, and keep to it if it is accepted.

        Over https botocore sends its CRC32 behind the body (aws-chunked), which Ceph up to 16
        answers by 411, and others refuse the header.
        """
        try:
            with self._plainly():
                return self._send_once(operation, data, parameters, True)
        except _failures() as error:
            raise translate(error, what) from error

    def send_part(self, key: str, data: Buffer, **parameters: Any) -> Any:
        """Send one part of an upload; Corrupt if the store has received another."""
        answer = self._send_body("upload_part", key, data, **parameters)
        self._proof.arrived(key, data, answer)
        return answer

    def start_upload(self, key: str, size: int, copies: bool = False) -> S3Upload:
        """See ObjectStore."""
        return S3Upload(self, key, self.begin_upload(key, copies), size, copies)

    def begin_upload(self, key: str, copies: bool = False) -> str:
        """The id of a new upload, which is told what checksums its parts come with.

        MinIO copies no part into one that was: there the others come with their MD5, untold.
        """
        told = {} if copies else self._proof.algorithm
        try:
            return str(self.ask("create_multipart_upload", key, **told)["UploadId"])
        except StoreError as error:
            if not (told and self._endpoint and refuses_checksums(error.__cause__)):
                raise
        with self._plainly():
            return str(self.ask("create_multipart_upload", key)["UploadId"])

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Speak as older stores do, and keep to that if it is accepted; one thread finds out."""
        with self._finding_out:
            known, self._proof.plain = self._proof.plain, True
            try:
                yield
            except BaseException:
                self._proof.plain = known
                raise

    def resume_upload(
        self, key: str, upload_id: str, size: int, tags: Mapping[int, str]
    ) -> S3Upload:
        """See ObjectStore."""
        upload = S3Upload(self, key, upload_id, size)
        upload.take_up(tags)
        return upload

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """See ObjectStore."""
        del aside
        return s3append.append(self, key, base, tail)

    # -- reading

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """See ObjectStore."""
        waiting, lean = list(wanted), self._road()
        if lean is None:
            yield from super().read_each(waiting)
            return
        requests = ({"Key": key, "Range": f"bytes=0-{length - 1}"} for key, length in waiting)
        answers = lean.each("get_object", requests)
        for (key, length), answer in zip(waiting, answers, strict=True):
            if isinstance(answer, Exception):
                yield from super().read_each([(key, length)])  # for whatever is wrong with it
            else:
                yield answer["Data"]

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore."""
        if length is not None and length <= 0:
            return
        whole = start == 0 and length is None
        last = "" if length is None else start + length - 1
        asked = {} if whole else {"Range": f"bytes={start}-{last}"}
        try:
            answer = self.ask(
                "get_object", key, **asked, **conditions(IfVersion(version) if version else None)
            )
        except Permanent as error:
            if code_of(error.__cause__) == "InvalidRange" or status_of(error.__cause__) == 416:
                return  # from the very end of an object there is nothing to read
            raise
        if not whole and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise Permanent(f"{self.name} does not answer ranges of {key}")
        left, body = answer["ContentLength"], answer["Body"]
        try:
            while left > 0:
                chunk = body.read(min(CHUNK, left))
                if not chunk:
                    raise Transient(f"{key} broke off {left} bytes before its end")
                left -= len(chunk)
                yield chunk
        except _failures() as error:
            raise translate(error, f"reading {key}") from error
        finally:
            body.close()

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        try:
            answer = self.ask("head_object", key)
        except (NeedsOperator, Permanent) as error:
            # the answer to HEAD has no body that could say why: this one has
            if error.__cause__ and not (self._bucket_seen and isinstance(error, NotFound)):
                self.ask("list_objects_v2", Prefix=key, MaxKeys=1)
            raise
        return info_of(key, answer["ContentLength"], answer["ETag"], answer["LastModified"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        for page in self.pages("list_objects_v2", Prefix=prefix):
            for item in page.get("Contents", ()):
                yield info_of(item["Key"], item["Size"], item["ETag"], item["LastModified"])

    def pages(self, operation: str, **parameters: Any) -> Iterator[Any]:
        """Every page of a listing."""
        while True:
            try:
                page = self._request(operation, parameters)
            except _failures() as error:
                raise translate(error, f"listing {self.name}") from error
            self._bucket_seen = True
            yield page
            following = {
                name: page[told]
                for name, told in _NEXT[operation].items()
                if page.get("IsTruncated") and page.get(told)
            }
            if following.items() <= parameters.items():
                return  # it was the last one, or the store goes round in a circle
            parameters = {**parameters, **following}

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. Conditions on a copy are refused: S3 itself knows none."""
        if condition is not None:
            raise Permanent(f"{self.name} cannot copy on a condition")
        return s3copy.copy(self, source, target)

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore."""
        remaining = iter(keys)
        while batch := tuple(islice(remaining, 1000)):
            if self._batch_deletes:
                try:
                    batch = self._delete_batch(batch)
                except Permanent as error:
                    if code_of(error.__cause__) not in _NO_BATCH:
                        raise
                    self._batch_deletes = False
            side_by_side(batch, self._delete)

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            self.ask("delete_object", key)

    def _delete_batch(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Delete those that a document can name; return the others."""
        named = [{"Key": checked_key(key)} for key in keys if can_be_in_xml(key)]
        wanted = {"Objects": named, "Quiet": True}
        answer = self.ask("delete_objects", Delete=wanted) if named else {}
        for fault in answer.get("Errors", ()):
            if fault.get("Code") != "NoSuchKey":
                refusal = Refused(200, {}, b"")
                refusal.response["Error"] = dict(fault)
                raise translate(refusal, f"deleting {fault.get('Key')}") from refusal
        return tuple(key for key in keys if not can_be_in_xml(key))

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore."""
        for page in self.pages("list_multipart_uploads", Prefix=prefix):
            for item in page.get("Uploads", ()):
                started = item["Initiated"].timestamp()
                yield PendingUpload(item["Key"], item["UploadId"], started)

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore."""
        S3Upload(self, upload.key, upload.id, 0).discard()

    def close(self) -> None:
        """See ObjectStore."""
        if self._lean:
            self._lean.close()
        for client, _ in list(self._sdks.values()):
            client.close()


def _failures() -> tuple[type[Exception], ...]:
    """What a request can raise; of the SDK, only if it was loaded."""
    sdk = sys.modules.get("syncd.stores.s3sdk")
    return (Refused, OSError, ValueError, *(sdk.FAILURES if sdk else ()))
