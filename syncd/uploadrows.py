"""What the journal knows of uploads in parts: those that were begun, and what they have made.

A row is written before the store is asked to begin one, so that no kill leaves an upload of
which nothing is known here. Once its object is whole the parts stay, so that a newer version of
the file is told from it block by block.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path

from syncd.database import Database
from syncd.pathrules import encoding_of

SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, id TEXT NOT NULL,
    path TEXT NOT NULL, stat TEXT NOT NULL, size INTEGER NOT NULL, part INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parts (
    upload INTEGER NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL, tag TEXT NOT NULL,
    state TEXT NOT NULL, mark TEXT NOT NULL, PRIMARY KEY (upload, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS wholes (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, path TEXT NOT NULL, kind TEXT NOT NULL,
    size INTEGER NOT NULL, part INTEGER NOT NULL, version TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS wholes_by_key ON wholes (key);
"""

IN_RANGE = "+"
"""Tag of a part that the store has copied together with the one before it."""

_MOST_PARTS = 100_000
"""Parts of whole objects that are remembered, some 20 MB of journal: the newest objects'."""


@dataclass(frozen=True)
class Begun:
    """An upload under ``key`` of the file ``path`` as it was with ``stat``.

    ``id`` is the store's, "" until it has answered; ``part`` the length of each part but the
    last, in bytes. Where ``path`` is "", nobody takes it up again.
    """

    number: int
    key: str
    id: str = field(repr=False)
    path: str
    stat: str
    size: int
    part: int


@dataclass(frozen=True)
class Arrived:
    """A part that the store has taken.

    ``sha256`` is that of the file from its beginning to the end of this part: it is at hand
    while the file is read, and proves all parts up to this one. ``tag`` is the store's own.
    ``state`` is that of the digest there (:mod:`syncd.chain`), and ``mark`` tells most parts that
    differ (:mod:`syncd.delta`); both are "" where the store copies no ranges.
    """

    number: int
    sha256: str
    tag: str = ""
    state: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Whole:
    """An object that was made of parts; each part but the last has ``part`` bytes.

    ``number`` is that of the upload, under which its parts are known, ``version`` the object's.
    """

    number: int
    key: str
    path: str
    size: int
    part: int
    version: str


