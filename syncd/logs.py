"""Logs follow their writer: at an interval, what has grown is sent again under its own name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from syncd.errors import Changed, Permanent
from syncd.health import Health
from syncd.journal import Journal
from syncd.records import Layout
from syncd.scan import Stat, files_below
from syncd.transfer import Transfer

log = logging.getLogger(__name__)


def _nameable(path: str) -> bool:
    """Whether a name is UTF-8, as the names of objects must be."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class LogShipper:
    """Sends the files of the log root. They have no commits: the newest bytes are what counts."""

    def __init__(
        self,
        root: Path,
        journal: Journal,
        layout: Layout,
        health: Health,
        exclude: tuple[str, ...] = (),
    ) -> None:
        self._root = root
        self._journal = journal
        self._layout = layout
        self._health = health
        self._exclude = exclude

    def waiting(self) -> list[tuple[str, Stat]]:
        """Log files that have changed since they were sent, smallest first."""
        files = list(files_below(self._root, self._exclude))
        if not all(_nameable(path) for path, _ in files):
            self._health.red("log name", "a log's name is not UTF-8: it is not copied", "rename it")
        found = [
            (path, stat)
            for path, stat in files
            if stat.size and _nameable(path) and self._journal.log_sent(path) != stat.text()
        ]
        return sorted(found, key=lambda item: item[1].size)

    def ship(self, transfer: Transfer, give_up: Callable[[], bool] = lambda: False) -> int:
        """Send what has changed; return how many files went. Errors of the store are raised."""
        sent = 0
        for path, stat in self.waiting():
            if give_up():
                break
            code = f"skipped log {path}"
            try:
                transfer.send(self._root / path, self._layout.logs + path, stat, growing=True)
            except Changed:
                continue  # rotated or cut just now: its new self is seen at the next look
            except Permanent as error:
                if self._health.red(code, error):
                    log.error("log %s is not copied: %s", path, error.explain())
                continue
            self._health.green(code)
            self._journal.mark_log(path, stat.text())
            sent += 1
        return sent
