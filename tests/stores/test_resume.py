"""An upload goes on after its process is gone: on every store, and what is each one's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.clock import SystemClock
from syncd.delta import Fresh
from syncd.errors import Conflict, NotFound, StoreError
from syncd.journal import Journal
from syncd.records import Layout
from syncd.stores.base import IfAbsent, ObjectStore, PendingUpload, Upload
from syncd.stores.directory import DirectoryStore
from syncd.uploads import LATE, Uploads
from tests.servers.fixtures import Bucket, gcs_bucket
from tests.servers.gcs import GcpEmulator

MIB = 1024 * 1024
PART = 5 * MIB
SIZES = (PART, PART, 100)
SIZE = sum(SIZES)
LAYOUT = Layout("eigen2")

_BEGIN = f"""
import os, signal, sys
from syncd.stores import open_store
store = open_store(sys.argv[1], sys.argv[2], os.environ)
upload = store.start_upload(sys.argv[3], int(sys.argv[4]))
data = sys.stdin.buffer.read()
tags = [upload.send(n + 1, data[n * {PART} : (n + 1) * {PART}]) for n in range(int(sys.argv[5]))]
print(upload.id, *tags, sep="\\n", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def parts() -> list[bytes]:
    return [os.urandom(size) for size in SIZES]


def begin_and_die(bucket: Bucket, key: str, parts: list[bytes]) -> tuple[str, dict[int, str]]:
    """A process begins an upload, sends these parts and is killed: the id, and the tags."""
    arguments = (bucket.provider, bucket.bucket, key, str(SIZE), str(len(parts)))
    ended = subprocess.run(
        [sys.executable, "-c", _BEGIN, *arguments],
        env={**os.environ, **bucket.env},
        input=b"".join(parts),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    upload_id, *tags = ended.stdout.decode().splitlines()
    return upload_id, dict(enumerate(tags, start=1))


def go_on(upload: Upload, parts: list[bytes]) -> list[int]:
    """Send what is missing; the numbers of the parts that were."""
    sent = []
    for number, data in enumerate(parts, start=1):
        if not upload.holds(number, data):
            upload.send(number, data)
            sent.append(number)
    return sent


def content(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.read(key))


def test_an_upload_goes_on_after_its_process_is_gone(bucket: Bucket, parts: list[bytes]) -> None:
    upload_id, tags = begin_and_die(bucket, "run/large.pt", parts[:2])
    store = bucket.open()
    assert store.capabilities.resumable
    upload = store.resume_upload("run/large.pt", upload_id, SIZE, tags)
    assert go_on(upload, parts) == [3]
    info = upload.finish(IfAbsent())
    assert info.size == SIZE
    assert content(store, "run/large.pt") == b"".join(parts)
    assert store.head("run/large.pt").version == info.version
    if "abort" in bucket.can:
        assert list(store.pending_uploads("")) == []
    store.close()


def test_an_upload_that_was_left_can_be_taken_up(bucket: Bucket, parts: list[bytes]) -> None:
    store = bucket.open()
    first = store.start_upload("a", SIZE)
    tags = {1: first.send(1, parts[0])}
    first.leave()
    upload = store.resume_upload("a", first.id, SIZE, tags)
    assert go_on(upload, parts) == [2, 3]
    upload.finish()
    assert content(store, "a") == b"".join(parts)
    store.close()


def test_a_resumed_upload_keeps_what_came_meanwhile(bucket: Bucket, parts: list[bytes]) -> None:
    upload_id, tags = begin_and_die(bucket, "a", parts[:2])
    store = bucket.open()
    store.put("a", b"another machine's")
    with pytest.raises((Conflict, NotFound)):  # Azure drops the blocks when a blob is put
        upload = store.resume_upload("a", upload_id, SIZE, tags)
        go_on(upload, parts)
        upload.finish(IfAbsent())
    assert content(store, "a") == b"another machine's"
    store.close()


def test_an_upload_that_is_gone_is_not_found(bucket: Bucket, parts: list[bytes]) -> None:
    bucket.needs("abort")
    upload_id, tags = begin_and_die(bucket, "a", parts[:1])
    store = bucket.open()
    store.discard_upload(PendingUpload("a", upload_id, 0.0))
    with pytest.raises(NotFound):
        store.resume_upload("a", upload_id, SIZE, tags)
    store.close()


def test_an_upload_that_was_finished_unheard_is_not_sent_again(
    bucket: Bucket, parts: list[bytes]
) -> None:
    """The machine died after its last request had taken effect."""
    if bucket.kind == "local":
        pytest.skip("a rename tells nothing of itself: the file is copied again")
    store = bucket.open()
    first = store.start_upload("a", SIZE)
    tags = {number: first.send(number, data) for number, data in enumerate(parts, start=1)}
    made = first.finish(IfAbsent())
    again = store.resume_upload("a", first.id, SIZE, tags)
    assert go_on(again, parts) == []
    assert again.finish(IfAbsent()).version == made.version
    assert content(store, "a") == b"".join(parts)
    store.close()


# -- each one's own


def test_a_part_that_the_journal_does_not_know_is_sent_again(
    bucket: Bucket, parts: list[bytes]
) -> None:
    bucket.needs("swap of parts")  # those that give tags, and the directory, which compares bytes
    if not bucket.kind.startswith("s3"):
        pytest.skip("no tags here")
    upload_id, tags = begin_and_die(bucket, "a", parts[:2])
    store = bucket.open()
    upload = store.resume_upload("a", upload_id, SIZE, {1: tags[1], 2: "0" * 32})
    assert go_on(upload, parts) == [2, 3]
    upload.finish()
    assert content(store, "a") == b"".join(parts)
    store.close()


@pytest.fixture
def emulated(gcp_emulator: GcpEmulator) -> Iterator[Bucket]:
    yield from gcs_bucket("gcp-emulator", gcp_emulator.url, gcp_emulator.port, frozenset())


def test_a_session_of_google_goes_on_after_its_process_is_gone(
    emulated: Bucket, parts: list[bytes]
) -> None:
    """gcp-storage-emulator answers the status query as Google does, of its own account."""
    upload_id, tags = begin_and_die(emulated, "a", parts[:2])
    store = emulated.open()
    upload = store.resume_upload("a", upload_id, SIZE, tags)
    assert go_on(upload, parts) == [3]
    assert upload.finish().size == SIZE
    assert content(store, "a") == b"".join(parts)
    store.close()


def test_a_file_in_a_directory_that_lost_bytes_is_mended(
    tmp_path: Path, parts: list[bytes]
) -> None:
    """A power cut takes what was written and not yet made durable."""
    store = DirectoryStore(tmp_path)
    first = store.start_upload("a", SIZE)
    for number, data in enumerate(parts[:2], start=1):
        first.send(number, data)
    first.leave()
    (aside,) = (tmp_path / ".syncd-tmp").iterdir()
    with aside.open("r+b") as file:
        file.seek(PART + 7)
        file.write(bytes(4096))
    upload = store.resume_upload("a", first.id, SIZE, {1: "", 2: ""})
    assert go_on(upload, parts) == [2, 3]
    upload.finish()
    assert content(store, "a") == b"".join(parts)


def test_a_file_in_a_directory_that_has_its_name_already_is_taken(
    tmp_path: Path, parts: list[bytes]
) -> None:
    """Killed between the link and the removal of the file aside."""
    store = DirectoryStore(tmp_path)
    first = store.start_upload("a", SIZE)
    for number, data in enumerate(parts, start=1):
        first.send(number, data)
    first.leave()
    (aside,) = (tmp_path / ".syncd-tmp").iterdir()
    (tmp_path / "a").hardlink_to(aside)
    upload = store.resume_upload("a", first.id, SIZE, {})
    assert go_on(upload, parts) == []
    upload.finish(IfAbsent())
    assert content(store, "a") == b"".join(parts)
    assert list(store.pending_uploads("")) == []


# -- what nobody goes on with


def uploads_of(store: ObjectStore, journal: Journal, clock: SystemClock | None = None) -> Uploads:
    return Uploads(store, journal, LAYOUT, clock or SystemClock())


class Later(SystemClock):
    """The real one, so many seconds further on."""

    passed = 0.0

    def now(self) -> float:
        return super().now() + self.passed

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


def pending(store: ObjectStore) -> set[str]:
    return {upload.id for upload in store.pending_uploads("")}


def test_a_sweep_aborts_what_is_left_and_nothing_that_is_wanted(bucket: Bucket) -> None:
    store, journal, clock = bucket.open(), Journal(None, "test"), Later()
    uploads = uploads_of(store, journal, clock)
    wanted = uploads.begin(LAYOUT.plain("run/a"), SIZE, PART, "run/a", "1:1:1:1")
    wanted.send(Fresh(wanted.digest(1, bytes(PART)), bytes(PART)))
    wanted.leave()
    mine = store.start_upload(LAYOUT.version(7, "run/b", "writer1.3"), SIZE)
    mine.leave()
    journal.begin_upload(LAYOUT.plain("run/c"), "run/c", "2:2:2:2", SIZE, PART)
    unnamed = store.start_upload(LAYOUT.plain("run/c"), SIZE)  # killed before the answer came
    unnamed.leave()
    others = store.start_upload(LAYOUT.plain("run/d"), SIZE)
    others.leave()
    if not pending(store):
        pytest.skip("this store hides its uploads")
    if bucket.kind == "s3-moto":
        pytest.skip("it says that every upload was begun in 2010")
    (kept,) = (begun.id for begun in journal.uploads() if begun.id)
    uploads.sweep({"writer1"})
    by_key = set() if bucket.kind == "local" else {mine.id, unnamed.id}  # no keys there
    assert pending(store) == {kept, mine.id, unnamed.id, others.id} - by_key
    assert [begun.id for begun in journal.uploads()] == [kept, ""]
    assert uploads.may_come
    journal.drop_uploads_to(LAYOUT.plain("run/c"))  # it was sent by another one meanwhile
    store.start_upload(LAYOUT.plain("run/c"), SIZE).leave()  # a request that was late
    clock.passed = LATE
    uploads.sweep({"writer1"})
    if bucket.kind != "local":
        assert pending(store) == {kept, others.id}
    assert not uploads.may_come
    assert [begun.id for begun in journal.uploads()] == [kept]
    clock.passed = 25 * 3600.0
    uploads.sweep({"writer1"})
    assert pending(store) == {kept}
    uploads.tidy(lambda _begun: False)
    assert pending(store) == set()
    assert journal.uploads() == []
    journal.close()
    store.close()


def test_an_upload_of_another_revision_gives_way(bucket: Bucket) -> None:
    store, journal = bucket.open(), Journal(None, "test")
    uploads = uploads_of(store, journal)
    for stat in ("1:1:1:1", "2:2:2:2"):
        flight = uploads.begin("eigen2/a", SIZE, PART, "a", stat)
        flight.send(Fresh(flight.digest(1, bytes(PART)), bytes(PART)))
        flight.leave()
    (left,) = journal.uploads()
    assert left.stat == "2:2:2:2"
    assert pending(store) <= {left.id}
    assert journal.find_upload("a", "1:1:1:1") is None
    journal.close()
    store.close()


def test_what_cannot_be_aborted_now_is_aborted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, journal = DirectoryStore(tmp_path), Journal(None, "test")
    uploads = uploads_of(store, journal)
    uploads.begin("eigen2/a", SIZE, PART, "a", "1:1:1:1").leave()

    def refuse(_upload: PendingUpload) -> None:
        raise StoreError("not now")

    monkeypatch.setattr(store, "discard_upload", refuse)
    uploads.tidy(lambda _begun: False)
    assert [begun.path for begun in journal.uploads()] == [""]
    monkeypatch.undo()
    uploads.tidy(lambda _begun: True)
    assert len(pending(store)) == 1  # not in every look: only after the next sweep
    uploads.sweep(())
    uploads.tidy(lambda _begun: True)
    assert pending(store) == set()
    assert journal.uploads() == []
    journal.close()
