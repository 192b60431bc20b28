"""Files and links that name the newest checkpoint, and what they name after a restore.

Detectron2 and MMEngine write ``last_checkpoint``, TensorFlow ``checkpoint``, DeepSpeed and many
others ``latest``; Lightning makes a link ``last.ckpt``. Such a small thing is in the store long
before the checkpoint it names, which may never get there. The trainer would look for that one, and
fail or begin anew, with the one that was restored beside it.

Only what is nothing but a name is changed, and only if it is of the same series and in that folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from syncd.companions import accompanies
from syncd.filestat import Stat
from syncd.place import new_staging, remove
from syncd.profiles import PROFILES
from syncd.series import series, step_of
from syncd.stores.durable import sync_folder

_TENSORFLOW = "checkpoint"
_NAME = re.compile(
    rf"{_TENSORFLOW}|(.*[-_.])?(latest|last|newest|current|resume)([-_.].*)?", re.IGNORECASE
)
_BEST = re.compile("best", re.IGNORECASE)
"""That is another matter: the best one is not the one to go on from."""

_COUNTS = {profile.tracker for profile in PROFILES if profile.tracks == "number"}
"""Those that hold a number alone. What another one counts is not known."""

_LIMIT = 64 * 1024
"""Bytes of the largest one that is looked into."""

_LINE = re.compile(r'(?m)^model_checkpoint_path: "(?P<path>.*)"')
_ALONE = re.compile(r"\s*(?P<path>\S(?:[^\n]*\S)?)\s*")
_ENDING = re.compile(r"\.(index|meta|data-\d+-of-\d+|[A-Za-z]\w{0,11})$")


def may_track(path: str) -> bool:
    """Whether a file or link is called like one that names the newest checkpoint."""
    name = path.rpartition("/")[2]
    return bool(_NAME.fullmatch(name)) and not _BEST.search(name)


def leads_to(path: str, target: str, checkpoint: str) -> bool:
    """Whether a link to ``target`` leads to a checkpoint of the series of ``checkpoint``."""
    return series(_norm(f"{_folder(path)}/{target}")) == series(checkpoint)


@dataclass
class Pointed:
    """What became of the trackers."""

    names: dict[str, str] = field(default_factory=dict)
    """Which checkpoint those name now that named another one, by their paths under the root."""

    failed: list[str] = field(default_factory=list)
    """Those that could not be read or written, and why."""


def point(root: Path, checkpoints: Iterable[str], fresh: bool) -> Pointed:
    """Have trackers name one of ``checkpoints``, which are there, where they lead nowhere.

    Of ``checkpoints`` the first of a series counts. ``fresh``: they were just restored, so that a
    tracker that names an older one of the series is wrong, though that is there, too.
    """
    done, found, seen = Pointed(), _Found(root), set()
    for checkpoint in checkpoints:
        mine = series(checkpoint)
        if mine in seen or "#" not in mine.rpartition("/")[2]:
            continue
        seen.add(mine)
        one = _Checkpoint(root, checkpoint, fresh)
        for path in found.above(checkpoint):
            if path in done.names:
                continue
            try:
                if _renew(root, path, one):
                    done.names[path] = one.name
            except (OSError, ValueError) as error:
                done.failed.append(f"{path}: {error}")
    return done


class _Found:
    """The trackers of each folder, which is listed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._of: dict[str, list[str]] = {}

    def above(self, checkpoint: str) -> Iterator[str]:
        """Those that may name a checkpoint, by their paths under the root."""
        for parent in PurePosixPath(checkpoint).parents:
            folder = str(parent)
            if folder not in self._of:
                self._of[folder] = sorted(self._in(folder))
            yield from self._of[folder]

    def _in(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self._root / folder) as entries:
                found = [(e, e.stat(follow_symlinks=False)) for e in entries if may_track(e.name)]
        except OSError:
            return
        for entry, stat in found:
            text = stat.st_size <= _LIMIT and accompanies(entry.name, Stat.of(stat))
            if entry.is_symlink() or (entry.is_file() and text):
                yield _norm(f"{folder}/{entry.name}")


