"""Amazon S3 and everything that speaks its language: R2, B2, MinIO, Ceph, SeaweedFS.

boto3's transfer manager and its CRT are not used: parts are cut by the caller, and the CRT
ignores the endpoint.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from syncd.errors import (
    Corrupt,
    NeedsOperator,
    NotFound,
    Permanent,
    Transient,
)
from syncd.stores.base import (
    Buffer,
    Capabilities,
    Condition,
    IfVersion,
    ObjectInfo,
    PendingUpload,
)
from syncd.stores.wire import (
    CHUNK,
    CONNECT_TIMEOUT,
    CONNECTIONS,
    READ_TIMEOUT,
    checked_key,
    quiet,
    server_time,
    side_by_side,
)

try:
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from urllib3.exceptions import HTTPError

    from syncd.stores import s3append
    from syncd.stores.s3errors import code_of, refuses_checksums, status_of, translate
    from syncd.stores.s3upload import S3Upload, conditions, version_of
except ImportError as missing:
    raise NeedsOperator("boto3 is not installed", hint="pip install 'syncd[s3]'") from missing

_FAILURES = (BotoCoreError, ClientError, HTTPClientError, HTTPError, OSError, ValueError)

_COPY_WHOLE = 1024**3
"""Larger objects are copied by ranges, side by side: one request of 5 GB, which S3 allows, can
last longer than the time-out of its answer."""
_COPY_RANGE = 512 * 1024**2
_LARGEST_COPY = 5 * 1024**3

_VIRTUAL_HOSTS = ("amazonaws.com", "aliyuncs.com", "myqcloud.com", "volces.com")
"""Where the bucket must be part of the host name; everywhere else a path is safer."""

_NO_BATCH = {"NotImplemented", "MissingContentMD5", "InvalidRequest", "MethodNotAllowed"}


class S3Store:
    """A bucket."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Makes no request; credentials are taken afresh from ``environ`` or boto3's chain."""
        quiet("boto3", "botocore", "urllib3")
        self.name = f"s3://{bucket}"
        self.capabilities = Capabilities(
            append_from=Capabilities.min_part_size, append_requests=s3append.REQUESTS
        )
        self.bucket = bucket
        self._environ = environ
        self._endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        self._bucket_seen = False
        self._batch_deletes = True
        self._etag_is_md5: bool | None = None
        self._plain = False
        """Whether the store has refused botocore's checksums, and Content-MD5 is sent instead."""
        self._client = self._open(
            environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported").lower()
        )

    def _open(self, checksums: str) -> Any:
        environ = self._environ
        session = botocore.session.Session()  # a session of one's own reads credential files anew
        for variable, name in (
            ("profile", "AWS_PROFILE"),
            ("credentials_file", "AWS_SHARED_CREDENTIALS_FILE"),
            ("config_file", "AWS_CONFIG_FILE"),
        ):
            if environ.get(name):
                session.set_config_variable(variable, environ[name])
        key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
        if bool(key) != bool(secret):
            raise NeedsOperator(
                "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set",
                hint="set both, or neither to use a profile or the machine's role",
            )
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        host = urlsplit(self._endpoint or "").hostname or ""
        style = "auto" if not host or host.endswith(_VIRTUAL_HOSTS) else "path"
        try:
            return boto3.session.Session(
                aws_access_key_id=key or None,
                aws_secret_access_key=secret or None,
                aws_session_token=(environ.get("AWS_SESSION_TOKEN") or None) if key else None,
                region_name=region or session.get_config_variable("region") or "us-east-1",
                botocore_session=session,
            ).client(
                "s3",
                endpoint_url=self._endpoint or None,
                verify=environ.get("AWS_CA_BUNDLE") or None,
                config=Config(
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    connect_timeout=CONNECT_TIMEOUT,
                    read_timeout=READ_TIMEOUT,
                    max_pool_connections=CONNECTIONS,
                    tcp_keepalive=True,
                    request_checksum_calculation=checksums,
                    # every file that is restored is proven by its SHA-256, and some stores
                    # answer a range with the checksum of the whole
                    response_checksum_validation="when_required",
                    s3={"addressing_style": style},
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise translate(error, "opening the store") from None

    def ask(self, operation: str, key: str = "", **parameters: Any) -> Any:
        """Make one request; what botocore raises becomes an error of this package."""
        if key:
            parameters["Key"] = checked_key(key)
        try:
            answer = getattr(self._client, operation)(Bucket=self.bucket, **parameters)
        except _FAILURES as error:
            raise translate(error, f"{operation} {key}".strip()) from error
        self._bucket_seen = True
        return answer

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        answer = self._send_body("put_object", key, data, **conditions(condition))
        if not self._arrived(key, data, answer):
            if b"".join(self.read(key, version=version_of(answer["ETag"]))) != bytes(data):
                raise Corrupt(f"{key} arrived with other content", hint="it is sent again")
            self._etag_is_md5 = False
        modified = server_time(answer["ResponseMetadata"]["HTTPHeaders"])
        return ObjectInfo(key, len(data), version_of(answer["ETag"]), modified)

    def _send_body(self, operation: str, key: str, data: Buffer, **parameters: Any) -> Any:
        """Send a body with a checksum that the store verifies."""
        body = data if isinstance(data, bytes | bytearray) else bytes(data)

        what = f"{operation} {key}"

        def request(client: Any, plain: bool) -> Any:
            md5 = {}
            if plain:
                digest = hashlib.md5(body, usedforsecurity=False).digest()
                md5["ContentMD5"] = _base64(digest)
            method = getattr(client, operation)
            return method(Bucket=self.bucket, Key=checked_key(key), Body=body, **md5, **parameters)

        try:
            answer = request(self._client, self._plain)
        except _FAILURES as error:
            if self._plain or not self._endpoint or not refuses_checksums(error):
                raise translate(error, what) from error
            answer = self._without_checksums(request, what)
        self._bucket_seen = True
        return answer

    def _without_checksums(self, request: Callable[[Any, bool], Any], what: str) -> Any:
        """Try once in the form that older stores know, and keep to it if it is accepted.

        Over https botocore sends its CRC32 behind the body (aws-chunked), which Ceph up to 16
        answers by 411, and others refuse the header.
        """
        client = self._open("when_required")
        try:
            answer = request(client, True)
        except _FAILURES as error:
            raise translate(error, what) from error
        self._client, self._plain = client, True
        return answer

    def _arrived(self, key: str, data: Buffer, answer: Mapping[str, Any]) -> bool:
        """Compare what the store says it has with what was sent; False: only reading back tells.

        Amazon verifies the checksum. Others may echo it unread, but their ETag, mostly, is the
        MD5 of what arrived; that it is has been seen once an ETag was the MD5 of its content.
        """
        crc32 = answer.get("ChecksumCRC32")
        if crc32 and crc32 != _base64(zlib.crc32(data).to_bytes(4, "big")):
            raise Corrupt(f"{key} arrived with another checksum", hint="it is sent again")
        if (crc32 and not self._endpoint) or self._etag_is_md5 is False:
            return True
        etag = version_of(answer["ETag"])
        if len(etag) != 32 or "kms" in answer.get("ServerSideEncryption", ""):
            return True
        if etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            self._etag_is_md5 = True
            return True
        if self._etag_is_md5:
            raise Corrupt(f"{key} arrived with other content", hint="it is sent again")
        return False

    def send_part(self, key: str, data: Buffer, **parameters: Any) -> Any:
        """Send one part of an upload; Corrupt if the store has received another."""
        answer = self._send_body("upload_part", key, data, **parameters)
        self._arrived(key, data, answer)
        return answer

    def start_upload(self, key: str, size: int) -> S3Upload:
        """See ObjectStore."""
        answer = self.ask("create_multipart_upload", key)
        return S3Upload(self, key, answer["UploadId"], size)

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
        except _FAILURES as error:
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
        return _info(key, answer["ContentLength"], answer["ETag"], answer["LastModified"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        for page in self.pages("list_objects_v2", Prefix=prefix):
            for item in page.get("Contents", ()):
                yield _info(item["Key"], item["Size"], item["ETag"], item["LastModified"])

    def pages(self, operation: str, **parameters: Any) -> Iterator[Any]:
        """Every page of a listing."""
        paginator = self._client.get_paginator(operation)
        try:
            for page in paginator.paginate(Bucket=self.bucket, **parameters):
                self._bucket_seen = True
                yield page
        except _FAILURES as error:
            raise translate(error, f"listing {self.name}") from error

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. Conditions on a copy are refused: S3 itself knows none."""
        if condition is not None:
            raise Permanent(f"{self.name} cannot copy on a condition")
        found = self.head(source)
        if found.size > _COPY_WHOLE:
            try:
                return self._copy_ranges(found, target)
            except Permanent as error:
                if status_of(error.__cause__) != 501 or found.size > _LARGEST_COPY:
                    raise
        where = {"Bucket": self.bucket, "Key": source}
        answer = self.ask("copy_object", target, CopySource=where)["CopyObjectResult"]
        return _info(target, found.size, answer["ETag"], answer["LastModified"])

    def _copy_ranges(self, found: ObjectInfo, target: str) -> ObjectInfo:
        upload = self.start_upload(target, found.size)
        step = max(_COPY_RANGE, -(-found.size // self.capabilities.max_parts))
        try:
            with ThreadPoolExecutor(4) as pool:
                starts = enumerate(range(0, found.size, step), start=1)
                jobs = [
                    pool.submit(upload.copy_part, n, found, at, min(at + step, found.size))
                    for n, at in starts
                ]
                for job in jobs:
                    job.result()
            return upload.finish()
        except BaseException:
            upload.abort()
            raise

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore."""
        remaining = iter(keys)
        while batch := list(islice(remaining, 1000)):
            if self._batch_deletes:
                try:
                    self._delete_batch(batch)
                    continue
                except Permanent as error:
                    if code_of(error.__cause__) not in _NO_BATCH:
                        raise
                    self._batch_deletes = False
            side_by_side(batch, self._delete)

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            self.ask("delete_object", key)

    def _delete_batch(self, keys: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": checked_key(key)} for key in keys], "Quiet": True}
        answer = self.ask("delete_objects", Delete=wanted)
        for fault in answer.get("Errors", ()):
            if fault.get("Code") != "NoSuchKey":
                refusal = ClientError({"Error": fault}, "DeleteObjects")
                raise translate(refusal, f"deleting {fault.get('Key')}") from refusal

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
        self._client.close()


def _info(key: str, size: int, etag: str, modified: datetime) -> ObjectInfo:
    return ObjectInfo(key, size, version_of(etag), modified.timestamp())


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
