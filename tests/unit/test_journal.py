"""The journal: lost, cut or full of rubbish, it is put aside and never a crash loop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from syncd.journal import Journal, Sent
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
    assert second.object_with(5, "0" * 64) == ENTRY.key


def test_another_store_needs_another_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", "store")
    first.add_commit(RECORD)
    first.close()
    assert Journal(tmp_path / "j", "other store").head() == 0


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b"SQLite format 3\0" + os.urandom(8192)])
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
