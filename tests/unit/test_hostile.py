"""What an adversary found: each once lost or falsified a checkpoint, or stopped the daemon."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import syncd.detect
from syncd.clock import SystemClock
from syncd.errors import Corrupt
from syncd.flushing import flush
from syncd.formats import check_file
from syncd.health import Health
from syncd.journal import Journal
from syncd.logs import LogShipper
from syncd.records import CommitRecord, parse_record
from syncd.retention import Retention
from syncd.stores.base import Upload
from syncd.stores.directory import DirectoryStore
from tests.workbench import LAYOUT, Died, Machine, age, restore_newest, restorer, tree


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "one", tmp_path / "bucket").start()


def prove_all(bucket: Path) -> int:
    """Every commit is intact; how many there are."""
    back = restorer(bucket)
    commits = back.commits()
    for commit in commits:
        assert isinstance(commit, CommitRecord)
        back.verify(commit)
    return len(commits)


def test_content_that_returns_is_committed_as_it_is(machine: Machine, tmp_path: Path) -> None:
    first, second = os.urandom(1000), os.urandom(1000)
    for content in (first, second, first, second, first):
        machine.write("last.bin", content)
        machine.commit_all()
    assert prove_all(tmp_path / "bucket") == 5
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert (tmp_path / "two/last.bin").read_bytes() == first


@pytest.mark.parametrize("lost_journal", [False, True], ids=["journal", "lost journal"])
def test_agents_that_move_between_slots_in_place(
    machine: Machine, tmp_path: Path, lost_journal: bool
) -> None:
    agents = [os.urandom(500) for _ in range(6)]
    for slots in ((0, 1), (2, 3), (0, 4), (1, 5), (0, 1)):
        for number, agent in enumerate(slots):
            machine.write(f"population/agent_{number}.bin", agents[agent])
        machine.commit_all()
        if lost_journal:
            machine.journal.close()
            for leftover in machine.disk.glob("journal.sqlite*"):
                leftover.unlink()
            machine = Machine(machine.disk, machine.bucket, f"w{slots}").start()
    assert prove_all(tmp_path / "bucket") >= 5


def test_file_that_went_and_comes_back(machine: Machine, tmp_path: Path) -> None:
    content = os.urandom(700)
    machine.write("set/a.bin", b"always")
    machine.write("set/b.bin", content)
    machine.commit_all()
    (machine.root / "set/b.bin").unlink()
    assert machine.commit_all() == []  # a writer killed half way would leave the same
    machine.write("set/a.bin", b"always")
    assert len(machine.commit_all()) == 1  # but this one has saved again without it
    machine.write("set/b.bin", content)
    (record,) = machine.commit_all()
    assert len(record.files) == 2
    assert prove_all(tmp_path / "bucket") == 3


def test_file_that_becomes_a_directory_is_copied(machine: Machine, tmp_path: Path) -> None:
    machine.write("set/a.bin", b"a")
    machine.write("set/model", b"file")
    machine.commit_all()
    (machine.root / "set/model").unlink()
    machine.write("set/model/weights", b"directory")
    assert machine.commit_all() == []
    machine.write("set/a.bin", b"b")
    assert len(machine.commit_all()) == 1
    assert prove_all(tmp_path / "bucket") == 2


def test_link_out_of_the_root_is_left_and_one_inside_is_kept(
    machine: Machine, tmp_path: Path
) -> None:
    machine.write("run/gen-000005/state.json", "{}")
    (machine.root / "run/latest").symlink_to(machine.root / "run/gen-000005")
    (machine.root / "run/data").symlink_to("/etc")
    machine.commit_all()
    prove_all(tmp_path / "bucket")
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert (tmp_path / "two/run/latest").readlink() == Path("gen-000005")
    assert not (tmp_path / "two/run/data").is_symlink()
    assert machine.health.snapshot()["healthy"]


def test_bucket_that_was_emptied_is_filled_again(machine: Machine, tmp_path: Path) -> None:
    machine.write("run/gen-000005/state.json", "{}")
    machine.commit_all()
    shutil.rmtree(tmp_path / "bucket")
    machine.write("run/gen-000010/state.json", "{}")
    machine.commit_all()
    machine.commit_all()
    names = {c.checkpoint for c in restorer(tmp_path / "bucket").commits() if c}  # type: ignore[union-attr]
    assert names == {"run/gen-000005", "run/gen-000010"}
    prove_all(tmp_path / "bucket")


def test_what_retention_let_go_is_not_sent_again(machine: Machine, tmp_path: Path) -> None:
    for number in (5, 10, 15):
        machine.write(f"run/gen-{number:06}/state.json", f"[{number}]")
        machine.commit_all()
    Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1)
    again = Machine(machine.disk, machine.bucket, "writer-b").start()
    assert again.commit_all() == []
    again.write("run/gen-000005/state.json", "[15]")  # content of another, changed in place
    again.write("run/gen-000020/state.json", "[5]")  # content that is gone
    again.commit_all()
    prove_all(tmp_path / "bucket")


def test_prune_beside_the_daemon_tears_nothing(machine: Machine, tmp_path: Path) -> None:
    machine.write("s-1/a", b"stays")
    machine.write("s-1/b", b"changes")
    machine.commit_all()
    machine.write("s-2/a", b"another")
    machine.commit_all()
    Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1)
    machine.write("s-1/b", b"changed")
    assert len(machine.commit_all()) == 1
    prove_all(tmp_path / "bucket")


def test_death_in_a_backlog_never_leaves_an_older_recovery_point(
    machine: Machine, tmp_path: Path
) -> None:
    big = os.urandom(12 * 1024 * 1024)
    for number in (1, 2, 3):
        age(machine.write(f"m{number}.bin", big + bytes([number])), 100 - number)
    look = machine.pipeline.look()
    for left in (2, 1, 0):  # the machine may die after any of them
        machine.pipeline.commit_next(look, machine.publisher)
        newest = restore_newest(tmp_path / "bucket", tmp_path / f"after-{left}")
        assert newest is not None
        assert newest.checkpoint == "m3.bin"
    log = machine.publisher.log
    order = [r.checkpoint for r in log.newest_first() if isinstance(r, CommitRecord)]
    assert order == ["m3.bin", "m2.bin", "m1.bin"]
    assert machine.health.snapshot()["recovery_point"]["checkpoint"] == "m3.bin"
    again = Machine(machine.disk, machine.bucket, "writer-b").start()
    point = again.publisher.recovery_point()
    assert point is not None
    assert point.checkpoint == "m3.bin"


def test_backlog_stands_behind_what_was_committed_before_it(
    machine: Machine, tmp_path: Path
) -> None:
    for number in (10, 40, 50):
        age(machine.write(f"m{number}.bin", bytes([number])), 1000 - number)
        machine.commit_all()
    for number in (30, 20, 60):
        age(machine.write(f"m{number}.bin", bytes([number])), 1000 - number)
        machine.commit_all()
    log = machine.publisher.log
    order = [r.checkpoint for r in log.newest_first() if isinstance(r, CommitRecord)]
    assert order == [f"m{number}.bin" for number in (60, 50, 40, 30, 20, 10)]


def test_clock_that_is_set_back_makes_no_checkpoint_an_old_one(
    machine: Machine, tmp_path: Path
) -> None:
    """The kernel's clock cannot be set back here: the files of before are dated ahead."""
    ahead = machine.write("last-1.bin", b"before the clock was set back")
    os.utime(ahead, (ahead.stat().st_atime, ahead.stat().st_mtime + 1200))
    machine.commit_all()
    machine.write("last-2.bin", b"after it")
    machine.commit_all()
    newest = restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert newest is not None
    assert newest.checkpoint == "last-2.bin"


