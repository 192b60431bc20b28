"""Taking a place on disk: by one rename, durable, alone, and mended after a kill at any moment.

What a restore brings is made in a staging folder beside its place. A note in it tells what was
about to happen, so that the next restore can end, or undo, what a killed one began.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from syncd.errors import Corrupt, Permanent
from syncd.sqlitefiles import sides_of
from syncd.stores.durable import sync_folder

log = logging.getLogger(__name__)

STAGING = ".syncd-restore-"
"""Beginning of the names of folders in which a restore is under way."""

REPLACED = ".syncd-replaced"
"""Folder beside a restored checkpoint for what was in its place; no scan looks into it."""

_NOTE = "place.json"
_SIDES = "sides"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_NO_SUCH_NAME = (
    errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EEXIST, errno.EISDIR, errno.ENOTDIR,
    errno.ELOOP,
)  # fmt: skip
"""The file system cannot hold a thing of this name, or not beside the others."""


@dataclass(frozen=True)
class Note:
    """What a staging folder is for: the place, relative to the root, and what lies beside it.

    ``inode`` is that of the new content. Whatever else is found in the staging folder was in
    the place before. ``tracker`` and ``text`` are the file to be written afterwards; a text
    that begins with ``->`` stands for a link.
    """

    target: str
    inode: int
    keep: bool
    tracker: str = ""
    text: str = ""
    beside: list[str] = field(default_factory=list)
    """Names of files that lie in one folder with others, where the checkpoint is no folder."""


@contextlib.contextmanager
def alone(root: Path, on_wait: Callable[[], None] | None) -> Iterator[bool]:
    """Be the only restore into ``root``; wait for another one, after telling ``on_wait``.

    Without ``on_wait`` there is no waiting: False if another restore is at work. The root is
    made if it can be, and is taken away again if it stays empty.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
    try:
        fd = _hold(root, on_wait)
        try:
            yield fd is not _BUSY
        finally:
            if fd is not None and fd >= 0:
                os.close(fd)
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


_BUSY = -1


def _hold(root: Path, on_wait: Callable[[], None] | None) -> int | None:
    """A lock on the folder itself: no file is left there. None where it cannot be locked."""
    while True:
        try:
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is None:
                    os.close(fd)
                    return _BUSY
                on_wait()
                fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:  # network file systems without locks: as if there were only one
            return fd
        except BaseException:
            os.close(fd)
            raise
        try:
            if os.fstat(fd).st_ino == root.stat().st_ino:
                return fd
        except FileNotFoundError:
            root.mkdir(parents=True, exist_ok=True)
        os.close(fd)  # the folder that was locked is not the one that is there now


def check_parents(root: Path, path: str) -> None:
    """No folder on the way may be a link: what a record names stays under the root."""
    folder = root
    for part in PurePosixPath(path).parts[:-1]:
        folder /= part
        if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
            raise Permanent(f"{folder} is in the way: it is no directory", hint="move it away")


