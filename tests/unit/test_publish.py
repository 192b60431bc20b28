"""Publishing: nothing committed is ever torn, and nothing travels twice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from syncd.errors import Corrupt, Fenced, StoreError
from syncd.records import CommitRecord
from syncd.stores.base import Body, ObjectInfo
from syncd.stores.directory import DirectoryStore
from tests.workbench import CountingStore, Died, Machine, age, restore_newest, restorer, tree

OLD = {"a.bin": b"old a" * 100, "b.bin": b"same" * 100, "state.json": b'{"gen": 1}'}
NEW = {"a.bin": b"new a" * 100, "b.bin": b"same" * 100, "state.json": b'{"gen": 2}'}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "one", tmp_path / "bucket").start()


def write_set(machine: Machine, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        machine.write(f"run/model/{name}", data)


def test_new_checkpoint_lies_under_its_own_name(machine: Machine, tmp_path: Path) -> None:
    machine.write("run/gen-000005/state.json", "{}")
    machine.write("run/gen-000005/w.bin", b"weights")
    (record,) = machine.commit_all()
    assert record.seq == 1
    plain = tree(tmp_path / "bucket" / "eigen2" / "checkpoints")
    assert plain == tree(machine.root)
    assert {entry.key for entry in record.files} == {
        "eigen2/checkpoints/run/gen-000005/state.json",
        "eigen2/checkpoints/run/gen-000005/w.bin",
    }


def test_unchanged_tree_is_not_sent_again(machine: Machine) -> None:
    write_set(machine, OLD)
    assert len(machine.commit_all()) == 1
    assert machine.commit_all() == []


def test_touched_but_equal_content_makes_no_commit(machine: Machine) -> None:
    write_set(machine, OLD)
    machine.commit_all()
    age(machine.root / "run/model/a.bin", 60)
    assert machine.commit_all() == []


def test_what_is_left_of_a_set_is_no_newer_one(machine: Machine, tmp_path: Path) -> None:
    for name in ("data.bin", "actor/a.bin", "critic/c.bin"):
        machine.write(f"step_20/{name}", name)
    assert len(machine.commit_all()) == 1
    whole = tree(machine.root)
    (machine.root / "step_20/actor/a.bin").unlink()
    for life in (machine, machine.start()):  # a daemon that has just started knows it, too
        assert life.commit_all() == []
        assert life.pipeline.look().incomplete == [], "all that is there is safe"
    restore_newest(machine.bucket, tmp_path / "back")
    assert tree(tmp_path / "back") == whole


def test_changed_set_sends_only_what_changed(tmp_path: Path) -> None:
    store = CountingStore(DirectoryStore(tmp_path / "bucket"))
    machine = Machine(tmp_path / "one", tmp_path / "bucket", store=store).start()
    write_set(machine, OLD)
    machine.commit_all()
    before = store.sent_bytes
    write_set(machine, NEW)
    (record,) = machine.commit_all()
    assert store.sent_bytes - before == len(NEW["a.bin"]) + len(NEW["state.json"])
    keys = {entry.path: entry.key for entry in record.files}
    assert keys["b.bin"] == "eigen2/checkpoints/run/model/b.bin"
    assert keys["a.bin"].startswith("eigen2/.syncd/versions/00000000000000000002")


def test_plain_names_hold_the_newest_content(machine: Machine, tmp_path: Path) -> None:
    for content in (OLD, NEW):
        write_set(machine, content)
        machine.commit_all()
    assert tree(tmp_path / "bucket/eigen2/checkpoints/run/model") == NEW


def test_older_commit_stays_restorable_after_the_plain_names_moved_on(
    machine: Machine, tmp_path: Path
) -> None:
    for content in (OLD, NEW):
        write_set(machine, content)
        machine.commit_all()
    back = restorer(tmp_path / "bucket")
    newest, oldest = back.commits()
    assert isinstance(newest, CommitRecord)
    assert isinstance(oldest, CommitRecord)
    for commit in (newest, oldest):
        back.verify(commit)
    back.restore(oldest, tmp_path / "two")
    assert tree(tmp_path / "two/run/model") == OLD


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_machine_that_dies_at_any_request_leaves_the_old_or_the_new_set(
    tmp_path: Path, after: bool
) -> None:
    outcomes = set()
    for die_at in range(50):
        home = tmp_path / f"{die_at}"
        bucket = home / "bucket"
        machine = Machine(home / "one", bucket).start()
        write_set(machine, OLD)
        machine.commit_all()
        store = CountingStore(DirectoryStore(bucket), die_at, after)
        second = Machine(home / "one", bucket, "writer-a", store=store)
        write_set(second, NEW)
        try:
            second.start().commit_all()
            died = False
        except Died:
            died = True
        record = restore_newest(bucket, home / "two")
        assert record is not None
        got = tree(home / "two/run/model")
        assert got in (OLD, NEW)
        outcomes.add(got == NEW)
        # the next life of the daemon brings everything to its end
        third = Machine(home / "one", bucket, "writer-b").start()
        third.commit_all()
        restore_newest(bucket, home / "three")
        assert tree(home / "three/run/model") == NEW
        assert tree(bucket / "eigen2/checkpoints/run/model") == NEW
        if not died:
            break
    assert not died
    assert outcomes == {False, True}


def test_file_renamed_between_checkpoints_is_copied_in_the_store(tmp_path: Path) -> None:
    store = CountingStore(DirectoryStore(tmp_path / "bucket"))
    machine = Machine(tmp_path / "one", tmp_path / "bucket", store=store).start()
    elite = os.urandom(5000)
    machine.write("run/gen-000005/agents/agent-07.safetensors.bin", elite)
    machine.write("run/gen-000005/state.json", "{}")
    machine.commit_all()
    before = store.sent_bytes
    machine.write("run/gen-000010/agents/agent-00.safetensors.bin", elite)
    machine.write("run/gen-000010/state.json", '{"generation": 10}')
    (record,) = machine.commit_all()
    assert store.sent_bytes - before == len('{"generation": 10}')
    assert restore_newest(tmp_path / "bucket", tmp_path / "two") == record
    assert tree(tmp_path / "two/run/gen-000010") == tree(machine.root / "run/gen-000010")


@pytest.mark.parametrize(("size", "again"), [(1 << 21, 2), (1000, 4)], ids=["large", "small"])
def test_file_sent_before_the_daemon_died_is_not_sent_again(
    tmp_path: Path, size: int, again: int
) -> None:
    """Of small files, which go side by side, those that were under way together are."""
    bucket = tmp_path / "bucket"
    dying = CountingStore(DirectoryStore(bucket), die_at=2)
    machine = Machine(tmp_path / "one", bucket, store=dying)
    for number in range(3):
        machine.write(f"run/gen-000005/part-{number}.bin", os.urandom(size + number))
    machine.write("run/gen-000005/state.json", "{}")
    with pytest.raises(Died):
        machine.start().commit_all()
    store = CountingStore(DirectoryStore(bucket))
    second = Machine(tmp_path / "one", bucket, "writer-b", store=store)
    (record,) = second.start().commit_all()
    assert len([write for write in store.writes if write.startswith("put eigen2/ch")]) == again
    assert restore_newest(bucket, tmp_path / "two") == record


def test_checkpoint_that_changes_while_it_is_sent_is_not_committed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(machine, OLD)
    put_each = machine.transfer.store.put_each

    def put_and_change(bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        yield from put_each(bodies)
        machine.write("run/model/b.bin", b"changed in the middle")

    monkeypatch.setattr(machine.transfer.store, "put_each", put_and_change)
    assert machine.commit_all() == []
    assert machine.publisher.log.numbers() == []
    monkeypatch.undo()
    (record,) = machine.commit_all()
    assert record.seq == 1


def test_checkpoint_that_fails_by_itself_holds_up_no_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write("bad.bin", b"bad")
    machine.write("good.bin", b"good")
    put_each = machine.transfer.store.put_each

    def damage(bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        for body, answer in zip(todo := [*bodies], put_each(todo), strict=True):
            bad = body.key.endswith("bad.bin")
            yield Corrupt("the content changed on its way") if bad else answer

    monkeypatch.setattr(machine.transfer.store, "put_each", damage)
    assert [record.checkpoint for record in machine.commit_all()] == ["good.bin"]
    assert "bad.bin" in machine.pipeline.failures()
    assert not machine.health.snapshot()["healthy"]
    look = machine.pipeline.look()
    assert not look.pending
    assert look.retry is not None
    monkeypatch.undo()
    machine.pipeline._postponed["bad.bin"] = 0.0
    assert [record.checkpoint for record in machine.commit_all()] == ["bad.bin"]
    assert machine.health.snapshot()["healthy"]


def test_newest_is_sent_first_and_stays_the_newest_commit(machine: Machine) -> None:
    big = os.urandom(12 * 1024 * 1024)
    for number in (5, 10, 15):
        machine.write(f"run/gen-{number:06}/w.bin", big + bytes([number]))
        state = machine.write(f"run/gen-{number:06}/state.json", "{}")
        for path in state.parent.iterdir():
            age(path, 1000 - number)
    first = machine.commit_all()[0]
    assert first.checkpoint == "run/gen-000015"
    newest = next(iter(machine.publisher.log.newest_first()))
    assert isinstance(newest, CommitRecord)
    assert newest.checkpoint == "run/gen-000015"


def test_later_writer_fences_the_earlier_one(machine: Machine, tmp_path: Path) -> None:
    write_set(machine, OLD)
    machine.commit_all()
    other = Machine(tmp_path / "two", tmp_path / "bucket", "writer-b").start()
    write_set(machine, NEW)
    with pytest.raises(Fenced, match="another machine"):
        machine.commit_all()
    write_set(other, NEW)
    (record,) = other.commit_all()
    assert record.seq == 3  # 2 is the claim
    restore_newest(tmp_path / "bucket", tmp_path / "three")
    assert tree(tmp_path / "three/run/model") == NEW


@pytest.mark.parametrize("lives", [1, 2])
def test_leftover_of_an_old_machine_does_not_pass_for_the_newest(
    machine: Machine, lives: int, tmp_path: Path
) -> None:
    """Nor if the daemon dies before it has committed anything, and is started again."""
    for path in (machine.root, tmp_path / "two/checkpoints"):
        path.mkdir(parents=True, exist_ok=True)
    old = machine.write("run/gen-000005/state.json", "{}")
    age(old, 100)
    two = Machine(tmp_path / "two", tmp_path / "bucket", "writer-b").start()
    two.write("run/gen-000060/state.json", "{}")
    two.commit_all()
    for life in range(lives):
        back = Machine(tmp_path / "one", tmp_path / "bucket", f"writer-c{life}").start()
    back.commit_all()
    newest = restore_newest(tmp_path / "bucket", tmp_path / "three")
    assert newest is not None
    assert newest.checkpoint == "run/gen-000060"
    age(back.write("run/gen-000010/state.json", "{}"), 50)  # new work, with a clock that is behind
    back.commit_all()
    newest = restore_newest(tmp_path / "bucket", tmp_path / "four")
    assert newest is not None
    assert newest.checkpoint == "run/gen-000010"


def test_restart_on_the_same_machine_needs_no_claim(machine: Machine, tmp_path: Path) -> None:
    write_set(machine, OLD)
    machine.commit_all()
    Machine(tmp_path / "one", tmp_path / "bucket", "writer-b").start()
    assert machine.publisher.log.numbers() == [1]


def test_lost_journal_is_rebuilt_and_nothing_goes_up_again(
    machine: Machine, tmp_path: Path
) -> None:
    write_set(machine, OLD)
    machine.commit_all()
    for leftover in (tmp_path / "one").glob("journal.sqlite*"):
        leftover.unlink()
    store = CountingStore(DirectoryStore(tmp_path / "bucket"))
    again = Machine(tmp_path / "one", tmp_path / "bucket", "writer-b", store=store)
    assert again.start().commit_all() == []
    assert store.sent_bytes == 0


def test_name_that_is_not_utf8_is_skipped_and_named(machine: Machine) -> None:
    bad = os.fsencode(machine.root) + b"/bad-\xff.pt"
    with open(bad, "wb") as file:  # noqa: PTH123 - a name that Path cannot spell
        file.write(b"\x80\x02.")
    machine.write("good.pt", b"\x80\x02.")
    assert [record.checkpoint for record in machine.commit_all()] == ["good.pt"]
    assert any("UTF-8" in reason for reason in machine.pipeline.failures().values())
    assert not machine.health.snapshot()["healthy"]


def test_a_commit_asks_the_journal_no_more_than_the_one_before_it(tmp_path: Path) -> None:
    """A query that reads all that was committed before makes many files take their square."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    steps = [0]

    def count() -> int:
        steps[0] += 1
        return 0

    machine.journal._db.set_progress_handler(count, 100)  # called after each 100 steps of SQLite
    took = []
    for number in range(12):
        for index in range(50):
            machine.write(f"run/gen-{number:06d}/{index:03d}", f"{number:03d}{index:05d}")
        before = steps[0]
        machine.commit_all()
        took.append(steps[0] - before)
    assert took[-1] < 1.5 * took[1], took
