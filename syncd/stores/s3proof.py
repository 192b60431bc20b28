"""How it is known that a store has received what was sent: checksums sent along, and compared."""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from syncd.errors import Corrupt, StoreError
from syncd.stores.base import Buffer
from syncd.stores.s3road import endpoint_of
from syncd.stores.s3upload import md5, version_of

_COMPARED = 32 * 1024**2
"""Bytes after which it is worth while to find out whether the store verifies checksums."""


class Proof:
    """What is known of one store's checksums."""

    def __init__(
        self, environ: Mapping[str, str], trial: Callable[[str, Mapping[str, Any]], bool]
    ) -> None:
        """``trial`` sends a body that is wrong to a key; True if the store refuses it."""
        wanted = environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported").lower()
        self._wanted = wanted
        self._amazon = not endpoint_of(environ)
        self._trial = trial
        self._etag_is_md5: bool | None = None
        self._verifies: bool | None = None
        self._compared = 0
        self._lock = threading.Lock()
        self.plain = False
        """Whether the store has refused the newer checksums, and Content-MD5 is sent instead."""
        self.shown = False
        """Whether something has arrived, so that it is known what the store takes."""

    def checksums(self, plain: bool | None = None) -> str:
        """The SDK's word for what is sent along."""
        return "when_required" if (self.plain if plain is None else plain) else self._wanted

    @property
    def algorithm(self) -> dict[str, str]:
        """What an upload is begun with whose parts have the checksums of ``headers``.

        Amazon refuses a part with a checksum in an upload that was begun without ("Checksum Type
        mismatch occurred, expected checksum Type: null, actual checksum Type: crc32").
        """
        told = not self.plain and self._wanted == "when_supported"
        return {"ChecksumAlgorithm": "CRC32"} if told else {}

    def headers(self, data: Buffer, plain: bool | None = None) -> dict[str, str]:
        """The checksum of a body by which the store verifies what has arrived."""
        if self.plain if plain is None else plain:
            return md5(data)
        return {"ChecksumCRC32": _crc32(data)} if self._wanted == "when_supported" else {}

    def arrived(self, key: str, data: Buffer, answer: Mapping[str, Any]) -> bool:
        """Compare what the store says it has with what was sent; False: only reading back tells.

        Amazon verifies the checksum, and others show by a trial that they do. Some echo it unread,
        but their ETag, mostly, is the MD5 of what arrived; that it is has been seen once an ETag
        was the MD5 of its content.
        """
        self.shown = True
        crc32 = answer.get("ChecksumCRC32")
        if crc32 and crc32 != (answer.get("Sent") or _crc32(data)):
            raise Corrupt(f"{key} arrived with another checksum", hint="it is sent again")
        if (crc32 and self._amazon) or self._etag_is_md5 is False:
            return True
        if self.checksums() == "when_supported" and self._is_verified(key, len(data)):
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

    def etag_is_no_md5(self) -> None:
        """Content that was read back was right, though its ETag is not its MD5."""
        self._etag_is_md5 = False

    def _is_verified(self, key: str, size: int) -> bool:
        """Whether the store refuses a body that does not have the checksum sent with it.

        An MD5 costs more than all else that is done to a byte here. So once many bytes have been
        compared by it, this is tried.
        """
        with self._lock:
            self._compared += size
            if self._verifies is None and self._compared > _COMPARED:
                wrong = {"Body": b"x", "ChecksumCRC32": _crc32(b"other")}
                try:
                    self._verifies = self._trial(key, wrong)
                except StoreError:
                    self._compared = 0  # no answer to the question: it is asked again later
            return bool(self._verifies)


def _crc32(data: Buffer) -> str:
    return _base64(zlib.crc32(data).to_bytes(4, "big"))


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
