"""A store in which nothing lies that was not encrypted here.

It stands between all that speak to a store and the store itself, so no file, log, record or mark
can leave by another way. Sizes are those of the content; keys end in ``.enc``, but for records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from syncd.errors import Corrupt, Permanent, StoreError
from syncd.records import Layout
from syncd.sealing import (
    BLOCK,
    PLAIN,
    Sealer,
    content_size,
    digest,
    largest_record,
    record_size,
    sealed_size,
)
from syncd.stores.base import (
    Body,
    Buffer,
    Condition,
    NoRanges,
    ObjectInfo,
    ObjectStore,
    PendingUpload,
    Upload,
)

SUFFIX = ".enc"

_RECORD_LIMIT = 384 * 1024 * 1024
"""Bytes of the largest sealed record that is read."""


class Sealed:
    """An ObjectStore around another one, which keeps what a :class:`Sealer` makes."""

    def __init__(self, store: ObjectStore, sealer: Sealer, layout: Layout) -> None:
        self._store = store
        self._sealer = sealer
        self._layout = layout
        self.name = store.name
        can = store.capabilities
        self.capabilities = replace(
            can,
            append_from=None,  # the last block of what is there would have to be sealed again
            copy_range=0,
            part_multiple=PLAIN,
            max_part_size=can.max_part_size // BLOCK * PLAIN,
        )

    # -- names and places

    def _is_record(self, key: str) -> bool:
        return key.endswith(".json") and key.startswith(
            (self._layout.commits, self._layout.pruning)
        )

    def _at(self, key: str) -> str:
        return key if self._is_record(key) else key + SUFFIX

    def _role(self, key: str) -> str:
        """What content is sealed for. Files and logs are copied from key to key, others are not."""
        layout = self._layout
        if key.startswith((layout.checkpoints, layout.versions)):
            return f"{layout.prefix} file"
        return f"{layout.prefix} log" if key.startswith(layout.logs) else f"key {key}"

    def _seen(self, info: ObjectInfo) -> ObjectInfo:
        """An object as it is described above this store."""
        if self._is_record(info.key):
            return replace(info, size=record_size(info.size))
        return replace(info, key=info.key.removesuffix(SUFFIX), size=content_size(info.size))

    def _seal(self, key: str, data: Buffer) -> Buffer:
        if self._is_record(key):
            return self._sealer.seal_record(data, self._role(key))
        return self._sealer.seal(data, self._role(key), self._sealer.fresh(len(data)))

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore."""
        return self._seen(self._store.put(self._at(key), self._seal(key, data), condition))

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """See ObjectStore."""
        sealed = (Body(self._at(b.key), self._seal(b.key, b.data), b.condition) for b in bodies)
        for answer in self._store.put_each(sealed):
            yield self._seen(answer) if isinstance(answer, ObjectInfo) else answer

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """See ObjectStore: what is encrypted is replaced as a whole."""
        del base, tail, aside
        raise Permanent(f"{key} is encrypted: nothing can be appended to it")

    def start_upload(self, key: str, size: int, copies: bool = False) -> Upload:
        """See ObjectStore. Of what is encrypted nothing is copied."""
        del copies
        upload = self._store.start_upload(self._at(key), sealed_size(size))
        return SealedUpload(upload, self._sealer, key, self._role(key), size)

    def resume_upload(self, key: str, upload_id: str, size: int, tags: Mapping[int, str]) -> Upload:
        """See ObjectStore."""
        upload = self._store.resume_upload(self._at(key), upload_id, sealed_size(size), tags)
        return SealedUpload(upload, self._sealer, key, self._role(key), size)

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. What is sealed for one key alone cannot be opened at another."""
        if self._role(source) != self._role(target):
            return self.put(target, b"".join(self.read(source)), condition)
        return self._seen(self._store.copy(self._at(source), self._at(target), condition))

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore."""
        self._store.delete([self._at(key) for key in keys])

    # -- reading

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore; Corrupt before the first byte of a block that was tampered with."""
        if length is not None and length <= 0:
            return
        try:
            if self._is_record(key):
                end = None if length is None else start + length
                yield self._sealer.open_record(self._record(key, version), self._role(key))[
                    start:end
                ]
            else:
                yield from self._range(key, start, length, version)
        except Corrupt as error:
            words = f"{_named(key, self._layout)}: {error.message}"
            raise type(error)(words, hint=error.hint) from None

    def _record(self, key: str, version: str | None) -> bytes:
        chunks, size = [], 0
        for chunk in self._store.read(key, version=version):
            size += len(chunk)
            if size > _RECORD_LIMIT:
                raise Corrupt("it is larger than any record can be")
            chunks.append(chunk)
        return b"".join(chunks)

    def _range(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> Iterator[bytes]:
        first, skip = divmod(start, PLAIN)
        left = length
        stored = None if length is None else -(-(skip + length) // PLAIN) * BLOCK
        blocks = self._store.read(self._at(key), first * BLOCK, stored, version)
        for content in self._sealer.open(blocks, self._role(key), first):
            piece = content[skip:] if left is None else content[skip : skip + left]
            skip = 0
            yield piece
            left = None if left is None else left - len(piece)
            if left == 0:
                return

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | StoreError]:
        """See ObjectStore."""
        waiting = list(wanted)
        answers = self._store.read_each([(self._at(k), self._stored(k, n)) for k, n in waiting])
        for (key, length), answer in zip(waiting, answers, strict=True):
            if isinstance(answer, StoreError):
                yield answer
                continue
            try:
                yield self._open(key, answer)[:length]
            except Corrupt as error:
                words = f"{_named(key, self._layout)}: {error.message}"
                yield type(error)(words, hint=error.hint)

    def _stored(self, key: str, length: int) -> int:
        """What so many bytes of content may take at most."""
        return largest_record(length) if self._is_record(key) else sealed_size(length)

    def _open(self, key: str, stored: bytes) -> bytes:
        if self._is_record(key):
            return self._sealer.open_record(stored, self._role(key))
        return b"".join(self._sealer.open([stored], self._role(key)))

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        return self._seen(self._store.head(self._at(key)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore; objects that were not encrypted here are not there."""
        for info in self._store.list(prefix):
            if self._is_record(info.key) or info.key.endswith(SUFFIX):
                yield self._seen(info)

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore."""
        for upload in self._store.pending_uploads(prefix):
            yield replace(upload, key=upload.key.removesuffix(SUFFIX))

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore."""
        self._store.discard_upload(replace(upload, key=self._at(upload.key)))

    def close(self) -> None:
        """See ObjectStore."""
        self._store.close()


