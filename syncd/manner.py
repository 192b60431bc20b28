"""What a writer shows of its manner before there is a commit to compare with.

Where checkpoints follow one another faster than an unknown one must rest, none would ever be
committed first. But a newer one that was begun tells that this one is finished; and a set that was
written anew, the same files each time with a rest in between, will be so the next time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from syncd.clock import Clock
from syncd.companions import is_log, is_step
from syncd.filestat import Stat
from syncd.scan import Folder, Scanner
from syncd.series import series, step_of
from syncd.siblings import Files, kind_of, kinds
from syncd.units import Unit

_IN_ONE_GO = 0.25
"""Of the rest after it may lie between two files of a save that is written anew, at most."""

_GOES = 3
"""Saves that all have written one of the largest files, whatever else they wrote, show a manner."""

_MOST_FILES = 500
"""Files of one checkpoint that are compared: of larger ones nothing is told."""

_MOST_PATHS = 200
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

    goes: tuple[frozenset[str], ...]
    """What was written between the last rests, as long as nothing was new."""

    gap: float
    """Seconds that lay between two of them, at most."""


class Manner:
    """Remembers how each checkpoint was when it rested last."""

    def __init__(
        self, root: Path, settle: float, clock: Clock, exclude: tuple[str, ...] = ()
    ) -> None:
        self._root = root
        self._settle = settle
        self._clock = clock
        self._exclude = exclude
        self._rests: dict[str, _Rest] = {}
        self._shapes: dict[str, Counter[str]] = {}

    def learn(self, unit: Unit) -> None:
        """This one is complete: those of its name in folders with other numbers are like it."""
        if unit.lone or unit.beside or step_of(unit.path) < 0:
            return
        shape = kind_of(unit.path)
        self._shapes.pop(shape, None)
        self._shapes[shape] = kinds(path for path, _ in unit.files)
        if len(self._shapes) > _MOST_PATHS:
            del self._shapes[next(iter(self._shapes))]

    def forget_missing(self, paths: set[str]) -> None:
        """Drop what is known of checkpoints that are gone, or wait for nothing any more."""
        for path in self._rests.keys() - paths:
            del self._rests[path]

    def is_finished(self, unit: Unit, quiet: float) -> bool:
        """Whether what rests for ``quiet`` seconds is a whole save by all that is shown."""
        return self._again(unit, quiet) or self._is_alike(unit) or self._passed(unit)

    def _is_alike(self, unit: Unit) -> bool:
        """Whether one of another run, or trial, that was complete had as many of the same kinds."""
        known = self._shapes.get(kind_of(unit.path), Counter())
        mine = kinds(path for path, _ in unit.files)
        return known.keys() == mine.keys() and all(
            mine[kind] >= (1 if "*" in kind else count) for kind, count in known.items()
        )

    def is_usual(self, unit: Unit) -> bool:
        """Whether another directory of its series that is at rest has the same kinds of file.

        Then what they lack is not what this writer writes, though their names are those of one
        that does.
        """
        mine = kinds(path for path, _ in unit.files)
        before = (self._clock.now() - self._settle) * 1e9
        for path in self._others(unit):
            files = self._listed(path)
            if files and kinds(name for name, _ in files).keys() == mine.keys():
                return all(stat.ctime_ns <= before for _, stat in files)
        return False

    def _again(self, unit: Unit, quiet: float) -> bool:
        """Whether between the last two rests the same files were written as before them.

        Or files that are the same but for the step in their names. A writer that pauses in the
        midst of its save is seen to rest there, too: then the files are others each time, or were
        not written in one go. One of the largest must be among them,
        for small ones may be written more often than the others. Where that one is written each
        time, the others may be written now and then.
        """
        before = self._rests.get(unit.path)
        if before and before.core == unit.core:
            return before.again and before.gap <= _IN_ONE_GO * quiet
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
        written = changed & files.keys()
        most = max((size for size, _ in files.values()), default=0)
        gap = _longest_gap(files[path][1] for path in written) / 1e9
        goes: tuple[frozenset[str], ...] = ()
        again = False
        if before and written:
            always: frozenset[str] = frozenset()
            goes, same = before.goes, before.files.keys() == files.keys()
            if same:
                goes = (*goes, frozenset(written))[-_GOES:]
            if (same and before.changed == changed) or _is_next_step(before, changed, files):
                always = frozenset(written)
            elif same and len(goes) == _GOES:  # the best one is not written each time
                always = frozenset.intersection(*goes)
            again = any(2 * files[path][0] >= most for path in always)
        self._rests.pop(unit.path, None)
        self._rests[unit.path] = _Rest(unit.core, files, changed, again, goes, gap)
        if len(self._rests) > _MOST_PATHS:
            del self._rests[next(iter(self._rests))]
        return again and gap <= _IN_ONE_GO * quiet

    def _passed(self, unit: Unit) -> bool:
        """Whether the next step's directory was begun some time after this one was last written to.

        And has nothing so far that this one lacks. Agents, ranks and layers have numbers, too,
        and are written side by side: a name must say that it is a step.
        """
        steps = not unit.beside and is_step(unit.path.rpartition("/")[2])
        after = self._next(unit) if steps else None
        if after is None:
            return False
        files = self._listed(after)
        begun = unit.changed + int(self._settle * 1e9)
        if not files or any(stat.ctime_ns < begun for _, stat in files):
            return False
        mine = kinds(path for path, _ in (*unit.files, *unit.links))
        return kinds(path for path, _ in files).keys() <= mine.keys()

    def _next(self, unit: Unit) -> str | None:
        """The directory of the next step, beside this one."""
        later = (path for path in self._others(unit) if step_of(path) > step_of(unit.path))
        return min(later, key=step_of, default=None)

    def _others(self, unit: Unit) -> Iterator[str]:
        """The other directories of its series."""
        folder, _, name = unit.path.rpartition("/")
        if step_of(name) < 0:
            return
        with suppress(OSError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                same = entry.name != name and series(entry.name) == series(name)
                if same and entry.is_dir(follow_symlinks=False):
                    yield f"{folder}/{entry.name}" if folder else entry.name

    def _listed(self, path: str) -> list[tuple[str, Stat]]:
        """All files below a directory; none, if there are too many."""
        top = Folder(path, Scanner(self._root, self._exclude))
        found = (
            (prefix + name, stat)
            for prefix, part in top.walk()
            for name, stat in (*part.files.items(), *part.unfinished.items())
        )
        files = list(islice(found, _MOST_FILES))
        return files if len(files) < _MOST_FILES else []


def _is_next_step(before: _Rest, changed: frozenset[str], files: Files) -> bool:
    """Whether ``G_40.pth, D_40.pth`` were written where ``G_20.pth, D_20.pth`` were before.

    Shards, agents and layers have numbers, too: those follow one another without a gap, and none
    takes the place of another.
    """
    now, then = changed & files.keys(), before.changed & before.files.keys()
    if kinds(now).keys() != kinds(then).keys() or kinds(files).keys() != kinds(before.files).keys():
        return False
    numbered = kinds(path for path in now if step_of(path) >= 0)
    if numbered and numbered == kinds(changed - files.keys()):
        return True  # each took the place of one
    steps, last = ({step_of(path) for path in paths} - {-1} for paths in (now, then))
    both = bool(numbered) and len(now) > 1  # be it with one that is written over
    return both and len(steps) == len(last) == 1 and steps.pop() - last.pop() > 1


def _longest_gap(moments: Iterable[int]) -> int:
    """Between two of these that follow one another; 0 for a single one."""
    found = sorted(moments)
    return max((after - before for before, after in pairwise(found)), default=0)
