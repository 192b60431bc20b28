"""A resumable upload to Google Cloud Storage: chunks in order, one session."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import google_crc32c

from syncd.errors import Conflict, Corrupt, NotFound, Permanent, StoreError, Transient
from syncd.stores.base import Buffer, Condition, IfAbsent, IfVersion, NoRanges, ObjectInfo
from syncd.stores.gcsobjects import Told, base64_crc32c, seconds

if TYPE_CHECKING:
    from syncd.stores.gcs import GCSStore


class GCSUpload(NoRanges):
    """One session. Its last chunk makes the object, and is kept back until ``finish``.

    Its ``id``, the generation it is bound to and its address, lets anybody write to it: a secret.
    """

    def __init__(self, store: GCSStore, key: str, url: str, size: int, generation: str) -> None:
        self.key = key
        self.id = f"{generation} {url}"
        self._url = url
        self._store = store
        self._size = size
        self._generation = generation
        self._number = 0
        self._part = b""  # the newest one, until the server has all of it
        self._length = 0  # of it
        self._offset = 0  # bytes before it
        self._stored = 0  # bytes that the server is known to have
        self._uncertain = False  # whether an answer was lost, and the server must be asked
        self._crc32c = 0  # of what is before the newest part
        self._crc32c_after = 0
        self._made: dict[str, Any] | None = None

    def take_up(self) -> None:
        """Ask how far it got; NotFound if it is gone, or its object has been replaced."""
        made = self._note(self._request({"content-range": f"bytes */{self._size}"}))
        if made is None:
            return
        if self._store.head(self.key).version != str(made["generation"]):
            raise NotFound(f"what was made of {self.key} is gone")
        self._made, self._stored = made, self._size

    def holds(self, number: int, data: Buffer) -> bool:
        """See Upload. That the server has the same bytes, its checksum of the whole proves."""
        if self._stored < self._offset + self._length + len(data):
            return False
        self._follow(number, data)
        self._let_go()
        return True

    def send(self, number: int, data: Buffer) -> str:
        """See Upload. Of a part that the server has half of, only what is missing travels."""
        self._follow(number, data)
        if self._offset + self._length < self._size:
            self._push()
            self._let_go()
        return ""

    def _let_go(self) -> None:
        """What the server has is let go, but for the last chunk, which makes the object."""
        if self._offset + self._length < self._size:
            self._part = b""

    def _follow(self, number: int, data: Buffer) -> None:
        """Take the part that comes next, or the newest one again."""
        if number not in (self._number, self._number + 1):
            raise Permanent(f"{self.key}: part {number} does not follow part {self._number}")
        if number == self._number + 1:
            self._offset += self._length
            self._crc32c = self._crc32c_after
            self._number = number
        self._part, self._length = bytes(data), len(data)
        self._crc32c_after = google_crc32c.extend(self._crc32c, self._part)
        if self._offset + self._length > self._size:
            raise Permanent(f"{self.key}: the parts are more than {self._size} bytes")

    def _push(self) -> dict[str, Any] | None:
        """Send what the server lacks of the newest part; the object, once there is one."""
        end = self._offset + self._length
        if self._uncertain:
            made = self._note(self._request({"content-range": f"bytes */{self._size}"}))
            if made is not None:
                return made
        while self._stored < end or self._size == 0:
            if self._stored < self._offset:
                raise NotFound(f"{self.key}: the server has lost what it had")
            body = self._part[self._stored - self._offset :]
            span = f"{self._stored}-{end - 1}" if body else "*"
            before = self._stored
            made = self._note(self._request({"content-range": f"bytes {span}/{self._size}"}, body))
            if made is not None:
                return made
            if self._stored <= before:
                raise Transient(f"{self.key}: the server keeps nothing of a part")
        return None

    def _request(self, headers: dict[str, str], body: bytes = b"") -> Told:
        self._uncertain = True
        answer = self._store.ask(
            f"sending part {self._number} of {self.key}",
            self.key,
            lambda objects: objects.session("PUT", self._url, headers, body),
        )
        self._uncertain = False
        return answer

    def _note(self, answer: Told) -> dict[str, Any] | None:
        if answer.status != 308:
            try:
                return dict(json.loads(answer.body))
            except ValueError:
                raise Transient(f"{self.key}: what was made of it is not told") from None
        kept = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("range", ""))
        self._stored = int(kept[1]) + 1 if kept else 0
        return None

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload. Conflict also if the object has been replaced since the start."""
        wanted = "0" if isinstance(condition, IfAbsent) else None
        if isinstance(condition, IfVersion):
            wanted = condition.version
        if wanted not in (None, self._generation):
            self.abort()
            raise Conflict(f"{self.key}: the condition does not hold")
        if self._offset + self._length != self._size:
            raise Permanent(f"{self.key}: parts are missing")
        made = self._made or self._push()
        if made is None:
            self._uncertain = True  # the server is asked, next time
            raise Transient(f"{self.key}: the server has all parts and makes no object of them")
        crc32c = base64_crc32c(self._crc32c_after)
        if int(made["size"]) != self._size or made.get("crc32c", crc32c) != crc32c:
            raise Corrupt(f"{self.key} arrived with other content", hint="it is sent again")
        return ObjectInfo(self.key, self._size, str(made["generation"]), seconds(made["updated"]))

    def abort(self) -> None:
        """See Upload."""
        with contextlib.suppress(StoreError):
            self.discard()

    def leave(self) -> None:
        """See Upload: nothing is held here."""

    def discard(self) -> None:
        """End the session."""
        with contextlib.suppress(Permanent):  # the answer to it is 499, or 410 if it was gone
            self._store.ask(
                f"aborting {self.key}",
                self.key,
                lambda objects: objects.session("DELETE", self._url, {}, b""),
            )
