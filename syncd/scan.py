"""One look at a root: every file and link below it, as the file system has them now.

Events are hints; this is the truth. A scan never follows a link, and opens no file but what is
named like a database, for its first bytes. A tree is read folder by folder, when somebody asks for
it: who lets go of each part that is dealt with needs little memory for a large tree.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from syncd import sqlitefiles
from syncd.filestat import Stat

NOT_YET_DIRECTORIES = (".*", "tmp*", "*.orbax-checkpoint-tmp*")
"""Names of directories that are still being written, or are nobody's checkpoint."""

SAVING = ("-unfinished", ".unfinished", "-incomplete", ".incomplete")
"""How a file's name ends that stands beside what is still being saved, and says so (NeMo)."""

NOT_YET_FILES = ("*.tmp", "*.partial", "*.dirty", "*.part", "*.__lock", *(f"*{s}" for s in SAVING))
"""Names of files that their writer will rename or remove when a save is finished."""


_GONE = (errno.ENOENT, errno.ENOTDIR)


def any_of(patterns: tuple[str, ...]) -> Callable[[str], object]:
    """Whether a text matches one of the globs: one expression, since a scan asks very often."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match


directory_not_yet = any_of(NOT_YET_DIRECTORIES)
file_not_yet = any_of(NOT_YET_FILES)


def is_as_seen(path: Path, seen: str) -> bool:
    """Whether a file still has the stat of this ``text``; one that cannot be looked at may."""
    try:
        return Stat.of(path.lstat()).text() == seen
    except OSError as error:
        return error.errno not in _GONE


class Scanner:
    """How the folders of one scan are read.

    ``on_folder`` hears of each folder just before it is listed: a watch that is placed there
    misses nothing that comes after the listing. ``unreadable`` gathers what could not be looked
    at, by the path of its folder, which is not the same as not being there. A SQLite database and
    what lies beside it are one file, where they are ``joined``.
    """

    def __init__(
        self,
        root: Path,
        exclude: tuple[str, ...] = (),
        on_folder: Callable[[str], None] | None = None,
        joined: bool = True,
    ) -> None:
        self._joined = joined
        self._root = root
        self._absolute = f"{root.absolute()}/"
        self._excluded = any_of(exclude) if exclude else None
        self._on_folder = on_folder
        self.unreadable: dict[str, str] = {}

    def top(self) -> Folder | None:
        """The root, or None if there is no such directory."""
        return Folder("", self) if self._root.is_dir() else None

    def folder(self, path: str) -> Folder | None:
        """The folder at ``path``, or None if there is none, or none that counts."""
        if not path:
            return self.top()
        name = path.rpartition("/")[2]
        if directory_not_yet(name) or self._is_excluded(path, name):
            return None
        try:
            kind = (self._root / path).lstat().st_mode
        except OSError:
            return None
        return Folder(path, self) if stat.S_ISDIR(kind) else None

    def above(self, folder: Folder) -> Folder:
        """The folder that holds another one."""
        return Folder(folder.path.rpartition("/")[0], self)

    def is_there(self, path: str) -> bool:
        """Whether there is anything at ``path``."""
        return os.path.lexists(self._root / path)

    def _is_excluded(self, path: str, name: str) -> bool:
        return bool(self._excluded and (self._excluded(name) or self._excluded(path)))

    def read(self, folder: Folder) -> Listing:
        """List one folder.

        Directories and files that vanish meanwhile are simply not there; what is there and
        cannot be looked at is noted.
        """
        if self._on_folder:
            self._on_folder(folder.path)
        found = Listing({}, {}, {}, {}, set())
        try:
            with os.scandir(self._root / folder.path) as entries:
                for entry in entries:
                    self._add(found, folder, entry)
        except OSError as error:
            self._cannot(folder.path, folder.path or str(self._root), error)
        names = [name for name in found.files if name.endswith(sqlitefiles.ALL)]
        if names and self._joined:
            found.databases.update(sqlitefiles.join(self._root / folder.path, names, found.files))
        return found

    def _cannot(self, folder: str, path: str, error: OSError) -> None:
        if error.errno not in _GONE:  # else it vanished between the listing and the look
            self.unreadable[folder] = f"{path}: {error.strerror}"

    def _add(self, found: Listing, folder: Folder, entry: os.DirEntry[str]) -> None:
        name = entry.name
        path = folder.below(name)
        if self._excluded and self._is_excluded(path, name):
            return
        try:
            if entry.is_symlink():
                found.links[name] = self._relative(str(Path(entry.path).readlink()), path)
            elif entry.is_dir(follow_symlinks=False):
                if not directory_not_yet(name):
                    found.folders[name] = Folder(path, self)
            elif entry.is_file(follow_symlinks=False):
                kind = found.unfinished if file_not_yet(name) else found.files
                kind[name] = Stat.of(entry.stat(follow_symlinks=False))
        except OSError as error:
            self._cannot(folder.path, path, error)

    def _relative(self, target: str, path: str) -> str:
        """A link's target; one that is absolute and stays below the root, relative to the link."""
        if not target.startswith(self._absolute):
            return target
        return os.path.relpath(target, str(Path(self._absolute, path).parent))