def test_machine_whose_clock_is_behind_goes_on_from_what_it_restored(tmp_path: Path) -> None:
    one = Machine(tmp_path / "one", tmp_path / "bucket").start()
    age(one.write("gen-000050.bin", b"of a machine whose clock is ahead"), -1200)
    (record,) = one.commit_all()
    two = Machine(tmp_path / "two", tmp_path / "bucket", "writer-b")
    restorer(tmp_path / "bucket").restore(record, two.root)
    two.start()
    unit = two.pipeline.look().pending[0][0]
    two.journal.mark_safe(unit.path, unit.signature, record.seq, unit.changed)
    two.write("gen-000055.bin", b"trained here, by a clock that is right")
    two.commit_all()
    newest = restore_newest(tmp_path / "bucket", tmp_path / "three")
    assert newest is not None
    assert newest.checkpoint == "gen-000055.bin"


def test_folder_that_cannot_be_read_is_a_failure_and_no_smaller_checkpoint(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write("s-1/main", b"readable")
    machine.write("s-1/sub/hidden", b"not")
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert machine.commit_all() == []
    assert "s-1" in machine.pipeline.failures()
    assert not machine.health.snapshot()["healthy"]
    monkeypatch.undo()
    assert len(machine.commit_all()) == 1
    assert machine.pipeline.failures() == {}
    assert machine.health.snapshot()["healthy"]


def test_file_that_cannot_be_read_is_a_failure(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write("s-1.bin", b"x")

    def refuse(_path: Path) -> str | None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(syncd.detect, "check_file", refuse)
    assert machine.commit_all() == []
    assert "Permission denied" in machine.pipeline.failures()["s-1.bin"]
    assert not machine.health.snapshot()["healthy"]
    monkeypatch.undo()
    (machine.root / "s-1.bin").chmod(0o644)
    (machine.root / "s-1.bin").chmod(0o600)
    assert len(machine.commit_all()) == 1
    assert machine.pipeline.failures() == {}
    assert machine.health.snapshot()["healthy"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.safetensors", b"\x20\0\0\0\0\0\0\0" + b'{"a":{"data_offsets":[0,"x"]}}  '),
        ("deep.json", b"[" * 200_000),
        ("bad.npz", b"PK\x03\x04" + bytes(50)),
    ],
)
def test_rubbish_is_judged_not_met_with_a_crash(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert check_file(tmp_path / name) is not None


@pytest.mark.parametrize(("field", "value"), [("committed_at", "yesterday"), ("committed_at", "")])
def test_record_with_no_time_is_refused(field: str, value: str) -> None:
    golden = Path(__file__).parent / "golden/commit-1.json"
    document = json.loads(golden.read_bytes())
    document[field] = value
    with pytest.raises(Corrupt):
        parse_record(json.dumps(document).encode(), 7, "eigen2")
    document = json.loads(golden.read_bytes())
    document["files"][0]["mtime_ns"] = 10**30
    with pytest.raises(Corrupt):
        parse_record(json.dumps(document).encode(), 7, "eigen2")


def test_log_with_a_name_that_is_not_utf8_holds_up_no_other(tmp_path: Path) -> None:
    (tmp_path / "good.log").write_text("good")
    with open(os.fsencode(tmp_path) + b"/bad-\xff.log", "wb") as file:  # noqa: PTH123
        file.write(b"bad")
    journal = Journal(None, "test")
    health = Health(SystemClock())
    shipper = LogShipper(tmp_path, journal, LAYOUT, health)
    assert [item.path for item in shipper.waiting()] == ["good.log"]
    assert "not UTF-8" in health.reasons()[0].message


def test_file_that_is_always_written_does_not_hold_up_a_flush(machine: Machine) -> None:
    slow = Machine(machine.disk, machine.bucket, "writer-b", settle=0.2).start()
    slow.write("done.bin", b"x")
    with (slow.root / "growing.bin").open("wb") as file:
        file.write(b"x")
        file.flush()
        flush(slow.pipeline, slow.publisher, SystemClock(), lambda: False, patience=1.0)
    assert slow.journal.safe_seq("done.bin") is not None
    assert slow.journal.safe_seq("growing.bin") is None


def test_upload_that_was_given_up_takes_no_more_parts(tmp_path: Path) -> None:
    upload: Upload = DirectoryStore(tmp_path / "bucket").start_upload("k", 20)
    upload.send(1, b"x" * 10)
    upload.abort()
    with pytest.raises(Exception, match="given up"):
        upload.send(2, b"x" * 10)
    assert tree(tmp_path / "bucket") == {}


def test_life_that_ends_while_it_learns_the_log_leaves_no_key_trusted(
    machine: Machine, tmp_path: Path
) -> None:
    """Another machine has refreshed a plain key: nothing is copied from there any more."""
    machine.write("model/a.bin", b"content of one")
    machine.commit_all()
    two = Machine(tmp_path / "two", tmp_path / "bucket", "writer-b")
    two.write("model/a.bin", b"content of two")
    two.start()
    two.commit_all()
    two.write("last.bin", b"x")
    (newest,) = two.commit_all()

    class Dying(DirectoryStore):
        def read(self, key: str, *part: Any, **more: Any) -> Iterator[bytes]:
            if key == LAYOUT.commit(newest.seq):
                raise Died
            return super().read(key, *part, **more)

    machine.journal.close()
    again = Machine(machine.disk, machine.bucket, "w-3", store=Dying(tmp_path / "bucket"))
    with pytest.raises(Died):
        again.start()
    again.journal.close()
    once_more = Machine(machine.disk, machine.bucket, "w-4").start()
    once_more.write("new/a.bin", b"content of one")
    once_more.commit_all()
    assert prove_all(tmp_path / "bucket") >= 4
