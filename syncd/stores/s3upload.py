"""A multipart upload to S3, part by part."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from syncd.errors import (
    Conflict,
    Corrupt,
    NeedsOperator,
    NotFound,
    Permanent,
    StoreError,
    Transient,
)
from syncd.stores.base import Buffer, Condition, IfAbsent, IfVersion, ObjectInfo
from syncd.stores.s3errors import code_of

if TYPE_CHECKING:
    from syncd.stores.s3 import S3Store


class S3Upload:
    """A multipart upload."""

    def __init__(
        self, store: S3Store, key: str, upload: str, size: int, copies: bool = False
    ) -> None:
        """``copies``: it was not told of checksums, so that parts may be copied into it."""
        self.key = key
        self.id = upload
        self._store = store
        self._size = size
        self._copies = copies
        self._parts: dict[int, dict[str, Any]] = {}
        self._there: dict[int, Mapping[str, Any]] = {}
        self._made: ObjectInfo | None = None

    def take_up(self, tags: Mapping[int, str]) -> None:
        """Learn which parts are there; NotFound if this upload is gone, and has made no object.

        What the tags hold tells whether it was told of checksums; without any nothing is lost.
        """
        if not tags:
            raise NotFound(f"nothing of the upload of {self.key} has arrived")
        self._copies = not any(" " in tag for tag in tags.values())
        try:
            for page in self._store.pages("list_parts", Key=self.key, UploadId=self.id):
                self._there.update({part["PartNumber"]: part for part in page.get("Parts", ())})
        except (Permanent, NeedsOperator) as gone:
            # there are stores, and rights, that do not let parts be listed
            if isinstance(gone, NeedsOperator) and code_of(gone.__cause__) != "AccessDenied":
                raise
            self._parts = {number: _part(number, tags[number]) for number in tags}
            made = self._store.head(self.key)
            if (made.version, made.size) != (self._etag(), self._size):
                raise NotFound(f"the upload of {self.key} is gone") from gone
            self._made = made
        known = {n: _part(n, tag) for n, tag in tags.items()}
        self._there = {  # not every store lists the checksum of a part that it has copied
            n: {**known[n], **part}
            for n, part in self._there.items()
            if n in known and version_of(part["ETag"]) == known[n]["ETag"]
        }

    def send(self, number: int, data: Buffer) -> str:
        """See Upload."""
        where = {"UploadId": self.id, "PartNumber": number}
        proof = md5(data) if self._copies else {}
        return self._remember(number, self._store.send_part(self.key, data, **where, **proof))

    def holds(self, number: int, data: Buffer) -> bool:
        """See Upload. The tag is the one that the store has given to the part when it came."""
        crc32 = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        same = self._there.get(number, {}).get("ChecksumCRC32", crc32) == crc32
        return same and self.has(number, len(data))

    def has(self, number: int, length: int) -> bool:
        """See Upload."""
        if self._made:
            return number in self._parts
        part = self._there.get(number, {})
        if part.get("Size") != length:
            return False
        self._remember(number, part)
        return True

    def copy(self, number: int, source: ObjectInfo, start: int, length: int) -> str:
        """See Upload."""
        answer = self._store.ask(
            "upload_part_copy",
            self.key,
            UploadId=self.id,
            PartNumber=number,
            CopySource={"Bucket": self._store.bucket, "Key": source.key},
            CopySourceRange=f"bytes={start}-{start + length - 1}",
            CopySourceIfMatch=f'"{source.version}"',
        )
        copied: Mapping[str, Any] = answer.get("CopyPartResult", {})
        if "ETag" not in copied:  # it has taken this for a part without content
            raise Permanent(f"{self._store.name} copies no ranges of objects")
        return self._remember(number, copied)

    def _remember(self, number: int, answer: Mapping[str, Any]) -> str:
        names = ("ETag",) if self._copies else ("ETag", "ChecksumCRC32")
        part = {name: answer[name] for name in names if name in answer}
        self._parts[number] = {"PartNumber": number, **part}
        return _tag(part)

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload."""
        if self._made:
            return self._made
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
        except (NotFound, Conflict):
            with contextlib.suppress(NotFound):
                info = self._store.head(self.key)
                if info.version == self._etag():
                    self.abort()  # else what another machine has put there is the same
                    return info  # the acknowledgement of an earlier try was lost
            raise
        info, made = self._store.head(self.key), version_of(answer["ETag"])
        if info.version == made and info.size != self._size:
            raise Corrupt(f"{self.key} has {info.size} bytes instead of {self._size}")
        if info.version != made == self._etag():  # another machine has replaced it since
            return replace(info, size=self._size, version=made)
        return info  # there may be stores with other ETags in these two answers

    def _etag(self) -> str:
        """The ETag of the whole, as S3 makes it from those of the parts."""
        etags = [version_of(self._parts[number]["ETag"]) for number in sorted(self._parts)]
        if not etags or any(len(etag) != 32 for etag in etags):
            return ""
        whole = hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(etags)}"

    def abort(self) -> None:
        """See Upload. What cannot be thrown away now is found by pruning."""
        with contextlib.suppress(StoreError):
            self.discard()

    def leave(self) -> None:
        """See Upload: nothing is held here."""

    def discard(self) -> None:
        """Abort until no part is left: one that was still being sent can outlive the first."""
        with contextlib.suppress(NotFound):
            for _ in range(3):
                self._store.ask("abort_multipart_upload", self.key, UploadId=self.id)
                if not self._store.ask("list_parts", self.key, UploadId=self.id).get("Parts"):
                    return
            raise Transient(f"parts of {self.key} still arrive after its upload was aborted")


def refuses_wrong(store: S3Store, key: str, body: Mapping[str, Any]) -> bool:
    """Whether the store refuses a part whose checksum is wrong; of no upload that matters."""
    upload = S3Upload(store, key, store.begin_upload(key), 1)
    try:
        store.ask("upload_part", key, UploadId=upload.id, PartNumber=1, **body)
    except (Corrupt, Permanent):
        return True
    finally:
        upload.abort()
    return False


def _tag(part: Mapping[str, Any]) -> str:
    """What S3 calls a part, and its checksum: by these it is asked for in the end."""
    return " ".join([version_of(part["ETag"]), *filter(None, [part.get("ChecksumCRC32")])])


def _part(number: int, tag: str) -> dict[str, Any]:
    etag, _, crc32 = tag.partition(" ")
    return {"PartNumber": number, "ETag": etag, **({"ChecksumCRC32": crc32} if crc32 else {})}


def md5(data: Buffer) -> dict[str, str]:
    """The checksum that every store knows, and that costs the most."""
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"ContentMD5": base64.b64encode(digest).decode()}


def conditions(condition: Condition) -> dict[str, str]:
    """The parameters of a request that make it conditional."""
    if isinstance(condition, IfVersion):
        return {"IfMatch": f'"{condition.version}"'}
    return {"IfNoneMatch": "*"} if isinstance(condition, IfAbsent) else {}


def version_of(etag: str) -> str:
    """The version of an object: its ETag, which some stores quote and some do not.

    A proxy that packs what it passes on calls it weak, and the store knows it by the rest.
    """
    return etag.removeprefix("W/").strip('"')


def info_of(key: str, size: int, etag: str, modified: datetime) -> ObjectInfo:
    """An object as the store's answers describe it."""
    return ObjectInfo(key, size, version_of(etag), modified.timestamp())
