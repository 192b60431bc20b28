"""What the journal knows of uploads in parts that were begun and not finished yet.

A row is written before the store is asked to begin one, so that no kill leaves an upload of
which nothing is known here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from syncd.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, id TEXT NOT NULL,
    path TEXT NOT NULL, stat TEXT NOT NULL, size INTEGER NOT NULL, part INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parts (
    upload INTEGER NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL, tag TEXT NOT NULL,
    PRIMARY KEY (upload, number)) WITHOUT ROWID;
"""


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
    """

    number: int
    sha256: str
    tag: str


class UploadRows(Database):
    """The two tables."""

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
        rows = [(number, part.number, part.sha256, part.tag) for part in parts]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", rows)

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
        rows = self._run("SELECT number, sha256, tag FROM parts WHERE upload = ?", number)
        return {int(part): Arrived(int(part), sha256, tag) for part, sha256, tag in rows}

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
        """The object is whole. What the store may have begun besides, unheard, is still sought."""
        sql = "SELECT number FROM uploads WHERE key = ? AND id != ''"
        with self.transaction():
            for (number,) in self._run(sql, key):
                self.drop_upload(int(number))


def _begun(row: tuple[str, ...]) -> Begun:
    number, key, upload_id, path, stat, size, part = row
    return Begun(int(number), key, upload_id, path, stat, int(size), int(part))


def ids_in(journal: Path) -> frozenset[str]:
    """Ids of the uploads that a journal knows, which another process may have open."""
    if not journal.exists():
        return frozenset()
    with contextlib.suppress(sqlite3.Error):
        database = sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(database):
            return frozenset(row[0] for row in database.execute("SELECT id FROM uploads"))
    return frozenset()
