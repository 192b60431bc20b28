"""SQLite databases among checkpoints, which their trainer never closes: whole, and in time."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd import logsqlite, place, restore
from syncd.errors import GaveWay, Permanent
from syncd.place import REPLACED
from syncd.records import CommitRecord
from syncd.restored import Replace
from syncd.running import Pacer, hold_still
from syncd.scan import scan
from syncd.snapshot import Snapshots
from syncd.units import Unit, units
from tests.clocks import FakeClock
from tests.unit.test_detect import Desk
from tests.workbench import LAYOUT, Machine, restore_newest, restorer

MODES = ("wal", "delete", "truncate", "persist")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


class Study:
    """A database that somebody has open."""

    def __init__(self, path: Path, mode: str = "wal") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.mode = path, mode
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute(f"PRAGMA journal_mode={mode}")
        self.connection.execute("CREATE TABLE trials (number INTEGER, value TEXT)")

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.connection.execute("INSERT INTO trials VALUES (1, ?)", ("x" * 500,))


@pytest.fixture(params=MODES)
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Study]:
    study = Study(tmp_path / "one/checkpoints/study.db", request.param)
    with contextlib.closing(study.connection):
        yield study


def rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = database.execute("SELECT COUNT(*) FROM trials").fetchone()
    return int(count)


def restored(machine: Machine, place: Path) -> int:
    shutil.rmtree(place, ignore_errors=True)
    restore_newest(machine.bucket, place)
    assert [path.name for path in place.iterdir() if not path.name.startswith(".")] == ["study.db"]
    return rows(place / "study.db")


def test_database_that_is_never_closed_is_committed_whole(study: Study, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study.add(200)
    (record,) = machine.commit_all()
    assert (record.checkpoint, record.profile) == ("study.db", "file")
    assert restored(machine, tmp_path / "two") == 200
    assert not machine.commit_all(), "nothing has happened since"
    study.add()
    assert len(machine.commit_all()) == 1, "wherever that was written"
    assert restored(machine, tmp_path / "two") == 201


def test_what_was_written_before_its_turn_came_is_in_it(study: Study, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study.add(10)
    look = machine.pipeline.look()
    study.add(10)
    assert machine.pipeline.commit_next(look, machine.publisher)
    assert restored(machine, tmp_path / "two") == 20


def test_half_of_a_transaction_is_in_no_copy(study: Study, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study.add(10)
    study.connection.execute("PRAGMA cache_size=1")  # what is not committed goes to the disk
    study.connection.execute("BEGIN")
    study.add(5)
    if study.mode == "wal":
        assert len(machine.commit_all()) == 1
        assert restored(machine, tmp_path / "two") == 10
    else:
        assert not machine.commit_all()
        assert machine.pipeline.failures() == {"study.db": "failed; it is tried again by itself"}
        assert not machine.pipeline.look().pending, "nothing waits behind it"
        machine.pipeline._postponed.clear()
    study.connection.execute("COMMIT")
    assert len(machine.commit_all()) == 1
    assert restored(machine, tmp_path / "two") == 15


def test_what_a_crash_left_beside_it_is_in_the_copy(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(tmp_path / "three/study.db")
    with contextlib.closing(study.connection):
        study.add(100)
        for path in study.path.parent.iterdir():  # as they lie there after a power cut
            shutil.copyfile(path, machine.root / path.name)
    before = {path.name: path.read_bytes() for path in machine.root.iterdir()}
    assert {"study.db", "study.db-wal"} <= before.keys()
    assert len(machine.commit_all()) == 1
    assert restored(machine, tmp_path / "two") == 100
    assert not machine.commit_all()


def test_database_that_is_at_rest_is_sent_as_it_is(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(machine.root / "study.db")
    study.add(10)
    study.connection.close()
    machine.commit_all()
    restore_newest(machine.bucket, tmp_path / "two")
    assert (tmp_path / "two/study.db").read_bytes() == study.path.read_bytes()


def test_no_copy_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(machine.root / "study.db")
    with contextlib.closing(study.connection):
        study.add(10)
        monkeypatch.setattr(logsqlite, "_SHARE", 0.0)
        assert not machine.commit_all()
        (reason,) = machine.health.reasons("")
        assert "a copy of" in reason.message
        assert "SYNCD_STATE_DIR" in reason.hint
        monkeypatch.undo()
        study.add()
        assert len(machine.commit_all()) == 1
    assert not machine.health.reasons("")


def test_disk_that_is_full_is_told_and_nothing_is_sent_from_the_live_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(machine.root / "study.db")
    with contextlib.closing(study.connection):
        study.add(10)
        (unit, _) = machine.pipeline.look().pending[0]

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        snapshots = Snapshots(tmp_path / "s", machine.root, None)
        monkeypatch.setattr(Snapshots, "_check_room", full)
        with pytest.raises(Permanent, match="no copy of the database in"):
            hold_still(machine.root, unit, snapshots, machine.journal)


# -- when


def test_lone_database_waits_for_nobody(desk: Desk) -> None:
    study = Study(desk.root / "study.db")
    with contextlib.closing(study.connection):
        for _ in range(11):
            study.add()
            verdict = desk.judge_in(1, "study.db")
        assert verdict.complete


def test_database_that_is_open_and_idle_holds_up_no_directory(desk: Desk) -> None:
    desk.write("run/model.bin")
    with contextlib.closing(Study(desk.root / "run/study.db").connection):
        assert not desk.judge_in(9, "run").complete
        assert desk.judge_in(2, "run").complete


def test_database_in_a_directory_may_be_a_part_of_the_save(desk: Desk) -> None:
    desk.write("run/model.bin")
    study = Study(desk.root / "run/study.db")
    with contextlib.closing(study.connection):
        for _ in range(55):
            study.add()
            assert not desk.judge_in(1, "run").complete
        for _ in range(10):
            study.add()
            verdict = desk.judge_in(1, "run")
        assert verdict.complete


def test_directory_is_a_mixture_until_its_database_is_written_again(desk: Desk) -> None:
    study = Study(desk.root / "run/state.db", "delete")
    with contextlib.closing(study.connection):
        desk.write("run/model.bin")
        study.add()
        assert desk.judge_in(11, "run").complete
        desk.commit("run")
        desk.clock.sleep(1)
        desk.write("run/model.bin", b"another")
        verdict = desk.judge_in(30, "run")
        assert verdict.reason == "state.db, written last before, has not been written again yet"
        study.add()
        assert desk.judge_in(11, "run").complete


def test_what_is_no_database_has_to_be_closed(desk: Desk) -> None:
    with desk.write("shelf.db", b"another format").open("ab"):
        assert desk.judge_in(300, "shelf.db").reason == "a process has it open for writing"
    assert desk.judge_in(3, "shelf.db").complete


# -- what


def test_what_lies_beside_a_database_is_a_part_of_it(tmp_path: Path) -> None:
    study = Study(tmp_path / "run/study.db")
    with contextlib.closing(study.connection):
        assert (tmp_path / "run/study.db-wal").exists()
        (tmp_path / "run/notes.db-wal").write_bytes(b"of no database")
        tree = scan(tmp_path)
        assert tree
        (unit,) = units(tree)
        assert [path for path, _ in unit.files] == ["study.db"]
        assert unit.databases == {"study.db"}
        apart = scan(tmp_path, joined=False)
        assert apart
        (unit,) = units(apart)
        assert len(unit.files) == 4
        assert not unit.databases


def test_each_change_makes_it_another_revision(study: Study, tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        study.add()
        tree = scan(tmp_path / "one/checkpoints")
        assert tree
        (unit,) = units(tree)
        seen.add(unit.signature)
    assert len(seen) == 3


def test_one_in_use_is_sent_now_and_then_and_one_that_is_saved_at_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(machine.root / "study.db")
    with contextlib.closing(study.connection):
        study.add()
        machine.commit_all()
        study.add()
        assert not machine.pipeline.look().pending, "a little later"
    for _ in range(3):
        with contextlib.closing(sqlite3.connect(study.path)) as saved, saved:
            saved.execute("INSERT INTO trials VALUES (2, 'x')")
        look = machine.pipeline.look()
        assert [unit.path for unit, _ in look.pending] == ["study.db"]
        assert machine.pipeline.commit_next(look, machine.publisher)
    assert restored(machine, tmp_path / "two") == 5


def test_the_longer_it_takes_the_longer_it_rests(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db")
    study.connection.close()
    tree, clock = scan(tmp_path), FakeClock()
    assert tree
    (unit,) = units(tree)
    pacer = Pacer(clock)
    for took, rest in ((1.0, 20.0), (30.0, 300.0)):
        pacer.committed(unit, False, took)
        due = pacer.until(unit)
        assert due is not None
        assert due - clock.monotonic() == pytest.approx(rest)


# -- the way back


def crashed(study: Study, root: Path) -> None:
    """As the files of a database lie there after a power cut."""
    for path in study.path.parent.iterdir():
        shutil.copyfile(path, root / path.name)


def committed_and_crashed(tmp_path: Path) -> tuple[Machine, CommitRecord]:
    """A machine whose database had 300 rows when it was committed, and has 307, 7 in its log."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(tmp_path / "three/study.db")
    with contextlib.closing(study.connection):
        study.add(300)
        crashed(study, machine.root)
        (record,) = machine.commit_all()
        study.add(7)
        crashed(study, machine.root)
    return machine, record


