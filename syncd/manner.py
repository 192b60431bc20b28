"""What a writer shows of its manner before there is a commit to compare with.

Where checkpoints follow one another faster than an unknown one must rest, none would ever be
committed first. But a newer one that was begun tells that this one is finished; and a set that was
written anew, the same files each time with a rest in between, will be so the next time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from syncd.companions import is_log
from syncd.filestat import Stat
from syncd.scan import Folder, Scanner
from syncd.series import series, step_of
from syncd.siblings import Files, kinds
from syncd.units import Unit

_MOST_FILES = 2000
"""Files of one checkpoint that are compared: of larger ones nothing is told."""

_MOST_PATHS = 1000
"""Checkpoints that are remembered."""


@dataclass(frozen=True)
class _Rest:
    """A checkpoint as it was when it rested, and how it came to be so."""

    core: str
    files: Files
    changed: frozenset[str]
    """Which files were written since the rest before."""

    again: bool
    """Whether those are the ones that were written before that rest, too."""


class Manner:
    """Remembers how each checkpoint was when it rested last."""

    def __init__(self, root: Path, exclude: tuple[str, ...] = ()) -> None:
        self._root = root
        self._exclude = exclude
        self._rests: dict[str, _Rest] = {}

    def forget_missing(self, paths: set[str]) -> None:
        """Drop what is known of checkpoints that are gone, or wait for nothing any more."""
        for path in self._rests.keys() - paths:
            del self._rests[path]

    def is_finished(self, unit: Unit) -> bool:
        """Whether what rests now, though not for long, is a whole save by all that is shown."""
        return self._again(unit) or self._passed(unit)

    def _again(self, unit: Unit) -> bool:
        """Whether between the last two rests the same files were written as before them.

        A writer that pauses in the midst of its save is seen to rest there, too: then the files
        are others each time. One of the largest must be among them, for small ones may be
        written more often than the others.
        """
        before = self._rests.get(unit.path)
        if before and before.core == unit.core:
            return before.again
        files = {
            path: (stat.size, stat.mtime_ns)
            for path, stat in unit.files
            if not (is_log(path) or path in unit.running)
        }
        if len(files) > _MOST_FILES:
            return False
        changed: frozenset[str] = frozenset()
        if before:
            paths = files.keys() | before.files.keys()
            changed = frozenset(p for p in paths if files.get(p) != before.files.get(p))
        most = max((size for size, _ in files.values()), default=0)
        again = bool(
            before
            and before.changed == changed
            and before.files.keys() == files.keys()
            and any(2 * files[path][0] >= most for path in changed)
        )
        self._rests.pop(unit.path, None)
        self._rests[unit.path] = _Rest(unit.core, files, changed, again)
        if len(self._rests) > _MOST_PATHS:
            del self._rests[next(iter(self._rests))]
        return again

    def _passed(self, unit: Unit) -> bool:
        """Whether the next directory of its series was begun after all of this one was written.

        And has nothing so far that this one lacks.
        """
        after = self._next(unit) if not unit.beside else None
        if after is None:
            return False
        files = list(islice(_files(Folder(after, Scanner(self._root, self._exclude))), _MOST_FILES))
        if not files or len(files) == _MOST_FILES:
            return False
        if any(stat.ctime_ns <= unit.changed for _, stat in files):
            return False
        mine = kinds(path for path, _ in (*unit.files, *unit.links))
        return kinds(path for path, _ in files).keys() <= mine.keys()

    def _next(self, unit: Unit) -> str | None:
        """The directory of the next step, beside this one."""
        folder, _, name = unit.path.rpartition("/")
        step, found = step_of(name), []
        if step < 0:
            return None
        with suppress(OSError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                later = step_of(entry.name) > step and series(entry.name) == series(name)
                if later and entry.is_dir(follow_symlinks=False):
                    found.append(entry.name)
        if not found:
            return None
        after = min(found, key=step_of)
        return f"{folder}/{after}" if folder else after


def _files(folder: Folder) -> Iterator[tuple[str, Stat]]:
    for prefix, part in folder.walk():
        for name, stat in (*part.files.items(), *part.unfinished.items()):
            yield prefix + name, stat
