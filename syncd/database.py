"""The database under the journal: sound, of this version, with room to grow, or made anew.

What is wrong with the disk is an OperationalError, what is wrong with the content another
DatabaseError: the first is waited for in memory, the second is put aside.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

_SIDE_FILES = ("-wal", "-shm", "-journal")

_ROOM = 64 * 1024
"""Bytes that must fit when a journal is opened: else the first thing to be kept would fail."""


class Database:
    """SQLite that outlives its disk: every method may be called from any thread."""

    def __init__(self, path: Path | None, store: str, schema: str, version: str) -> None:
        """Open it at ``path`` (None: in memory); what it knows of another store is forgotten.

        ``put_aside`` is afterwards the path that a corrupt file was renamed to, and ``volatile``
        the reason why all could only be kept in memory.
        """
        self._schema, self._version = schema, version
        self._lock = threading.RLock()
        self._path = path
        self._store = store
        self._file: tuple[int, int] | None = None
        self.put_aside: Path | None = None
        self.volatile = ""
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        """The database on disk; a fresh one where that is corrupt; in memory where none can be."""
        try:
            try:
                return self._open_file()
            except sqlite3.OperationalError:
                raise  # a full disk or no permission: not the journal's fault
            except sqlite3.DatabaseError:
                if self._path is None:
                    raise
                self.put_aside = put_aside(self._path)
                return self._open_file()
        except (OSError, sqlite3.OperationalError) as error:
            self.volatile = str(error)
            return self._made_ours(open_database(None, self._schema, self._version))

    def _open_file(self) -> sqlite3.Connection:
        database = open_database(self._path, self._schema, self._version)
        self._file = identity(self._path) if self._path else None
        return self._made_ours(database)

    def _made_ours(self, database: sqlite3.Connection) -> sqlite3.Connection:
        """Empty it if it tells of another store."""
        row = database.execute("SELECT value FROM meta WHERE name = 'store'").fetchone()
        if row is None or row[0] != self._store:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in tables.fetchall():
                if table != "meta" and not table.startswith("sqlite_"):
                    database.execute(f"DELETE FROM {table}")  # noqa: S608
            database.execute("DELETE FROM meta WHERE name != 'version'")
            database.execute("INSERT INTO meta VALUES ('store', ?)", (self._store,))
        return database

    def recover(self, error: sqlite3.Error) -> None:
        """Go on after the database failed, with what can be saved of it.

        Afterwards the commit log has to be joined anew: all may be forgotten. What is corrupt is
        put aside; of a disk that takes no writes all is kept in memory, until :meth:`settle`.
        """
        with self._lock:
            disk = isinstance(error, sqlite3.OperationalError)
            memory = copy_to_memory(self._db, self._schema, self._version) if disk else None
            if not disk and self._path:
                with contextlib.suppress(OSError):
                    self.put_aside = put_aside(self._path)
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            if memory is None:
                self._db = self._open()
            else:
                self._db, self.volatile = self._made_ours(memory), str(error)

    def settle(self) -> bool:
        """Have the journal on disk if it is not: True if that was so, and is no more.

        It is in memory only after the disk was full; and its file may have been deleted.
        """
        with self._lock:
            if self._path is None or (not self.volatile and identity(self._path) == self._file):
                return False
            if not self.volatile:
                self.recover(sqlite3.OperationalError("its file was deleted"))
            memory, database = self._db, None
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if identity(self._path) is None:
                    forget(self._path)  # what lies beside it belongs to another one
                database = self._open_file()
                memory.backup(database)
                prove_room(database)
            except sqlite3.DatabaseError as error:
                if database:
                    database.close()
                if not isinstance(error, sqlite3.OperationalError):
                    with contextlib.suppress(OSError):
                        self.put_aside = put_aside(self._path)
                return False
            except OSError:
                return False
            memory.close()
            self._db, self.volatile = database, ""
            return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; the outermost one commits."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # else the failure itself has ended it
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _run(self, sql: str, *values: object) -> list[tuple[str, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the database; using it afterwards is an error."""
        with self._lock:
            self._db.close()


def open_database(path: Path | None, schema: str, version: str) -> sqlite3.Connection:
    """A database with the tables of ``schema``, at ``path`` or in memory; sqlite3.DatabaseError."""
    database = _connect(path)
    try:
        _check(database)
        if path and _is_of_another_version(database, version):
            database.close()
            forget(path)
            database = _connect(path)
        database.executescript(f"BEGIN;{schema}COMMIT;")  # at once: less than half of the room
        database.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (version,))
        if path:
            prove_room(database)
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.close()
        raise
    return database


def _check(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("the journal fails its own check")


def _connect(path: Path | None) -> sqlite3.Connection:
    if path:  # addresses of uploads are in it, and whoever has one can write there
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
    database = sqlite3.connect(
        ":memory:" if path is None else path, isolation_level=None, check_same_thread=False
    )
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("PRAGMA cache_size=-2000")
    except BaseException:
        database.close()
        raise
    return database


def _is_of_another_version(database: sqlite3.Connection, version: str) -> bool:
    """Whether its tables are others than ours, which hold nothing that cannot be found again."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return False
    columns = [row[1] for row in database.execute("PRAGMA table_info(meta)")]
    if columns != ["name", "value"]:
        return True
    row = database.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
    return row is None or row[0] != version


def prove_room(database: sqlite3.Connection) -> None:
    """OperationalError if the disk has no room for what is to come.

    What the log beside the file holds goes into the file: else it takes its room twice.
    """
    database.execute("INSERT OR REPLACE INTO meta VALUES ('room', ?)", ("x" * _ROOM,))
    database.execute("DELETE FROM meta WHERE name = 'room'")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def forget(path: Path) -> None:
    """Delete a database and what belongs to it."""
    path.unlink(missing_ok=True)
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def put_aside(path: Path) -> Path:
    """Rename a corrupt journal, so that a person can look at it and nothing is deleted."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside


def identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path now; None for none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def copy_to_memory(database: sqlite3.Connection, schema: str, version: str) -> sqlite3.Connection:
    """All that can still be read of a database whose disk takes no writes, else an empty one."""
    memory = open_database(None, schema, version)
    try:
        database.backup(memory)
    except sqlite3.Error:
        memory.close()
        memory = open_database(None, schema, version)
    return memory
