"""Events are hints: they come when they can, and their absence is said."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import inotify_simple
import pytest

from syncd.mounts import events_are_local_only, filesystem_of
from syncd.watch import Changes, Watcher
from tests.e2e.processes import wait_until


@pytest.fixture
def wake() -> threading.Event:
    return threading.Event()


@pytest.fixture
def watcher(tmp_path: Path, wake: threading.Event) -> Iterator[Watcher]:
    (tmp_path / "root").mkdir()
    watcher = Watcher(tmp_path / "root", wake)
    watcher.ensure(0)
    yield watcher
    watcher.close()


def take_all(watcher: Watcher, until: str) -> Changes:
    """Everything that was told, up to something about ``until``."""
    found = Changes()

    def told() -> bool:
        more = watcher.take()
        found.everything |= more.everything
        found.files_in |= more.files_in
        found.folders |= more.folders
        return until in found.files_in | found.folders

    wait_until(told, f"a change of {until!r}: {found}", 10)
    return found


def test_change_tells_where_and_reading_does_not(
    tmp_path: Path, watcher: Watcher, wake: threading.Event
) -> None:
    assert wake.is_set(), "what came before the watch stood is looked for"
    assert watcher.take().everything
    wake.clear()
    (tmp_path / "root/checkpoint.pt").write_bytes(b"x")
    assert wake.wait(10)
    assert take_all(watcher, "") == Changes(files_in={""})
    (tmp_path / "root/checkpoint.pt").read_bytes()
    (tmp_path / "root/not-yet.tmp").write_bytes(b"x")
    (tmp_path / "root/late").mkdir()
    assert take_all(watcher, "late") == Changes(folders={"late"})
    watcher.before_listing("late")
    (tmp_path / "root/late/file").write_bytes(b"x")
    assert take_all(watcher, "late") == Changes(files_in={"late"})


def test_folder_that_moves_is_known_by_its_new_name(tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / "root/one").mkdir()
    watcher.before_listing("one")
    (tmp_path / "root/one").rename(tmp_path / "root/two")
    take_all(watcher, "two")
    watcher.before_listing("two")
    (tmp_path / "root/two/file").write_bytes(b"x")
    assert "two" in take_all(watcher, "two").files_in


@pytest.mark.parametrize("away", ["../archive", "archive"])
def test_folder_that_takes_the_place_of_one_that_was_moved_stays_watched(
    tmp_path: Path, watcher: Watcher, away: str
) -> None:
    root = tmp_path / "root"
    for folder in (root / "run", root / away):
        folder.mkdir()
    for path in ("", "archive", "run"):
        watcher.before_listing(path)
    (root / "run").rename(root / away / "run")
    (root / "run").mkdir()
    watcher.begin_full()
    for path in ("", "run", "archive", "archive/run"):
        watcher.before_listing(path)
    watcher.end_full()
    (root / "run/file").write_bytes(b"x")
    wait_until(lambda: "run" in watcher.take().files_in, "the file in the new folder", 10)
    assert watcher._reader
    there = {"", "run"} if away.startswith("..") else {"", "run", "archive", "archive/run"}
    assert {
        path for path in ("", "run", "archive", "archive/run") if watcher._reader.has(path)
    } == there
    assert watcher._reader.placed == len(there)


def test_root_that_comes_late_goes_and_comes_back(tmp_path: Path, wake: threading.Event) -> None:
    root = tmp_path / "later"
    watcher = Watcher(root, wake)
    watcher.ensure(0)
    assert not wake.is_set()
    for _ in range(3):
        root.mkdir()
        watcher.ensure(0)
        assert watcher.take().everything
        (root / "file").write_bytes(b"x")
        take_all(watcher, "")
        (root / "file").unlink()
        wake.clear()
        root.rmdir()
        assert wake.wait(10)
    watcher.ensure(0)
    watcher.close()


def test_root_that_is_a_link(tmp_path: Path, wake: threading.Event) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    watcher = Watcher(tmp_path / "link", wake)
    watcher.ensure(0)
    assert watcher.problem == ""
    (tmp_path / "real/file").write_bytes(b"x")
    take_all(watcher, "")
    watcher.close()


def test_no_instance_is_said_and_asked_for_again(
    tmp_path: Path, wake: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_reader: object, **_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(inotify_simple.INotify, "__init__", refuse)
        watcher = Watcher(tmp_path, wake)
        watcher.ensure(0)
        assert "scanning only" in watcher.problem
        watcher.ensure(1)
    assert watcher.take().everything
    watcher.ensure(30)
    assert "scanning only" in watcher.problem
    watcher.ensure(100)
    assert watcher.problem == ""
    watcher.close()


def test_few_watches_go_to_the_folders_that_hold_checkpoints(
    tmp_path: Path, wake: threading.Event
) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    watcher = Watcher(tmp_path, wake, most=3)
    watcher.ensure(0)
    for name in ("a", "b", "c"):
        watcher.before_listing(name)
    watcher.holds_checkpoints("d")
    assert watcher.problem == ""
    watcher.take()
    (tmp_path / "d/file").write_bytes(b"x")
    take_all(watcher, "d")
    watcher.holds_checkpoints("c")
    watcher.holds_checkpoints("b")
    assert "not every folder" in watcher.problem
    watcher.begin_full()
    watcher.before_listing("")
    watcher.before_listing("d")
    watcher.end_full()
    assert watcher.problem == ""
    watcher.close()


def test_thread_that_died_is_started_again(
    tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    watcher.take()
    with monkeypatch.context() as broken:
        broken.setattr(Watcher, "changed", fail)
        (tmp_path / "root/file").write_bytes(b"x")
        wait_until(lambda: watcher.take().everything, "the failure", 10)
    reader = watcher._reader
    assert reader
    wait_until(lambda: not reader.works, "the end of the thread", 10)
    watcher.ensure(0)
    (tmp_path / "root/file").write_bytes(b"y")
    take_all(watcher, "")


def test_file_system_of_a_folder(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/vda rw\n"
        "2 1 0:9 / /data rw shared:1 - nfs4 server:/x rw\n"
        "3 1 0:8 / /data/my\\040disk rw - ext4 /dev/vdb rw\n"
        "4 1 0:7 / /cloud rw - fuse.rclone remote rw\n"
        "5 1 0:6 / /over rw - ext4 x rw\n"
        "6 1 0:5 / /over rw - overlay overlay rw\n"
    )
    found = {
        path: filesystem_of(Path(path), table)
        for path in ("/data/x", "/data", "/database", "/data/my disk/x", "/cloud/a", "/over/a")
    }
    assert found == {
        "/data/x": "nfs4",
        "/data": "nfs4",
        "/database": "ext4",
        "/data/my disk/x": "ext4",
        "/cloud/a": "fuse.rclone",
        "/over/a": "overlay",
    }
    assert filesystem_of(tmp_path, tmp_path / "nothing") == ""
    assert events_are_local_only(tmp_path) == ""
