"""Uploads that take ranges of other objects: the store copies them, and they prove their source."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from syncd.errors import Conflict, NotFound, Permanent
from syncd.stores.base import IfAbsent, ObjectInfo, ObjectStore
from tests.servers.fixtures import Bucket
from tests.servers.wires import Wire
from tests.stores.test_resume import MIB, PART, content

OLD = os.urandom(4 * PART + 100)


@pytest.fixture
def store(bucket: Bucket) -> Iterator[ObjectStore]:
    opened = bucket.open()
    if not opened.capabilities.copy_range:
        pytest.skip("this store copies no ranges")
    yield opened
    opened.close()


@pytest.fixture
def source(store: ObjectStore) -> ObjectInfo:
    return store.put("old", OLD)


def test_a_store_that_copies_no_ranges_says_so(bucket: Bucket) -> None:
    store = bucket.open()
    if store.capabilities.copy_range:
        pytest.skip("this one does")
    info = store.put("old", OLD)
    upload = store.start_upload("new", 2 * PART)
    with pytest.raises(Permanent):
        upload.copy(1, info, 0, PART)
    upload.abort()
    store.close()


def test_ranges_and_parts_make_one_object(store: ObjectStore, source: ObjectInfo) -> None:
    """A range that is as long as three parts has the number of the first of them."""
    fresh = os.urandom(PART)
    upload = store.start_upload("new", len(OLD), True)
    upload.copy(2, source, PART, 3 * PART)
    upload.send(1, fresh)
    upload.copy(5, source, 4 * PART, 100)
    info = upload.finish(IfAbsent())
    assert info.size == len(OLD)
    assert content(store, "new") == fresh + OLD[PART:]
    assert content(store, "old") == OLD
    assert store.head("new").version == info.version
    assert list(store.pending_uploads("")) == []


def test_a_copy_that_is_carried_out_late_harms_nothing(
    bucket: Bucket, store: ObjectStore, source: ObjectInfo
) -> None:
    """Nobody waited for it any more, and its parts were sent one by one."""
    if bucket.kind != "azure":
        pytest.skip("elsewhere parts are asked for by their tags in the end")
    from syncd.stores.azure import AzureStore

    assert isinstance(store, AzureStore)
    upload = store.start_upload("new", 2 * PART)
    upload.copy(1, source, 0, 2 * PART)
    (late,) = store.ask("listing", "new", lambda blobs: blobs.block_list("new"))[1]
    first, second = os.urandom(PART), os.urandom(PART)
    tags = {1: upload.send(1, first), 2: upload.send(2, second)}
    store.ask("late", "new", lambda blobs: blobs.put_block_from("new", late, "old", PART, PART))
    again = store.resume_upload("new", upload.id, 2 * PART, tags)
    assert again.has(1, PART)
    assert again.has(2, PART)
    again.finish()
    assert content(store, "new") == first + second


@pytest.mark.parametrize("copies", [False, True])
def test_an_upload_is_told_of_the_checksums_of_its_parts(
    bucket: Bucket, source: ObjectInfo, wire: Wire, copies: bool
) -> None:
    """Amazon demands it at the beginning, with each part, in the end; MinIO copies none then."""
    if bucket.kind != "s3-seaweedfs":
        pytest.skip("this one is as strict as Amazon")
    store = bucket.through(wire)
    wire.said = []
    upload = store.start_upload("new", 2 * PART, copies)
    upload.copy(1, source, 0, PART) if copies else upload.send(1, OLD[:PART])
    upload.send(2, os.urandom(PART))
    assert upload.finish().size == 2 * PART
    (begun,) = (words for words in wire.said if b"?uploads= HTTP" in words)
    assert (b"x-amz-checksum-algorithm: CRC32\r\n" in begun) is not copies
    (sent,) = (words for words in wire.said if b"partNumber=2&" in words)
    assert (b"x-amz-checksum-crc32: " in sent) is not copies
    assert (b"content-md5: " in sent) is copies
    (finished,) = (words for words in wire.said if b"<CompleteMultipartUpload" in words)
    assert finished.count(b"<ChecksumCRC32>") == (0 if copies else 2)
    store.close()


def test_what_another_machine_puts_there_is_not_taken_for_ones_own(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the end of an upload and the look at what it has made."""
    if bucket.provider != "s3":
        pytest.skip("elsewhere the end itself tells the version")
    store: Any = bucket.open()
    upload = store.start_upload("new", 2 * PART)
    for number in (1, 2):
        upload.send(number, OLD[:PART])
    head = store.head

    def late(key: str) -> ObjectInfo:
        monkeypatch.undo()
        store.put(key, b"another machine's")
        found: ObjectInfo = head(key)
        return found

    monkeypatch.setattr(store, "head", late)
    made = upload.finish()
    assert made.size == 2 * PART
    assert made.version != store.head("new").version
    store.close()


