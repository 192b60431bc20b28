"""What was sent of a large file is not sent again, and never taken for what it is not."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import syncd.logobjects
import syncd.plan
import syncd.transfer
from syncd.errors import GaveWay, NotFound, Transient
from syncd.stores.base import Buffer, PendingUpload
from syncd.stores.directory import DirectoryStore
from syncd.stores.directoryupload import DirectoryUpload
from tests.workbench import LAYOUT, Machine, restore_newest, tree

PART = 1000
CONTENT = os.urandom(4 * PART + 10)
PLAIN = LAYOUT.plain("w.bin")


class Lost(DirectoryStore):
    """The line breaks after so many parts (None: it holds)."""

    def __init__(self, root: Path, after: int | None = None, error: type[Exception] = Transient):
        super().__init__(root)
        self.after = after
        self.error = error
        self.parts: list[tuple[str, int]] = []
        self.vanished = 0

    def start_upload(self, key: str, size: int, copies: bool = False) -> Any:
        return Watched(super().start_upload(key, size, copies), self)

    def resume_upload(self, key: str, upload_id: str, size: int, tags: Any) -> Any:
        return Watched(super().resume_upload(key, upload_id, size, tags), self)


class Watched:
    def __init__(self, upload: DirectoryUpload, store: Lost) -> None:
        self._upload = upload
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upload, name)

    def send(self, number: int, data: Buffer) -> str:
        store = self._store
        if store.after is not None and len(store.parts) >= store.after:
            raise store.error("the line is down")
        if store.vanished:
            store.vanished -= 1
            store.discard_upload(PendingUpload("?", self._upload.id, 0.0))
            raise NotFound("no such upload")
        store.parts.append((self._upload.key, number))
        return self._upload.send(number, data)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (syncd.transfer, syncd.logobjects):
        monkeypatch.setattr(module, "SINGLE_PUT", PART)
    monkeypatch.setattr(syncd.plan, "_TOGETHER", PART)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


def machine(tmp_path: Path, store: Lost, writer: str = "one", disk: str = "disk") -> Machine:
    """The next life of a daemon; its parts go one by one, so that counts are exact."""
    store.capabilities = type(store.capabilities)(
        **{**vars(store.capabilities), "parallel_parts": False}
    )
    return Machine(tmp_path / disk, tmp_path / "bucket", writer, store=store).start()


def break_off(tmp_path: Path, store: Lost, after: int = 3) -> None:
    """One life sends three parts, and then the line is down for ever."""
    store.after = after
    one = machine(tmp_path, store)
    one.write("w.bin", CONTENT)
    with pytest.raises(Transient):
        one.commit_all()
    assert len(store.parts) == after
    store.after = None
    store.parts.clear()


def test_the_next_life_sends_what_is_missing_to_the_same_place(
    tmp_path: Path, bucket: Path
) -> None:
    store = Lost(bucket)
    break_off(tmp_path, store)
    two = machine(tmp_path, store, "two")
    (record,) = two.commit_all()
    assert store.parts == [(PLAIN, 4), (PLAIN, 5)]
    assert record.files[0].key == PLAIN
    assert restore_newest(bucket, tmp_path / "back")
    assert (tmp_path / "back/w.bin").read_bytes() == CONTENT
    assert two.journal.uploads() == []
    assert list(store.pending_uploads("")) == []


def test_what_has_arrived_need_not_travel(tmp_path: Path, bucket: Path) -> None:
    store = Lost(bucket)
    break_off(tmp_path, store)
    two = machine(tmp_path, store, "two")
    ((unit, _),) = two.pipeline.look().pending
    assert two.publisher.left(unit) == len(CONTENT) - 3 * PART


def test_a_file_that_changed_begins_anew(tmp_path: Path, bucket: Path) -> None:
    store = Lost(bucket)
    break_off(tmp_path, store)
    two = machine(tmp_path, store, "two")
    two.write("w.bin", CONTENT[::-1])
    two.commit_all()
    assert [number for _, number in store.parts] == [1, 2, 3, 4, 5]
    assert list(store.pending_uploads("")) == []
    restore_newest(bucket, tmp_path / "back")
    assert (tmp_path / "back/w.bin").read_bytes() == CONTENT[::-1]


def test_a_file_that_only_looks_the_same_begins_anew(tmp_path: Path, bucket: Path) -> None:
    """The digests of the parts are looked at, not only the stat."""
    store = Lost(bucket)
    break_off(tmp_path, store)
    two = machine(tmp_path, store, "two")
    other = bytearray(CONTENT)
    other[5] ^= 1
    path = two.write("w.bin", bytes(other))
    (unit,) = (unit for unit, _ in two.pipeline.look().pending)
    two.journal._run("UPDATE uploads SET stat = ?", unit.files[0][1].text())
    two.commit_all()
    assert [number for _, number in store.parts] == [1, 2, 3, 4, 5]
    restore_newest(bucket, tmp_path / "back")
    assert (tmp_path / "back/w.bin").read_bytes() == path.read_bytes()
    assert list(store.pending_uploads("")) == []


def test_an_upload_that_vanished_begins_anew(tmp_path: Path, bucket: Path) -> None:
    store = Lost(bucket)
    break_off(tmp_path, store)
    for pending in list(store.pending_uploads("")):
        store.discard_upload(pending)
    two = machine(tmp_path, store, "two")
    assert len(two.commit_all()) == 1
    assert [number for _, number in store.parts] == [1, 2, 3, 4, 5]


def test_one_that_vanishes_under_way_begins_anew(tmp_path: Path, bucket: Path) -> None:
    store = Lost(bucket)
    store.vanished = 2
    one = machine(tmp_path, store)
    one.write("w.bin", CONTENT)
    assert len(one.commit_all()) == 1
    store.vanished = 3
    one.write("x.bin", CONTENT[1:])
    with pytest.raises(Transient, match="vanish"):
        one.commit_all()


def test_a_name_that_another_machine_has_taken_is_not_touched(tmp_path: Path, bucket: Path) -> None:
    """Its upload to the plain key is given up: that key may be written by others by now."""
    store = Lost(bucket)
    break_off(tmp_path, store)
    other = machine(tmp_path, store, "other", disk="other")
    other.write("w.bin", b"theirs" * 1000)
    other.commit_all()
    store.parts.clear()
    two = machine(tmp_path, store, "two")
    two.commit_all()
    assert [number for _, number in store.parts] == [1, 2, 3, 4, 5]
    assert all(key.startswith(LAYOUT.versions) for key, _ in store.parts)
    assert list(store.pending_uploads("")) == []
    restored = restore_newest(bucket, tmp_path / "back")
    assert restored is not None
    assert tree(tmp_path / "back")["w.bin"] in (CONTENT, b"theirs" * 1000)


def test_what_was_sent_for_a_number_that_is_taken_is_copied(tmp_path: Path, bucket: Path) -> None:
    store = Lost(bucket)
    one = machine(tmp_path, store)
    one.write("w.bin", b"first" * 1000)
    one.commit_all()
    store.parts.clear()
    one.write("w.bin", CONTENT)
    store.after = 3
    with pytest.raises(Transient):
        one.commit_all()
    (begun,) = one.journal.uploads()
    assert begun.key.startswith(LAYOUT.beside(2))
    store.after = None
    store.parts.clear()
    two = machine(tmp_path, store, "two")
    two.write("small.json", "{}")
    units = {unit.path: (unit, profile) for unit, profile in two.pipeline.look().pending}
    assert two.publisher.publish(*units["small.json"])
    record = two.publisher.publish(*units["w.bin"])
    assert [number for _, number in store.parts] == [4, 5]
    assert record
    assert record.seq == 3
    assert record.files[0].key.startswith(LAYOUT.beside(3))
    assert two.journal.uploads() == []
    restore_newest(bucket, tmp_path / "back")
    assert (tmp_path / "back/w.bin").read_bytes() == CONTENT


def test_what_gives_way_goes_on_where_it_was(tmp_path: Path, bucket: Path) -> None:
    store = Lost(bucket, after=2, error=GaveWay)
    one = machine(tmp_path, store)
    one.write("w.bin", CONTENT)
    (unit, profile) = one.pipeline.look().pending[0]
    with pytest.raises(GaveWay):
        one.publisher.publish(unit, profile)
    store.after = None
    assert one.publisher.publish(unit, profile)
    assert [number for _, number in store.parts] == [1, 2, 3, 4, 5]


def test_a_log_that_could_not_be_sent_leaves_nothing(tmp_path: Path, bucket: Path) -> None:
    from syncd.logs import LogShipper

    store = Lost(bucket, after=2)
    one = machine(tmp_path, store)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/run.log").write_bytes(CONTENT)
    shipper = LogShipper(tmp_path / "logs", one.journal, LAYOUT, one.health)
    with pytest.raises(Transient):
        shipper.ship(one.transfer)
    assert list(store.pending_uploads("")) == []
    store.after = None
    assert shipper.ship(one.transfer) == 1
    assert one.transfer.uploads
    one.transfer.uploads.tidy(lambda _begun: True)
    assert one.journal.uploads() == []


def test_parts_that_have_landed_are_not_looked_at_again(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 64 GiB has 8,192 parts: looking at all of them after each took most of the time."""
    looks, real = [0], Future.done

    def done(job: Future[Any]) -> bool:
        looks[0] += 1
        return real(job)

    parts = 400
    one = Machine(tmp_path / "disk", bucket).start()
    one.write("run/w.bin", os.urandom(parts * PART))
    monkeypatch.setattr(Future, "done", done)
    assert len(one.commit_all()) == 1
    assert parts < looks[0] < 30 * parts