@contextlib.contextmanager
def nameable(name: str) -> Iterator[None]:
    """Corrupt for a name that this file system cannot hold; other errors stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SUCH_NAME:
            raise
        raise Corrupt(f"{name!r} cannot be made here: {error.strerror}") from error
    except (ValueError, OverflowError) as error:
        raise Corrupt(f"{name!r} cannot be made here: {error}") from error


def new_staging(root: Path) -> Path:
    """A fresh folder for what is on its way into ``root``."""
    staging = root / f"{STAGING}{secrets.token_hex(6)}"
    staging.mkdir()
    return staging


def take_place(staging: Path, root: Path, note: Note) -> Path | None:
    """Put ``staging/content`` into its place by one rename, and write its tracker.

    Returns where that lies now which was there, if it is to be kept. OSError if the disk fails:
    then what was there is there still.
    """
    content, target = staging / "content", root / note.target
    made = [folder for folder in target.parents if not folder.exists()]
    if not note.beside:
        target.parent.mkdir(parents=True, exist_ok=True)
    _write_note(staging, note)
    old: Path | None = None
    try:
        _take_sides(staging, target)
        if note.beside:
            old = _place_beside(staging, target, note)
        elif not os.path.lexists(target):
            content.rename(target)
        elif _exchange(content, target):
            old = content
        else:
            old = _replace_slowly(content, target, staging / "replaced")
        for folder in {target.parent, *(folder.parent for folder in made)}:
            sync_folder(folder)
    except OSError:
        (staging / _NOTE).unlink()  # what comes now must not be ended by another restore
        _undo(staging, target, note)
        raise
    kept = _keep(staging, old, target) if old and note.keep else None
    _finish(staging, root, note)
    return kept


def _place_beside(staging: Path, target: Path, note: Note) -> Path | None:
    """Files that lie in one folder with others. Without that folder it comes with all of them.

    Else ``target``, which names them, comes last, and one that was there goes first. So whoever
    finds it finds all the others that belong to it. What a kill interrupts is ended by doing it
    again: what is still in staging then may be half of them, and is not put anywhere at once.
    """
    content, replaced = staging / "content", staging / "replaced"
    if not (target.parent.exists() or os.path.lexists(replaced)) and content.exists():
        target.parent.parent.mkdir(parents=True, exist_ok=True)
        try:
            content.rename(target.parent)
            return None
        except OSError as error:  # somebody has made the folder in this moment
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    names = sorted(note.beside, key=target.name.__eq__)
    replaced.mkdir(exist_ok=True)
    waiting = [name for name in names if os.path.lexists(content / name)]
    for name in reversed(waiting):
        if os.path.lexists(target.with_name(name)):
            target.with_name(name).rename(replaced / name)
    for name in waiting:
        if name == target.name:
            sync_folder(target.parent)
        (content / name).rename(target.with_name(name))
    return replaced if any(replaced.iterdir()) else None


def _undo(staging: Path, target: Path, note: Note) -> None:
    """Have in the place what was there before, after something failed half way."""
    content, replaced = staging / "content", staging / "replaced"
    if note.beside:
        content.mkdir(exist_ok=True)
    _return_sides(staging, target)
    for name in sorted(note.beside, key=target.name.__ne__):
        if not os.path.lexists(content / name):
            target.with_name(name).rename(content / name)
    for name in sorted(note.beside, key=target.name.__eq__):
        if os.path.lexists(replaced / name):
            (replaced / name).rename(target.with_name(name))
    if note.beside or not os.path.lexists(target) or target.lstat().st_ino != note.inode:
        return
    if os.path.lexists(content):
        _exchange(content, target)
    else:
        target.rename(content)
        if os.path.lexists(replaced):
            replaced.rename(target)


def _write_note(staging: Path, note: Note) -> None:
    with (staging / _NOTE).open("x") as file:
        json.dump(asdict(note), file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(staging)


def _take_sides(staging: Path, target: Path) -> None:
    """Take away what SQLite kept beside the database here: it would be taken for the new one's.

    Before the place is taken, and given back where that does not come to pass.
    """
    content = staging / "content"
    if content.is_file() and not content.is_symlink():
        for side in sides_of(target):
            if os.path.lexists(side):
                (staging / _SIDES).mkdir(exist_ok=True)
                side.rename(staging / _SIDES / side.name)


def _return_sides(staging: Path, target: Path) -> None:
    for side in sides_of(target):
        if os.path.lexists(staging / _SIDES / side.name) and not os.path.lexists(side):
            (staging / _SIDES / side.name).rename(side)


def _keep(staging: Path, old: Path, target: Path) -> Path:
    kept = keep(old, target)
    for side in sides_of(target):
        with contextlib.suppress(FileNotFoundError):
            (staging / _SIDES / side.name).rename(f"{kept}{side.name[len(target.name) :]}")
    return kept


def keep(old: Path, target: Path) -> Path:
    """Put what lay at ``target``, and is at ``old`` now, under a hidden name beside it."""
    folder = target.parent / REPLACED
    folder.mkdir(exist_ok=True)
    return old.rename(folder / f"{target.name[:200]}-{secrets.token_hex(4)}")


def _finish(staging: Path, root: Path, note: Note) -> None:
    """Write the tracker aside and rename it: it names the old checkpoint or the new one."""
    if not note.tracker:
        return
    fresh, tracker = staging / "tracker", root / note.tracker
    fresh.unlink(missing_ok=True)
    if note.text.startswith("->"):
        fresh.symlink_to(note.text[2:])
    else:
        with fresh.open("x", encoding="utf-8") as file:
            file.write(note.text)
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(tracker)
    sync_folder(tracker.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step; False where the file system cannot do that."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return bool(renameat2(*names, _RENAME_EXCHANGE) == 0)


def _replace_slowly(content: Path, target: Path, replaced: Path) -> Path:
    """Without an exchange: a file is replaced in one step, for a folder two are needed.

    Between the two, neither is there. A restore that is killed then is undone by the next one.
    """
    if not content.is_dir() and (target.is_symlink() or not target.is_dir()):
        with contextlib.suppress(OSError):
            os.link(target, replaced, follow_symlinks=False)
            content.replace(target)
            return replaced
        replaced.unlink(missing_ok=True)
    target.rename(replaced)
    try:
        content.rename(target)
    except OSError:
        replaced.rename(target)
        raise
    return replaced


# -- what a restore that was killed has left


def clear_staging(root: Path) -> None:
    """End or undo what killed restores have begun, and remove what they left.

    Only while no other restore is at work: see :func:`alone`.
    """
    if not root.is_dir():
        return
    for leftover in root.glob(f"{STAGING}*"):
        try:
            _rescue(leftover, root, Note(**json.loads((leftover / _NOTE).read_text())))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            pass  # killed before anything was at stake
        except OSError as error:
            log.warning("%s stays: %s", leftover, error.strerror)
            continue
        remove(leftover)


def _rescue(leftover: Path, root: Path, note: Note) -> None:
    target = root / note.target
    if note.beside:
        old = _place_beside(leftover, target, note)
        if old and note.keep:
            keep(old, target)
        return
    for old in (leftover / "replaced", leftover / "content"):
        if not os.path.lexists(old) or old.lstat().st_ino == note.inode:
            continue
        if not os.path.lexists(target):
            old.rename(target)
        elif note.keep and not os.path.samestat(old.lstat(), target.lstat()):
            _keep(leftover, old, target)
    if os.path.lexists(target) and target.lstat().st_ino == note.inode:
        _finish(leftover, root, note)
    else:
        _return_sides(leftover, target)


def remove(path: Path) -> None:
    """Delete a file or a tree, also one with folders that are not writable; never raises."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():  # folders that are not writable, or a thousand deep
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            with contextlib.suppress(OSError):
                subprocess.run([*command, "--", path], check=False, capture_output=True)
