"""Save, delete, crash, prune, restore, in any order: the newest good checkpoint always comes back.

``python -m tests.faults.retention --steps 100000`` walks through that many steps, drawn and, if
one goes wrong, shortened by hypothesis. After each restore every byte is compared with what was
saved; after each pruning nothing may lie in the store that nobody names.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from syncd import leftovers
from syncd.clock import SystemClock
from syncd.records import CommitRecord
from syncd.restore import Restorer
from syncd.retention import UPLOAD_GRACE, Retention, prune_local
from syncd.scan import scan
from syncd.series import series
from syncd.units import Unit, units
from syncd.unproven import mark_begun
from tests.faults.simstore import SimStore
from tests.workbench import LAYOUT, CountingStore, Died, Machine, tree

EVERY = 5
"""SYNCD_KEEP_EVERY of all these worlds."""

_WORKERS = ThreadPoolExecutor(2)

_drive: Any = run_state_machine_as_test
"""Typed in some releases of hypothesis and not in others; mypy is content with both this way."""

Content = frozenset[tuple[str, bytes]]


class Tomorrow(SystemClock):
    """Two days on: what is under way now is forgotten by then."""

    def now(self) -> float:
        return super().now() + 2 * UPLOAD_GRACE


class Mortal(CountingStore):
    """A store at which its user can die."""

    def arm(self, writes: int | None, after: bool = False) -> None:
        """Die before, or after, so many more requests that write; None: live for ever."""
        self._die_at = None if writes is None else len(self.writes) + writes
        self._after = after


class World:
    """One machine after the other, one bucket, and what is known of both."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._lives = itertools.count(1)
        self._moment = 0
        self.bucket = SimStore(conditional_copy=True)
        self.store = Mortal(self.bucket)
        self.saved: dict[tuple[str, Content], int] = {}
        self.committed: dict[int, CommitRecord] = {}
        self.milestones: set[str] = set()
        self.newest = 0
        self.disk = folder / "disk-0"
        self.machine = self._born()

    def _born(self) -> Machine:
        writer = f"life-{next(self._lives)}"
        machine = Machine(self.disk, self.disk, writer, self.store, home=str(self.disk))
        mark_begun(self.bucket, LAYOUT)
        return machine.start()

    def close(self) -> None:
        """The machine is switched off."""
        self.machine.transfer.close()
        self.machine.journal.close()

    def _die(self, forget: bool) -> None:
        """SIGKILL, and another life on the same disk; ``forget``: without its journal."""
        self.store.arm(None)
        self._look_at_log()
        self.close()
        if forget:
            for path in self.disk.glob("journal.sqlite*"):
                path.unlink()
        self.machine = self._born()

    # -- what the trainer does

    def save(self, kind: int) -> None:
        """A new generation, a file or a set that is overwritten, or an elite that is carried on."""
        number = next(self._numbers)
        body = f"save {number}".encode()
        if kind == 0:
            path, files = f"run/gen-{number:06}", {"w.bin": body, "state.json": b"{}"}
        elif kind == 1:
            path, files = (
                f"run/gen-{number:06}",
                {"w.bin": b"elite", "state.json": b"[%d]" % number},
            )
        elif kind == 2:
            path, files = "last.bin", {"": body}
        else:
            path, files = "mine", {"a.bin": body, "b.bin": body}
        place = self.machine.root / path
        aside = place.with_name(f".tmp-{place.name}") if kind < 2 else place
        for name, data in files.items():
            target = aside / name if name else aside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            self._date(target)
        if kind < 2:
            aside.rename(place)
        self.saved[path, frozenset(files.items())] = number

    def _date(self, path: Path) -> None:
        """Modified later than all before it, however coarse the clock of the disk."""
        self._moment = max(self._moment + 1, time.time_ns())
        os.utime(path, ns=(self._moment, self._moment))

    def delete(self, index: int) -> None:
        """The trainer deletes one of its checkpoints."""
        there = self._on_disk()
        if there:
            place = self.machine.root / there[index % len(there)].path
            shutil.rmtree(place) if place.is_dir() else place.unlink()

    def _on_disk(self) -> list[Unit]:
        found = scan(self.machine.root)
        return sorted(units(found), key=lambda unit: unit.path) if found else []

    # -- what the daemon does

    def commit(self) -> None:
        """All that waits."""
        self.machine.commit_all()
        self._look_at_log()

    def dies(self, act: Callable[[], None], writes: int, after: bool, forget: bool) -> None:
        """The daemon is killed in what it does."""
        self.store.arm(writes, after)
        try:
            act()
        except Died:
            self._die(forget)
        self.store.arm(None)

    def prune(self, keep: int) -> None:
        """Retention in the store."""
        leftovers.clear(self.store, self.machine.journal, self.machine.root)
        pruned = Retention(self.store, LAYOUT, Tomorrow()).prune(keep, every=EVERY, unnamed=True)
        self.machine.journal.drop_commits(record.seq for record in pruned.commits)
        self.prove_tidy()

    def prune_disk(self, keep: int) -> None:
        """Retention on disk: what goes is in the store, and the newest of a series stays."""
        before = self._on_disk()

        def is_safe(unit: Unit) -> bool:
            return self.machine.journal.is_safe(unit.path, unit.signature)

        gone = set(prune_local(self.machine.root, before, keep, is_safe))
        self._look_at_log()
        ever = {record.checkpoint for record in self.committed.values()}
        assert gone <= ever, f"deleted on disk and never committed: {gone - ever}"
        newest: dict[str, Unit] = {}
        for unit in before:
            mine = newest.setdefault(series(unit.path), unit)
            if unit.written > mine.written:
                newest[series(unit.path)] = unit
        assert not gone & {unit.path for unit in newest.values()}

    # -- what must hold

    def records(self) -> list[CommitRecord]:
        """The commit log, newest first."""
        found = list(self._restorer().commits())
        assert all(isinstance(record, CommitRecord) for record in found), found
        return [record for record in found if isinstance(record, CommitRecord)]

    def _restorer(self) -> Restorer:
        return Restorer(self.bucket, LAYOUT, _WORKERS)

    def _look_at_log(self) -> None:
        """Each commit is of one save, whole."""
        for record in self.records():
            if record.seq in self.committed:
                continue
            files = {e.path: self.bucket.objects[e.key].data for e in record.files}
            number = self.saved.get((record.checkpoint, frozenset(files.items())))
            assert number, f"commit {record.seq} of {record.checkpoint} is of no save"
            self.committed[record.seq] = record
            self.newest = max(self.newest, number)
            name = record.checkpoint.rpartition("-")[2]
            if name.isdigit() and int(name) % EVERY == 0:
                self.milestones.add(record.checkpoint)

    def restore(self, move: bool) -> None:
        """An empty disk gets the newest; then the first machine is lost, or was only asked."""
        empty = self._folder / f"disk-{next(self._lives)}"
        back = self._restorer()
        result = back.restore_newest(back.commits(), empty / "checkpoints")
        record = result.record
        found = tree(empty / "checkpoints")
        if record is None:
            assert (self.newest, found) == (0, {})
        else:
            number = self._number(record, empty / "checkpoints")
            assert number == self.newest, f"{number} of {self.newest} came back: {result.rejected}"
            for other in result.along.brought:
                assert self._number(other, empty / "checkpoints"), f"{other.checkpoint} is no save"
        if move:
            self.close()
            shutil.rmtree(self.disk)
            self.disk = empty
            self.machine = self._born()
        else:
            shutil.rmtree(empty, ignore_errors=True)

    def rot(self) -> None:
        """What the newest commit names is damaged: in a copy of the store the next one is found."""
        records = self.records()
        if not records:
            return
        kept = dict(self.bucket.objects)
        entry = records[0].files[0]
        others = [r for r in records if entry.key not in {e.key for e in r.files}]
        self.bucket.put(entry.key, b"rot")
        scratch = self._folder / "rot"
        back = self._restorer()
        brought = back.restore_newest(back.commits(), scratch).record
        number = self._number(brought, scratch) if brought else 0
        self.bucket.objects = kept
        shutil.rmtree(scratch, ignore_errors=True)
        assert bool(number) == bool(brought), "rot came back"
        least = others[0].seq if others else 0
        assert (brought.seq if brought else 0) in (least, records[0].seq)

    def _number(self, record: CommitRecord, folder: Path) -> int:
        """Which save lies there; 0: none."""
        found = {e.path: (folder / record.below(e.path)).read_bytes() for e in record.files}
        return self.saved.get((record.checkpoint, frozenset(found.items())), 0)

    def _plain(self) -> list[str]:
        return [key for key in self.bucket.objects if key.startswith(LAYOUT.plain(""))]

    def prove_tidy(self) -> None:
        """After a pruning: nothing is there that nobody names, and all milestones are."""
        records = self.records()
        staying = {record.seq for record in records}
        names = {record.checkpoint for record in records}
        assert self.milestones <= names, f"milestones went: {self.milestones - names}"
        needed = {e.key for r in records for e in r.files}
        needed |= {LAYOUT.plain(r.below(e.path)) for r in records for e in r.files}
        orphans = []
        for key in self.bucket.objects.keys() - needed:
            kept = LAYOUT.kept_for(key)
            number = key.removeprefix(LAYOUT.versions)[:20]
            coming = number.isdigit() and int(number) > max(self.committed, default=0)
            named = (kept and kept[0] in staying) or coming
            places = (LAYOUT.plain(""), *(() if named else (LAYOUT.versions,)))
            if key.startswith(places) or "/pruning/" in key:
                orphans.append(key)
        assert not orphans, f"orphaned: {orphans}"


