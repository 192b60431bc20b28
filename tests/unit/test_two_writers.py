"""Two writers: what each learns, says and leaves alone; with a fence, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncd.clock import SystemClock
from syncd.commitlog import CommitLog
from syncd.errors import Conflict, Fenced, Permanent
from syncd.journal import Journal
from syncd.parting import Parting, parting
from syncd.probe import Conditions, known_conditions, probe
from syncd.records import CommitRecord
from syncd.retention import Retention
from syncd.stores.base import Condition, ObjectInfo
from syncd.stores.directory import DirectoryStore
from tests.faults.simstore import SimStore
from tests.workbench import LAYOUT, CountingStore, Machine, restorer, tree


class Heedless(DirectoryStore):
    """Takes a condition and ignores it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.capabilities = replace(
            self.capabilities, put_if_absent=False, upload_if_absent=False, conditional_copy=False
        )

    def settle(
        self, aside: Path, target: Path, key: str, condition: Condition, durable: bool = True
    ) -> ObjectInfo:
        return super().settle(aside, target, key, None, durable)


def machine(tmp_path: Path, name: str, disk: str = "") -> Machine:
    bucket = tmp_path / "bucket"
    return Machine(tmp_path / (disk or name), bucket, name, store=Heedless(bucket)).start()


@pytest.fixture
def two(tmp_path: Path) -> tuple[Machine, Machine]:
    """One has committed, the other has joined after it."""
    one = machine(tmp_path, "one")
    one.write("model/w.bin", b"common")
    one.commit_all()
    return one, machine(tmp_path, "two")


def log_of(tmp_path: Path) -> list[CommitRecord]:
    back = restorer(tmp_path / "bucket")
    found = [c for c in back.commits() if isinstance(c, CommitRecord)]
    for record in found:
        back.verify(record)
    return found


def part(two: tuple[Machine, Machine]) -> tuple[Machine, Machine]:
    for number, side in enumerate((*two, *two)):
        side.write("model/w.bin", f"{side.writer} {number}")
        assert len(side.commit_all()) == 1
    return two


def parted(tmp_path: Path) -> Parting | None:
    back = restorer(tmp_path / "bucket")
    back.commits()
    return back.parting