@pytest.mark.parametrize("replace", [Replace.DROP, Replace.KEEP])
def test_restore_takes_away_what_lay_beside_the_older_one(tmp_path: Path, replace: Replace) -> None:
    """SQLite would read the log of the one into the other, and say that all is well."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(tmp_path / "three/study.db")
    with contextlib.closing(study.connection):
        study.add(300)
        crashed(study, machine.root)
        (record,) = machine.commit_all()
        study.connection.execute("DELETE FROM trials")
        study.add(7)
        crashed(study, machine.root)
    restorer(machine.bucket).restore(record, machine.root, replace)
    assert not list(machine.root.glob("study.db-*"))
    assert rows(machine.root / "study.db") == 300
    kept = list(machine.root.glob(f"{REPLACED}/study.db-????????"))
    assert [rows(path) for path in kept] == ([7] if replace is Replace.KEEP else [])


def test_restore_that_fails_gives_back_what_lay_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, record = committed_and_crashed(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(place, "_exchange", fails)
    with pytest.raises(OSError, match="Input"):
        restorer(machine.bucket).restore(record, machine.root, Replace.DROP)
    monkeypatch.undo()
    assert rows(machine.root / "study.db") == 307


def test_restore_that_was_killed_before_it_took_the_place_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, record = committed_and_crashed(tmp_path)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(place, "_exchange", killed)
    monkeypatch.setattr(restore, "remove", lambda _path: None)
    with pytest.raises(Killed):
        restorer(machine.bucket).restore(record, machine.root, Replace.DROP)
    monkeypatch.undo()
    assert not list(machine.root.glob("study.db-wal"))
    place.clear_staging(machine.root)
    assert rows(machine.root / "study.db") == 307


def test_log_of_a_database_that_was_committed_alone_never_comes_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(tmp_path / "three/study.db")
    with contextlib.closing(study.connection):
        study.add(9)
        name = "study.db-wal"  # as an older version sent it
        machine.write("renamed", (study.path.parent / name).read_bytes() * 100)
        record = machine.publisher.publish(next(iter(units_of(machine.root))), "file", 0)
        assert record
        key = machine.bucket / LAYOUT.commit(record.seq)
        key.write_text(key.read_text().replace('"renamed"', f'"{name}"'))
        (machine.root / "renamed").unlink()
        crashed(study, machine.root)
        machine.commit_all()
    assert restored(machine, tmp_path / "two") == 9


def units_of(root: Path) -> list[Unit]:
    tree = scan(root)
    assert tree
    return list(units(tree))


def test_log_without_its_database_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "study.db-wal").write_bytes(b"x" * 100)
    (tmp_path / "new.db").touch()
    (tmp_path / "new.db-journal").write_bytes(b"x" * 100)
    assert [unit.path for unit in units_of(tmp_path)] == ["new.db"]


# -- what a fresh review found


def test_names_that_are_left_out_change_nothing_for_a_database(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(machine.root / "study.db")
    with contextlib.closing(study.connection):
        study.add(9)
        patterns = ("*-wal", "*-shm", "*-journal")
        tree, whole = scan(machine.root, patterns), scan(machine.root)
        assert tree
        assert whole
        (left_out,), (unit,) = units(tree), units(whole)
        assert left_out.signature == unit.signature


def test_one_that_is_always_locked_turns_red(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    study = Study(machine.root / "study.db", "delete")
    with contextlib.closing(study.connection):
        study.connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        study.add()
        assert not machine.commit_all()
        assert not machine.health.reasons("")
        machine.pipeline._busy["study.db"] -= 300
        machine.pipeline._postponed.clear()
        assert not machine.commit_all()
        (reason,) = machine.health.reasons("")
        assert "journal_mode=wal" in reason.hint
    machine.pipeline._postponed.clear()
    assert machine.commit_all()
    assert not machine.health.reasons("")


def test_a_copy_ends_when_time_is_up(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db")
    with contextlib.closing(study.connection):
        study.add(1000)
        with pytest.raises(GaveWay):
            logsqlite.snapshot(study.path, tmp_path / "copy", lambda: True)


def test_nothing_is_written_beside_what_a_crash_left(tmp_path: Path) -> None:
    study = Study(tmp_path / "three/study.db")
    with contextlib.closing(study.connection):
        study.add(10)
        root = tmp_path / "root"
        root.mkdir()
        for name in ("study.db", "study.db-wal"):
            shutil.copyfile(study.path.with_name(name), root / name)
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    logsqlite.snapshot(root / "study.db", tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
    assert rows(tmp_path / "copy") == 10
