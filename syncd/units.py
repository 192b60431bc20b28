"""What is one checkpoint, of all below a folder: by profiles, names, and what accompanies them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from syncd.companions import (
    all_accompany,
    could_be_set,
    ends_in_number,
    grows,
    holds_no_state,
    holds_steps,
    is_companion,
    is_log,
    is_step,
    is_whole_alone,
    keeps_text_of_state,
)
from syncd.filestat import Stat
from syncd.memory import but_for, memories_of
from syncd.pathrules import link_stays_inside, member
from syncd.profiles import COMPANION, GROUPS, LONE, SET, Profile, profile_of
from syncd.scan import Folder
from syncd.series import step_of
from syncd.together import are_each_whole, gathered

_MOST_IN_A_RUN = 1000
"""Files of a folder that are looked at in each scan for several checkpoints among texts."""

_SURELY_A_STEP = 10
"""Of a single number: agents and layers begin at 0 or 1."""


@dataclass(frozen=True)
class Unit:
    """A checkpoint on disk: a directory of files or a lone file, by its path under the root."""

    path: str
    profile: Profile
    files: tuple[tuple[str, Stat], ...]
    links: tuple[tuple[str, str], ...] = ()
    unfinished: tuple[tuple[str, Stat], ...] = ()
    tracker: str | None = None
    """Path under the root of the profile's tracker, where it has one."""

    beside: bool = False
    """Whether its files lie in one folder with others; ``path`` is then one of them."""

    databases: frozenset[str] = frozenset()
    """Members that are SQLite databases, of which a copy is sent where they are in use."""

    @property
    def lone(self) -> bool:
        """Whether it is a single file or link rather than a directory."""
        here = any(path == "" for path, _ in (*self.files, *self.links))
        return self.profile is LONE or (self.profile is COMPANION and here)

    @property
    def nameable(self) -> bool:
        """Whether every name in it is UTF-8, as the names of objects must be."""
        names = [self.path, *(path for path, _ in self.files)]
        names += [text for link in self.links for text in link]
        try:
            "".join(names).encode()
        except UnicodeEncodeError:
            return False
        return True

    @property
    def companion(self) -> bool:
        """Whether it only accompanies checkpoints."""
        return self.profile is COMPANION

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(stat.size for _, stat in self.files)

    @cached_property
    def signature(self) -> str:
        """Tells this revision from every other without reading a byte: a digest of all stats."""
        parts = [f"{path}={stat.text()}" for path, stat in self.files]
        parts += [f"{path}->{target}" for path, target in self.links]
        return digest_of(parts)

    @cached_property
    def running(self) -> frozenset[str]:
        """Members that are written to all the time, whether or not a save is under way.

        Logs and databases: there is a whole one to be had of them at any time.
        """
        if self.profile is LONE or self.beside:
            return self.databases
        logs = (path for path, _ in self.files if grows(self.below(path)))
        return self.databases.union(logs)

    @cached_property
    def memories(self) -> frozenset[str]:
        """Folders in it to which files come all the time, one after another."""
        if self.lone or self.beside or self.companion:
            return frozenset()
        return memories_of(self.path, self.files, self.running)

    @cached_property
    def core(self) -> str:
        """As ``signature``, without what is ``running``."""
        if not self.running:
            return self.signature
        files = tuple(file for file in self.files if file[0] not in self.running)
        return replace(self, files=files).signature

    @cached_property
    def bare(self) -> str:
        """As ``core``, where there are memories without those, and without all logs."""
        if not self.memories:
            return self.core
        left = but_for(self.memories, dict(self.files)).items()
        files = tuple(one for one in left if not (is_log(one[0]) or one[0] in self.running))
        return replace(self, files=files).signature

    @property
    def written(self) -> tuple[int, int, str]:
        """Sorts checkpoints by age: last modification, then last change, then name."""
        newest = max((stat.mtime_ns for _, stat in self.files), default=0)
        return newest, self.changed, self.path

    @property
    def changed(self) -> int:
        """The last change of any file by this machine's clock, nanoseconds since the epoch."""
        return max((stat.ctime_ns for _, stat in self.files), default=0)

    @property
    def newest(self) -> str:
        """The path under the root of the file that was changed last and is not ``running``."""
        files = [(s.ctime_ns, name) for name, s in self.files if name not in self.running]
        return self.below(max(files)[1]) if files else self.path

    @property
    def touched(self) -> int:
        """The last act upon any file that is not ``running``, by whichever clock says later, ns."""
        times = [s.mtime_ns for name, s in self.files if name not in self.running]
        times += [s.ctime_ns for name, s in self.files if name not in self.running]
        return max(times, default=self.changed)

    def below(self, path: str) -> str:
        """A member's path under the root."""
        return member(self.path, path, self.beside)


