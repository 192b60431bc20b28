"""A store in memory for the interleaving simulator: exact semantics, one request at a time.

What it promises is what the conformance suite proves of the real ones; ``honours`` False is a
store that takes If-None-Match and ignores it.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from syncd.errors import Conflict, NotFound
from syncd.stores.base import (
    Buffer,
    Capabilities,
    Condition,
    IfAbsent,
    IfVersion,
    ObjectInfo,
    PendingUpload,
)


@dataclass(frozen=True)
class Object:
    data: bytes
    version: str
    sha256: str


class SimStore:
    """Objects in a dictionary. Each change is told to ``watch`` once it has taken effect."""

    def __init__(self, honours: bool = True, conditional_copy: bool = False) -> None:
        self.name = "sim://bucket"
        self.honours = honours
        self.capabilities = Capabilities(
            put_if_absent=honours,
            upload_if_absent=honours,
            conditional_copy=conditional_copy and honours,
            min_part_size=1,
        )
        self.objects: dict[str, Object] = {}
        self.watch: Callable[[str], None] = lambda _key: None
        self._numbers = itertools.count(1)

    def _set(self, key: str, data: bytes) -> ObjectInfo:
        digest = hashlib.sha256(data).hexdigest()
        self.objects[key] = Object(data, f"v{next(self._numbers)}", digest)
        self.watch(key)
        return self._info(key)

    def _info(self, key: str) -> ObjectInfo:
        found = self.objects[key]
        return ObjectInfo(key, len(found.data), found.version, time.time())

    def _check(self, key: str, condition: Condition) -> None:
        if not self.honours:
            return
        found = self.objects.get(key)
        if isinstance(condition, IfAbsent) and found:
            raise Conflict(f"{key} exists already")
        if isinstance(condition, IfVersion) and (not found or found.version != condition.version):
            raise Conflict(f"{key} is another version by now")

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        self._check(key, condition)
        return self._set(key, bytes(data))

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        self._check(target, condition)
        return self._set(target, self._get(source).data)

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        self._check(key, IfVersion(base.version))
        return self._set(key, self._get(key).data + bytes(tail))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            if self.objects.pop(key, None):
                self.watch(key)

    def start_upload(self, key: str, size: int) -> SimUpload:
        return SimUpload(self, key, f"u{next(self._numbers)}")

    def _get(self, key: str) -> Object:
        if key not in self.objects:
            raise NotFound(f"there is no {key}")
        return self.objects[key]

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        found = self._get(key)
        if version not in (None, found.version):
            raise Conflict(f"{key} is another version by now")
        yield found.data[start : None if length is None else start + length]

    def head(self, key: str) -> ObjectInfo:
        self._get(key)
        return self._info(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter([self._info(key) for key in self.objects if key.startswith(prefix)])

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        return iter(())

    def discard_upload(self, upload: PendingUpload) -> None:
        pass

    def close(self) -> None:
        pass


class SimUpload:
    """Parts, invisible until they are finished."""

    def __init__(self, store: SimStore, key: str, number: str) -> None:
        self._store = store
        self._parts: dict[int, bytes] = {}
        self.key = key
        self.id = number

    def send(self, number: int, data: Buffer) -> None:
        self._parts[number] = bytes(data)

    def finish(self, condition: Condition = None) -> ObjectInfo:
        data = b"".join(self._parts[number] for number in sorted(self._parts))
        return self._store.put(self.key, data, condition)

    def abort(self) -> None:
        self._parts.clear()
