"""The encrypted form of bytes: blocks of 1 MiB by AES-256-GCM, each proven before it is used.

A block says which object it is of, how long that object is, and with which salt its key was
derived; its nonce is its number. So no block can be changed, moved, left out or be another
object's. docs/format.md describes it bit by bit; cipher and derivation are ``cryptography``'s.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from syncd.errors import Corrupt, Locked, NeedsOperator
from syncd.keys import key_name
from syncd.stores.base import Buffer

BLOCK = 1024 * 1024
"""Bytes of each block but the last, as it is stored."""

_HEAD = struct.Struct(">4s16s16sQ")
_MAGIC = b"SYE1"
_TAG = 16
_EXTRA = _HEAD.size + _TAG

PLAIN = BLOCK - _EXTRA
"""Bytes of content in each block but the last."""

_ENVELOPE = '{"format": 2, "key": "%s", "sealed": "'
_CLOSE = b'"}'
_AROUND = len(_ENVELOPE % "01234567") + len(_CLOSE) + 1


_PIP = "pip install 'syncd[encrypt]'"


@dataclass(frozen=True)
class Place:
    """Which blocks are sealed: of which object, from which number on, of how many bytes in all.

    No two contents may ever be sealed with the same ``salt``, unless their blocks have other
    numbers: the key is derived from it, and the nonce is the number.
    """

    object: bytes
    salt: bytes
    first: int
    total: int


class Sealer:
    """Seals and opens with one key of 32 bytes; the key is in no message and no repr."""

    def __init__(self, key: bytes) -> None:
        """NeedsOperator where the package is missing."""
        try:
            from cryptography.hazmat.primitives import hashes
            from cryptography.hazmat.primitives.ciphers import aead
            from cryptography.hazmat.primitives.kdf import hkdf
        except ImportError:
            raise NeedsOperator(
                "encryption is on, and cryptography is not installed", hint=_PIP
            ) from None
        self._aead: Any = aead.AESGCM
        if not hasattr(self._aead, "encrypt_into"):
            raise NeedsOperator("encryption needs cryptography 47 or newer", hint=_PIP)

        def derive(salt: bytes, use: bytes) -> bytes:
            return hkdf.HKDF(hashes.SHA256(), 32, salt, b"syncd 1 " + use).derive(key)

        self._derive = derive
        self._places = derive(b"", b"places")
        self.name = key_name(key)

    def fresh(self, total: int) -> Place:
        """A place of an object that is sealed in one go."""
        return Place(secrets.token_bytes(16), secrets.token_bytes(16), 0, total)

    def object_of(self, upload: str) -> bytes:
        """The id of an object that is made by an upload: the same in each life of the daemon."""
        return hmac.digest(self._places, b"object " + upload.encode(), "sha256")[:16]

    def part_of(self, upload: str, digest: str, first: int, total: int) -> Place:
        """The place of a part, by the ``digest`` of its content.

        The same bytes are sealed to the same bytes, as a part that is sent again has to be; other
        bytes get another key, even where a file has changed and looks as before.
        """
        words = f"part {first} {total} {digest} {upload}".encode()
        salt = hmac.digest(self._places, words, "sha256")[:16]
        return Place(self.object_of(upload), salt, first, total)

    def seal(
        self, data: Buffer, role: str, place: Place, room: bytearray | None = None
    ) -> bytearray:
        """Blocks for ``data``, which begins where block ``place.first`` does.

        In ``room`` if that has the right length: memory that was in use before costs less.
        """
        head = _HEAD.pack(_MAGIC, place.object, place.salt, place.total)
        cipher, extra = self._cipher(place.object, place.salt), head + role.encode()
        size, at = sealed_size(len(data)), 0
        sealed = room if room is not None and len(room) == size else bytearray(size)
        with memoryview(data) as view, memoryview(sealed) as target:
            for number, start in enumerate(range(0, max(1, len(view)), PLAIN), place.first):
                content = view[start : start + PLAIN]
                end = at + _EXTRA + len(content)
                target[at : at + _HEAD.size] = head
                nonce = number.to_bytes(12, "big")
                cipher.encrypt_into(nonce, content, extra, target[at + _HEAD.size : end])
                at = end
        return sealed

    def open(self, stored: Iterable[bytes], role: str, first: int = 0) -> Iterator[bytes]:
        """The content of blocks from number ``first`` on; Corrupt before a wrong byte is given.

        Corrupt at the end, too, if the last block is not the object's last; who wants only
        a part of an object stops before.
        """
        number = first
        found: tuple[bytes, int] | None = None
        keep: tuple[bytes, bytes] | None = None
        cipher: Any = None
        for block in _blocks(stored):
            if len(block) < _EXTRA or not block.startswith(_MAGIC):
                raise Locked("it is not encrypted", hint=NOT_OURS)
            _, of, salt, total = _HEAD.unpack_from(block)
            if found not in (None, (of, total)):
                raise Corrupt("its blocks are of several objects: it was tampered with")
            found = of, total
            if number * PLAIN + len(block) - _EXTRA != min(total, (number + 1) * PLAIN):
                raise Corrupt("it was cut, or blocks of it were moved")
            if (of, salt) != keep:
                keep, cipher = (of, salt), self._cipher(of, salt)
            yield self._open_block(cipher, block, number, role)
            number += 1
        if found is None or number * PLAIN < found[1]:
            raise Corrupt("it was cut")

    def _open_block(self, cipher: Any, block: bytes, number: int, role: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        extra = block[: _HEAD.size] + role.encode()
        with memoryview(block) as view:
            try:
                nonce = number.to_bytes(12, "big")
                content: bytes = cipher.decrypt(nonce, view[_HEAD.size :], extra)
            except InvalidTag:
                raise Locked(
                    f"block {number} is not what was encrypted with key {self.name}", hint=NOT_OURS
                ) from None
        return content

    def _cipher(self, of: bytes, salt: bytes) -> Any:
        return self._aead(self._derive(of + salt, b"blocks"))

    # -- records: JSON around it, so that a version that knows no encryption says what it met

    def seal_record(self, data: Buffer, role: str) -> bytes:
        """A commit record, sealed for its place in the log."""
        stored = self.seal(data, role, self.fresh(len(data)))
        padding = b" " * (-len(stored) % 3)  # so that its length tells that of the record
        text = (_ENVELOPE % self.name).encode() + base64.b64encode(stored)
        return text + _CLOSE + padding + b"\n"

    def open_record(self, data: bytes, role: str) -> bytes:
        """The record; Locked if it was not sealed with this key, or was changed since."""
        named = sealed_with(data)
        if named is None:
            raise Locked("it is not encrypted", hint=NOT_OURS)
        if named[0] != self.name:
            raise Locked(f"it has key {named[0]}, and this machine {self.name}", hint=OTHER_KEY)
        return b"".join(self.open([named[1]], role))


NOT_OURS = (
    "somebody without the key has put it there; where a prefix was used without encryption "
    "before, give the encrypted copy a CLOUD_PREFIX of its own"
)
OTHER_KEY = "set SYNCD_ENCRYPT_KEY_FILE or SYNCD_ENCRYPT_KEY to the key that it was encrypted with"


def sealed_with(record: bytes) -> tuple[str, bytes] | None:
    """The name of the key of a sealed record and what is sealed; None if it is no such thing."""
    try:
        document = json.loads(record)
        name, sealed = str(document["key"]), base64.b64decode(document["sealed"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return None
    return (name, sealed) if re.fullmatch("[0-9a-f]{8}", name) else None


def _blocks(stored: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes cut into blocks; nothing is copied where they come so."""
    waiting: list[bytes] = []
    size = 0
    for chunk in stored:
        while size + len(chunk) >= BLOCK:
            some = BLOCK - size
            yield b"".join((*waiting, chunk[:some])) if waiting or some < len(chunk) else chunk
            waiting, size, chunk = [], 0, chunk[some:]  # noqa: PLW2901
        if chunk:
            waiting.append(chunk)
            size += len(chunk)
    if waiting:
        yield b"".join(waiting)


def sealed_size(size: int) -> int:
    """Bytes that an object of ``size`` bytes takes in the store."""
    return size + _EXTRA * max(1, -(-size // PLAIN))


def content_size(stored: int) -> int:
    """Bytes of content of an object that takes so many in the store."""
    return max(0, stored - _EXTRA * -(-stored // BLOCK))


def record_size(stored: int) -> int:
    """Bytes of a record whose sealed form takes so many in the store."""
    text = max(0, stored - _AROUND)
    return content_size(text // 4 * 3 - text % 4)


def largest_record(size: int) -> int:
    """Bytes that the sealed form of a record of ``size`` bytes takes at most."""
    return _AROUND + 4 * (-(-sealed_size(size) // 3) + 1)


def digest(data: Buffer) -> str:
    """What a part is told from others by."""
    return hashlib.sha256(data).hexdigest()