class Listing(NamedTuple):
    """What is in one folder."""

    files: dict[str, Stat]
    links: dict[str, str]
    folders: dict[str, Folder]
    unfinished: dict[str, Stat]
    databases: set[str]


class Folder:
    """One directory of a scan; ``path`` is relative to the root, "" for the root itself.

    It is listed when it is first looked into, and stays as it was then until it is released.
    """

    __slots__ = ("_listing", "_scanner", "path")

    def __init__(self, path: str, scanner: Scanner) -> None:
        self.path = path
        self._scanner = scanner
        self._listing: Listing | None = None

    def _read(self) -> Listing:
        if self._listing is None:
            self._listing = self._scanner.read(self)
        return self._listing

    def release(self) -> None:
        """Let go of what is known of this folder and of all below it."""
        self._listing = None

    @property
    def files(self) -> dict[str, Stat]:
        """The files by their names."""
        return self._read().files

    @property
    def links(self) -> dict[str, str]:
        """The symbolic links by their names, and what they lead to."""
        return self._read().links

    @property
    def folders(self) -> dict[str, Folder]:
        """The directories by their names."""
        return self._read().folders

    @property
    def unfinished(self) -> dict[str, Stat]:
        """Files whose names say "not yet": no members, but a sign that a writer is at work."""
        return self._read().unfinished

    @property
    def databases(self) -> set[str]:
        """Which of the files are SQLite databases; their stat tells of the files beside, too."""
        return self._read().databases

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    def below(self, path: str) -> str:
        """``path`` relative to this folder, made relative to the root."""
        return f"{self.path}/{path}" if self.path else path

    def walk(self) -> Iterator[tuple[str, Folder]]:
        """This folder and all below it, each with its path relative to this one."""
        pending = [("", self)]
        while pending:
            prefix, folder = pending.pop()
            yield prefix, folder
            inner = folder.folders.items()
            pending += [(f"{prefix}{name}/", child) for name, child in reversed(inner)]


def scan(root: Path, exclude: tuple[str, ...] = (), joined: bool = True) -> Folder | None:
    """The whole tree below ``root`` as it is now, or None if there is no such directory."""
    top = Scanner(root, exclude, joined=joined).top()
    for _ in top.walk() if top else ():
        pass
    return top


def files_below(
    root: Path, exclude: tuple[str, ...] = (), unreadable: dict[str, str] | None = None
) -> Iterator[tuple[str, Stat]]:
    """Every file below ``root`` with its path, folder by folder, in little memory.

    Files whose names say that they are not finished are left out. ``unreadable`` gathers what
    could not be looked at, as that of a scan does; the root itself has the path "".
    """
    scanner = Scanner(root, exclude, joined=False)
    if unreadable is not None:
        scanner.unreadable = unreadable
    try:
        top = scanner.top()
    except OSError as error:  # a file system over a network that is gone, or what is above it
        if unreadable is None:
            raise
        scanner._cannot("", str(root), error)
        return
    pending = [("", top)] if top else []
    while pending:
        prefix, folder = pending.pop()
        for name, seen in folder.files.items():
            yield prefix + name, seen
        pending += [(f"{prefix}{name}/", child) for name, child in folder.folders.items()]
        folder.release()
