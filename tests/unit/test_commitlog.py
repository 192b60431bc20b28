"""Reading the log while others write and tidy it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.commitlog import CommitLog
from syncd.errors import Conflict
from syncd.stores.directory import DirectoryStore
from tests.workbench import LAYOUT, Machine


class Replacing:
    """A store in which what is read is replaced under the reader's hands, so many times."""

    def __init__(self, store: DirectoryStore, times: int) -> None:
        self._store = store
        self.times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str) -> Iterator[bytes]:
        if self.times:
            self.times -= 1
            raise Conflict(f"reading {key}: the condition does not hold")
        return self._store.read(key)


def test_record_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    """Retention puts claims in the place of the first record and the last."""
    one = Machine(tmp_path / "one", tmp_path / "bucket").start()
    one.write("gen-000001/state.json", "{}")
    one.commit_all()
    once: Any = Replacing(DirectoryStore(tmp_path / "bucket"), 1)
    assert [getattr(r, "checkpoint", "") for r in CommitLog(once, LAYOUT).newest_first()] == [
        "gen-000001"
    ]
    for_ever: Any = Replacing(DirectoryStore(tmp_path / "bucket"), 1000)
    with pytest.raises(Conflict):
        CommitLog(for_ever, LAYOUT).read(1)
