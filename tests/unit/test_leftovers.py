"""What an upload that was cut off has left in the store, once nobody will go on with it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from syncd import leftovers
from syncd.clock import SystemClock
from syncd.retention import UPLOAD_GRACE, Retention
from syncd.stores.directory import DirectoryStore
from syncd.unproven import mark_begun
from tests.workbench import LAYOUT, CountingStore, Died, Machine, restore_newest

PLAIN = "eigen2/checkpoints/gen-5"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    (tmp_path / "bucket").mkdir()
    mark_begun(DirectoryStore(tmp_path / "bucket"), LAYOUT)
    return tmp_path / "bucket"


def cut_off(tmp_path: Path, bucket: Path) -> Machine:
    """A machine that dies before its third request that writes, and its next life.

    Its files go one by one: of small ones, which go together, only a pruning finds those that
    were under way.
    """
    dying = CountingStore(DirectoryStore(bucket), die_at=2)
    first = Machine(tmp_path / "one", bucket, store=dying).start()
    for name in ("a.bin", "b.bin", "state.json"):
        first.write(f"gen-5/{name}", "{}".ljust(1 + (1 << 20)))
    with pytest.raises(Died):
        first.commit_all()
    first.transfer.close()
    first.journal.close()
    return Machine(tmp_path / "one", bucket, "writer-b").start()


def clear(machine: Machine) -> int:
    return leftovers.clear(DirectoryStore(machine.bucket), machine.journal, machine.root)


def test_what_can_still_be_named_stays(tmp_path: Path, bucket: Path) -> None:
    machine = cut_off(tmp_path, bucket)
    assert clear(machine) == 0
    assert len(machine.commit_all()) == 1
    assert restore_newest(bucket, tmp_path / "two")


def test_what_was_sent_of_a_checkpoint_that_is_gone_goes(tmp_path: Path, bucket: Path) -> None:
    machine = cut_off(tmp_path, bucket)
    shutil.rmtree(machine.root / "gen-5")
    assert clear(machine) > 0
    assert clear(machine) == 0
    assert not list((bucket / PLAIN).glob("*"))


def test_what_another_has_put_there_since_stays(tmp_path: Path, bucket: Path) -> None:
    machine = cut_off(tmp_path, bucket)
    shutil.rmtree(machine.root / "gen-5")
    names = [path.name for path in (bucket / PLAIN).iterdir()]
    for name in names:
        DirectoryStore(bucket).put(f"{PLAIN}/{name}", b"of another machine")
    assert clear(machine) == len(names)
    assert [path.name for path in (bucket / PLAIN).iterdir()] == names


def test_pruning_takes_what_no_commit_names_only_if_told_to(tmp_path: Path, bucket: Path) -> None:
    """The machine that sent it is lost, and its journal with it."""
    cut_off(tmp_path, bucket)
    other = Machine(tmp_path / "two", bucket, "writer-c").start()
    other.write("gen-10/w.bin", "named by a commit")
    assert len(other.commit_all()) == 1
    store, began = DirectoryStore(bucket), bucket / LAYOUT.began
    store.put(f"{PLAIN}/put-by-hand-before.bin", b"x")
    now = time.time()
    for path in bucket.rglob("*.*"):
        os.utime(path, (now - UPLOAD_GRACE - 60,) * 2)
    os.utime(began, (now - UPLOAD_GRACE - 90,) * 2)
    os.utime(bucket / PLAIN / "put-by-hand-before.bin", (now - UPLOAD_GRACE - 120,) * 2)
    store.put(f"{PLAIN}/of-today.bin", b"x")
    retention = Retention(store, LAYOUT, SystemClock())
    assert retention.prune(1).objects == ()
    told = retention.prune(1, dry_run=True, unnamed=True).objects
    assert told
    assert {key.rpartition("/")[2] for key in told} <= {"a.bin", "b.bin", "state.json"}
    assert retention.prune(1, unnamed=True).objects == told
    left = {path.name for path in (bucket / PLAIN).iterdir()}
    assert left == {"put-by-hand-before.bin", "of-today.bin"}
    assert restore_newest(bucket, tmp_path / "three")


class Tomorrow(SystemClock):
    """A day later."""

    def now(self) -> float:
        return super().now() + UPLOAD_GRACE


def test_attempt_that_goes_on_names_nothing_that_a_pruning_may_take(
    tmp_path: Path, bucket: Path
) -> None:
    machine = cut_off(tmp_path, bucket)
    sent = {kept.key for kept in machine.journal.all_sent()}
    assert sent
    machine.publisher._clock = Tomorrow()
    (record,) = machine.commit_all()
    assert not {entry.key for entry in record.files} & sent
    assert restore_newest(bucket, tmp_path / "two")
