"""As much is on its way as the line wants and memory holds, and nobody waits for nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import syncd.fetch
from syncd.errors import Transient
from syncd.fetch import Ranges
from syncd.inflight import MIB, NARROW, WIDEST, Room
from syncd.stores.directory import DirectoryStore
from tests.workbench import all_given_back

PART = 8 * MIB


def fits(room: Room) -> int:
    """How many parts are under way together."""
    count = 0
    while count < 100 and room.take_at_once(PART):
        count += 1
    for _ in range(count):
        room.give(PART)
    return count


def test_a_thin_line_has_few_under_way_and_a_wide_one_more() -> None:
    room = Room()
    assert fits(room) == NARROW + 1
    room.went(PART, 2.0)  # it is neither quick nor slow
    assert fits(room) == NARROW + 1
    for _ in range(20):
        room.went(PART, 0.1)
    assert fits(room) == WIDEST - 1
    for _ in range(20):
        room.went(PART, 10.0)
    assert fits(room) == 2
    room.went(PART, 0.0)  # a clock that stands still
    assert fits(room) == 3


@pytest.mark.parametrize("wanted", [1, 4, 64])
def test_what_somebody_has_set_is_kept_to(wanted: int) -> None:
    room = Room(wanted)
    for seconds in (0.1, 10.0):
        for _ in range(20):
            room.went(PART, seconds)
        assert fits(room) == wanted + 2  # one is read, and one is ready


def test_parts_that_are_larger_than_the_room_go_side_by_side_all_the_same() -> None:
    """Those of a file of a terabyte have 105 MB."""
    room = Room()
    assert [room.take_at_once(105 * MIB) for _ in range(3)] == [True, True, False]


def test_who_waits_goes_on_once_there_is_room() -> None:
    room = Room(1)
    for _ in range(3):
        room.take(PART)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(room.take, PART)
        assert not waiting.done()
        room.give(PART)
        waiting.result(10)
    assert not room.take_at_once(1)


class Torn(DirectoryStore):
    """Where reading breaks off."""

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        chunks = super().read(key, start, length, version)
        if start and key == "torn":
            raise Transient("the line is down")
        yield from chunks


def test_large_objects_that_come_side_by_side_share_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there is room for, and one of them fails."""
    monkeypatch.setattr(syncd.fetch, "_RANGE", MIB)
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    store = Torn(bucket)
    contents = {name: os.urandom(7 * MIB + 5) for name in ("a", "b", "torn", "c", "d", "e")}
    for name, content in contents.items():
        store.put(name, content)
    ranges = Ranges(store, 1)

    def fetch(name: str) -> str:
        fd = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
        try:
            return ranges.write(store.head(name), fd, lambda _key, _count: None)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(len(contents)) as pool:
        jobs = {name: pool.submit(fetch, name) for name in contents}
        for name, content in contents.items():
            if name == "torn":
                with pytest.raises(Transient):
                    jobs[name].result(60)
                continue
            assert jobs[name].result(60) == hashlib.sha256(content).hexdigest()
            assert (tmp_path / name).read_bytes() == content
    all_given_back(ranges._room)
    half = ranges.read(store.head("a"))
    assert next(half) == contents["a"][:MIB]
    half.close()  # type: ignore[attr-defined]  # whoever has read enough
    all_given_back(ranges._room)
