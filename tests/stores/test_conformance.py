"""What every store promises, proven on each: one suite over all servers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from syncd.clock import SystemClock
from syncd.errors import Conflict, Corrupt, NeedsOperator, NotFound, Permanent, Transient
from syncd.stores.base import Body, IfAbsent, IfVersion, ObjectStore, Upload
from syncd.stores.resilient import Resilient
from tests.servers.fixtures import Bucket
from tests.servers.process import free_port
from tests.servers.wires import Wire

MIB = 1024 * 1024
PART = 5 * MIB
"""Valid on every store: at least S3's smallest part, and a multiple of Google's 256 KiB."""

_T = TypeVar("_T")


@pytest.fixture
def store(bucket: Bucket) -> Iterator[ObjectStore]:
    opened = bucket.open()
    yield opened
    opened.close()


def content(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.read(key))


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(info.key for info in store.list(prefix))


def random_parts(*sizes: int) -> list[bytes]:
    return [os.urandom(size) for size in sizes]


def send_all(store: ObjectStore, upload: Upload, parts: list[bytes]) -> None:
    numbered = list(enumerate(parts, start=1))
    if store.capabilities.parallel_parts:
        numbered.reverse()
    for number, data in numbered:
        upload.send(number, data)


# -- whole objects


def test_what_was_put_is_what_is_read(store: ObjectStore) -> None:
    data = os.urandom(3 * MIB + 17)
    info = store.put("run/a.pt", data)
    assert (info.key, info.size) == ("run/a.pt", len(data))
    assert content(store, "run/a.pt") == data
    head = store.head("run/a.pt")
    assert (head.key, head.size, head.version) == (info.key, info.size, info.version)
    assert abs(head.modified - info.modified) < 60


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_put(store: ObjectStore, kind: Callable[[bytes], bytes]) -> None:
    store.put("a", kind(b"some bytes"))
    assert content(store, "a") == b"some bytes"


def test_an_object_is_replaced_whole_and_gets_another_version(store: ObjectStore) -> None:
    first = store.put("last.pt", b"a" * 1000)
    second = store.put("last.pt", b"b" * 10)
    assert first.version != second.version
    assert content(store, "last.pt") == b"b" * 10
    assert keys(store) == ["last.pt"]


def test_an_empty_object_exists(store: ObjectStore) -> None:
    info = store.put("empty", b"")
    assert info.size == 0
    assert content(store, "empty") == b""
    assert store.head("empty").size == 0
    assert keys(store) == ["empty"]


def test_a_body_larger_than_one_chunk_of_any_sdk_is_put_at_once(store: ObjectStore) -> None:
    data = os.urandom(12 * MIB)
    store.put("large", data)
    assert content(store, "large") == data


@pytest.mark.parametrize(
    "key",
    [
        "with space/and more.pt",
        "ünïcode/模型.pt",
        "epoch=3-step=40.ckpt",
        "100%/50%25.pt",
        "a+b.pt",
        "hash#1.pt",
        "what?.pt",
        ".hidden/.metadata",
        "a&b.pt",
        "quote'and\"double.pt",
        "tilde~,semi;colon:at@.pt",
    ],
)
def test_names_are_kept_as_they_are(store: ObjectStore, key: str) -> None:
    store.put(key, key.encode())
    assert keys(store) == [key]
    assert content(store, key) == key.encode()
    assert store.head(key).key == key
    store.copy(key, f"{key}.copy")
    assert content(store, f"{key}.copy") == key.encode()
    store.delete([key])
    assert keys(store) == [f"{key}.copy"]


@pytest.mark.parametrize("key", ["d/" * 520 + "x" * 200, "", "half \udc80 decoded", "nul\0byte"])
def test_an_impossible_name_is_permanent(store: ObjectStore, key: str) -> None:
    with pytest.raises(Permanent):
        store.put(key, b"x")


# -- reading


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 10), (5, 100), (MIB - 1, MIB + 2), (2 * MIB, None), (2 * MIB, 10 * MIB), (7, 0)],
)
def test_a_range_is_read(store: ObjectStore, start: int, length: int | None) -> None:
    data = os.urandom(3 * MIB)
    store.put("a", data)
    end = None if length is None else start + length
    assert b"".join(store.read("a", start, length)) == data[start:end]


def test_from_the_very_end_there_is_nothing_to_read(store: ObjectStore) -> None:
    store.put("a", b"12345")
    assert b"".join(store.read("a", 5)) == b""


def test_reading_yields_bounded_chunks(store: ObjectStore) -> None:
    store.put("a", bytes(7 * MIB))
    assert max(len(chunk) for chunk in store.read("a")) <= 4 * MIB


def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    store.put("there", b"x")
    with pytest.raises(NotFound):
        list(store.read("missing"))
    with pytest.raises(NotFound):
        list(store.read("missing", 5, 10))
    with pytest.raises(NotFound):
        store.head("missing")
    with pytest.raises(NotFound):
        store.copy("missing", "target")
    assert keys(store) == ["there"]


def test_not_found_is_told_from_no_bucket_by_the_first_request(bucket: Bucket) -> None:
    with pytest.raises(NotFound):
        bucket.open().head("missing")


def test_an_object_that_changes_while_it_is_read_conflicts(store: ObjectStore) -> None:
    old = store.put("a", os.urandom(9 * MIB))
    assert sum(map(len, store.read("a", 0, MIB, old.version))) == MIB
    new = store.put("a", os.urandom(9 * MIB))
    with pytest.raises(Conflict):
        list(store.read("a", MIB, MIB, old.version))
    assert sum(map(len, store.read("a", MIB, MIB, new.version))) == MIB


# -- listing, deleting, copying


def test_a_listing_goes_across_pages(store: ObjectStore, bucket: Bucket) -> None:
    # a page has 1000 at most; Azure's has 5000, which are slow to make: see test_azure.py
    names = [f"many/{n:04}" for n in range(120 if bucket.kind == "azure" else 1100)]
    # so many requests at once meet a server that is too busy for one of them, now and then
    patient = Resilient(store, SystemClock(), threading.Event())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: patient.put(name, b""), names))
    assert keys(store, "many/") == names
    store.delete(names)
    assert keys(store) == []


def test_a_prefix_is_a_prefix_of_the_string(store: ObjectStore) -> None:
    names = ["run1/a", "run1/b/c", "run10/a", "run1.pt", "other/run1/a"]
    for name in names:
        store.put(name, name.encode())
    assert keys(store, "run1/") == ["run1/a", "run1/b/c"]
    assert keys(store, "run1") == ["run1.pt", "run1/a", "run1/b/c", "run10/a"]
    assert keys(store, "run1/b/") == ["run1/b/c"]
    assert keys(store, "nothing/") == []
    assert {info.key: info.size for info in store.list("")} == {n: len(n) for n in names}


def test_a_listing_gives_the_versions_that_head_gives(store: ObjectStore) -> None:
    store.put("a", b"x")
    (listed,) = store.list("a")
    assert listed == store.head("a")


def test_deleting_what_is_gone_is_no_error(store: ObjectStore) -> None:
    store.put("a", b"x")
    store.put("b/c", b"y")
    store.delete(["a", "never/was", "b/c"])
    store.delete(["a"])
    store.delete([])
    assert keys(store) == []


def test_a_copy_has_the_same_content(store: ObjectStore) -> None:
    data = os.urandom(2 * MIB)
    store.put("elites/1.pt", data)
    store.put("plain.pt", b"old")
    info = store.copy("elites/1.pt", "plain.pt")
    assert (info.key, info.size) == ("plain.pt", len(data))
    assert content(store, "plain.pt") == data
    assert store.head("plain.pt").version == info.version
    assert content(store, "elites/1.pt") == data


def test_a_conditional_copy_keeps_what_is_there(store: ObjectStore) -> None:
    if not store.capabilities.conditional_copy:
        with pytest.raises(Permanent):
            store.copy("a", "b", IfAbsent())
        return
    store.put("a", b"a")
    assert store.copy("a", "b", IfAbsent()).size == 1
    store.put("a", b"changed")
    with pytest.raises(Conflict):
        store.copy("a", "b", IfAbsent())
    assert content(store, "b") == b"a"


# -- conditions


def one_winner(attempts: list[Callable[[], object]]) -> None:
    barrier = threading.Barrier(len(attempts))

    def race(attempt: Callable[[], object]) -> bool:
        barrier.wait()
        while True:
            try:
                attempt()
                return True
            except Conflict:
                return False
            except Transient:  # as S3's 409: tried again, as Resilient does
                continue

    with ThreadPoolExecutor(len(attempts)) as pool:
        assert list(pool.map(race, attempts)).count(True) == 1


def test_put_if_absent_has_one_winner_of_16(store: ObjectStore) -> None:
    bodies = [f"writer {n}".encode() for n in range(16)]
    one_winner([lambda body=body: store.put("seq", body, IfAbsent()) for body in bodies])  # type: ignore[misc]
    assert content(store, "seq") in bodies
    with pytest.raises(Conflict):
        store.put("seq", b"late", IfAbsent())
    assert content(store, "seq") in bodies


def test_compare_and_swap_has_one_winner_of_16(bucket: Bucket, store: ObjectStore) -> None:
    if bucket.kind == "s3-moto":
        pytest.skip("it looks at the version and puts in two steps: now and then two win")
    old = store.put("seq", b"old").version
    bodies = [f"writer {n}".encode() for n in range(16)]
    one_winner([lambda body=body: store.put("seq", body, IfVersion(old)) for body in bodies])  # type: ignore[misc]
    assert content(store, "seq") in bodies


def test_a_stale_version_is_not_swapped(store: ObjectStore) -> None:
    first = store.put("a", b"first")
    second = store.put("a", b"second", IfVersion(first.version))
    with pytest.raises(Conflict):
        store.put("a", b"third", IfVersion(first.version))
    assert content(store, "a") == b"second"
    store.put("a", b"third", IfVersion(second.version))
    assert content(store, "a") == b"third"


# -- uploads in parts


@pytest.mark.parametrize("sizes", [(PART, PART, 1234), (PART, PART), (PART,), (100,)])
def test_an_object_of_parts_is_their_sum(store: ObjectStore, sizes: tuple[int, ...]) -> None:
    parts = random_parts(*sizes)
    upload = store.start_upload("large.pt", sum(sizes))
    send_all(store, upload, parts)
    assert keys(store) == []
    info = upload.finish()
    assert (info.key, info.size) == ("large.pt", sum(sizes))
    assert content(store, "large.pt") == b"".join(parts)
    assert store.head("large.pt").version == info.version


def test_parts_may_be_sent_side_by_side(store: ObjectStore) -> None:
    if not store.capabilities.parallel_parts:
        pytest.skip("this store takes parts one after the other")
    parts = random_parts(*[PART] * 4, 99)
    upload = store.start_upload("large.pt", 4 * PART + 99)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload.send, range(1, 6), parts))
    upload.finish()
    assert content(store, "large.pt") == b"".join(parts)


def test_a_part_sent_again_replaces_the_first(store: ObjectStore) -> None:
    first, second, last = random_parts(PART, PART, 10)
    upload = store.start_upload("a", 2 * PART + 10)
    upload.send(1, first)
    upload.send(2, second)
    upload.send(2, second)
    upload.send(3, last)
    upload.send(3, last)
    upload.finish()
    assert content(store, "a") == first + second + last


def test_an_aborted_upload_leaves_nothing(store: ObjectStore, bucket: Bucket) -> None:
    upload = store.start_upload("a", 2 * PART)
    upload.send(1, bytes(PART))
    upload.abort()
    upload.abort()
    assert keys(store) == []
    bucket.needs("abort")
    assert list(store.pending_uploads("")) == []


def test_a_producer_that_fails_half_way_leaves_no_object(store: ObjectStore) -> None:
    store.put("a", b"old")

    def produce() -> Iterator[bytes]:
        yield bytes(PART)
        raise OSError("the disk is gone")

    upload = store.start_upload("a", 2 * PART)
    with pytest.raises(OSError, match="the disk is gone"):
        for number, data in enumerate(produce(), start=1):
            upload.send(number, data)
    upload.abort()
    assert content(store, "a") == b"old"


def test_a_forgotten_upload_is_found_and_discarded(store: ObjectStore, bucket: Bucket) -> None:
    bucket.needs("abort")
    upload = store.start_upload("run/a", 2 * PART)
    upload.send(1, bytes(PART))
    found = list(bucket.open().pending_uploads("run/"))
    if not found:
        pytest.skip("this store hides its uploads")
    for pending in found:
        store.discard_upload(pending)
        store.discard_upload(pending)
    assert list(store.pending_uploads("run/")) == []
    assert keys(store) == []


def test_finish_if_absent_keeps_what_is_there(store: ObjectStore) -> None:
    parts = random_parts(PART, 10)
    upload = store.start_upload("a", PART + 10)
    send_all(store, upload, parts)
    upload.finish(IfAbsent())
    assert content(store, "a") == b"".join(parts)

    late = store.start_upload("a", PART + 10)
    with pytest.raises(Conflict):
        send_all(store, late, random_parts(PART, 10))
        late.finish(IfAbsent())
    late.abort()
    assert content(store, "a") == b"".join(parts)


def test_finish_if_absent_notices_who_came_meanwhile(store: ObjectStore) -> None:
    upload = store.start_upload("a", PART + 10)
    send_all(store, upload, random_parts(PART, 10))
    store.put("a", b"somebody else's")
    with pytest.raises(Conflict):
        upload.finish(IfAbsent())
    upload.abort()
    assert content(store, "a") == b"somebody else's"


def test_finish_if_version_swaps_only_that_version(store: ObjectStore, bucket: Bucket) -> None:
    bucket.needs("swap of parts")
    old = store.put("a", b"old").version
    parts = random_parts(PART, 10)
    upload = store.start_upload("a", PART + 10)
    send_all(store, upload, parts)
    upload.finish(IfVersion(old))
    assert content(store, "a") == b"".join(parts)
    late = store.start_upload("a", PART + 10)
    send_all(store, late, random_parts(PART, 10))
    with pytest.raises(Conflict):
        late.finish(IfVersion(old))
    late.abort()
    assert content(store, "a") == b"".join(parts)


# -- what goes wrong


def every_verb(store: ObjectStore) -> list[Callable[[], object]]:
    return [
        lambda: store.put("a", b"x"),
        lambda: store.head("a"),
        lambda: list(store.read("a")),
        lambda: list(store.list("")),
    ]


def test_wrong_credentials_need_an_operator_and_stay_secret(bucket: Bucket) -> None:
    bucket.needs("credentials")
    store = bucket.open(**bucket.wrong)
    for verb in every_verb(store):
        with pytest.raises(NeedsOperator) as caught:
            verb()
        assert caught.value.hint
        text = f"{caught.value.explain()} {caught.value!r} {caught.value.__cause__!r} {store!r}"
        assert not [secret for secret in bucket.secrets if secret in text]


def test_a_name_that_cannot_be_harms_none_of_the_others(store: ObjectStore) -> None:
    names = ("a", "b" * 1025, "c")
    made = list(store.put_each(Body(name, name[:1].encode()) for name in names))
    assert isinstance(made[1], Permanent)
    assert [made[0], made[2]] == [store.head("a"), store.head("c")]
    found = list(store.read_each((name, 1) for name in names))
    assert isinstance(found[1], Permanent)
    assert [found[0], found[2]] == [b"a", b"c"]


def test_a_missing_bucket_needs_an_operator(bucket: Bucket) -> None:
    for verb in range(len(every_verb(bucket.missing()))):
        with pytest.raises(NeedsOperator) as caught:
            every_verb(bucket.missing())[verb]()
        assert "CLOUD_BUCKET" in caught.value.hint


def test_an_unreachable_server_is_transient(bucket: Bucket) -> None:
    bucket.needs("network")
    store = bucket.open(**bucket.at_port(free_port()))
    for verb in every_verb(store):
        with pytest.raises(Transient):
            verb()


def test_a_connection_cut_in_the_body_leaves_no_object(bucket: Bucket, wire: Wire) -> None:
    wire.cut_after = 600_000
    with pytest.raises(Transient):
        bucket.through(wire).put("a", os.urandom(2 * MIB))
    assert wire.cuts
    assert keys(bucket.open()) == []


def test_a_part_cut_on_its_way_can_be_sent_again(bucket: Bucket, wire: Wire) -> None:
    parts = random_parts(PART, PART, 10)
    upload = bucket.through(wire).start_upload("a", 2 * PART + 10)
    upload.send(1, parts[0])
    wire.cut_after = 2 * MIB
    with pytest.raises(Transient):
        for number in (2, 3):
            upload.send(number, parts[number - 1])
    wire.cut_after = None
    for number in (2, 3):
        upload.send(number, parts[number - 1])
    upload.finish()
    assert content(bucket.open(), "a") == b"".join(parts)


def test_content_that_changes_on_its_way_is_corrupt(bucket: Bucket, wire: Wire) -> None:
    bucket.needs("checksums")
    store = bucket.through(wire)
    store.put("before", b"to know the store")
    wire.replace = (b"the weights", b"the weighTs")
    with pytest.raises(Corrupt):
        store.put("a", b"these are the weights")
    if store.capabilities.parallel_parts:
        upload = store.start_upload("b", 21)
        with pytest.raises(Corrupt):
            upload.send(1, b"these are the weights")
        upload.abort()
    else:
        upload = store.start_upload("b", 21)
        upload.send(1, b"these are the weights")
        with pytest.raises(Corrupt):
            upload.finish()


def test_a_folder_of_a_data_lake_is_no_object(bucket: Bucket) -> None:
    if bucket.kind != "azure":
        pytest.skip("a matter of Azure")
    store: Any = bucket.open()
    folder = bucket.raw.get_blob_client(bucket.bucket, "run")
    folder.upload_blob(b"", metadata={"hdi_isfolder": "true"})
    store.put("run/w.bin", b"x")
    assert [info.key for info in store.list("run")] == ["run/w.bin"]
    store.close()
