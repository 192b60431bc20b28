"""Retention never eats the last good one, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.clock import SystemClock
from syncd.errors import Corrupt
from syncd.filestat import Stat
from syncd.journal import Sent
from syncd.opening import JOURNAL
from syncd.records import CommitRecord
from syncd.retention import Retention, prune_local
from syncd.scan import scan
from syncd.series import is_milestone, series
from syncd.stores.base import ObjectStore
from syncd.stores.directory import DirectoryStore
from syncd.units import Unit, units
from syncd.uploadrows import ids_in
from tests.clocks import FakeClock
from tests.workbench import LAYOUT, CountingStore, Died, Machine, age, engine_on, restorer, tree


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number in range(5, 30, 5):
        machine.write(f"run/gen-{number:06}/w.bin", os.urandom(50))
        machine.write(f"run/gen-{number:06}/state.json", "{}")
        machine.commit_all()
    return machine


def commits(bucket: Path) -> list[CommitRecord]:
    back = restorer(bucket)
    found = [c for c in back.commits() if isinstance(c, CommitRecord)]
    for commit in found:
        back.verify(commit)
    return found


def test_series_leaves_numbers_of_the_last_part_out() -> None:
    assert series("run7/gen-000015") == series("run7/gen-000020") != series("run8/gen-000020")


def test_keeps_the_newest_of_each_series(machine: Machine, tmp_path: Path) -> None:
    machine.write("best.bin", b"best")
    machine.commit_all()
    pruned = Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(2)
    assert [c.checkpoint for c in pruned.commits] == [
        "run/gen-000015",
        "run/gen-000010",
        "run/gen-000005",
    ]
    assert [c.checkpoint for c in commits(tmp_path / "bucket")] == [
        "best.bin",
        "run/gen-000025",
        "run/gen-000020",
    ]
    plain = tree(tmp_path / "bucket/eigen2/checkpoints/run")
    assert {name.split("/")[0] for name in plain} == {"gen-000020", "gen-000025"}
    assert not (tmp_path / "bucket/eigen2/.syncd/pruning").exists()


def test_multiples_of_a_number_stay(machine: Machine, tmp_path: Path) -> None:
    Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1, every=10)
    names = [c.checkpoint for c in commits(tmp_path / "bucket")]
    assert names == ["run/gen-000025", "run/gen-000020", "run/gen-000010"]
    for name, milestone in (("m/epoch=1-step=250.h5", False), ("m/epoch=1-step=300.ckpt", True)):
        assert is_milestone(name, 100) == milestone
    assert not is_milestone("last.pt", 1)


def test_multiple_of_a_number_is_sent_though_newer_ones_wait(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket", keep_last=1, keep_every=10).start()
    for number in (5, 10, 15):
        age(machine.write(f"run/gen-{number:06}/state.json", "{}"), 1000 - number)
    pending = [unit.path for unit, _ in machine.pipeline.look().pending]
    assert pending == ["run/gen-000010", "run/gen-000015"]


def test_dry_run_deletes_nothing(machine: Machine, tmp_path: Path) -> None:
    before = tree(tmp_path / "bucket")
    retention = Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock())
    assert len(retention.prune(1, dry_run=True).commits) == 4
    assert tree(tmp_path / "bucket") == before


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_pruning_that_dies_at_any_request_is_finished_by_the_next(
    tmp_path: Path, after: bool
) -> None:
    for die_at in range(30):
        home = tmp_path / f"{die_at}"
        machine = Machine(home / "one", home / "bucket").start()
        for content in (b"one", b"two", b"three"):  # one checkpoint, overwritten in place
            machine.write("last.bin", content)
            machine.commit_all()
        dying = CountingStore(DirectoryStore(home / "bucket"), die_at, after)
        died = False
        try:
            Retention(dying, LAYOUT, SystemClock()).prune(1)
        except Died:
            died = True
        assert commits(home / "bucket")[0].seq == 3
        Retention(DirectoryStore(home / "bucket"), LAYOUT, SystemClock()).prune(1)
        (only,) = commits(home / "bucket")
        left = {path for path in tree(home / "bucket") if ".syncd-tmp" not in path}
        # the first number stays taken, for a writer that has slept since before it
        assert left == {
            LAYOUT.commit(1),
            LAYOUT.commit(3),
            only.files[0].key,
            "eigen2/checkpoints/last.bin",
        }
        if not died:
            return
    pytest.fail("the pruning never came to its end")


def test_nothing_is_pruned_while_a_record_cannot_be_read(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bucket" / LAYOUT.commit(2)).write_bytes(b"rubbish")
    before = tree(tmp_path / "bucket")
    with pytest.raises(Corrupt, match="nothing was pruned"):
        Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1)
    assert tree(tmp_path / "bucket") == before


def test_object_that_a_kept_commit_shares_stays(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for content in (b"one", b"two"):
        machine.write("set/changes.bin", content)
        machine.write("set/stays.bin", b"the same")
        machine.commit_all()
    Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1)
    (only,) = commits(tmp_path / "bucket")
    assert only.seq == 2


def test_disk_keeps_the_newest_and_whatever_is_not_committed(machine: Machine) -> None:
    for number in range(5, 30, 5):
        for path in (machine.root / f"run/gen-{number:06}").iterdir():
            age(path, 1000 - number)
    found = scan(machine.root)
    assert found
    gone = prune_local(
        machine.root, list(units(found)), 2, lambda unit: unit.path != "run/gen-000010"
    )
    assert gone == ["run/gen-000015", "run/gen-000005"]
    left = sorted(path.name for path in (machine.root / "run").iterdir())
    assert left == ["gen-000010", "gen-000020", "gen-000025"]


def test_what_was_left_out_may_go_from_disk_once_newer_ones_are_committed(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket", keep_last=1).start()
    for number in (5, 10):
        for name in ("w.bin", "state.json"):
            age(machine.write(f"run/gen-{number:06}/{name}", "{}"), 1000 - number)
    found = scan(machine.root)
    assert found
    old, new = sorted(units(found), key=lambda unit: unit.path)
    look = machine.pipeline.look()
    assert [unit.path for unit, _ in look.pending] == [new.path]
    assert not machine.pipeline.is_obsolete(old), "nothing newer is safe yet"
    machine.commit_all()
    assert machine.pipeline.is_obsolete(old)
    assert not machine.pipeline.is_obsolete(new)
    age(machine.write("run/gen-000005/state.json", "{ }"), 500)
    changed = next(unit for unit in units(scan(machine.root) or found) if unit.path == old.path)
    assert not machine.pipeline.is_obsolete(changed), "it may be half written now"


def test_two_prunings_at_once_take_nothing_that_a_newer_commit_leans_on(tmp_path: Path) -> None:
    """One lists the log, and while it reads the records another commits and prunes."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number in (1, 2):
        machine.write("model/a.bin", b"a of save %d" % number)
        machine.write("model/b.bin", b"b of save %d" % number)
        machine.commit_all()
    machine.write("other.bin", b"x")
    machine.commit_all()

    class Meanwhile(DirectoryStore):
        """As soon as the first record is read, the other machine goes on."""

        begun = False

        def read(self, key: str, *part: Any, **more: Any) -> Iterator[bytes]:
            if not self.begun:
                self.begun = True
                machine.write("model/b.bin", b"b of save 3")
                machine.commit_all()
                Retention(DirectoryStore(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1)
            return super().read(key, *part, **more)

    Retention(Meanwhile(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(1)
    for name in ("a", "b"):  # the plain names move on
        machine.write(f"model/{name}.bin", f"{name} of save 4")
    machine.commit_all()
    names = [commit.checkpoint for commit in commits(tmp_path / "bucket")]
    assert names == ["model", "model", "other.bin"]


class Slow:
    """A store of which each request takes three seconds, by a clock that is not the test's."""

    def __init__(self, store: ObjectStore, clock: FakeClock) -> None:
        self._store = store
        self._clock = clock
        self.name, self.capabilities = store.name, store.capabilities

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._clock.sleep(3.0)
            return method(*args, **kwargs)

        return call


def test_a_pruning_that_takes_long_comes_to_an_end(tmp_path: Path) -> None:
    """Of a long log, or on a slow line: a look at all of it takes minutes."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number in range(170):
        machine.write("last.bin", b"%d" % number)
        machine.commit_all()
    clock = FakeClock()
    slow: Any = Slow(DirectoryStore(tmp_path / "bucket"), clock)
    began = clock.now()
    pruned = Retention(slow, LAYOUT, clock).prune(1)
    assert clock.now() - began > 300
    assert len(pruned.commits) + len(pruned.objects) > 169
    (left,) = commits(tmp_path / "bucket")
    assert left.checkpoint == "last.bin"
    assert list(DirectoryStore(tmp_path / "bucket").list(LAYOUT.pruning)) == []


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_saved_anew_while_it_is_asked_whether_it_is_safe_stays_on_disk(
    machine: Machine, beside: bool
) -> None:
    """The slots of a trainer that uses them in turn: the oldest is the one that is written next."""
    if beside:
        for number in (1, 2):
            for name in ("model", "optim"):
                age(machine.write(f"{name}_{number}.pt", b"\x80\x02K\x01."), 900 - number)
        machine.commit_all()
    found = scan(machine.root)
    assert found
    on_disk = list(units(found))
    written: list[str] = []

    def is_safe(unit: Unit) -> bool:
        path = unit.below(unit.files[-1][0])
        machine.write(path, b"\x80\x02K\x02.")
        written.append(path)
        return True

    assert prune_local(machine.root, on_disk, 1, is_safe) == []
    assert len(written) == (5 if beside else 4)
    for path in written:
        assert (machine.root / path).read_bytes() == b"\x80\x02K\x02."


def test_what_was_sent_for_a_commit_that_is_to_come_is_not_taken_for_forgotten(
    tmp_path: Path,
) -> None:
    """Another checkpoint has taken the number for which it was sent."""
    engine = engine_on(tmp_path, SYNCD_KEEP_LAST="1")
    assert engine.store
    mine, forgotten = (f"{LAYOUT.versions}{1:020}-{name}/w.bin" for name in ("mine", "forgotten"))
    for key in (mine, forgotten):
        info = engine.store.put(key, b"x")
    (written := tmp_path / "checkpoints/last.bin").write_bytes(b"x")
    stat = Stat.of(written.lstat()).text()
    engine.journal.add_sent(Sent(mine, "last.bin", stat, "0" * 64, info.version))
    assert ids_in(tmp_path / "state" / JOURNAL) == {mine}
    with written.open("ab"):  # so that it is not committed yet
        for step in (1, 2):
            path = tmp_path / f"checkpoints/step-{step}/w.bin"
            path.parent.mkdir()
            path.write_bytes(b"%d" % step)
            engine.flush(lambda: False)
        engine.retain()
    left = [info.key for info in engine.store.list(LAYOUT.versions)]
    assert mine in left
    assert forgotten not in left
    engine.disconnect()
