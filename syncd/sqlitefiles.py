"""SQLite databases on disk: one each, with what SQLite keeps beside it while it is in use.

The files of one, copied one after the other, are of several moments. So a scan takes them for one
file, and ``logsqlite.py`` makes a copy of it that is whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from syncd.filestat import Stat

SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, by the end of its name."""

_WRITTEN = ("-wal", "-journal")
"""Those of them in which there is some of its content."""

NAMES = (".db", ".db3", ".sqlite", ".sqlite3")
"""How their names end; there are others that end so."""

_BESIDE = tuple(name + end for name in NAMES for end in SIDE_FILES)

ALL = (*NAMES, *_BESIDE)
"""How the names of databases end, and of what lies beside them."""

_HEAD = b"SQLite format 3\0"

_guard = threading.RLock()
"""Held while a database is read under SQLite's locks: they are the process's, and all are given up
when any thread of it closes that file."""

_known: dict[str, int] = {}
_MOST = 10_000
"""Databases that are remembered by their paths and inodes: they are not opened again."""


def in_peace(path: Path) -> AbstractContextManager[object]:
    """To open and close a file by oneself: not while SQLite has it locked."""
    return _guard if path.name.endswith(NAMES) else nullcontext()


def sides_of(path: Path) -> list[Path]:
    """Where SQLite keeps what lies beside a database of this name; none for other names."""
    if not path.name.endswith(NAMES):
        return []
    return [path.with_name(path.name + end) for end in SIDE_FILES]


def is_side(path: str) -> bool:
    """Whether a name is that of something beside a database."""
    return path.endswith(_BESIDE)


def join(folder: Path, names: Iterable[str], files: dict[str, Stat]) -> set[str]:
    """Which of ``names`` are databases; what lies beside any is taken out of the ``files``.

    The stat of a database is another one whenever its content is, wherever that is written.
    """
    found = {n for n in names if n.endswith(NAMES) and is_database(folder / n)}
    for name in found:
        beside = (_stat(side) for side in _sides(folder / name))
        files[name] = _joined(files[name], beside)
    for name in filter(is_side, names):
        del files[name]  # of no use without its database, and no harm where that is not there yet
    return found


def stat_of(path: Path) -> Stat:
    """The stat of a database as a scan has it; OSError if it is gone."""
    return _joined(Stat.of(path.lstat()), (_stat(side) for side in _sides(path)))


def in_use(path: Path) -> bool:
    """Whether some of its content may lie beside it."""
    return any(side.exists() for side in _sides(path))


def is_database(path: Path) -> bool:
    """Whether a file begins as SQLite's do; False if it cannot be read."""
    try:
        inode = path.lstat().st_ino
        with _guard:
            if _known.get(str(path)) == inode:
                return True
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.read(fd, len(_HEAD)) == _HEAD
            finally:
                os.close(fd)
            if found:
                _known[str(path)] = inode
                if len(_known) > _MOST:
                    del _known[next(iter(_known))]
            return found
    except OSError:
        return False


def _sides(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in _WRITTEN]


def _stat(path: Path) -> Stat | None:
    try:
        return Stat.of(path.lstat())
    except OSError:
        return None


def _joined(own: Stat, beside: Iterable[Stat | None]) -> Stat:
    all_of_it = [own, *(stat for stat in beside if stat)]
    return own._replace(
        mtime_ns=max(stat.mtime_ns for stat in all_of_it),
        ctime_ns=max(stat.ctime_ns for stat in all_of_it),
    )
