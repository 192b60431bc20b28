"""A log of thousands is read in few requests, and never believed against the log itself."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncd.commitlog import CommitLog
from syncd.compacted import Compactor, folder
from syncd.records import CommitRecord
from syncd.sealed import Sealed
from syncd.sealing import Sealer
from syncd.stores.base import ObjectStore
from syncd.stores.directory import DirectoryStore
from tests.workbench import LAYOUT, Machine, restore_newest, tree

EVERY = 8
COMMITS = 2 * EVERY + 10


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each commit is made durable: hundreds would take long."""
    monkeypatch.setattr("syncd.compacted.EVERY", EVERY)


class Reads:
    """Passes everything on and notes which keys are read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.keys: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, *args: Any) -> Iterator[bytes]:
        self.keys.append(key)
        return self._store.read(key, *args)


def lengthen(store: ObjectStore, count: int) -> None:
    """So many commits, each of a generation of its own with the content of the first."""
    log = CommitLog(store, LAYOUT)
    numbers = log.numbers()
    first = log.read(numbers[0])
    for seq in range(numbers[-1] + 1, count + 1):
        checkpoint = f"gen-{seq:06d}"
        entry = replace(first.files[0], key=LAYOUT.plain(f"{checkpoint}/state.json"))
        store.put(entry.key, b"{}")
        log.append(replace(first, seq=seq, checkpoint=checkpoint, files=(entry,)))


def compact(store: ObjectStore) -> None:
    """What a daemon does that knows the whole log."""
    log = CommitLog(store, LAYOUT)
    sizes = log.sizes()
    records = [record for record in log.newest_first() if isinstance(record, CommitRecord)]
    Compactor(store, LAYOUT).mind(sizes, records)


def read_all(store: ObjectStore) -> tuple[list[str], list[str]]:
    """Checkpoints that a reader finds, and the keys that it read on the way."""
    reads: Any = Reads(store)
    found = CommitLog(reads, LAYOUT).newest_first()
    return [getattr(record, "checkpoint", "broken") for record in found], reads.keys


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "one", tmp_path / "bucket").start()
    made.write("gen-000001/state.json", "{}")
    made.commit_all()
    return made


@pytest.fixture
def bucket(machine: Machine, tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "bucket")
    lengthen(store, COMMITS)
    return store


ALL = [f"gen-{seq:06d}" for seq in range(COMMITS, 0, -1)]


def test_reader_reads_what_came_since_and_one_object(bucket: DirectoryStore) -> None:
    compact(bucket)
    lengthen(bucket, COMMITS + 3)
    found, keys = read_all(bucket)
    assert found == [f"gen-{seq:06d}" for seq in range(COMMITS + 3, 0, -1)]
    since = [LAYOUT.commit(COMMITS + n) for n in (1, 2, 3)]
    assert sorted(keys) == sorted([f"{folder(LAYOUT)}{COMMITS:020}.jsonl.gz", *since])


def test_restored_machine_learns_the_log_in_few_requests(
    bucket: DirectoryStore, tmp_path: Path
) -> None:
    compact(bucket)
    reads: Any = Reads(bucket)
    other = Machine(tmp_path / "two", tmp_path / "bucket", "writer-b", reads).start()
    assert len(reads.keys) < 5
    assert len(other.journal.known_commits()) == COMMITS + 1  # its claim
    assert restore_newest(tmp_path / "bucket", tmp_path / "three")
    assert tree(tmp_path / "three") == {f"gen-{COMMITS:06d}/state.json": b"{}"}


def test_one_of_them_lies_there_and_none_for_a_short_log(machine: Machine, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "bucket")
    compactor = Compactor(store, LAYOUT)

    def mind() -> list[str]:
        log = CommitLog(store, LAYOUT)
        records = [r for r in log.newest_first() if isinstance(r, CommitRecord)]
        compactor.mind(log.sizes(), records)
        return [info.key.rpartition("/")[2] for info in store.list(folder(LAYOUT))]

    lengthen(store, EVERY - 1)
    assert mind() == []
    lengthen(store, EVERY)
    assert mind() == [f"{EVERY:020}.jsonl.gz"]
    lengthen(store, 2 * EVERY - 1)
    assert mind() == [f"{EVERY:020}.jsonl.gz"]
    lengthen(store, 2 * EVERY)
    assert mind() == [f"{2 * EVERY:020}.jsonl.gz"]


def test_what_is_pruned_is_not_brought_back_by_it(bucket: DirectoryStore) -> None:
    """Neither a record that is gone nor one in whose place a claim lies."""
    compact(bucket)
    log = CommitLog(bucket, LAYOUT)
    bucket.delete([LAYOUT.commit(7)])
    claim = replace(log.read(9), checkpoint="", profile="claim", files=())
    bucket.put(LAYOUT.commit(9), claim.to_json())
    found, keys = read_all(bucket)
    assert found == [name for name in ALL if name not in ("gen-000007", "gen-000009")]
    assert LAYOUT.commit(9) in keys


def test_log_that_was_begun_anew_is_not_read_from_the_old_ones(bucket: DirectoryStore) -> None:
    """Its records have the same numbers, and often the same size."""
    compact(bucket)
    log = CommitLog(bucket, LAYOUT)
    old = log.read(5)
    anew = replace(old, checkpoint="gen-900005")
    assert len(anew.to_json()) == len(old.to_json())
    bucket.put(LAYOUT.commit(5), anew.to_json())
    assert "gen-900005" in read_all(bucket)[0]


def rubbish(_there: bytes) -> bytes:
    return os.urandom(5000)


def cut(there: bytes) -> bytes:
    return there[: len(there) // 2]


def other_lines(_there: bytes) -> bytes:
    return gzip.compress(b"\n1\n1 2\nx y z\n3 4 [" + b"[" * 5000 + b"\n5 -6 {}\n")


@pytest.mark.parametrize("damage", [rubbish, cut, other_lines])
def test_damaged_one_costs_requests_and_nothing_else(
    damage: Callable[[bytes], bytes], bucket: DirectoryStore
) -> None:
    compact(bucket)
    key = f"{folder(LAYOUT)}{COMMITS:020}.jsonl.gz"
    bucket.put(key, damage(b"".join(bucket.read(key))))
    found, keys = read_all(bucket)
    assert found == ALL
    assert len(keys) > COMMITS // 2


def test_one_that_becomes_too_large_is_not_unpacked(
    bucket: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(bucket)
    monkeypatch.setattr("syncd.compacted._LIMIT", 1000)
    found, keys = read_all(bucket)
    assert found == ALL
    assert len(keys) == COMMITS + 1


def test_encrypted_it_is_as_the_records_are(tmp_path: Path) -> None:
    plain = DirectoryStore(tmp_path / "bucket")
    store: Any = Sealed(plain, Sealer(bytes(32)), LAYOUT)
    machine = Machine(tmp_path / "one", tmp_path / "bucket", store=store).start()
    machine.write("gen-000001/state.json", "{}")
    machine.commit_all()
    lengthen(store, COMMITS)
    compact(store)
    found, keys = read_all(store)
    assert (found, len(keys)) == (ALL, 1)
    assert all(b"state.json" not in b"".join(plain.read(i.key)) for i in plain.list(""))
