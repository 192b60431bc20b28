"""Appending to an object of S3: its bytes are copied as parts within the store, the tail is sent.

Every part but the last must have 5 MiB, so an object below that cannot be the base.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from syncd.errors import Conflict, NotFound, Permanent, StoreError
from syncd.stores.base import Buffer, IfVersion, ObjectInfo
from syncd.stores.s3upload import conditions, md5, version_of
from syncd.stores.wire import server_time

if TYPE_CHECKING:
    from syncd.stores.s3 import S3Store

_RANGE = 512 * 1024**2
"""Bytes copied by one request at most: it must be answered within the time-out of an answer."""

REQUESTS = 4
"""Start, copy, send, complete."""


def append(store: S3Store, key: str, base: ObjectInfo, tail: Buffer) -> ObjectInfo:
    """See ObjectStore. An upload that fails leaves nothing: the next try starts its own."""
    upload = store.begin_upload(key, copies=True)
    try:
        parts = _copied(store, key, base, upload)
        number = len(parts) + 1
        where = {"UploadId": upload, "PartNumber": number}
        answer = store.send_part(key, tail, **where, **md5(tail))
        parts.append(_part(number, answer))
        made = store.ask(
            "complete_multipart_upload",
            key,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
            **conditions(IfVersion(base.version)),
        )
    except BaseException as error:
        with contextlib.suppress(StoreError):
            store.ask("abort_multipart_upload", key, UploadId=upload)
        if isinstance(error, NotFound):
            raise Conflict(f"{key} is not there any more") from error
        raise
    modified = server_time(made["ResponseMetadata"]["HTTPHeaders"])
    return ObjectInfo(key, base.size + len(tail), version_of(made["ETag"]), modified)


def _copied(store: S3Store, key: str, base: ObjectInfo, upload: str) -> list[dict[str, Any]]:
    """The base as parts of much the same size, none of them small."""
    count = -(-base.size // _RANGE)
    step = -(-base.size // count)
    parts = []
    for number, start in enumerate(range(0, base.size, step), start=1):
        answer = store.ask(
            "upload_part_copy",
            key,
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": store.bucket, "Key": key},
            CopySourceRange=f"bytes={start}-{min(start + step, base.size) - 1}",
            CopySourceIfMatch=f'"{base.version}"',
        )
        if "ETag" not in answer.get("CopyPartResult", {}):  # taken for a part without content
            raise Permanent(f"{store.name} copies no ranges of objects")
        parts.append(_part(number, answer["CopyPartResult"]))
    return parts


def _part(number: int, answer: Any) -> dict[str, Any]:
    return {"PartNumber": number, "ETag": answer["ETag"]}
