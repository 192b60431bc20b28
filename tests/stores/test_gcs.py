"""What is Google's own: interrupted sessions, one write per second, answers that are lost.

gcp-storage-emulator answers the status query of a session as Google does, fake-gcs-server would
commit the truncated object; conditions are proven on the strict layer, which has sessions too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from syncd.errors import Corrupt, NotFound, Permanent, Transient
from tests.servers.fixtures import Bucket, gcs_bucket
from tests.servers.gcs import GcpEmulator
from tests.servers.strict_gcs import StrictGcs
from tests.servers.wires import Wire

MIB = 1024 * 1024
NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def emulated(gcp_emulator: GcpEmulator) -> Iterator[Bucket]:
    yield from gcs_bucket("gcp-emulator", gcp_emulator.url, gcp_emulator.port, NOTHING)


@pytest.fixture
def strict(strict_gcs: StrictGcs) -> Iterator[Bucket]:
    yield from gcs_bucket("gcs-strict", strict_gcs.url, strict_gcs.port, NOTHING)


def test_an_interrupted_session_goes_on_where_it_was(emulated: Bucket) -> None:
    store = emulated.open()
    parts = [os.urandom(MIB), os.urandom(MIB), os.urandom(100)]
    upload = store.start_upload("a", 2 * MIB + 100)
    upload.send(1, parts[0])
    upload._uncertain = True  # type: ignore[attr-defined]  # as after a lost answer
    upload.send(2, parts[1])
    with pytest.raises(NotFound):
        store.head("a")
    upload.send(3, parts[2])
    upload._uncertain = True  # type: ignore[attr-defined]
    upload.finish()
    assert b"".join(store.read("a")) == b"".join(parts)


@pytest.mark.parametrize("reach", [600_000, 1_400_000, 2 * MIB + 200_000])
def test_a_cut_session_sends_only_what_is_missing(strict: Bucket, reach: int) -> None:
    wire = Wire(strict.port)
    store = strict.through(wire)
    parts = [os.urandom(MIB), os.urandom(MIB), os.urandom(MIB)]
    upload = store.start_upload("a", 3 * MIB)
    wire.cut_after = reach
    steps: list[Callable[[], object]] = [upload.finish]
    steps[:0] = [partial(upload.send, number, data) for number, data in enumerate(parts, start=1)]
    for step in steps:
        try:
            step()
        except Transient:
            wire.cut_after = None
            step()
    assert wire.cuts == 1
    assert b"".join(strict.open().read("a")) == b"".join(parts)
    wire.close()


def test_the_lost_answer_to_the_last_chunk_is_no_failure(
    strict: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = strict.open()
    upload = store.start_upload("a", 5)
    upload.send(1, b"hello")
    monkeypatch.setattr(upload, "_note", _lost)
    with pytest.raises(Transient):
        upload.finish()
    monkeypatch.undo()
    upload._uncertain = True  # type: ignore[attr-defined]
    assert upload.finish().version == store.head("a").version


def _lost(_answer: object) -> None:
    raise Transient("the answer was lost")


def test_parts_out_of_order_are_refused(strict: Bucket) -> None:
    upload = strict.open().start_upload("a", 2 * MIB)
    with pytest.raises(Permanent):
        upload.send(2, bytes(MIB))
    upload.abort()


def test_an_aborted_session_is_gone(strict: Bucket, strict_gcs: StrictGcs) -> None:
    upload = strict.open().start_upload("a", 2 * MIB)
    upload.send(1, bytes(MIB))
    upload.abort()
    assert strict_gcs.sessions == {}
    upload.send(2, bytes(MIB))
    with pytest.raises(NotFound):
        upload.finish()


def test_an_empty_upload_makes_an_empty_object(strict: Bucket) -> None:
    store = strict.open()
    assert store.start_upload("a", 0).finish().size == 0
    assert store.head("a").size == 0


def test_two_writes_within_a_second_to_one_name_are_transient(
    strict: Bucket, strict_gcs: StrictGcs
) -> None:
    strict_gcs.one_write_per_second = True
    store = strict.open()
    store.put("log", b"1")
    store.put("other", b"1")
    with pytest.raises(Transient):
        store.put("log", b"2")


def test_another_content_of_a_part_that_is_there_is_corrupt(strict: Bucket) -> None:
    """A session keeps what it has: a part that comes again with other bytes is noticed."""
    store = strict.open()
    upload = store.start_upload("a", MIB + 1)
    upload.send(1, b"a" * MIB)
    upload.send(1, b"b" * MIB)
    upload.send(2, b"c")
    with pytest.raises(Corrupt):
        upload.finish()
