"""The journal: lost, cut or full of rubbish, it is put aside and never a crash loop."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from syncd.journal import Held, Journal, Sent
from syncd.records import CommitRecord, FileEntry, Layout

LAYOUT = Layout("p")
ENTRY = FileEntry("a", "p/checkpoints/c/a", 5, "0" * 64, 0o644, 1)
RECORD = CommitRecord(1, "c", "w", "2026-11-23T20:00:00Z", "set", (ENTRY,))


def test_remembers_across_lives(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", "store")
    first.add_commit(RECORD)
    first.mark_safe("c", "signature", 1, 0)
    first.add_digests([("c/a", "5:1:1:1", "0" * 64)])
    first.close()
    second = Journal(tmp_path / "j", "store")
    assert second.commit(1, LAYOUT) == RECORD
    assert second.newest_commit(LAYOUT, "c") == RECORD
    assert second.is_safe("c", "signature")
    assert not second.is_safe("c", "another")
    assert second.digest("c/a", "5:1:1:1") == "0" * 64
    assert second.digest("c/a", "5:2:1:1") is None
    assert second.object_with(5, "0" * 64) == Held(ENTRY.key, "0" * 64, "", 5)


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """The address of an upload to Google lets anybody write to it."""
    journal = Journal(tmp_path / "j", "store")
    number = journal.begin_upload("p/a", "a", "1:1:1:1", 5, 5)
    journal.name_upload(number, "0 https://storage/upload?upload_id=secret")
    files = list(tmp_path.glob("j*"))
    assert files
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    assert "secret" not in repr(journal.uploads())


def test_another_store_needs_another_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", "store")
    first.add_commit(RECORD)
    first.close()
    assert Journal(tmp_path / "j", "other store").head() == 0


@pytest.mark.parametrize(
    "content",
    [b"rubbish" * 1000, b"SQLite format 3\0" + os.urandom(8192)],
    ids=["no database", "its head alone"],
)
def test_rubbish_is_put_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    journal = Journal(tmp_path / "j", "store")
    assert journal.put_aside == tmp_path / "j.corrupt-1"
    assert journal.put_aside.read_bytes() == content
    journal.add_commit(RECORD)
    assert journal.head() == 1


def test_cut_journal_is_put_aside_or_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "store")
    journal.add_commit(RECORD)
    journal.close()
    data = (tmp_path / "j").read_bytes()
    for length in range(0, len(data), 1777):
        for leftover in tmp_path.glob("j*"):
            leftover.unlink()
        (tmp_path / "j").write_bytes(data[:length])
        Journal(tmp_path / "j", "store").add_commit(RECORD)


def test_folder_that_is_not_there_means_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "missing" / "j", "store")
    assert journal.volatile
    journal.add_commit(RECORD)
    assert journal.head() == 1


def test_sent_files_are_forgotten_once_committed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "store")
    journal.add_sent(Sent(ENTRY.key, "c/a", "5:1:1:1", "0" * 64, "v1"))
    assert journal.find_sent("c/a", "5:1:1:1")
    journal.add_commit(RECORD)
    assert journal.find_sent("c/a", "5:1:1:1") is None


def test_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "store")

    def fail() -> None:
        with journal.transaction():
            journal.add_commit(RECORD)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert journal.head() == 0


# -- the disk


def test_journal_of_a_later_version_is_made_anew(tmp_path: Path) -> None:
    for script in (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);"
        "INSERT INTO meta VALUES ('version', '99'); CREATE VIEW commits AS SELECT 1;"
        'CREATE TABLE "odd name" (a INTEGER PRIMARY KEY AUTOINCREMENT);',
        "CREATE TABLE meta (other INTEGER);",
        "CREATE TABLE commits (nothing_like_it INTEGER);",
    ):
        database = sqlite3.connect(tmp_path / "j")
        database.executescript(script)
        database.close()
        journal = Journal(tmp_path / "j", "store")
        assert (journal.volatile, journal.put_aside) == ("", None)
        journal.add_commit(RECORD)
        journal.close()
        again = Journal(tmp_path / "j", "store")
        assert again.head() == 1
        again.close()
        (tmp_path / "j").unlink()


def test_what_is_in_memory_while_the_disk_is_full_is_on_disk_again_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "store")
    journal.add_commit(RECORD)
    journal.recover(sqlite3.OperationalError("database or disk is full"))
    assert journal.volatile == "database or disk is full"
    assert journal.commit(1, LAYOUT) == RECORD  # nothing is forgotten on the way
    journal.mark_safe("c", "signature", 1, 0)
    assert journal.settle()
    assert journal.volatile == ""
    journal.mark_safe("d", "signature", 1, 0)
    journal.close()
    again = Journal(tmp_path / "j", "store")
    assert (again.is_safe("c", "signature"), again.is_safe("d", "signature")) == (True, True)
    assert not again.settle()


@pytest.mark.parametrize("gone", ["file", "all", "folder"])
def test_journal_that_is_deleted_under_a_daemon_comes_back(tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    journal = Journal(folder / "j", "store")
    journal.add_commit(RECORD)
    for path in [folder / "j"] if gone == "file" else list(folder.iterdir()):
        path.unlink()
    if gone == "folder":
        folder.rmdir()
    journal.mark_safe("c", "signature", 1, 0)
    assert journal.settle()
    journal.mark_safe("d", "signature", 1, 0)
    journal.close()
    again = Journal(folder / "j", "store")
    assert again.head() == 1
    assert again.is_safe("d", "signature")


def test_journal_that_becomes_rubbish_under_a_daemon_is_put_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "store")
    journal.add_commit(RECORD)
    (tmp_path / "j").write_bytes(os.urandom(50_000))
    journal.recover(sqlite3.DatabaseError("database disk image is malformed"))
    assert journal.put_aside
    journal.add_commit(RECORD)
    assert (journal.volatile, journal.head()) == ("", 1)


def test_rubbish_that_cannot_be_put_aside_means_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "j").write_bytes(b"rubbish" * 1000)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    journal = Journal(tmp_path / "j", "store")
    assert "Permission denied" in journal.volatile
    journal.add_commit(RECORD)
    assert not journal.settle()
    monkeypatch.undo()
    assert not journal.settle()  # now it could be put aside
    assert journal.settle()


def test_two_on_one_journal_lose_nothing_that_matters(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "j", "store"), Journal(tmp_path / "j", "store")
    for number in range(20):
        first.mark_safe(f"a{number}", "signature", 1, 0)
        second.mark_safe(f"b{number}", "signature", 1, 0)
    assert first.is_safe("b19", "signature")


def test_list_of_writers_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "store")
    journal.remember("writers", "{rubbish")
    assert journal.writers() == []
    journal.add_writer("w")
    assert journal.writers() == ["w"]
