"""A copy on this disk of a checkpoint that is replaced or deleted before its transfer ends.

Copying on one disk takes a small part of the time that a transfer over a thin uplink takes, and
nothing where the file system can share the blocks (reflinks). What the copy holds is one moment of
the checkpoint, proven by a look at every member after the last byte was read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from syncd.errors import Changed
from syncd.filestat import Stat
from syncd.logsqlite import snapshot as copy_database
from syncd.series import series
from syncd.sqlitefiles import stat_of
from syncd.units import Unit

_FICLONE = 0x40049409
"""Linux, linux/fs.h: let two files share their blocks."""

_CHUNK = 4 * 1024 * 1024
_SHARE = 0.5
"""Share of the free space that snapshots may take where no limit is set."""

_MOST = 1000
"""Series of checkpoints that are remembered."""


class NoRoom(Exception):
    """The snapshot does not fit; the message says what it needs and what there is."""


class Snapshot:
    """The files of one checkpoint as they were at one moment."""

    whole = False
    """Whether all that is not in it was as it is known at that moment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._files: dict[str, tuple[Path, Stat]] = {}

    def locate(self, path: str) -> tuple[Path, Stat] | None:
        """Where the copy of a member lies, and its stat; None if it was not copied."""
        return self._files.get(path)

    def add(self, path: str, source: Path, seen: Stat) -> None:
        """Copy one member; Changed if it is another one by now."""
        target = self._folder / str(len(self._files))
        with _opened(source) as old, target.open("xb") as new:
            _check(old.fileno(), seen)
            if not _share_blocks(old.fileno(), new.fileno()):
                _copy(old.fileno(), new.fileno(), seen)
            _check(old.fileno(), seen)
        self._files[path] = target, Stat.of(target.lstat())

    def add_beginning(self, path: str, source: Path) -> Stat:
        """Copy one member that grows, as far as it has come; the stat that it had then.

        Changed if it is begun anew meanwhile.
        """
        target = self._folder / str(len(self._files))
        with _opened(source) as old, target.open("xb") as new:
            seen = os.fstat(old.fileno())
            left = seen.st_size
            while left and (chunk := old.read(min(left, _CHUNK))):
                new.write(chunk)
                left -= len(chunk)
        if left:
            raise Changed(f"{path} was begun anew")
        self._files[path] = target, Stat.of(target.lstat())
        return Stat.of(seen)

    def add_database(self, path: str, source: Path, stop: Callable[[], bool]) -> Stat:
        """Copy one member as SQLite has it at one moment; the stat that it had before.

        GaveWay once there is to be a ``stop``; Busy if its writer leaves no moment; Permanent if
        SQLite cannot read it.
        """
        target = self._folder / str(len(self._files))
        seen = stat_of(source)
        copy_database(source, target, stop)
        self._files[path] = target, Stat.of(target.lstat())
        return seen

    def drop(self) -> None:
        """Give the space back."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Snapshots:
    """Makes snapshots below one folder, within a limit of bytes (None: half of what is free)."""

    def __init__(self, folder: Path, root: Path, limit: int | None) -> None:
        self._folder = folder
        self._root = root
        self._limit = limit
        self._restless: dict[str, None] = {}

    def is_wanted(self, unit: Unit) -> bool:
        """Whether the last of its series was not sent before it was replaced or deleted."""
        return series(unit.path) in self._restless

    def changed(self, unit: Unit) -> None:
        """This one was another one, or gone, before the end: the next of its series is copied."""
        self._restless[series(unit.path)] = None
        if len(self._restless) > _MOST:
            del self._restless[next(iter(self._restless))]

    def sent(self, unit: Unit, taken: Snapshot | None) -> None:
        """It was sent; without a copy the next of its series is tried only where that would do."""
        with contextlib.suppress(OSError, Changed):
            for path, stat in unit.files if taken else ():
                if path not in unit.running:
                    _check(self._root / unit.below(path), stat)
            self._restless.pop(series(unit.path), None)

    def clear(self) -> None:
        """Remove what a life that was cut short has left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def take(
        self,
        unit: Unit,
        is_known: Callable[[str, Stat], bool],
        running: frozenset[str],
        every: bool,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[Unit, Snapshot | None]:
        """Copy what will not stay as it is until it is sent; the checkpoint as it is by then.

        ``running`` are members that are written to all the time: those are copied as far as they
        have come, databases as they are by themselves; of ``every`` other one what is not known.

        Changed if it is another revision before the last byte is copied; NoRoom or another
        OSError if the disk does not have it.
        """
        wanted = [
            (path, stat)
            for path, stat in unit.files
            if path in running or (every and not is_known(path, stat))
        ]
        if not (every or wanted):
            return unit, None
        taken = Snapshot(self._folder / secrets.token_hex(8))
        files = dict(unit.files)
        try:
            need = sum(stat.size for _, stat in wanted)
            self._check_room(self._folder, need, self._limit if every else None)
            for path, stat in wanted:
                if path in unit.databases & running:
                    files[path] = taken.add_database(path, self._root / unit.below(path), stop)
                elif path in running:
                    files[path] = taken.add_beginning(path, self._root / unit.below(path))
                else:
                    taken.add(path, self._root / unit.below(path), stat)
            for path, stat in unit.files if every else ():
                if path not in running:
                    _check(self._root / unit.below(path), stat)
            taken.whole = every
        except FileNotFoundError as error:
            taken.drop()
            raise Changed(f"{error.filename} vanished while a snapshot was taken") from None
        except BaseException:
            taken.drop()
            raise
        return replace(unit, files=tuple(files.items())), taken

    def _check_room(self, folder: Path, need: int, most: int | None) -> None:
        free = shutil.disk_usage(folder).free
        limit = int(free * _SHARE) if most is None else min(most, free)
        if need > limit:
            raise NoRoom(f"a snapshot needs {need / 1e6:.0f} MB and may take {limit / 1e6:.0f}")


def _opened(source: Path) -> BinaryIO:
    """A member that may have been replaced meanwhile: by a pipe, whose other end never comes."""
    return os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def _check(source: Path | int, seen: Stat) -> None:
    now = os.fstat(source) if isinstance(source, int) else os.lstat(source)
    if Stat.of(now) != seen:
        raise Changed("it changed while a snapshot was taken")


def _share_blocks(old: int, new: int) -> bool:
    try:
        fcntl.ioctl(new, _FICLONE, old)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise
        return False  # another file system, or one that cannot
    return True


def _copy(old: int, new: int, seen: Stat) -> None:
    while chunk := os.read(old, _CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[os.write(new, view) :]
        _check(old, seen)
