"""What appending promises, on every store: the whole longer object, or the one that was there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from syncd.clock import SystemClock
from syncd.errors import Conflict, NotFound, Permanent, StoreError, Transient
from syncd.stores.base import Buffer, ObjectInfo, ObjectStore
from syncd.stores.directory import DirectoryStore
from syncd.stores.resilient import Resilient
from tests.servers.fixtures import Bucket
from tests.servers.wires import Wire

MIB = 1024 * 1024
ASIDE = ".syncd/pieces/a"


@pytest.fixture
def store(bucket: Bucket) -> Iterator[ObjectStore]:
    opened = bucket.open()
    yield opened
    opened.close()


def content(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.read(key))


def base_of(store: ObjectStore) -> bytes:
    """Content that is just large enough to append to."""
    smallest = store.capabilities.append_from
    assert smallest is not None
    return os.urandom(max(smallest, 10))


def leftovers(store: ObjectStore) -> list[str]:
    objects = [info.key for info in store.list("") if info.key != "a"]
    return objects + [upload.key for upload in store.pending_uploads("")]


@pytest.mark.parametrize("tail", [1, 3000, 6 * MIB + 1])
def test_the_object_becomes_longer(store: ObjectStore, tail: int) -> None:
    base, more = base_of(store), os.urandom(tail)
    before = store.put("a", base)
    after = store.append("a", before, more, ASIDE)
    assert (after.key, after.size) == ("a", len(base) + tail)
    head = store.head("a")
    assert (head.size, head.version) == (after.size, after.version)
    assert abs(head.modified - after.modified) < 60
    assert after.version != before.version
    assert content(store, "a") == base + more
    assert leftovers(store) == []


def test_many_appends_one_after_the_other(store: ObjectStore) -> None:
    expected = bytearray(base_of(store))
    info = store.put("a", expected)
    for number in range(12):
        more = b"line %d\n" % number
        info = store.append("a", info, more, ASIDE)
        expected += more
    assert content(store, "a") == expected


def test_an_object_that_came_in_parts_can_be_appended_to(store: ObjectStore) -> None:
    parts = [os.urandom(5 * MIB), os.urandom(100)]
    upload = store.start_upload("a", 5 * MIB + 100)
    for number, data in enumerate(parts, start=1):
        upload.send(number, data)
    info = upload.finish()
    info = store.append("a", info, b"more", ASIDE)
    store.append("a", info, b" and more", ASIDE)
    assert content(store, "a") == b"".join(parts) + b"more and more"


def test_a_copy_can_be_appended_to(store: ObjectStore) -> None:
    base = base_of(store)
    store.put("original", base)
    info = store.copy("original", "a")
    store.append("a", info, b"more", ASIDE)
    assert content(store, "a") == base + b"more"
    assert content(store, "original") == base


def test_another_version_is_never_appended_to(bucket: Bucket, store: ObjectStore) -> None:
    bucket.needs("swap of parts")
    base = base_of(store)
    stale = store.put("a", base)
    for replacement in (base[::-1], base + b"longer"):
        store.put("a", replacement)
        with pytest.raises(Conflict):
            store.append("a", stale, b"more", ASIDE)
        assert content(store, "a") == replacement
    assert leftovers(store) == []


def test_an_object_that_is_gone_is_a_conflict(store: ObjectStore) -> None:
    base = store.put("a", base_of(store))
    store.delete(["a"])
    with pytest.raises(Conflict):
        store.append("a", base, b"more", ASIDE)
    with pytest.raises(NotFound):
        store.head("a")
    assert leftovers(store) == []


def test_of_two_who_append_one_wins(bucket: Bucket, store: ObjectStore) -> None:
    bucket.needs("swap of parts")
    base = base_of(store)
    info = store.put("a", base)
    barrier = threading.Barrier(4)

    def race(number: int) -> bool:
        barrier.wait()
        try:
            store.append("a", info, b"by %d" % number, f"{ASIDE}{number}")
        except (Conflict, Transient):
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(race, range(4)))
    if bucket.provider == "s3":  # SeaweedFS looks at the condition of an upload before it takes it
        assert sum(won) >= 1
    else:
        assert sum(won) == 1
    assert content(store, "a") in [base + b"by %d" % n for n in range(4) if won[n]]


def test_a_reader_sees_the_old_object_or_the_new(store: ObjectStore) -> None:
    lengths, pieces = [len(base_of(store))], [base_of(store)]
    info = store.put("a", pieces[0])
    done = threading.Event()
    seen: set[int] = set()

    def look() -> None:
        other = 0
        while not done.is_set() and other < 2000:
            other += 1
            try:
                found = content(store, "a")
            except (Conflict, Transient):
                continue
            seen.add(len(found))
            assert b"".join(pieces)[: len(found)] == found

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(look)
        for _ in range(8):
            pieces.append(os.urandom(200_000))
            lengths.append(lengths[-1] + 200_000)
            info = store.append("a", info, pieces[-1], ASIDE)
        done.set()
        watching.result()
    assert seen <= set(lengths)


def test_what_a_cut_connection_leaves_is_the_old_object(
    bucket: Bucket, wire: Wire, store: ObjectStore
) -> None:
    base = base_of(store)
    info, tail = store.put("a", base), os.urandom(2 * MIB)
    line = bucket.through(wire)
    wire.cut_after = MIB
    with pytest.raises(Transient):
        line.append("a", info, tail, ASIDE)
    wire.cut_after = None
    assert content(store, "a") == base
    info = line.append("a", info, tail, ASIDE)
    assert content(store, "a") == base + tail
    assert leftovers(store) == []
    line.close()


class LosesAnswers:
    """Does what it is asked, and then says that it did not answer."""

    def __init__(self, store: ObjectStore, losses: int = 1) -> None:
        self._store = store
        self._losses = losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        info = self._store.append(key, base, tail, aside)
        if self._losses:
            self._losses -= 1
            raise Transient("the answer was lost", retry_after=0.0)
        return info


def resilient(store: Any) -> Resilient:
    return Resilient(store, SystemClock(), threading.Event())


def test_a_lost_answer_appends_nothing_twice(store: ObjectStore) -> None:
    base = base_of(store)
    info = store.put("a", base)
    patient = resilient(LosesAnswers(store))
    info = patient.append("a", info, b"once\n", ASIDE)
    assert content(store, "a") == base + b"once\n"
    patient.append("a", info, b"twice\n", ASIDE)
    assert content(store, "a") == base + b"once\ntwice\n"


def test_a_lost_answer_is_not_taken_from_another_writer(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    info = store.put("a", b"base ")

    class Overtaken(LosesAnswers):
        def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
            if not self._losses:
                return store.append(key, base, tail, aside)
            self._losses -= 1
            store.put("a", b"base theirs")
            raise Transient("the answer was lost", retry_after=0.0)

    with pytest.raises(Conflict):
        resilient(Overtaken(store)).append("a", info, b"mine!!", ASIDE)
    assert content(store, "a") == b"base theirs"


# -- what is one store's own


def test_s3_refuses_a_base_that_is_too_small(bucket: Bucket, store: ObjectStore) -> None:
    if bucket.kind != "s3-seaweedfs":
        pytest.skip("one server that keeps the rule is enough")
    info = store.put("a", b"small")
    with pytest.raises(Permanent) as refusal:
        store.append("a", info, b"more", ASIDE)
    assert not isinstance(refusal.value, Conflict)
    assert content(store, "a") == b"small"
    assert leftovers(store) == []


def test_a_base_over_the_largest_copy_goes_by_ranges(
    bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bucket.provider != "s3":
        pytest.skip("S3's own")
    from syncd.stores import s3append

    monkeypatch.setattr(s3append, "_RANGE", 6 * MIB)
    base = os.urandom(11 * MIB)
    info = store.append("a", store.put("a", base), b"more", ASIDE)
    assert info.version.endswith("-3")
    assert content(store, "a") == base + b"more"


@pytest.mark.parametrize("new_life", [True, False])
def test_many_blocks_of_a_blob_are_made_few(
    bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, new_life: bool
) -> None:
    """Where their list is asked for, by a new life that knows none, and where it is remembered."""
    if bucket.provider != "azure":
        pytest.skip("Azure's own")
    from syncd.stores import azureappend

    monkeypatch.setattr(azureappend, "_MANY_BLOCKS", 5)
    expected, info = b"base", store.put("a", b"base")
    blob = bucket.raw.get_blob_client(bucket.bucket, "a")
    for number in range(14):
        if number == 7 and new_life:
            store.close()
            store = bucket.open()
        more = b" and %d" % number
        info, expected = store.append("a", info, more, ASIDE), expected + more
        assert len(blob.get_block_list()[0]) <= 7
    assert content(store, "a") == expected
    store.close()


def test_blocks_with_names_of_another_length_are_joined(bucket: Bucket, store: ObjectStore) -> None:
    if bucket.provider != "azure":
        pytest.skip("Azure's own")
    blob = bucket.raw.get_blob_client(bucket.bucket, "a")
    for names, right in ((["x" * 20, "y" * 20], True), (["x", "y"], False)):
        for name in names:
            blob.stage_block(name, name.encode())
        blob.commit_block_list(names)
        expected = "".join(names).encode()
        if right:
            store.append("a", store.head("a"), b"more", ASIDE)
            assert content(store, "a") == expected + b"more"
        else:
            with pytest.raises(Permanent):
                store.append("a", store.head("a"), b"more", ASIDE)
            assert content(store, "a") == expected


def test_a_writer_killed_within_an_append_leaves_the_old_object(tmp_path: Path) -> None:
    """On a directory: the longer object takes its name in one step, whatever is cut off."""
    store = DirectoryStore(tmp_path)
    info = store.put("a", b"base\n")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    steps: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: patch.setattr(os, "copy_file_range", die),
        lambda patch: patch.setattr(os, "fsync", die),
        lambda patch: patch.setattr(Path, "replace", die),
    ]
    for step in steps:
        with pytest.MonkeyPatch.context() as patch:
            step(patch)
            with pytest.raises(KeyboardInterrupt):
                store.append("a", info, b"more\n", ASIDE)
        assert content(store, "a") == b"base\n"
    store.append("a", info, b"more\n", ASIDE)
    assert content(store, "a") == b"base\nmore\n"


def test_stores_say_what_appending_costs(store: ObjectStore) -> None:
    can = store.capabilities
    assert can.append_from is not None
    assert 1 <= can.append_requests <= 4
    with pytest.raises(StoreError):
        store.append("nothing/here", ObjectInfo("nothing/here", 10**7, "1", 0.0), b"x", ASIDE)
