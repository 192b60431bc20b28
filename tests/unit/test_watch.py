"""Events are hints: they come when they can, and their absence is said."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from watchdog.observers.inotify import InotifyObserver

from syncd.watch import Watcher


def test_change_wakes_and_reading_does_not(tmp_path: Path) -> None:
    wake = threading.Event()
    watcher = Watcher(tmp_path, wake)
    watcher.ensure()
    assert wake.wait(10), "what came before the watch stood is looked for"
    wake.clear()
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    assert wake.wait(10)
    (tmp_path / "late").mkdir()
    wake.clear()
    (tmp_path / "late/file").write_bytes(b"x")
    assert wake.wait(10)
    watcher.close()


def test_root_that_comes_late_is_watched(tmp_path: Path) -> None:
    wake = threading.Event()
    watcher = Watcher(tmp_path / "later", wake)
    watcher.ensure()
    assert not wake.is_set()
    (tmp_path / "later").mkdir()
    watcher.ensure()
    assert wake.is_set()
    watcher.close()


def test_watch_limit_is_said_and_scans_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: InotifyObserver) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(InotifyObserver, "start", refuse)
    wake = threading.Event()
    watcher = Watcher(tmp_path, wake)
    watcher.ensure()
    assert "scanning only" in watcher.problem
    watcher.close()
