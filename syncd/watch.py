"""Events that make syncd quick: a hint to look, never the truth.

Events are lost on overflow and absent on network file systems, so a scan runs at an interval
whatever the events say; where watching does not work at all, the scans alone do.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

log = logging.getLogger(__name__)

_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})
"""Kinds of events that can mean something; opening and reading a file change nothing."""


class _Wake(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Wake whoever waits for a change."""
        if event.event_type in _CHANGES:
            self._wake.set()


class Watcher:
    """Watches one root and sets ``wake`` when something changes below it."""

    def __init__(self, root: Path, wake: threading.Event) -> None:
        self._root = root
        self._wake = wake
        self._observer: object | None = None
        self._inode = 0
        self.problem = ""
        """Why there are no events; "" while there are."""

    def ensure(self) -> None:
        """Watch the root if it is there and is not watched yet, or is another one by now."""
        try:
            inode = self._root.stat().st_ino
        except OSError:
            self.close()
            return
        if self._observer is not None and inode == self._inode:
            return
        if self.problem and inode == self._inode:
            return  # watching was tried here, in vain: the scans go on
        self.close()
        self._inode = inode
        observer = Observer()
        try:
            observer.schedule(_Wake(self._wake), str(self._root), recursive=True)
            observer.start()
        except OSError as error:
            self.problem = f"no events for {self._root} ({error.strerror}): scanning only"
            log.warning("%s", self.problem)
            return
        self.problem = ""
        self._observer = observer
        self._wake.set()  # what came before the watch stood is found by a scan

    def close(self) -> None:
        """Stop watching."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()  # type: ignore[attr-defined]