class UploadRows(Database):
    """The three tables."""

    def begin_upload(self, key: str, path: str, stat: str, size: int, part: int) -> int:
        """The store is about to be asked for an upload; the number of its row."""
        sql = "INSERT INTO uploads (key, id, path, stat, size, part) VALUES (?, '', ?, ?, ?, ?)"
        with self._lock:
            self._run(sql, key, path, stat, size, part)
            return int(self._run("SELECT last_insert_rowid()")[0][0])

    def name_upload(self, number: int, upload_id: str) -> None:
        """The store has begun it under this id."""
        self._run("UPDATE uploads SET id = ? WHERE number = ?", upload_id, number)

    def add_parts(self, number: int, parts: Iterable[Arrived]) -> None:
        """The store has taken these parts of an upload."""
        rows = [(number, *astuple(part)) for part in parts]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?)", rows)

    def uploads(self) -> list[Begun]:
        """All that were begun, and neither finished nor aborted."""
        rows = self._run("SELECT * FROM uploads ORDER BY number")
        return [_begun(row) for row in rows]

    def find_upload(self, path: str, stat: str) -> Begun | None:
        """The upload of this revision of a file that can be taken up, the newest one."""
        sql = "SELECT * FROM uploads WHERE path = ? AND stat = ? AND id != '' ORDER BY number DESC"
        rows = self._run(f"{sql} LIMIT 1", path, stat)
        return _begun(rows[0]) if rows else None

    def parts(self, number: int) -> dict[int, Arrived]:
        """The parts of an upload that the store has taken."""
        sql = "SELECT number, sha256, tag, state, mark FROM parts WHERE upload = ?"
        return {int(part): Arrived(int(part), *rest) for part, *rest in self._run(sql, number)}

    def bytes_arrived(self, path: str, stat: str) -> int:
        """Bytes of this revision of a file that need not be sent again."""
        found = self.find_upload(path, stat)
        if found is None:
            return 0
        rows = self._run("SELECT COUNT(*) FROM parts WHERE upload = ?", found.number)
        return min(int(rows[0][0]) * found.part, found.size)

    def doom_upload(self, number: int) -> None:
        """Nobody takes it up again: it is to be aborted."""
        self._run("UPDATE uploads SET path = '' WHERE number = ?", number)

    def drop_upload(self, number: int) -> None:
        """It is finished, or aborted."""
        with self.transaction():
            self._run("DELETE FROM parts WHERE upload = ?", number)
            self._run("DELETE FROM uploads WHERE number = ?", number)

    def drop_uploads_to(self, key: str) -> None:
        """The object is not what it should be. What the store may have begun unheard is sought."""
        sql = "SELECT number FROM uploads WHERE key = ? AND id != ''"
        with self.transaction():
            for (number,) in self._run(sql, key):
                self.drop_upload(int(number))

    # -- what was made of them

    def end_uploads_to(self, key: str, version: str) -> None:
        """The object is whole: its parts, if all are known, replace those of the older version."""
        with self.transaction():
            for row in self._run("SELECT * FROM uploads WHERE key = ? AND id != ''", key):
                begun = _begun(row)
                sql = "SELECT COUNT(*) FROM parts WHERE upload = ? AND mark != ''"
                known = int(self._run(sql, begun.number)[0][0])
                plain = begun.path and not encoding_of(key, begun.path)
                if not plain or known * begun.part < begun.size:
                    self.drop_upload(begun.number)
                    continue
                for (older,) in self._run("SELECT number FROM wholes WHERE path = ?", begun.path):
                    self.drop_whole(int(older))
                self._run(
                    "INSERT INTO wholes VALUES (?, ?, ?, ?, ?, ?, ?)",
                    *(begun.number, key, begun.path, _kind(begun.path)),
                    *(begun.size, begun.part, version),
                )
                self._run("DELETE FROM uploads WHERE number = ?", begun.number)
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        left = _MOST_PARTS
        rows = self._run("SELECT number, size, part FROM wholes ORDER BY number DESC")
        for number, size, part in rows:
            left -= -(-int(size) // int(part))
            if left < 0:
                self.drop_whole(int(number))

    def whole_like(self, path: str) -> Whole | None:
        """The object that a file may share parts with.

        Its own older version, else the newest of those whose paths differ in numbers alone, if
        there is one with the same last part of the path.
        """
        rows = self._run(
            "SELECT number, key, path, size, part, version FROM wholes WHERE kind = ? "
            "ORDER BY path = ? DESC, number DESC",
            _kind(path),
            path,
        )
        name = path.rpartition("/")[2]
        same = (row for row in rows if path == row[2] or row[2].rpartition("/")[2] == name)
        row = next(same, rows[0] if rows else None)
        if row is None:
            return None
        number, key, found, size, part, version = row
        return Whole(int(number), key, found, int(size), int(part), version)

    def ends_of(self, size: int) -> set[tuple[int, str, str]] | None:
        """The ends of each committed object of ``size`` bytes; None where one has unknown ones.

        They are the length of its parts in bytes, and the marks of the first and the last part.
        """
        unknown = self._run(
            "SELECT 1 FROM objects o WHERE o.size = ? AND o.current AND NOT EXISTS "
            "(SELECT 1 FROM wholes w WHERE w.key = o.key AND w.size = o.size) LIMIT 1",
            size,
        )
        if unknown:  # as of small files, of which there may be a hundred thousand
            return None
        rows = self._run(
            "SELECT w.part, a.mark, b.mark FROM objects o LEFT JOIN wholes w ON w.key = o.key "
            "AND w.size = o.size LEFT JOIN parts a ON a.upload = w.number AND a.number = 1 "
            "LEFT JOIN parts b ON b.upload = w.number "
            "AND b.number = (w.size + w.part - 1) / w.part WHERE o.size = ? AND o.current",
            size,
        )
        if not all(part and first and last for part, first, last in rows):
            return None
        return {(int(part), first, last) for part, first, last in rows}

    def drop_whole(self, number: int) -> None:
        """The object is gone, or another one by now."""
        with self.transaction():
            self._run("DELETE FROM parts WHERE upload = ?", number)
            self._run("DELETE FROM wholes WHERE number = ?", number)


def _kind(path: str) -> str:
    """What the paths of a file's versions have in common."""
    return re.sub(r"\d+", "#", path)


def _begun(row: tuple[str, ...]) -> Begun:
    number, key, upload_id, path, stat, size, part = row
    return Begun(int(number), key, upload_id, path, stat, int(size), int(part))


def ids_in(journal: Path) -> frozenset[str]:
    """Ids of the uploads that a journal knows, which another process may have open.

    And the keys of what has been sent for a commit that is to come.
    """
    if not journal.exists():
        return frozenset()
    with contextlib.suppress(sqlite3.Error):
        database = sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(database):
            rows = database.execute("SELECT id FROM uploads UNION SELECT key FROM sent")
            return frozenset(row[0] for row in rows)
    return frozenset()
