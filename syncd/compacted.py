"""The commit log in one object, so that a log of thousands is not read record by record.

The log itself stays the authority: what is listed there counts, and a record comes from here only
where the log has it with the size that it had, from before this object was written: that of a log
that was emptied and begun anew tells nothing. The claim by which retention replaces some records
is shorter. Without this object, or with a damaged one, each is read alone.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from syncd.errors import Corrupt, NotFound, Permanent
from syncd.records import CommitRecord, Layout, parse_record
from syncd.stores.base import ObjectInfo, ObjectStore

EVERY = 256
"""Commits after which it is written anew: so many more must be read alone, at most."""

_LIMIT = 256 * 1024 * 1024
"""Bytes that it may have, and may become: a tampered bucket must not fill the memory."""

_GZIP = zlib.MAX_WBITS | 16


def folder(layout: Layout) -> str:
    """Prefix of these objects, of which the one with the highest number counts."""
    return f"{layout.prefix}/.syncd/compacted/"


class Compacted:
    """Records by number, as of some commit."""

    def __init__(self, layout: Layout, lines: Iterable[bytes] = (), written: float = 0.0) -> None:
        """``written``: when, by the store's clock."""
        self._layout = layout
        self._written = written
        self._lines: dict[tuple[int, int], bytes] = {}
        for line in lines:
            with suppress(ValueError):
                seq, size, record = line.split(b" ", 2)
                self._lines[int(seq), int(size)] = record

    def record(self, seq: int, listed: ObjectInfo) -> CommitRecord | None:
        """A commit whose record is ``listed`` in the log; None where that is not here."""
        older = listed.modified < self._written
        text = self._lines.get((seq, listed.size)) if older else None
        try:
            return parse_record(text, seq, self._layout.prefix) if text else None
        except Corrupt:
            return None


def load(store: ObjectStore, layout: Layout) -> Compacted:
    """What the newest of these objects holds; nothing where there is none that can be read."""
    newest = max(store.list(folder(layout)), key=lambda info: info.key, default=None)
    data, size = b"", 0
    with suppress(NotFound, Corrupt, Permanent, zlib.error):
        unzip, pieces = zlib.decompressobj(_GZIP), []
        for chunk in store.read(newest.key) if newest else ():
            piece = unzip.decompress(chunk, _LIMIT - size + 1)
            size += len(piece)
            if size > _LIMIT:
                return Compacted(layout)
            pieces.append(piece)
        data = b"".join(pieces)
    return Compacted(layout, data.splitlines(), newest.modified if newest else 0.0)


class Compactor:
    """Writes it anew now and then, for one daemon."""

    def __init__(self, store: ObjectStore, layout: Layout) -> None:
        self._store = store
        self._layout = layout
        self._last: int | None = None

    def mind(self, known: Mapping[int, int], records: Iterable[CommitRecord]) -> None:
        """Write it if so many commits have come since; the errors of the store are raised.

        ``known`` are the numbers in the log with the bytes of each, ``records`` those commits, of
        which none is looked at while there is nothing to do.
        """
        head = max(known, default=0)
        if len(known) < EVERY or (self._last is not None and self._fewer(known)):
            return
        there = sorted(info.key for info in self._store.list(folder(self._layout)))
        self._last = max((self._number(key) for key in there), default=0)
        if self._fewer(known):
            return
        key = f"{folder(self._layout)}{head:020}.jsonl.gz"
        self._store.put(key, _text(known, records))
        self._last = head
        self._store.delete([old for old in there if old < key])

    def _fewer(self, known: Iterable[int]) -> bool:
        return sum(1 for seq in known if seq > (self._last or 0)) < EVERY

    @staticmethod
    def _number(key: str) -> int:
        digits = key.rpartition("/")[2].partition(".")[0]
        return int(digits) if digits.isdecimal() else 0


def _text(known: Mapping[int, int], records: Iterable[CommitRecord]) -> bytes:
    """A line for each commit: number, bytes in the log, the record. Claims are left out."""
    zipped = zlib.compressobj(1, wbits=_GZIP)
    pieces = [zipped.compress(line) for line in _lines(known, records)]
    return b"".join((*pieces, zipped.flush()))


def _lines(known: Mapping[int, int], records: Iterable[CommitRecord]) -> Iterator[bytes]:
    for record in records:
        size = known.get(record.seq, 0)
        if record.is_claim or not size:
            continue
        document = json.loads(record.to_json())
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        yield f"{record.seq} {size} {text}\n".encode()
