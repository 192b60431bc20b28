"""A database is copied as it is at one moment, while its writer goes on."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.errors import Changed, Permanent
from syncd.logsqlite import snapshot

WRITER = """
import sqlite3, sys, time
path, mode = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None, timeout=0)  # waits for nobody
db.execute(f"PRAGMA journal_mode={mode}")
db.execute("CREATE TABLE IF NOT EXISTS a (n INTEGER, x BLOB)")
db.execute("CREATE TABLE IF NOT EXISTS b (n INTEGER)")
n = db.execute("SELECT COALESCE(MAX(n), 0) FROM a").fetchone()[0]
refused = 0
until = time.monotonic() + 60
while time.monotonic() < until:
    n += 1
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO a VALUES (?, randomblob(3000))", (n,))
        db.execute("INSERT INTO b VALUES (?)", (n,))
        db.execute("COMMIT")
    except sqlite3.OperationalError:
        refused += 1
        n -= 1
        if db.in_transaction:
            db.execute("ROLLBACK")
    print(n, refused, flush=True)
    time.sleep(0.005)
"""


@contextlib.contextmanager
def writer(path: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(path), mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        for _ in range(30):
            process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def proven(copy: Path) -> int:
    """How many rows a whole copy has; both tables were written in one transaction."""
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (a,), (b,) = (db.execute(f"SELECT COUNT(*) FROM {t}").fetchone() for t in "ab")
        assert a == b
        return int(a)


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
def test_a_copy_beside_a_busy_writer_is_whole(tmp_path: Path, mode: str) -> None:
    path, copy = tmp_path / "run/a.db", tmp_path / "state/copy"
    path.parent.mkdir()
    with writer(path, mode) as process:
        rows = []
        for _ in range(5):
            snapshot(path, copy)
            rows.append(proven(copy))
            assert process.stdout
            last = process.stdout.readline()
        assert rows == sorted(rows)
        assert rows[-1] >= 30
        names = {p.name for p in path.parent.iterdir()}
        assert names <= {"a.db", "a.db-wal", "a.db-shm", "a.db-journal"}
        assert [p.name for p in copy.parent.iterdir()] == ["copy"]
        if mode == "WAL":  # there a writer that waits for nobody is never refused
            assert last.split()[1] == "0"


def test_a_log_that_was_closed_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "run/a.db", tmp_path / "state/copy"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        for table in "ab":
            db.execute(f"CREATE TABLE {table} (n INTEGER)")
    snapshot(path, copy)
    assert proven(copy) == 0
    assert [p.name for p in path.parent.iterdir()] == ["a.db"]


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_what_a_killed_writer_left_is_mended_in_the_copy(tmp_path: Path, mode: str) -> None:
    path, copy = tmp_path / "run/a.db", tmp_path / "state/copy"
    path.parent.mkdir()
    with writer(path, mode):
        pass
    code = (
        "import sqlite3, sys, os; d = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "d.execute('PRAGMA cache_size=1'); d.execute('BEGIN');"
        "[d.execute('INSERT INTO a VALUES (-1, randomblob(900))') for _ in range(3000)];"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert len(before) > 1
    snapshot(path, copy)
    assert proven(copy) >= 29
    after = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    before.pop("a.db-shm", None), after.pop("a.db-shm", None)
    assert after == before, "the writer's own files are as they were"


def test_a_database_that_is_locked_is_left_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from syncd import logsqlite

    monkeypatch.setattr(logsqlite, "_PATIENCE", 0.3)
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE a (n)")
        db.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(Changed):
            snapshot(path, tmp_path / "state/copy")
        assert time.monotonic() - began < 10


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    with pytest.raises(Permanent, match=r"a\.db"):
        snapshot(path, tmp_path / "state/copy")


def test_a_journal_that_vanishes_between_two_looks_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, exists = tmp_path / "a.db", Path.exists
    with contextlib.closing(sqlite3.connect(path)) as db:
        for table in "ab":
            db.execute(f"CREATE TABLE {table} (n)")
    (tmp_path / "a.db-journal").touch()

    def vanishing(asked: Path) -> bool:
        there = exists(asked)
        if asked.name == "a.db-journal":  # its writer commits just now
            asked.unlink(missing_ok=True)
        return there

    monkeypatch.setattr(Path, "exists", vanishing)
    snapshot(path, tmp_path / "state/copy")
    assert proven(tmp_path / "state/copy") == 0


def test_a_folder_that_takes_no_copy_is_named(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute("CREATE TABLE a (n)")
    (tmp_path / "state").write_bytes(b"a file where a folder must be")
    with pytest.raises(Permanent, match=r"a\.db cannot be copied: .*state") as caught:
        snapshot(tmp_path / "a.db", tmp_path / "state/logs/copy")
    assert "SYNCD_STATE_DIR" in caught.value.hint


def test_no_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncd import logsqlite

    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE a (n)")
    monkeypatch.setattr(logsqlite, "_SHARE", 0.0)
    with pytest.raises(Permanent, match="may take 0"):
        snapshot(path, tmp_path / "state/copy")