def _whole(folder: Folder, profile: Profile, parent: Folder) -> Unit:
    files, links, unfinished = [], [], []
    databases: set[str] = set()
    for prefix, part in folder.walk():
        files += [(prefix + name, stat) for name, stat in part.files.items()]
        links += [(prefix + name, target) for name, target in part.links.items()]
        unfinished += [(prefix + name, stat) for name, stat in part.unfinished.items()]
        databases |= {prefix + name for name in part.databases}
    return Unit(
        folder.path,
        profile,
        tuple(sorted(files)),
        tuple(sorted(links)),
        tuple(sorted(unfinished)),
        parent.below(profile.tracker) if profile.tracker else None,
        databases=frozenset(databases),
    )


def _groups(folder: Folder) -> Iterator[Unit]:
    """The checkpoints that are several files in a folder each."""
    for group in GROUPS:
        for name in folder.files:
            head = re.fullmatch(group.head, name) if name.endswith(group.ends) else None
            if head:
                names = (name, *(part.format(**head.groupdict()) for part in group.parts))
                files = tuple((n, folder.files[n]) for n in names if n in folder.files)
                yield Unit(folder.below(name), Profile(group.name), files, beside=True)


@dataclass
class _Open:
    """A folder whose checkpoints are being gathered, and what is known of it so far."""

    folder: Folder
    children: Iterator[Folder]
    parent: Folder | None
    may_be_set: bool
    known: bool = False
    """Whether a profile was recognised somewhere below: then it is no set."""

    trackers: set[str] = field(default_factory=set)
    held: list[Unit] = field(default_factory=list)
    """What was found below a folder that may yet turn out to be one set."""


def units(
    folder: Folder,
    parent: Folder | None = None,
    on_container: Callable[[Folder, bool, frozenset[str]], None] | None = None,
) -> Iterator[Unit]:
    """Every checkpoint below a folder: directories by profile, sets, and lone files.

    Depth first; a folder is released once it is clear what it is, so the memory this needs is
    that of the largest checkpoint or folder, not of the tree. ``on_container`` hears of each
    folder that is no checkpoint itself, whether one was recognised below it, and of its trackers.
    """
    profile = profile_of(folder) if parent is not None else None
    if profile and parent:
        yield _whole(folder, profile, parent)
        folder.release()
        return
    chain = [_open(folder, parent, [])]
    while chain:
        here = chain[-1]
        child = next(here.children, None)
        if child is not None:
            profile = profile_of(child)
            if profile is None:
                opened = _open(child, here.folder, chain)
                yield from _no_sets(chain) if opened.known else ()
                chain.append(opened)
                continue
            yield from _hand_up(chain, _whole(child, profile, here.folder))
        else:
            child = here.folder
            chain.pop()
            if here.may_be_set and not here.known and here.parent is not None:
                yield from _hand_up(
                    chain, _whole(child, COMPANION if all_accompany(child) else SET, here.parent)
                )
            else:
                for unit in lone_units(child, here.trackers):
                    yield from _hand_up(chain, unit)
                if on_container:
                    on_container(child, here.known, frozenset(here.trackers))
        if not any(above.may_be_set and not above.known for above in chain):
            child.release()


def _open(folder: Folder, parent: Folder | None, above: list[_Open]) -> _Open:
    known = any(_groups(folder)) or holds_steps(folder)
    may_be_set = parent is not None and not known and (could_be_set(folder) or _has_roles(folder))
    if may_be_set and _keeps_checkpoints(folder, [one for one in above if one.may_be_set]):
        known, may_be_set = True, False
    return _Open(folder, iter(list(folder.folders.values())), parent, may_be_set, known)


def _has_roles(folder: Folder) -> bool:
    """Whether a step has folders alone, which are parts of it: verl's ``actor`` and ``critic``.

    There may be more to come. A step in which there are steps, or files that are each whole, is one
    of something else: of an experiment.
    """
    if not is_step(folder.name):
        return False
    found = False
    for _, part in folder.walk():
        if part is not folder and (is_step(part.name) or part.name.isdigit()):
            return False
        names = [n for n in part.files if not (is_companion(part, n) or grows(part.below(n)))]
        if names and are_each_whole(names):
            return False
        found |= bool(names)
    return found