def test_both_histories_restore_whole(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    part(two)
    records = log_of(tmp_path)
    assert [record.writer for record in records] == ["two", "one", "two", "one", "one"]
    assert len({record.seq for record in records}) == 5
    for record, content in zip(records, (b"two 3", b"one 2", b"two 1"), strict=False):
        target = tmp_path / f"back-{record.seq}"
        restorer(tmp_path / "bucket").restore(record, target)
        assert tree(target) == {"model/w.bin": content}


def test_plain_names_follow_whoever_committed_last(
    two: tuple[Machine, Machine], tmp_path: Path
) -> None:
    part(two)
    assert tree(tmp_path / "bucket/eigen2/checkpoints") == {"model/w.bin": b"two 3"}


def test_no_record_names_a_plain_key(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    part(two)
    keys = [entry.key for record in log_of(tmp_path) for entry in record.files]
    assert all(key.startswith("eigen2/.syncd/versions/") for key in keys)
    assert len(set(keys)) == len(keys)


def test_parting_is_told_and_names_both(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    assert parted(tmp_path) is None
    one, other = part(two)
    found = parted(tmp_path)
    assert found is not None
    assert [head.writer for head in found.heads] == ["two", "one"]
    assert found.since == min(record.seq for record in log_of(tmp_path))
    for head in found.heads:
        assert f"writer {head.writer}" in found.words()
        assert f"restore --at '#{head.seq}'" in found.words()
    other.write("model/w.bin", b"once more")
    other.commit_all()
    assert "side by side" in other.publisher.rivals()
    assert "writer two" in one.publisher.rivals()


def test_machine_that_was_replaced_has_not_parted(
    two: tuple[Machine, Machine], tmp_path: Path
) -> None:
    _, other = two
    other.write("model/w.bin", b"goes on")
    other.commit_all()
    assert parted(tmp_path) is None
    assert other.publisher.rivals() == ""


def test_parting_is_over_when_a_later_life_knows_both(
    two: tuple[Machine, Machine], tmp_path: Path
) -> None:
    part(two)
    later = machine(tmp_path, "three", disk="one")
    assert parted(tmp_path) is None
    later.write("model/w.bin", b"goes on")
    later.commit_all()
    assert parted(tmp_path) is None
    assert later.publisher.rivals() == ""
    assert len(log_of(tmp_path)) == 6


def test_retention_leaves_the_newest_of_each_writer(
    two: tuple[Machine, Machine], tmp_path: Path
) -> None:
    one, other = part(two)
    Retention(Heedless(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1)
    assert [record.writer for record in log_of(tmp_path)] == ["two", "one"]
    for side in (one, other):
        side.write("model/v.bin", b"added")
        side.commit_all()
    assert len(log_of(tmp_path)) == 4


def test_a_copy_of_a_journal_is_another_machine(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    first = Machine(tmp_path / "one", bucket, "one", home="here").start()
    first.write("model/w.bin", b"common")
    first.commit_all()
    copied = Machine(tmp_path / "two", bucket, "two", home="there")
    first.journal._db.backup(copied.journal._db)
    copied.start()
    records = CommitLog(DirectoryStore(bucket), LAYOUT).newest_first(claims=True)
    assert [r.profile for r in records if isinstance(r, CommitRecord)] == ["claim", "set"]
    first.write("model/w.bin", b"changed")
    with pytest.raises(Fenced, match="another machine"):
        first.commit_all()


# -- the probe


def test_probe_tells_what_a_store_keeps(tmp_path: Path) -> None:
    assert probe(DirectoryStore(tmp_path / "good"), LAYOUT) == Conditions(True, True)
    assert probe(Heedless(tmp_path / "heedless"), LAYOUT) == Conditions(False, False)
    assert tree(tmp_path / "good") == tree(tmp_path / "heedless") == {}


def test_store_that_refuses_the_condition_itself(tmp_path: Path) -> None:
    class Refusing(SimStore):
        def put(self, key: str, data: Any, condition: Condition = None) -> ObjectInfo:
            if condition:
                raise Permanent("501 NotImplemented")
            return super().put(key, data)

    store = Refusing()
    assert probe(store, LAYOUT) == Conditions(False, False)
    assert not store.objects


def test_store_that_guards_whole_objects_only(tmp_path: Path) -> None:
    class Half(SimStore):
        def start_upload(self, key: str, size: int, copies: bool = False) -> Any:
            upload = super().start_upload(key, size, copies)
            finish = upload.finish
            upload.finish = lambda condition=None: finish()  # type: ignore[method-assign]
            return upload

    assert probe(Half(), LAYOUT) == Conditions(True, False)


class Clock(SystemClock):
    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal(None, "store")
    yield journal
    journal.close()


def test_answer_is_remembered_for_a_week(journal: Journal) -> None:
    store, clock = CountingStore(SimStore()), Clock()
    assert known_conditions(store, LAYOUT, journal, clock) == Conditions(True, True)
    asked = len(store.writes)
    assert asked
    assert known_conditions(store, LAYOUT, journal, clock) == Conditions(True, True)
    assert len(store.writes) == asked
    clock.ahead = 8 * 24 * 3600
    known_conditions(store, LAYOUT, journal, clock)
    assert len(store.writes) == 2 * asked


def test_lost_acknowledgement_of_the_probe_is_no_wrong_answer() -> None:
    class Forgetful(SimStore):
        def put(self, key: str, data: Any, condition: Condition = None) -> ObjectInfo:
            super().put(key, data, condition)
            raise Conflict("it was there already: my own first try")

    assert probe(Forgetful(), LAYOUT).puts


def test_records_without_after_have_not_parted() -> None:
    when = "2026-01-01T00:00:00.000Z"
    records = [CommitRecord(n, "x", f"w{n % 2}", when, "set") for n in (1, 2, 3)]
    assert parting(records) is None
