"""Copies within S3, at any size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from syncd.errors import Permanent
from syncd.stores.base import ObjectInfo
from syncd.stores.s3errors import status_of
from syncd.stores.s3upload import info_of

if TYPE_CHECKING:
    from syncd.stores.s3 import S3Store

_COPY_WHOLE = 1024**3
"""Larger objects are copied by ranges, side by side: one request of 5 GB, which S3 allows, can
last longer than the time-out of its answer."""
_COPY_RANGE = 512 * 1024**2
_LARGEST_COPY = 5 * 1024**3


def copy(store: S3Store, source: str, target: str) -> ObjectInfo:
    """See ObjectStore."""
    found = store.head(source)
    if found.size > _COPY_WHOLE:
        try:
            return _copy_ranges(store, found, target)
        except Permanent as error:
            if status_of(error.__cause__) != 501 or found.size > _LARGEST_COPY:
                raise
    where = {"Bucket": store.bucket, "Key": source}
    answer = store.ask("copy_object", target, CopySource=where).get("CopyObjectResult", {})
    if "ETag" not in answer:
        raise Permanent(f"{store.name} does not say what it has made of a copy of {source}")
    return info_of(target, found.size, answer["ETag"], answer["LastModified"])


def _copy_ranges(store: S3Store, found: ObjectInfo, target: str) -> ObjectInfo:
    upload = store.start_upload(target, found.size, copies=True)
    step = max(_COPY_RANGE, -(-found.size // store.capabilities.max_parts))
    try:
        with ThreadPoolExecutor(4) as pool:
            starts = enumerate(range(0, found.size, step), start=1)
            jobs = [
                pool.submit(upload.copy, n, found, at, min(step, found.size - at))
                for n, at in starts
            ]
            for job in jobs:
                job.result()
        return upload.finish()
    except BaseException:
        upload.abort()
        raise
