"""What to look at, and when: everything now and then, and at once what the events point to.

A look at a part gives what a look at everything would give for it, as long as the folders above
it stay what they were: folders that are no checkpoints but hold some. Where they do not, the next
look at everything finds out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from syncd.clock import Clock
from syncd.companions import could_be_set
from syncd.profiles import COMPANION, LONE, SET, may_become, profile_of
from syncd.scan import Folder, Scanner
from syncd.tempo import Stopwatch, Tempo
from syncd.units import Unit, lone_units, units
from syncd.watch import Changes, Watcher

_WITH_EVENTS, _WITHOUT_EVENTS = 5.0, 1.0
"""Seconds between scans of everything at least, while events come and while they do not."""

_RECENT = 8
"""Without events, so many checkpoints that were last seen to change are looked at often."""

_MOST_CONTAINERS = 100_000
"""Folders of folders that hold checkpoints: more are not remembered, and what changes in one of
them is found by looking at the folder above it."""


@dataclass
class Container:
    """A folder that is no checkpoint itself but holds some."""

    known: bool
    """Whether a profile was recognised below it."""

    trackers: frozenset[str]


@dataclass
class Part:
    """What one look is at: everything, or some folders with all below, or their files alone."""

    everything: bool = False
    early: bool = False
    """Whether everything is looked at because events were lost, before its time."""

    folders: set[str] = field(default_factory=set)
    files_in: dict[str, set[str]] = field(default_factory=dict)
    """Folders of which the files and links are looked at, with the names of their folders."""

    unreadable: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.everything or bool(self.folders or self.files_in)

    def lists(self, path: str) -> bool:
        """Whether the folder at ``path`` was listed, if there is one."""
        if self.everything or path in self.files_in:
            return True
        return any(above in self.folders for above in _and_above(path))

    def covers(self, path: str) -> bool:
        """Whether what lies at ``path`` was looked at, if anything does."""
        if self.everything:
            return True
        folder, _, name = path.rpartition("/")
        if folder in self.files_in and path and name not in self.files_in[folder]:
            return True
        return any(above in self.folders for above in _and_above(path))


class Survey:
    """Looks at a root, as often and at as much of it as is worth while.

    Without a watcher each look is at everything.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        exclude: tuple[str, ...] = (),
        is_known: Callable[[str], bool] = lambda _path: False,
        joined: bool = True,
    ) -> None:
        """``is_known`` tells whether a checkpoint of that path was ever committed.

        Databases are ``joined`` with what lies beside them, as for :class:`Scanner`.
        """
        self._joined = joined
        self._root = root
        self._clock = clock
        self._exclude = exclude
        self._is_known = is_known
        self._tempo = Tempo(clock)
        self._quick_at = 0.0
        self._containers: dict[str, Container] = {}
        self._waiting = Changes(everything=True)
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self.watcher: Watcher | None = None
        self.cost = 0.0
        """Seconds that the last look took."""

    def changed(self, path: str) -> None:
        """Something of the checkpoint at ``path`` is to be looked at."""
        self._waiting.folders.add(path)

    def lively(self, path: str) -> None:
        """The checkpoint at ``path`` was committed just now: it may change again."""
        if path not in self._recent:
            self._recent.append(path)

    def due_in(self) -> float:
        """Seconds until there is something to look at, if nothing more happens."""
        if self.watcher is None:
            return 0.0
        soon = [self._tempo.full_in(self._shortest, self._waiting.everything)]
        if self._waiting.files_in or self._waiting.folders:
            soon.append(self._tempo.part_in())
        if self.watcher.problem:
            soon.append(max(self._tempo.part_in(), self._quick_at - self._clock.monotonic()))
        return max(0.0, min(soon))

    @property
    def _shortest(self) -> float:
        return _WITHOUT_EVENTS if self.watcher and self.watcher.problem else _WITH_EVENTS

    def part(self, waits: Mapping[str, str | None], thorough: bool) -> Part:
        """What to look at now; ``thorough`` is everything, whatever it costs.

        ``waits`` are the checkpoints that are not committed, each with its tracker.
        """
        watcher = self.watcher
        if watcher:
            told = watcher.take()
            self._waiting.everything |= told.everything
            if told.another:
                self._tempo.forget()
            self._waiting.files_in |= told.files_in
            self._waiting.folders |= told.folders
        early = self._waiting.everything
        if thorough or watcher is None or self._tempo.full_in(self._shortest, early) <= 0:
            self._waiting = Changes()
            return Part(everything=True, early=early)
        if self._tempo.part_in() > 0:
            return Part()
        quick = bool(watcher.problem) and self._clock.monotonic() >= self._quick_at
        waiting, self._waiting = self._waiting, Changes(self._waiting.everything)
        if quick:
            waiting.files_in |= self._containers.keys()
            waiting.folders |= {*waits, *self._recent}
        return self._resolve(waiting, waits)

    def _resolve(self, waiting: Changes, waits: Mapping[str, str | None]) -> Part:
        part = Part()
        for folder in waiting.files_in:
            whole = self._whole(folder) if folder else ""
            if whole == folder and (folder in self._containers or not folder):
                part.files_in[folder] = set()
            else:
                part.folders.add(whole)
        part.folders |= {self._whole(path) for path in waiting.folders if path}
        for path, tracker in waits.items():
            if tracker and tracker.rpartition("/")[0] in waiting.files_in:
                part.folders.add(self._whole(path))
        part.folders = {
            path
            for path in part.folders
            if not any(above in part.folders for above in _and_above(path.rpartition("/")[0]))
        }
        return part

    def _whole(self, path: str) -> str:
        """The folder to be looked at as a whole so that all is right about ``path``.

        A folder that held nothing but an unfinished file is no checkpoint yet, and what comes
        into a folder of it may make it one.
        """
        places = [*_from_top(path)]
        for place, below in itertools.zip_longest(places, places[1:]):
            if place not in self._containers:
                return place
            if below and may_become(*(part.rpartition("/")[2] for part in (place, below))):
                return place
        return path

    # -- looking

    def look(self, part: Part) -> Iterator[Unit]:
        """The checkpoints of that part; it is dealt with once all were taken."""
        took = Stopwatch(self._clock)
        for unit in self._everything(part) if part.everything else self._parts(part):
            took.pause()  # it is judged meanwhile
            yield unit
            took.go_on()
        took.stop()
        self.cost = took.wall
        if part.everything:
            watched = self.watcher is not None and not self.watcher.problem
            self._tempo.full(took, part.early, trusted=watched)
        else:
            self._tempo.part(took)
        if self.watcher and self.watcher.problem:
            wait = max(_WITHOUT_EVENTS, 200 * took.core, 20 * took.wall)
            self._quick_at = self._clock.monotonic() + min(wait, 3600.0)

    def _scanner(self, often: bool) -> Scanner:
        watcher = self.watcher
        return Scanner(
            self._root,
            self._exclude,
            (lambda path: watcher.before_listing(path, often)) if watcher else None,
            self._joined,
        )

    def _everything(self, part: Part) -> Iterator[Unit]:
        self._containers = {}
        if self.watcher:
            self.watcher.begin_full()
        scanner = self._scanner(often=False)
        part.unreadable = scanner.unreadable
        top = scanner.top()
        if top:
            yield from units(top, None, self._note)
        if self.watcher:
            self.watcher.end_full()

    def _parts(self, part: Part) -> Iterator[Unit]:
        scanner = self._scanner(often=True)
        part.unreadable = scanner.unreadable
        for path in sorted(part.folders):
            folder = scanner.folder(path)
            if folder:
                yield from self._below(folder, part, scanner)
            elif scanner.is_there(path):  # a file or a link by now, or all the time
                part.files_in.setdefault(path.rpartition("/")[0], set())
        for path in sorted(part.files_in):
            folder = scanner.folder(path)
            if folder and not any(above in part.folders for above in _and_above(path)):
                yield from self._files_in(folder, part, scanner)

    def _below(self, folder: Folder, part: Part, scanner: Scanner) -> Iterator[Unit]:
        inside = f"{folder.path}/"
        for path in [p for p in self._containers if p == folder.path or p.startswith(inside)]:
            del self._containers[path]
        for unit in units(folder, scanner.above(folder), self._note):
            if self._recognised(unit):  # what was a file or link by itself is none any more
                part.files_in.setdefault(unit.path.rpartition("/")[0], set())
            yield unit

    def _files_in(self, folder: Folder, part: Part, scanner: Scanner) -> Iterator[Unit]:
        here = self._containers.get(folder.path)
        by_itself = folder.path and (
            profile_of(folder) or (here and not here.known and could_be_set(folder))
        )
        if folder.path and (here is None or by_itself):  # it has become a checkpoint, or may have
            part.folders.add(folder.path)
            yield from self._below(folder, part, scanner)
            return
        here = here or Container(known=False, trackers=frozenset())
        part.files_in[folder.path] = set(folder.folders)
        for child in list(folder.folders.values()):
            if self.watcher and self.watcher.problem and self._is_new(child.path, part):
                part.folders.add(child.path)
                yield from self._below(child, part, scanner)
        for unit in lone_units(folder, here.trackers):
            self._recognised(unit)
            yield unit

    def _is_new(self, path: str, part: Part) -> bool:
        return not (path in self._containers or part.covers(path) or self._is_known(path))

    def _note(self, folder: Folder, known: bool, trackers: frozenset[str]) -> None:
        if self.watcher is None:
            return
        self.watcher.holds_checkpoints(folder.path)
        room = len(self._containers) < _MOST_CONTAINERS
        if not folder.path or (folder.folders and room):
            self._containers[folder.path] = Container(known, trackers)

    def _recognised(self, unit: Unit) -> bool:
        """Remember of the folders above what a look at everything would have found.

        Whether the folder it lies in has a tracker that was not known to be one.
        """
        if unit.profile in (SET, LONE, COMPANION):
            return False
        folder = unit.path.rpartition("/")[0]
        for above in _and_above(folder):
            if above in self._containers:
                self._containers[above].known = True
        here = self._containers.get(folder)
        if not unit.tracker or here is None or unit.tracker in here.trackers:
            return False
        here.trackers |= {unit.tracker}
        return True


def _and_above(path: str) -> Iterator[str]:
    """A path and every folder above it, the root too."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


def _from_top(path: str) -> Iterable[str]:
    """The first folder of a path, the second within it, and so on, and the path itself."""
    parts = path.split("/")
    return ("/".join(parts[: number + 1]) for number in range(len(parts)))
