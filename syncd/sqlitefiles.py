"""SQLite databases on disk: one each, with what SQLite keeps beside it while it is in use.

The files of one, copied one after the other, are of several moments. So a scan takes them for one
file, and ``logsqlite.py`` makes a copy of it that is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from syncd.filestat import Stat

SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, by the end of its name."""

_WRITTEN = ("-wal", "-journal")
"""Those of them in which there is some of its content."""

NAMES = (".db", ".db3", ".sqlite", ".sqlite3")
"""How their names end; there are others that end so."""

_HEAD = b"SQLite format 3\0"


def join(folder: Path, names: Iterable[str], files: dict[str, Stat]) -> set[str]:
    """Which of ``names`` are databases; what lies beside them is taken out of the ``files``.

    The stat of a database is another one whenever its content is, wherever that is written.
    """
    found = {name for name in names if is_database(folder / name)}
    for name in found:
        beside = [files.pop(name + end, None) for end in SIDE_FILES]
        content = zip(SIDE_FILES, beside, strict=True)
        files[name] = _joined(files[name], (stat for end, stat in content if end in _WRITTEN))
    return found


def stat_of(path: Path) -> Stat:
    """The stat of a database as a scan has it; OSError if it is gone."""
    return _joined(Stat.of(path.lstat()), (_stat(side) for side in _sides(path)))


def in_use(path: Path) -> bool:
    """Whether some of its content may lie beside it."""
    return any(side.exists() for side in _sides(path))


def is_database(path: Path) -> bool:
    """Whether a file begins as SQLite's do."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, len(_HEAD)) == _HEAD
    except OSError:
        return False
    finally:
        os.close(fd)


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
