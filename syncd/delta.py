"""What a file shares, block by block, with an object that holds an older version of it.

A block of the new file is the old one's if SHA-256 says so: of all up to its end, or, where
something before it has changed, of the block itself, begun with the old state before it. A mark
of a few bytes spares that second digest where it would be in vain.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from syncd.chain import Chain
from syncd.errors import Changed, Conflict, StoreError
from syncd.stores.base import ObjectInfo, ObjectStore
from syncd.uploadrows import Arrived, Whole

log = logging.getLogger(__name__)

_MARKED = 4096
"""Bytes at either end of a block that its mark is made of."""


def mark_of(data: bytes) -> str:
    """What tells most blocks that are not the same at no cost; it proves nothing."""
    return f"{zlib.crc32(data[-_MARKED:], zlib.crc32(data[:_MARKED])):08x}"


def mark_at(read: Callable[[int, int], bytes], start: int, length: int) -> str:
    """The same of ``length`` bytes from ``start`` of what ``read(start, count)`` reads."""
    end = start + length - min(length, _MARKED)
    head, tail = read(start, min(length, _MARKED)), read(end, min(length, _MARKED))
    return f"{zlib.crc32(tail, zlib.crc32(head)):08x}"


class Base:
    """The older version."""

    def __init__(
        self,
        whole: Whole,
        parts: Mapping[int, Arrived],
        store: ObjectStore,
        on_refused: Callable[[Whole, StoreError], None],
        uniform: bool = False,
    ) -> None:
        """``on_refused`` hears why its ranges cannot be copied.

        ``uniform``: the store takes parts of one length only, so blocks are copied one by one.
        """
        self.info = ObjectInfo(whole.key, whole.size, whole.version, 0.0)
        self.part = whole.part
        self.most = 1 if uniform else max(1, store.capabilities.copy_range // whole.part)
        """Blocks that are copied by one request."""
        self._whole = whole
        self._uniform = uniform
        self._parts = parts
        self._store = store
        self._on_refused = on_refused
        self.given_up = False
        """Whether the store has refused to copy of it."""

    def has(self, part: Arrived, data: bytes) -> bool:
        """Whether this block of the new file is the old one's."""
        old = self._parts.get(part.number)
        if self.given_up or old is None or old.mark != part.mark:
            return False
        return old.sha256 == part.sha256 or self.is_block(part.number, data)

    def is_block(self, number: int, data: bytes) -> bool:
        """Whether these are the bytes of one of its blocks, as far as that can be told."""
        start = (number - 1) * self.part
        before = self._parts[number - 1].state if number > 1 else ""
        if len(data) != min(self.part, self.info.size - start) or (start and not before):
            return False
        try:
            chain = Chain(before, start)
        except ValueError:
            return False
        chain.update(data)
        return chain.hexdigest() == self._parts[number].sha256

    def shared(self, number: int, data: bytes, last: bool) -> int:
        """Bytes at the beginning of a block that are the end of the older file, which has grown.

        Those that follow must do as a part by themselves, the ``last`` one or not.
        """
        old, count = self._parts.get(number), self.info.size - (number - 1) * self.part
        if old is None or self._uniform or not 0 < count < len(data):
            return 0
        enough = last or len(data) - count >= self._store.capabilities.min_part_size
        head = data[:count]
        return count if enough and old.mark == mark_of(head) and self.is_block(number, head) else 0

    def check(self) -> None:
        """Conflict or NotFound unless it is still the object it was: then what was copied is its.

        There are stores that do not look at the version that a copy is bound to.
        """
        if self._store.head(self.info.key).version != self.info.version:
            raise Conflict(f"{self.info.key} is another version by now")

    def refused(self, error: StoreError) -> None:
        """The store has not copied a range: nothing more is asked of this object."""
        if not self.given_up:
            self.given_up = True
            log.info("%s is sent, not copied: %s", self._whole.path, error.message)
            self._on_refused(self._whole, error)


@dataclass(frozen=True)
class Fresh:
    """A part that is sent. ``data`` is what of it no copy has brought."""

    part: Arrived
    data: bytes


@dataclass(frozen=True)
class Same:
    """Parts in a row that the store copies, and so many bytes of the one behind them."""

    base: Base
    parts: Sequence[Arrived]
    more: int = 0

    @property
    def range(self) -> tuple[int, int]:
        """Where it begins, and its length."""
        start = (self.parts[0].number - 1) * self.base.part
        end = min(self.parts[-1].number * self.base.part, self.base.info.size)
        return start, end + self.more - start

    def read_again(self, read: Callable[[int, int], bytes]) -> Iterator[Fresh]:
        """The same to be sent, by ``read(start, count)``; Changed if the file is another one."""
        size = self.base.part
        for part in self.parts:
            data = read((part.number - 1) * size, size)
            if not self.base.is_block(part.number, data):
                raise Changed(f"{self.base.info.key}: what was to be copied of it is another file")
            if self.more and part is self.parts[-1]:
                more = read(part.number * size, self.more)
                if not self.base.is_block(part.number + 1, more):
                    raise Changed(f"{self.base.info.key}: what was to be copied is another file")
                data += more
            yield Fresh(part, data)
