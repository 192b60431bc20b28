"""A multipart upload to S3, part by part."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from syncd.errors import Conflict, Corrupt, NotFound, StoreError, Transient
from syncd.stores.base import Buffer, Condition, IfAbsent, IfVersion, ObjectInfo
from syncd.stores.s3errors import code_of

if TYPE_CHECKING:
    from syncd.stores.s3 import S3Store


class S3Upload:
    """A multipart upload."""

    def __init__(self, store: S3Store, key: str, upload: str, size: int) -> None:
        self.key = key
        self.id = upload
        self._store = store
        self._size = size
        self._parts: dict[int, dict[str, Any]] = {}

    def send(self, number: int, data: Buffer) -> None:
        """See Upload."""
        answer = self._store.send_part(self.key, data, UploadId=self.id, PartNumber=number)
        self._remember(number, answer)

    def copy_part(self, number: int, source: ObjectInfo, start: int, end: int) -> None:
        """Take a range of an object as a part."""
        answer = self._store.ask(
            "upload_part_copy",
            self.key,
            UploadId=self.id,
            PartNumber=number,
            CopySource={"Bucket": self._store.bucket, "Key": source.key},
            CopySourceRange=f"bytes={start}-{end - 1}",
            CopySourceIfMatch=f'"{source.version}"',
        )
        self._remember(number, answer["CopyPartResult"])

    def _remember(self, number: int, answer: Mapping[str, Any]) -> None:
        part = {name: answer[name] for name in ("ETag", "ChecksumCRC32") if name in answer}
        self._parts[number] = {"PartNumber": number, **part}

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        try:
            answer = self._store.ask(
                "complete_multipart_upload",
                self.key,
                UploadId=self.id,
                MultipartUpload={"Parts": parts},
                **conditions(condition),
            )
        except Transient as error:
            if code_of(error.__cause__) == "ConditionalRequestConflict":
                # S3 wants such an upload sent anew from its first part: it is lost
                raise Conflict(f"{self.key} is being written by somebody else") from error
            raise
        except NotFound:
            info = self._store.head(self.key)
            if info.version != self._etag():
                raise
            return info  # the acknowledgement of an earlier try was lost
        info = self._store.head(self.key)
        if info.version == version_of(answer["ETag"]) and info.size != self._size:
            raise Corrupt(f"{self.key} has {info.size} bytes instead of {self._size}")
        return info

    def _etag(self) -> str:
        """The ETag of the whole, as S3 makes it from those of the parts."""
        etags = [version_of(self._parts[number]["ETag"]) for number in sorted(self._parts)]
        if any(len(etag) != 32 for etag in etags):
            return ""
        whole = hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(etags)}"

    def abort(self) -> None:
        """See Upload. What cannot be thrown away now is found by pruning."""
        with contextlib.suppress(StoreError):
            self.discard()

    def discard(self) -> None:
        """Abort until no part is left: one that was still being sent can outlive the first."""
        with contextlib.suppress(NotFound):
            for _ in range(3):
                self._store.ask("abort_multipart_upload", self.key, UploadId=self.id)
                if not self._store.ask("list_parts", self.key, UploadId=self.id).get("Parts"):
                    return


def conditions(condition: Condition) -> dict[str, str]:
    """The parameters of a request that make it conditional."""
    if isinstance(condition, IfVersion):
        return {"IfMatch": f'"{condition.version}"'}
    return {"IfNoneMatch": "*"} if isinstance(condition, IfAbsent) else {}


def version_of(etag: str) -> str:
    """The version of an object: its ETag, which some stores quote and some do not."""
    return etag.strip('"')