class Retained(RuleBasedStateMachine):
    """The rules that hypothesis chooses from."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        place = memory if memory.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="retention-", dir=place))
        self.world = World(self.folder)

    def teardown(self) -> None:
        self.world.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _did(self) -> None:
        Retained.steps += 1

    @rule(kind=st.integers(0, 3))
    def save(self, kind: int) -> None:
        self._did()
        self.world.save(kind)

    @rule(index=st.integers(0, 9))
    def delete(self, index: int) -> None:
        self._did()
        self.world.delete(index)

    @rule()
    def commit(self) -> None:
        self._did()
        self.world.commit()

    @rule(writes=st.integers(0, 12), after=st.booleans(), forget=st.booleans())
    def commit_and_die(self, writes: int, after: bool, forget: bool) -> None:
        self._did()
        self.world.dies(self.world.commit, writes, after, forget)

    @rule(keep=st.integers(1, 3))
    def prune(self, keep: int) -> None:
        self._did()
        self.world.prune(keep)

    @rule(keep=st.integers(1, 3), writes=st.integers(0, 9), after=st.booleans())
    def prune_and_die(self, keep: int, writes: int, after: bool) -> None:
        self._did()
        self.world.dies(lambda: self.world.prune(keep), writes, after, forget=False)

    @rule(keep=st.integers(1, 2))
    def prune_disk(self, keep: int) -> None:
        self._did()
        self.world.prune_disk(keep)

    @rule(move=st.booleans())
    def restore(self, move: bool) -> None:
        self._did()
        self.world.restore(move)

    @rule()
    def rot(self) -> None:
        self._did()
        self.world.rot()


def walk(steps: int, database: Any = None) -> int:
    """At least so many steps; how many it were. An AssertionError tells the shortest bad way."""
    Retained.steps = 0
    each = 50
    while Retained.steps < steps:
        examples = max(10, (steps - Retained.steps) // each)
        chosen = settings(
            max_examples=min(examples, 500),
            stateful_step_count=each,
            deadline=None,
            database=database,
            suppress_health_check=list(HealthCheck),
        )
        _drive(Retained, settings=chosen)
    return Retained.steps


def main() -> int:
    """By hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    given = parser.parse_args()
    began = time.monotonic()
    done = walk(given.steps)
    print(
        f"{done} steps in {time.monotonic() - began:.0f} s: the newest good checkpoint always "
        "came back, and nothing was left that no commit names"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