class _Checkpoint:
    """One that is there, and how it is named."""

    def __init__(self, root: Path, path: str, fresh: bool) -> None:
        self._root = root
        self._fresh = fresh
        self.folder = _folder(path)
        self.name = path.rpartition("/")[2]
        self.is_directory = (root / path).is_dir()
        ending = None if self.is_directory else _ENDING.search(self.name)
        self._ending = ending[0] if ending else ""
        self._stem = self.name.removesuffix(self._ending)

    def instead_of(self, path: str, tracker: str, link: bool) -> str | None:
        """What ``tracker`` is to hold where it holds ``path``; None if that is to stay."""
        head, slash, last = path.rpartition("/")
        named = bool(re.search("[A-Za-z]", self._stem)) or link  # a number alone may be any number
        for form in (self.name, self._stem):
            if named and series(last) == series(form) and self._is_mine(head, tracker):
                if last == form or not self._may_go(path, last, tracker):
                    return None
                return head + slash + form
        return None

    def _is_mine(self, head: str, tracker: str) -> bool:
        """Whether a path with this ``head`` leads to the folder of this checkpoint."""
        beside = _folder(tracker) == self.folder
        if not head or head == ".":
            return beside
        if head.startswith("/"):  # as it was on the machine that wrote it
            return beside
        if _norm(f"{_folder(tracker)}/{head}") == self.folder:
            return True
        here = str((self._root / self.folder).absolute())
        return beside and here.endswith(f"/{_norm(head)}")

    def _may_go(self, path: str, last: str, tracker: str) -> bool:
        places = (
            self._root / _folder(tracker) / path,
            self._root / self.folder / last,
        )
        there = any(
            os.path.lexists(f"{place}{end}") for place in places for end in ("", self._ending)
        )
        return not there or (self._fresh and step_of(last) < step_of(self._stem))

    def number(self, text: str, tracker: str) -> str | None:
        """The same for a tracker that holds a number."""
        mine = re.findall(r"\d+", self.name)
        alone = re.fullmatch(r"\s*(\d{1,18})\s*", text)
        if not alone or len(mine) != 1 or not self.is_directory or _folder(tracker) != self.folder:
            return None
        with os.scandir(self._root / self.folder) as entries:
            dirs = [entry.name for entry in entries if entry.is_dir()]
        if any(step_of(name) == int(alone[1]) for name in dirs):
            return None
        return text.replace(alone[1], str(int(mine[0])))


def _renew(root: Path, path: str, one: _Checkpoint) -> bool:
    """Have one tracker name a checkpoint, if it should; whether it names another one now."""
    place = root / path
    if place.is_symlink():
        target = one.instead_of(str(place.readlink()), path, link=True)
        if target is not None:
            _replace(root, path, target, None)
        return target is not None
    data = place.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    new: str | None
    if place.name in _COUNTS:
        new = one.number(text, path)
    else:
        found = _LINE.search(text) if place.name == _TENSORFLOW else _ALONE.fullmatch(text)
        new = one.instead_of(found["path"], path, link=False) if found else None
        if found and new is not None:
            new = text[: found.start("path")] + new + text[found.end("path") :]
    if new is not None:
        _replace(root, path, new, place.stat().st_mode & 0o7777)
    return new is not None


def _replace(root: Path, path: str, text: str, mode: int | None) -> None:
    """By a rename: it names the one or the other, whenever a kill comes. No ``mode``: a link."""
    staging = new_staging(root)
    fresh = staging / "tracker"
    try:
        if mode is None:
            fresh.symlink_to(text)
        else:
            with fresh.open("x", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.chmod(mode)
        fresh.replace(root / path)
        sync_folder((root / path).parent)
    finally:
        remove(staging)


def _folder(path: str) -> str:
    return _norm(path.rpartition("/")[0])


def _norm(path: str) -> str:
    """A relative path in its shortest form, "" for the root."""
    norm = os.path.normpath(path.lstrip("/") or ".")
    return "" if norm == "." else norm
