"""What is a directory's own: no links, full disks, names that cannot coexist, killed writers."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncd.errors import Conflict, NeedsOperator, Permanent, StoreError, Transient
from syncd.stores.base import IfAbsent
from syncd.stores.directory import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "bucket")


def test_the_directory_is_made_by_the_first_write(store: DirectoryStore, tmp_path: Path) -> None:
    assert list(store.list("")) == []
    assert not (tmp_path / "bucket").exists()
    store.put("a/b", b"x")
    assert (tmp_path / "bucket/a/b").read_bytes() == b"x"


def test_a_volume_that_is_not_mounted_needs_an_operator(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "not/mounted")
    with pytest.raises(NeedsOperator, match="does not exist"):
        store.put("a", b"x")
    assert not (tmp_path / "not").exists()


def test_a_file_in_the_place_of_the_directory_needs_an_operator(tmp_path: Path) -> None:
    (tmp_path / "bucket").write_bytes(b"x")
    with pytest.raises(NeedsOperator, match="bucket") as caught:
        DirectoryStore(tmp_path / "bucket").put("a", b"x")
    assert "CLOUD_BUCKET" in caught.value.hint


def test_the_folder_aside_is_made_again(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("a", b"x")
    (tmp_path / "bucket/.syncd-tmp").rmdir()
    store.put("b", b"y")
    assert sorted(info.key for info in store.list("")) == ["a", "b"]


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/x", "a//b", ".", "./a", ".syncd-tmp/a"])
def test_no_name_leads_out_of_the_directory(store: DirectoryStore, key: str) -> None:
    with pytest.raises(Permanent):
        store.put(key, b"x")
    with pytest.raises(Permanent):
        list(store.read(key))


def test_no_listing_leads_out_of_the_directory(store: DirectoryStore) -> None:
    store.put("a", b"x")
    with pytest.raises(Permanent):
        list(store.list("../"))


@pytest.mark.parametrize(("first", "second"), [("p", "p/q"), ("p/q", "p")])
def test_an_object_and_one_below_it_cannot_coexist(
    store: DirectoryStore, first: str, second: str
) -> None:
    store.put(first, b"x")
    with pytest.raises(Permanent, match="name") as caught:
        store.put(second, b"x")
    assert "'p/q'" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NeedsOperator),
        (errno.EDQUOT, NeedsOperator),
        (errno.EACCES, NeedsOperator),
        (errno.EROFS, NeedsOperator),
        (errno.EIO, Transient),
        (errno.ESTALE, Transient),
        (errno.ENAMETOOLONG, Permanent),
    ],
)
def test_every_fault_of_the_disk_has_its_class(
    store: DirectoryStore,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[StoreError],
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected) as caught:
        store.put("a", b"x")
    assert caught.value.hint
    monkeypatch.undo()
    assert list(store.list("")) == []
    assert list(store.pending_uploads("")) == []


def test_without_hard_links_put_if_absent_still_holds(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store.put("a", b"first", IfAbsent())
    with pytest.raises(Conflict):
        store.put("a", b"second", IfAbsent())
    assert b"".join(store.read("a")) == b"first"


def test_what_a_killed_writer_left_is_found_and_never_listed(store: DirectoryStore) -> None:
    upload = store.start_upload("a", 10)
    upload.send(1, b"12345")
    assert list(store.list("")) == []
    (pending,) = store.pending_uploads("")
    store.discard_upload(pending)
    assert list(store.pending_uploads("")) == []


def test_deleting_leaves_no_empty_directories(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("a/b/c", b"x")
    store.put("a/d", b"x")
    store.delete(["a/b/c"])
    assert not (tmp_path / "bucket/a/b").exists()
    assert (tmp_path / "bucket/a/d").exists()


def test_writers_and_tidying_side_by_side(store: DirectoryStore) -> None:
    """A folder that a delete removes under a put comes back."""

    def churn(number: int) -> None:
        for _ in range(100):
            store.put(f"folder/deep/{number}", b"x")
            store.delete([f"folder/deep/{number}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert list(store.list("")) == []