def _keeps_checkpoints(folder: Folder, sets: list[_Open]) -> bool:
    """Whether a folder with texts in it holds several checkpoints that are files, and is none.

    Within what may be one set only if there are but texts above it.
    """
    if is_step(folder.name) or sum(map(is_whole_alone, folder.files)) > _MOST_IN_A_RUN:
        return False
    if keeps_text_of_state(folder) or any(_is_earnest(one.folder) for one in sets):
        return False
    return _keeps_steps(folder) or _keeps_moments(folder, least=2 if sets else 1)


def _is_earnest(folder: Folder) -> bool:
    """Whether there is more in what may be a set than texts, or it is one of several."""
    return ends_in_number(folder) or not all(is_companion(folder, name) for name in folder.files)


def _keeps_steps(folder: Folder) -> bool:
    """Whether ``G_20.pth, D_20.pth`` lie beside ``G_40.pth, D_40.pth``: checkpoints of their own.

    And all else accompanies them, or is whole by itself. Agents and layers have numbers, too, but
    those follow one another without a gap.
    """
    found = list(gathered(folder.files))
    steps = sorted({step_of(head) for head, _ in found} - {-1})
    if any(after - before < 2 for before, after in pairwise(steps)):
        return False
    if len(steps) < 2 and max(steps, default=0) < _SURELY_A_STEP:
        return False
    parts = {name for _, names in found for name in names}
    left = [name for name in folder.files.keys() - parts if not grows(name)]
    return all(is_whole_alone(name) or is_companion(folder, name) for name in left)


def _keeps_moments(folder: Folder, least: int) -> bool:
    """Whether all that a trainer goes on from are files that are checkpoints by themselves.

    ESPnet's ``checkpoint.pth`` and ``5epoch.pth``, nnU-Net's ``checkpoint_best.pth``. A single one
    in a folder with a number in its name is a step of a series of folders.
    """
    names = [n for n in folder.files if not (is_companion(folder, n) or grows(n))]
    if len(names) < (2 if ends_in_number(folder) else least):
        return False
    if not (all(map(is_whole_alone, names)) and are_each_whole(names)):
        return False
    return all(map(holds_no_state, folder.folders.values()))


def _hand_up(chain: list[_Open], unit: Unit) -> Iterator[Unit]:
    """Pass on what was found, unless a folder above may yet turn out to be one set with it."""
    if chain:
        chain[-1].trackers.update([unit.tracker] if unit.tracker else [])
    if unit.profile not in (SET, LONE, COMPANION):
        yield from _no_sets(chain)
    undecided = [above for above in chain if above.may_be_set and not above.known]
    if undecided:
        undecided[-1].held.append(unit)
    else:
        yield unit


def _no_sets(chain: list[_Open]) -> Iterator[Unit]:
    """Nothing of this is one set: each checkpoint in it is one by itself."""
    for above in chain:
        above.known = True
        yield from above.held
        above.held = []


def lone_units(folder: Folder, trackers: set[str] | frozenset[str]) -> Iterator[Unit]:
    """The files and links of a folder that is no checkpoint itself, but for ``trackers``."""
    elsewhere = set(trackers)
    for unit in _groups(folder):
        elsewhere |= {unit.below(name) for name, _ in unit.files}
        yield unit
    left = {n: stat for n, stat in folder.files.items() if folder.below(n) not in elsewhere}
    for head, names in list(gathered(left)):
        files = tuple((name, left.pop(name)) for name in names)
        writing = (one for one in folder.unfinished.items() if any(n in one[0] for n in names))
        yield Unit(folder.below(head), SET, files, unfinished=tuple(writing), beside=True)
    for name, stat in left.items():
        path = folder.below(name)
        kind = COMPANION if is_companion(folder, name) else LONE
        databases = frozenset({""} if name in folder.databases else ())
        yield Unit(path, kind, (("", stat),), databases=databases)
    for name, target in folder.links.items():
        path = folder.below(name)
        if path not in elsewhere and link_stays_inside(path, target):
            yield Unit(path, COMPANION, (), (("", target),))


def digest_of(parts: list[str]) -> str:
    """A short text that is another one if any of the parts is."""
    text = "\n".join(parts).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()