class SealedUpload(NoRanges):
    """The parts of one upload, each sealed for its place by what it holds."""

    def __init__(self, upload: Upload, sealer: Sealer, key: str, role: str, size: int) -> None:
        self.key = key
        self.id = upload.id
        self.part = 0
        """Bytes of each part but the last; needed for more than one."""
        self.digests: dict[int, str] = {}
        """Of parts, by their numbers: whatever is another one for any other content."""
        self._rooms: list[bytearray] = []
        self._upload = upload
        self._sealer = sealer
        self._role = role
        self._size = size

    def _seal(self, number: int, data: Buffer) -> bytearray:
        start = (number - 1) * self.part
        whole = len(data) == self.part and not self.part % PLAIN
        if start + len(data) != self._size and not (whole and start + len(data) < self._size):
            raise Permanent(f"{self.key}: part {number} has {len(data)} bytes")
        name = f"{self.key} {self.id}"
        known = self.digests.get(number) or digest(data)
        place = self._sealer.part_of(name, known, start // PLAIN, self._size)
        try:
            room = self._rooms.pop()
        except IndexError:
            room = None
        return self._sealer.seal(data, self._role, place, room)

    def send(self, number: int, data: Buffer) -> str:
        """See Upload."""
        sealed = self._seal(number, data)
        tag = self._upload.send(number, sealed)
        self._rooms.append(sealed)  # not after a failure: who knows who still reads it
        return tag

    def holds(self, number: int, data: Buffer) -> bool:
        """See Upload."""
        sealed = self._seal(number, data)
        there = self._upload.holds(number, sealed)
        if there:
            self._rooms.append(sealed)
        return there

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload."""
        info = self._upload.finish(condition)
        return replace(info, key=self.key, size=content_size(info.size))

    def abort(self) -> None:
        """See Upload."""
        self._upload.abort()

    def leave(self) -> None:
        """See Upload."""
        self._upload.leave()


def _named(key: str, layout: Layout) -> str:
    """What a person knows an object by."""
    seq = layout.seq_of(key)
    return key if seq is None else f"commit {seq}"
