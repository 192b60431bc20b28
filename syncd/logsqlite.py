"""A SQLite database as it is at one moment, by SQLite's own backup, while its writer works on it.

A copy of the file alone would lack what lies in the ``-wal`` or ``-journal`` beside it. The writer
is not held up: beside a write-ahead log a reader is in nobody's way, and in the other modes the
lock is held for a few pages at a time. What cannot be opened without writing beside it (a log that
was closed, a journal that its writer left in a crash) is copied first, and mended in the copy.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from syncd.errors import Busy, Changed, GaveWay, Permanent
from syncd.filestat import Stat
from syncd.sqlitefiles import SIDE_FILES, in_peace

_STEP = 256
"""Pages that are copied while a lock is held."""

_PATIENCE = 3.0
"""Seconds without a further page after which a database that is locked, or changes all the time, is
left for the next turn: a checkpoint may be waiting behind it."""

_SHARE = 0.5
"""Share of the free space that a copy may take."""

_WAL = 2
"""The version for reading, in the head of a database with a write-ahead log."""


def snapshot(source: Path, target: Path, stop: Callable[[], bool] = lambda: False) -> None:
    """Make ``target`` a copy of a database, whole and in one file.

    Busy if its writer leaves no moment for that, Changed if it is another one by now; Permanent if
    there is no room, or if it is no database after all; GaveWay once there is to be a ``stop``.
    """
    with in_peace(source):
        _snapshot(source, target, stop)


def _snapshot(source: Path, target: Path, stop: Callable[[], bool]) -> None:
    try:
        _check_room(source, target.parent)
        target.unlink(missing_ok=True)
        if _needs_a_copy(source):
            _from_copy(source, target, stop)
            return
        try:
            _backup(source, target, "ro", stop)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise Busy(f"{source} is locked by its writer") from None
            _from_copy(source, target, stop)
    except sqlite3.DatabaseError as error:
        if not source.exists():
            raise Changed(f"{source} vanished while it was copied") from None
        raise Permanent(f"{source} cannot be copied by SQLite: {error}") from None
    except FileNotFoundError:
        raise Changed(f"{source} vanished while it was copied") from None
    except OSError as error:
        raise Permanent(
            f"{source} cannot be copied: {error.filename or source}: {error.strerror}",
            hint="see whether SYNCD_STATE_DIR is full, or not writable",
        ) from error


def _needs_a_copy(source: Path) -> bool:
    """Whether to open it would make files beside it, which belong to its writer."""
    with source.open("rb") as file:
        head = file.read(20)
    beside = (_beside(source, end).exists() for end in ("-wal", "-shm"))
    return head[19:20] == bytes([_WAL]) and not all(beside)


def _backup(source: Path, target: Path, mode: str, stop: Callable[[], bool]) -> None:
    least, until = math.inf, time.monotonic() + _PATIENCE

    def look(_status: int, remaining: int, _total: int) -> None:
        nonlocal least, until
        if stop():
            raise GaveWay(f"the copy of {source} was stopped")
        if remaining < least:  # it begins anew whenever somebody has written
            least, until = remaining, time.monotonic() + _PATIENCE
        elif time.monotonic() > until:
            raise Busy(f"{source} is locked, or changes faster than it can be copied")

    address = f"file:{quote(str(source.absolute()))}?mode={mode}"
    with (
        contextlib.closing(sqlite3.connect(address, uri=True, timeout=1.0)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        new.execute("PRAGMA synchronous=OFF")
        if _beside(source, "-wal").exists():
            # one moment for all steps; a reader is in the way of no writer here
            old.execute("BEGIN")
            old.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        old.backup(new, pages=_STEP, progress=look, sleep=0.01)


def _from_copy(source: Path, target: Path, stop: Callable[[], bool]) -> None:
    """Copy the files as they are, and let SQLite mend them; Changed if they were not at rest."""
    copy = target.with_name(f"{target.name}.copy")
    try:
        before = _stats(source)
        for name in ("", "-wal", "-journal"):
            if _beside(source, name).exists():
                shutil.copyfile(_beside(source, name), _beside(copy, name))
        if _stats(source) != before:
            raise Changed(f"{source} changed while it was copied")
        _backup(copy, target, "rw", stop)
    finally:
        for name in ("", *SIDE_FILES):
            _beside(copy, name).unlink(missing_ok=True)


def _stats(source: Path) -> list[Stat | None]:
    return [_stat(_beside(source, name)) for name in ("", "-wal", "-journal")]


def _stat(path: Path) -> Stat | None:
    """None if it is not there: a journal comes and goes with each of its writer's commits."""
    try:
        return Stat.of(path.stat())
    except FileNotFoundError:
        return None


def _beside(path: Path, name: str) -> Path:
    return path.with_name(path.name + name)


def _check_room(source: Path, folder: Path) -> None:
    """Twice the size may be needed: for a copy, and for the copy of it that is mended."""
    folder.mkdir(parents=True, exist_ok=True)
    need = sum(stat.size for stat in _stats(source) if stat)
    free = shutil.disk_usage(folder).free
    if 2 * need > free * _SHARE:
        raise Permanent(
            f"a copy of {source} needs {2 * need / 1e6:.0f} MB and may take "
            f"{free * _SHARE / 1e6:.0f}",
            hint="free space in SYNCD_STATE_DIR",
        )
