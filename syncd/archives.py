"""Is a zip archive whole? As torch.save, Stable-Baselines3, numpy and Keras write them.

Python's own reader keeps the whole central directory in memory, and takes an archive that lies
inside a cut one (a zip of ``.pth`` files) for the whole. So this one reads entry by entry.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_COMMENT_LIMIT = 65535
_FULL = 0xFFFFFFFF
"""Stands for "see the 64-bit field" where a size or an offset has only 32 bits."""

_ENTRY_LIMIT = 2_000_000
"""Entries that are looked at: more would take longer than the check is worth."""


class _Cut(Exception):
    """Something is not where the archive says."""


def check_zip(file: BinaryIO, size: int, joined: bool = False) -> str | None:
    """What is wrong with a zip archive, or None: its end record, its directory, each entry.

    ``joined``: several archives one after another in one file, as torch's distributed
    checkpoints have it; the last one is looked at.
    """
    try:
        first = _first_entry(file, _directory(file, size))
    except (_Cut, struct.error) as error:
        return f"cut off: no readable zip directory at its end ({error})"
    return "cut off: only an archive inside it is whole" if first and not joined else None


@dataclass(frozen=True)
class _Directory:
    """Bytes ``begin`` to ``end`` of the file hold ``count`` entries; offsets are from ``start``."""

    start: int
    begin: int
    end: int
    count: int


def _record(file: BinaryIO, at: int, layout: struct.Struct, magic: bytes) -> tuple[int, ...]:
    """The fields of a record that must be there."""
    if at < 0:
        raise _Cut("a record begins before the file does")
    file.seek(at)
    data = file.read(layout.size)
    if len(data) < layout.size or not data.startswith(magic):
        raise _Cut(f"no record where one must be, at byte {at}")
    return layout.unpack(data)[1:]


def _directory(file: BinaryIO, size: int) -> _Directory:
    """Where the directory is, by the end record and its 64-bit form."""
    end = _end_record(file, size)
    *_, count, length, offset, _ = _record(file, end, _END, b"PK\5\6")
    locator = end - _END_64_LOCATOR.size
    file.seek(max(0, locator))
    if file.read(4) == b"PK\6\7":  # also where 32 bits would do: torch always writes it
        _, named, _ = _record(file, locator, _END_64_LOCATOR, b"PK\6\7")
        end = locator - _END_64.size
        file.seek(max(0, end))
        if file.read(4) != b"PK\6\6":
            end = named
        *_, count, length, offset = _record(file, end, _END_64, b"PK\6\6")
    begin = end - length
    if begin < offset:
        raise _Cut("it names more bytes than there are before its directory")
    return _Directory(begin - offset, begin, end, count)


def _end_record(file: BinaryIO, size: int) -> int:
    """Where the end record is that ends, with its comment, where the file ends."""
    tail = min(size, _END.size + _COMMENT_LIMIT)
    file.seek(size - tail)
    data = file.read(tail)
    at = data.rfind(b"PK\5\6")
    while at >= 0:
        if len(data) - at >= _END.size:
            comment = _END.unpack_from(data, at)[-1]
            if at + _END.size + comment == len(data):
                return size - tail + at
        at = data.rfind(b"PK\5\6", 0, at)
    raise _Cut("no end record")


def _first_entry(file: BinaryIO, directory: _Directory) -> int:
    """Look at each entry and at what it names; where the first one begins."""
    at, seen, first = directory.begin, 0, directory.begin
    while at < directory.end:
        if seen == _ENTRY_LIMIT:
            return first
        fields = _record(file, at, _ENTRY, b"PK\1\2")
        packed, plain, name, extra, comment, offset = *fields[7:12], fields[15]
        file.seek(name, os.SEEK_CUR)
        packed, offset = _wide(file.read(extra), plain, packed, offset)
        begin = directory.start + offset
        local = _record(file, begin, _LOCAL, b"PK\3\4")
        if begin + _LOCAL.size + local[8] + local[9] + packed > directory.begin:
            raise _Cut("an entry is longer than the file")
        first = min(first, begin)
        at += _ENTRY.size + name + extra + comment
        seen += 1
    if at != directory.end or seen != directory.count:
        raise _Cut(f"its directory does not have the {directory.count} entries it announces")
    return first


def _wide(extra: bytes, plain: int, packed: int, offset: int) -> tuple[int, int]:
    """Packed size and offset, each from the 64-bit field where 32 bits do not hold it."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            field = extra[4 : 4 + length]
            if plain == _FULL:
                field = field[8:]
            if packed == _FULL:
                (packed,) = struct.unpack_from("<Q", field)
                field = field[8:]
            if offset == _FULL:
                (offset,) = struct.unpack_from("<Q", field)
        extra = extra[4 + length :]
    return packed, offset
