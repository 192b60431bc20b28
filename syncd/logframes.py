"""Where the last whole record of a growing file ends, where its framing is known.

    TFRecord   TensorBoard's: length, its checksum, data, its checksum
    W&B        the ``.wandb`` of Weights & Biases: LevelDB's log, blocks of 32 KiB
    lines      text, JSON Lines, CSV: up to the last end of line

A record that is not whole yet is cut off before it. One that can never become whole is told from
it: then the framing is not what it seemed, and the file goes as it is.
"""

from __future__ import annotations

import enum
import os
import struct
import zlib
from collections.abc import Callable

from syncd.formats import crc32c

HEAD = 4096
"""Bytes from the beginning of a file that tell its kind."""

_PROVEN = 128 * 1024
"""Bytes at the end whose records are proven by the checksum of their data; else the length's."""

_WINDOW = 1024 * 1024
_SEARCH = 64 * 1024
_BLOCK, _RECORD = 32768, 7
_DOCUMENTS = (".json", ".yaml", ".yml", ".toml", ".html", ".xml", ".svg", ".md", ".ipynb")
"""What is written again as a whole rather than continued: a line more or less is no record."""

_WANDB = b":W&B"
_SQLITE = b"SQLite format 3\0"

Read = Callable[[int, int], bytes]
"""Of a file: (start, count) -> the bytes there, fewer only at its end."""


class Kind(enum.Enum):
    """How the records of a file are told from each other."""

    TFRECORD = "TFRecord"
    WANDB = "W&B"
    LINES = "lines"
    SQLITE = "SQLite"
    BYTES = "bytes"


class Broken(Exception):
    """A record fails its checksum though all its bytes are there; ``edge`` is where it begins."""

    def __init__(self, edge: int) -> None:
        super().__init__(f"the record at {edge} is broken")
        self.edge = edge


def kind_of(name: str, head: bytes) -> Kind:
    """What a file is, by its first bytes."""
    if head.startswith(_SQLITE):
        return Kind.SQLITE
    if head.startswith(_WANDB):
        return Kind.WANDB
    if "tfevents" in name or (len(head) >= 12 and _length(head) is not None):
        return Kind.TFRECORD
    return Kind.BYTES if b"\0" in head or name.endswith(_DOCUMENTS) else Kind.LINES


def last_edge(kind: Kind, read: Read, edge: int, end: int) -> int:
    """The end of the last whole record before ``end``; ``edge`` is where some record begins.

    Broken if the framing does not hold.
    """
    if kind is Kind.TFRECORD:
        return _tfrecord(read, edge, end)
    if kind is Kind.WANDB:
        return _wandb(read, edge, end)
    return _lines(read, edge, end) if kind is Kind.LINES else end


def _lines(read: Read, edge: int, end: int) -> int:
    """Back from the end; a carriage return ends a line too, as progress bars have it."""
    while end > edge:
        start = max(edge, end - _SEARCH)
        text = read(start, end - start)
        found = max(text.rfind(b"\n"), text.rfind(b"\r"))
        if found >= 0:
            return start + found + 1
        end = start
    return edge


def _length(head: bytes) -> int | None:
    """Of the data of a TFRecord; None if it fails its checksum."""
    length, check = struct.unpack_from("<QI", head)
    return int(length) if check == _masked(crc32c(head[:8])) else None


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _tfrecord(read: Read, edge: int, end: int) -> int:
    window = _Window(read, end)
    while edge + 16 <= end:
        length = _length(window.take(edge, 12))
        if length is None:
            raise Broken(edge)
        after = edge + 12 + length + 4
        if after > end:
            break
        if after > end - _PROVEN and length <= _PROVEN:
            data = window.take(edge + 12, length + 4)
            if int.from_bytes(data[-4:], "little") != _masked(crc32c(data[:-4])):
                raise Broken(edge)
        edge = after
    return edge


def _wandb(read: Read, edge: int, end: int) -> int:
    """A record may come in several fragments: first, middle, last. The file itself has a head."""
    window, at, began = _Window(read, end), edge, True
    if at == 0:
        at = edge = _RECORD if end >= _RECORD else 0
        if not at:
            return 0
    while True:
        left = _BLOCK - at % _BLOCK
        if left < _RECORD:  # the rest of a block is zeros
            if at + left > end:
                return edge
            at += left
        if at + _RECORD > end:
            return edge
        check, length, kind = struct.unpack("<IHB", window.take(at, _RECORD))
        after = at + _RECORD + length
        first = kind in (1, 2)  # whole, or the first of several
        if kind not in (1, 2, 3, 4) or first != began or after > at + _BLOCK - at % _BLOCK:
            raise Broken(edge)
        if after > end:
            return edge
        if after > end - _PROVEN:
            data = window.take(at + _RECORD, length)
            if zlib.crc32(data, zlib.crc32(bytes([kind]))) != check:
                raise Broken(edge)
        at, began = after, kind in (1, 4)
        if began:
            edge = at


class _Window:
    """Small pieces of a file one after the other, read in large ones."""

    def __init__(self, read: Read, end: int) -> None:
        self._read = read
        self._end = end
        self._start, self._data = 0, b""

    def take(self, start: int, count: int) -> bytes:
        """The bytes at ``start``; all of them are before the end."""
        at = start - self._start
        if at < 0 or at + count > len(self._data):
            wanted = min(max(count, _WINDOW), self._end - start)
            self._start, self._data, at = start, self._read(start, wanted), 0
        return self._data[at : at + count]


def reader(fd: int) -> Read:
    """Reads an open file at any place."""

    def read(start: int, count: int) -> bytes:
        pieces = []
        while count and (piece := os.pread(fd, count, start)):
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    return read
