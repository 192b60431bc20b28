"""A log of many commits comes in as few waits as the store allows, and says the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from syncd.commitlog import CommitLog
from syncd.errors import Corrupt
from syncd.records import CommitRecord, FileEntry, Layout
from syncd.sealed import Sealed
from syncd.sealing import Sealer
from syncd.stores.base import Body, ObjectInfo, ObjectStore
from tests.servers.fixtures import Bucket

LAYOUT = Layout("eigen2")
COMMITS = 100


class Waits:
    """Passes on what is asked, and counts how often a reader of the log waited for the store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, *how: Any) -> Iterator[bytes]:
        self.count += 1
        return self._store.read(key, *how)

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Any:
        self.count += 1
        return self._store.read_each(wanted)


def record(seq: int, files: int = 1) -> CommitRecord:
    name = f"run/gen-{seq:06}"
    entries = tuple(
        FileEntry(f"{n}.bin", LAYOUT.plain(f"{name}/{n}.bin"), 1, "0" * 64, 0o644, seq)
        for n in range(files)
    )
    return CommitRecord(seq, name, "a" * 12, "2026-11-26T00:00:00.000Z", "dir", entries)


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_reading_ahead_says_what_reading_one_by_one_says(bucket: Bucket, sealed: bool) -> None:
    """With a record that is gone, one that is rubbish, a very large one, and one that is behind."""
    inner = bucket.open()
    store = Waits(Sealed(inner, Sealer(bytes(32)), LAYOUT) if sealed else inner)
    log = CommitLog(store, LAYOUT)
    records = [record(seq, 3000 if seq == COMMITS - 20 else 1) for seq in range(1, COMMITS + 1)]
    records[6] = replace(records[6], checkpoint="", files=(), profile="claim")
    records[30] = replace(records[30], behind=20)
    for answer in store.put_each(Body(LAYOUT.commit(r.seq), r.to_json()) for r in records):
        assert isinstance(answer, ObjectInfo)
    inner.put(LAYOUT.commit(COMMITS - 5), b"rubbish")
    inner.delete([LAYOUT.commit(9)])
    numbers = sorted([*log.numbers(), 9])
    store.count = 0
    together = list(log.newest_first(numbers, ahead=True))
    waits = store.count
    alone = list(log.newest_first(numbers))
    assert [_told(item) for item in together] == [_told(item) for item in alone]
    assert len(together) == COMMITS - 2
    assert waits < 15
    inner.close()


def _told(item: CommitRecord | Corrupt) -> object:
    return item if isinstance(item, CommitRecord) else item.message
