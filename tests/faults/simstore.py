"""A store in memory for the interleaving simulator: exact semantics, one request at a time.

What it promises is what the conformance suite proves of the real ones; ``honours`` False is a
store that takes If-None-Match and ignores it.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from syncd.errors import Conflict, NotFound, StoreError
from syncd.stores.base import (
    Body,
    Buffer,
    Capabilities,
    Condition,
    IfAbsent,
    IfVersion,
    ObjectInfo,
    PendingUpload,
)
from tests.workbench import put_one_by_one


@dataclass(frozen=True)
class Object:
    data: bytes
    version: str
    sha256: str


_NONE = Object(b"", "", "")


class SimStore:
    """Objects in a dictionary. Each change is told to ``watch`` once it has taken effect."""

    def __init__(
        self, honours: bool = True, conditional_copy: bool = False, copies_ranges: bool = False
    ) -> None:
        self.name = "sim://bucket"
        self.honours = honours
        self.capabilities = Capabilities(
            put_if_absent=honours,
            upload_if_absent=honours,
            conditional_copy=conditional_copy and honours,
            min_part_size=1,
            copy_range=1 << 30 if copies_ranges else 0,
        )
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, SimUpload] = {}
        self.made: dict[str, str] = {}
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

    def start_upload(self, key: str, size: int, copies: bool = False) -> SimUpload:
        del copies
        upload = SimUpload(self, key, f"u{next(self._numbers)}")
        self.uploads[upload.id] = upload
        return upload

    def resume_upload(
        self, key: str, upload_id: str, size: int, tags: Mapping[int, str]
    ) -> SimUpload:
        if upload_id in self.uploads:
            return self.uploads[upload_id]
        version = self.made.get(upload_id, "")
        if not version or key not in self.objects or self.objects[key].version != version:
            raise NotFound(f"there is no upload {upload_id}")
        return SimUpload(self, key, upload_id, self.head(key))

    def _get(self, key: str) -> Object:
        if key not in self.objects:
            raise NotFound(f"there is no {key}")
        return self.objects[key]

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        return put_one_by_one(self.put, bodies)

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        for key, length in wanted:
            try:
                yield b"".join(self.read(key, 0, length))
            except StoreError as error:
                yield error

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
        return iter([PendingUpload(u.key, u.id, time.time()) for u in self.uploads.values()])

    def discard_upload(self, upload: PendingUpload) -> None:
        self.uploads.pop(upload.id, None)

    def close(self) -> None:
        pass


class SimUpload:
    """Parts, invisible until they are finished."""

    def __init__(
        self, store: SimStore, key: str, number: str, made: ObjectInfo | None = None
    ) -> None:
        self._store = store
        self._parts: dict[int, bytes] = {}
        self._made = made
        self.key = key
        self.id = number

    def send(self, number: int, data: Buffer) -> str:
        self._there()
        self._parts[number] = bytes(data)
        return hashlib.sha256(data).hexdigest()

    def holds(self, number: int, data: Buffer) -> bool:
        return bool(self._made) or self._parts.get(number) == data

    def copy(self, number: int, source: ObjectInfo, start: int, length: int) -> str:
        """Of whatever lies there: the version is nothing that this store looks at."""
        self._there()
        return self.send(number, self._store._get(source.key).data[start : start + length])

    def has(self, number: int, length: int) -> bool:
        return bool(self._made) or len(self._parts.get(number, b"")) == length

    def _there(self) -> None:
        if self.id not in self._store.uploads:
            raise NotFound(f"there is no upload {self.id}")

    def finish(self, condition: Condition = None) -> ObjectInfo:
        if self._made:
            return self._made
        version = self._store.made.get(self.id)
        if version and version == self._store.objects.get(self.key, _NONE).version:
            return self._store.head(self.key)
        self._there()
        data = b"".join(self._parts[number] for number in sorted(self._parts))
        info = self._store.put(self.key, data, condition)
        del self._store.uploads[self.id]
        self._store.made[self.id] = info.version
        return info

    def abort(self) -> None:
        self._store.uploads.pop(self.id, None)

    def leave(self) -> None:
        pass