def test_an_object_that_a_lost_answer_has_made_is_found(bucket: Bucket) -> None:
    """The second try meets what the first has made; nothing is left over of either."""
    if bucket.kind != "s3-seaweedfs":
        pytest.skip("a matter of S3, by a server whose tags are Amazon's")
    store = bucket.open()
    for _ in range(2):
        upload = store.start_upload("new", PART)
        upload.send(1, OLD[:PART])
        info = upload.finish(IfAbsent())
    assert info.version == store.head("new").version
    assert list(store.pending_uploads("")) == []
    store.close()


def test_of_a_range_no_byte_travels(bucket: Bucket, source: ObjectInfo, wire: Wire) -> None:
    store = bucket.through(wire)
    upload = store.start_upload("new", len(OLD), True)
    upload.copy(1, source, 0, 4 * PART)
    upload.copy(5, source, 4 * PART, 100)
    upload.finish()
    assert wire.upward < 20_000
    assert content(bucket.open(), "new") == OLD
    store.close()


def test_an_object_that_is_gone_is_not_copied(store: ObjectStore, source: ObjectInfo) -> None:
    store.delete(["old"])
    upload = store.start_upload("new", 2 * PART)
    with pytest.raises((NotFound, Conflict)):
        upload.copy(1, source, 0, PART)
    upload.send(1, bytes(PART))
    upload.send(2, bytes(PART))
    upload.finish()
    assert content(store, "new") == bytes(2 * PART)


def test_an_object_that_was_replaced_is_seen(store: ObjectStore, source: ObjectInfo) -> None:
    """By the store when it copies, or else by whoever looks at the object afterwards."""
    store.put("old", OLD[::-1])
    upload = store.start_upload("new", 2 * PART)
    with contextlib.suppress(Conflict):
        upload.copy(1, source, 0, PART)
    assert store.head("old").version != source.version
    upload.send(1, OLD[:PART])
    upload.copy(2, store.head("old"), PART, PART)
    upload.finish()
    assert content(store, "new") == OLD[:PART] + OLD[::-1][PART : 2 * PART]


def test_a_range_that_was_copied_is_there_when_the_upload_goes_on(
    store: ObjectStore, source: ObjectInfo
) -> None:
    first = store.start_upload("new", len(OLD), True)
    tags = {1: first.copy(1, source, 0, 3 * PART)}
    first.leave()
    store.delete(["old"])  # what is copied does not need it any more
    again = store.resume_upload("new", first.id, len(OLD), tags)
    assert not again.has(1, PART)
    assert again.has(1, 3 * PART)
    assert not again.has(4, PART)
    again.send(4, OLD[3 * PART : 4 * PART])
    again.send(5, OLD[4 * PART :])
    again.finish(IfAbsent())
    assert content(store, "new") == OLD


def test_a_part_that_a_range_covers_is_not_in_the_object(
    store: ObjectStore, source: ObjectInfo
) -> None:
    """A life that was killed had sent it, and nobody has heard of it."""
    first = store.start_upload("new", len(OLD), True)
    tags = {5: first.copy(5, source, 4 * PART, 100)}
    first.send(3, bytes(PART))
    first.leave()
    again = store.resume_upload("new", first.id, len(OLD), tags)
    assert again.has(5, 100)
    again.copy(1, source, 0, 4 * PART)
    assert again.finish().size == len(OLD)
    assert content(store, "new") == OLD


def test_a_range_is_replaced_by_its_parts(store: ObjectStore, source: ObjectInfo) -> None:
    """A copy of which nobody has heard is made good by sending."""
    first = store.start_upload("new", len(OLD), True)
    tags = {5: first.copy(5, source, 4 * PART, 100)}
    first.copy(1, source, 0, 4 * PART)
    first.leave()
    again = store.resume_upload("new", first.id, len(OLD), tags)
    assert again.has(5, 100)
    for number in range(1, 5):
        again.send(number, OLD[(number - 1) * PART : number * PART])
    assert again.finish().size == len(OLD)
    assert content(store, "new") == OLD


def test_a_large_object_gives_large_ranges(store: ObjectStore) -> None:
    old = os.urandom(20 * MIB)
    upload = store.start_upload("old", len(old))
    for number in range(1, 5):
        upload.send(number, old[(number - 1) * PART : number * PART])
    made = upload.finish()
    upload = store.start_upload("new", len(old), True)
    upload.copy(1, made, 0, 3 * PART)
    upload.copy(4, made, 3 * PART, PART)
    upload.finish()
    assert content(store, "new") == old
