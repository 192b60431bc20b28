"""One look at a root: every file and link below it, as the file system has them now.

Events are hints; this is the truth. A scan never follows a link and never opens a file.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

NOT_YET_DIRECTORIES = (".*", "tmp*", "*.orbax-checkpoint-tmp*")
"""Names of directories that are still being written, or are nobody's checkpoint."""

NOT_YET_FILES = ("*.tmp", "*.partial", "*.dirty", "*.part", "*.__lock")
"""Names of files that their writer will rename when they are finished."""


_GONE = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True)
class Stat:
    """What tells one revision of a file from another."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int

    @classmethod
    def of(cls, result: os.stat_result) -> Stat:
        """From a stat call."""
        return cls(
            result.st_size,
            result.st_mtime_ns,
            result.st_ctime_ns,
            result.st_ino,
            stat.S_IMODE(result.st_mode),
        )

    def text(self) -> str:
        """Compact and comparable, for the journal."""
        return f"{self.size}:{self.mtime_ns}:{self.ctime_ns}:{self.inode}"


@dataclass
class Folder:
    """One directory of a scan; ``path`` is relative to the root, "" for the root itself."""

    path: str
    files: dict[str, Stat] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)
    unfinished: dict[str, Stat] = field(default_factory=dict)
    """Files whose names say "not yet": no members, but a sign that a writer is at work."""

    unreadable: str = ""
    """Why something in here cannot be looked at, which is not the same as not being there."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    def below(self, path: str) -> str:
        """``path`` relative to this folder, made relative to the root."""
        return f"{self.path}/{path}" if self.path else path

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Folder]]:
        """This folder and all below it, each with its path relative to this one."""
        yield prefix, self
        for name, folder in self.folders.items():
            yield from folder.walk(f"{prefix}{name}/")

    def find(self, path: str) -> Stat | None:
        """The file at a path relative to this folder, if there is one."""
        head, slash, rest = path.partition("/")
        if not slash:
            return self.files.get(head)
        folder = self.folders.get(head)
        return folder.find(rest) if folder else None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _excluded(path: str, name: str, exclude: tuple[str, ...]) -> bool:
    return bool(exclude) and (_matches(name, exclude) or _matches(path, exclude))


def scan(root: Path, exclude: tuple[str, ...] = ()) -> Folder | None:
    """The tree below ``root``, or None if there is no such directory.

    Directories and files that vanish meanwhile are simply not there; what is there and cannot
    be looked at is noted in its folder.
    """
    if not root.is_dir():
        return None
    top = Folder("")
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root / folder.path) as entries:
                for entry in entries:
                    _add(folder, entry, exclude, root)
        except OSError as error:
            if error.errno not in _GONE:
                folder.unreadable = f"{folder.path or root}: {error.strerror}"
            continue
        pending.extend(folder.folders.values())
    return top


def _add(folder: Folder, entry: os.DirEntry[str], exclude: tuple[str, ...], root: Path) -> None:
    path = folder.below(entry.name)
    if _excluded(path, entry.name, exclude):
        return
    try:
        if entry.is_symlink():
            folder.links[entry.name] = _relative(str(Path(entry.path).readlink()), path, root)
        elif entry.is_dir(follow_symlinks=False):
            if not _matches(entry.name, NOT_YET_DIRECTORIES):
                folder.folders[entry.name] = Folder(path)
        elif entry.is_file(follow_symlinks=False):
            found = Stat.of(entry.stat(follow_symlinks=False))
            kind = folder.unfinished if _matches(entry.name, NOT_YET_FILES) else folder.files
            kind[entry.name] = found
    except OSError as error:
        if error.errno not in _GONE:  # else it vanished between the listing and the look
            folder.unreadable = f"{path}: {error.strerror}"


def _relative(target: str, path: str, root: Path) -> str:
    """A link's target; one that is absolute and stays below the root, relative to the link."""
    if not target.startswith("/"):
        return target
    folder = str(root.absolute())
    if not target.startswith(f"{folder}/"):
        return target
    return os.path.relpath(target, str(Path(folder, path).parent))
