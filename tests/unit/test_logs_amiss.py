"""What is wrong with one log is said, and holds up no other; what comes while it is sent."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncd.errors import Conflict, Permanent
from syncd.stores.base import IfVersion
from syncd.stores.directory import DirectoryStore
from tests.logbench import LOGS, Counted, Logger, lines, logger


@pytest.fixture
def one(tmp_path: Path) -> Logger:
    return logger(tmp_path)


@pytest.mark.parametrize("flush", [False, True])
def test_a_disk_that_takes_no_copy_of_a_database_holds_up_no_other(
    one: Logger, flush: bool
) -> None:
    (one.disk / "state").write_bytes(b"a file where a folder must be")
    with contextlib.closing(sqlite3.connect(one.logs / "a.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE a (n)")
    one.write("z/train.log", content := lines(2000))
    assert one.ship(flush=flush) == 1
    assert one.there("z/train.log") == content
    (reason,) = one.health.reasons()
    assert reason.code == "skipped log a.db"
    assert "SYNCD_STATE_DIR" in reason.hint
    (one.disk / "state").unlink()
    assert one.ship(after=31, flush=flush) == 1
    assert one.health.reasons() == []
    assert one.names() == {"a.db", "z/train.log"}


def test_a_disk_that_fails_under_one_log_holds_up_no_other(
    one: Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.write("a.log", lines(1))
    one.write("b.log", content := lines(100))
    real = os.fstat

    def stale(fd: int) -> os.stat_result:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "a.log":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(fd)

    monkeypatch.setattr(os, "fstat", stale)
    assert one.ship() == 1
    assert one.there("b.log") == content
    (reason,) = one.health.reasons()
    assert reason.code == "skipped log a.log"
    assert "Stale file handle" in reason.message
    monkeypatch.undo()
    assert one.ship(after=31) == 1
    assert one.health.reasons() == []


@pytest.mark.parametrize("folder", ["", "run"])
def test_a_folder_of_logs_that_cannot_be_looked_into_is_said(
    one: Logger, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.write("run/train.log", content := lines(10))
    one.write("other.log", lines(10))
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if path == one.logs / folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for _ in range(2):
        one.ship(flush=True)
    assert one.names() == ({"other.log"} if folder else set())
    (reason,) = one.health.reasons()
    assert reason.code == f"log folder {folder}"
    assert "Permission denied" in reason.message
    monkeypatch.undo()
    one.ship(after=31)
    assert one.health.reasons() == []
    assert one.there("run/train.log") == content


def test_a_disk_of_logs_that_is_gone_is_said(one: Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    one.write("train.log", lines(10))

    def stale(_path: Path) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "is_dir", stale)
    assert one.ship(flush=True) == 0
    assert "Stale file handle" in one.health.reasons()[0].message
    monkeypatch.undo()
    assert one.ship(after=31) == 1
    assert one.health.reasons() == []


@pytest.mark.parametrize("then", ["deleted", "renamed", "emptied"])
def test_a_log_that_was_skipped_is_forgiven_when_nothing_of_it_is_to_be_sent(
    one: Logger, then: str
) -> None:
    path = one.logs / "taken/a.log"
    one.write("taken/a.log", b"a\n")
    one.store.put(LOGS + "taken", b"a file where a folder must be")
    one.ship(after=31)
    assert [reason.code for reason in one.health.reasons()] == ["skipped log taken/a.log"]
    one.ship(after=31)
    assert len(one.health.reasons()) == 1, "it is as it was"
    if then == "deleted":
        path.unlink()
    elif then == "renamed":
        path.rename(one.logs / "b.log")
    else:
        one.overwrite("taken/a.log", b"")
    one.ship(after=31)
    assert one.health.reasons() == []


def test_a_name_that_is_put_right_is_forgiven(one: Logger) -> None:
    bad = one.logs / os.fsdecode(b"bad-\xff.log")
    bad.write_bytes(content := lines(10))
    for _ in range(2):
        one.ship(after=31)
        assert [reason.code for reason in one.health.reasons()] == ["log name"]
    bad.rename(one.logs / "good.log")
    one.ship(after=31)
    assert one.health.reasons() == []
    assert one.there("good.log") == content


def test_a_log_that_cannot_be_seen_is_not_forgiven(
    one: Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.write("taken/a.log", b"a\n")
    (one.logs / "run").mkdir()
    (one.logs / "run" / os.fsdecode(b"bad-\xff.log")).write_bytes(b"x\n")
    one.store.put(LOGS + "taken", b"a file where a folder must be")
    one.ship()
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if path in (one.logs / "taken", one.logs / "run"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    one.ship(after=31)
    codes = {reason.code for reason in one.health.reasons()}
    hidden = {"log folder taken", "log folder run"}
    assert codes == {"skipped log taken/a.log", "log name", *hidden}
    monkeypatch.undo()
    one.ship(after=31)
    codes = {reason.code for reason in one.health.reasons()}
    assert codes == {"skipped log taken/a.log", "log name"}


class Refusing(Counted):
    """Says of every version that it is another one, and has it; gives up after many requests."""

    refuses = True
    touches = False
    """Somebody else puts what is there once more, each time just before."""

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)

        def ask(*args: Any, **kwargs: Any) -> Any:
            conditional = name == "append" or isinstance(args[-1], IfVersion)
            if conditional and self.refuses:
                self.made["refused"] += 1
                assert self.made["refused"] < 50, "it is asked again and again"
                if self.touches:
                    self._store.put(args[0], b"".join(self._store.read(args[0])))
                raise Conflict("412: the condition does not hold")
            return call(*args, **kwargs)

        return ask


@pytest.mark.parametrize("append_from", [None, 1])
def test_a_store_that_refuses_the_version_it_has_is_not_asked_without_end(
    tmp_path: Path, append_from: int | None
) -> None:
    store = Refusing(DirectoryStore(tmp_path / "bucket"), append_from=append_from)
    one = Logger(tmp_path / "one", store)
    one.write("train.log", content := lines(100))
    one.ship()
    one.write("train.log", more := lines(100))
    assert one.ship(after=31) == 0
    assert one.health.reasons() == [], "another machine may have been at it just then"
    assert one.ship(after=31) == 0
    (reason,) = one.health.reasons()
    assert reason.code == "skipped log train.log"
    assert one.there("train.log") == content
    assert store.made["refused"] == 2
    store.refuses = False
    assert one.ship(after=31) == 1
    assert one.health.reasons() == []
    assert one.there("train.log") == content + more
    assert one.names() == {"train.log"}


class Joining(Counted):
    """Refuses to join so many tails, which costs no attempt."""

    refuses = 1

    def __getattr__(self, name: str) -> Any:
        if name == "append" and self.refuses:
            self.refuses -= 1
            raise Permanent("this object has blocks that no other can join")
        return super().__getattr__(name)


def test_an_object_that_no_tail_can_join_is_made_anew_and_then_continued(tmp_path: Path) -> None:
    store = Joining(DirectoryStore(tmp_path / "bucket"))
    one = Logger(tmp_path / "one", store)
    for _ in range(4):
        one.write("train.log", lines(100))
        one.ship(after=61)
    assert one.there("train.log") == (one.logs / "train.log").read_bytes()
    assert (store.made["put"], store.made["append"]) == (2, 2)


def test_a_store_that_joins_no_tail_is_not_asked_for_ever(tmp_path: Path) -> None:
    store = Joining(DirectoryStore(tmp_path / "bucket"))
    store.refuses = 100
    one = Logger(tmp_path / "one", store)
    for _ in range(6):
        one.write("train.log", lines(100))
        one.ship(after=61)
    assert one.there("train.log") == (one.logs / "train.log").read_bytes()
    assert store.refuses == 98


def test_an_object_that_somebody_touches_all_the_time_is_left_for_the_next_look(
    tmp_path: Path,
) -> None:
    store = Refusing(DirectoryStore(tmp_path / "bucket"))
    store.touches = True
    one = Logger(tmp_path / "one", store)
    one.write("train.log", content := lines(100))
    one.ship()
    one.write("train.log", more := lines(100))
    assert one.ship(after=31) == 0
    assert one.health.reasons() == []
    store.refuses = False
    assert one.ship(after=31) == 1
    assert one.there("train.log") == content + more


# -- while it is sent


class Meanwhile(Counted):
    """Something happens on the disk when the store is asked for something, once."""

    asked = ""
    happens: Callable[[], None] = staticmethod(lambda: None)

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)

        def both(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            finally:
                if name == self.asked:
                    self.asked = ""
                    self.happens()

        return both


def long_log(run: str, count: int) -> bytes:
    """So many KiB of lines, which tell of which run they are."""
    return b"".join(b"%s %07d %s\n" % (run.encode(), n, b"." * 1011) for n in range(count))


@pytest.fixture
def busy(tmp_path: Path) -> Logger:
    return Logger(tmp_path / "one", Meanwhile(DirectoryStore(tmp_path / "bucket")))


def test_a_large_log_that_is_rotated_while_it_is_sent_keeps_its_content(busy: Logger) -> None:
    busy.write("train.log", old := long_log("old", 9000))
    new = long_log("new", 9500)

    def rotate() -> None:
        (busy.logs / "train.log").rename(busy.logs / "train.log.1")
        busy.write("train.log", new)

    busy.store.asked, busy.store.happens = "head", rotate
    for _ in range(3):
        busy.ship(after=120)
    assert (busy.logs / "train.log.1").exists()
    assert busy.there("train.log.1") == old
    assert busy.there("train.log") == new
    assert busy.names() == {"train.log", "train.log.1"}


def test_a_long_tail_of_a_log_that_begins_anew_is_not_joined_to_the_old_one(busy: Logger) -> None:
    busy.write("train.log", long_log("old", 100))
    busy.ship()
    busy.write("train.log", long_log("old", 17_000))
    new = long_log("new", 18_000)
    busy.store.asked, busy.store.happens = "append", lambda: busy.overwrite("train.log", new)
    busy.ship(after=61)
    assert b"new" not in (busy.there("train.log") or b"")
    busy.ship(after=120)
    assert busy.there("train.log") == new
