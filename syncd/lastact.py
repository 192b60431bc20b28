"""Has the writer done its last act? By the profile's marker, its tracker, or a rename.

What is there is not yet proof: a marker can be of the save before, and whoever copies a
checkpoint from another file system copies the marker when its turn comes.
"""

from __future__ import annotations

import enum
import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from syncd.companions import is_log, is_step
from syncd.filestat import Stat
from syncd.formats import check_json
from syncd.profiles import SET
from syncd.scan import SAVING, directory_not_yet
from syncd.series import series, step_of
from syncd.units import Unit

_AT_ONCE = 10 * 10**9
"""Nanoseconds within which all ranks write what they have of one save."""


class Act(enum.Enum):
    """What can be said of the writer's last act."""

    DONE = "it is done, and nothing came after it"
    LIKELY = "there is a sign of it, but no proof"
    UNKNOWN = "this writer has no last act that is known"
    ABSENT = "there is no sign of it; perhaps it never comes"
    STALE = "there is one, of an earlier save: it is being written again"
    MISSING = "without it this is no checkpoint"


@dataclass(frozen=True)
class LastAct:
    """The verdict, and words for a person where it is not done."""

    act: Act
    words: str = ""

    sealed: bool = False
    """Whether the directory was renamed, or given its times by a copy, after all its files."""

    younger: tuple[str, ...] = ()
    """What makes it stale: the members that were written after it."""

    ended: bool = False
    """Whether what this writer writes near its end has come last of all."""

    foreign: bool = False
    """Whether what is missing is what tells this writer from others: perhaps it is another one."""


def last_act(root: Path, unit: Unit) -> LastAct:
    """Look at marker, tracker and directory, as the file system has them now."""
    profile = unit.profile
    names = [path for path, _ in unit.files]
    lacking = [pattern for pattern in profile.needs if not _any(names, (pattern,))]
    if lacking:
        return LastAct(Act.MISSING, f"{lacking[0]} is not there yet", foreign=True)
    sealed = not unit.lone and not unit.beside and _sealed(root / unit.path, unit)
    if profile.marker:
        return _marker(root, unit, profile.marker, names, sealed)
    if unit.tracker:
        return _tracker(unit, root / unit.tracker, sealed)
    if profile.renamed:
        return LastAct(Act.DONE if sealed else Act.LIKELY, sealed=sealed)
    return LastAct(Act.UNKNOWN, sealed=sealed, ended=bool(profile.needs) and _ended(unit))


def marked_unfinished(root: Path, unit: Unit) -> str:
    """The file beside it or a member by whose name it is still being saved; "" for none.

    One that has no name but the ending speaks for the folder that it lies in.
    """
    names = [path for path, _ in unit.files]
    for path, _ in unit.unfinished:
        ending = next((one for one in SAVING if path.endswith(one)), None)
        if ending and any(_is_of(name, path.removesuffix(ending)) for name in names):
            return unit.below(path)
    named = {unit.path, *(unit.below(name) for name in names if unit.beside)}
    stems = {stem for path in named for stem in _stems(path)}
    return next((s + e for s in stems for e in SAVING if _is_file(root / (s + e))), "")


def emptied_for(root: Path, unit: Unit) -> str:
    """A later step that has folders which this one has not: it was emptied to make room for it.

    verl deletes what its roles have saved before they save again; the rest stays.
    """
    path = Path(unit.path)
    if unit.profile is not SET or unit.beside or not is_step(path.name):
        return ""
    own = {name.partition("/")[0] for name, _ in unit.files if "/" in name}
    mine, step = series(unit.path), step_of(unit.path)
    for name in _folders(root / path.parent):
        other = str(path.with_name(name))
        later = is_step(name) and series(other) == mine and step_of(other) > step
        if later and _folders(root / other) - own:
            return other
    return ""


def _folders(path: Path) -> set[str]:
    try:
        with os.scandir(path) as entries:
            found = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except OSError:
        return set()
    return {name for name in found if not directory_not_yet(name)}


def _is_of(name: str, stem: str) -> bool:
    if not stem or stem.endswith("/"):
        return name.startswith(stem)
    return name.startswith(stem) and name[len(stem) :][:1] in ("", ".", "/")


def _stems(path: str) -> Iterator[str]:
    """What a marker's path can begin with: the checkpoint's, its folder's, without its ending."""
    above, slash, name = path.rpartition("/")
    yield path
    yield above + slash
    if above:
        yield above
    if "." in name:
        yield path.rpartition(".")[0]


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _ended(unit: Unit) -> bool:
    """Whether there is more than what is needed, and none of that is younger.

    In a folder that is used again it may be; and other ranks may write theirs before the first has
    written the weights.
    """
    needed = {path: stat for path, stat in unit.files if _any([path], unit.profile.needs)}
    oldest, newest = (of(needed.values(), key=lambda stat: stat.mtime_ns) for of in (min, max))
    younger = set(_younger(unit, oldest)) - needed.keys()
    at_once = newest.mtime_ns - oldest.mtime_ns <= _AT_ONCE
    return len(needed) < len(unit.files) and at_once and not younger


def _any(names: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _sealed(directory: Path, unit: Unit) -> bool:
    """Whether the directory itself was changed last of all, and not by a new name in it.

    A rename changes its ctime and leaves its mtime. So does a copy, which sets the times of a
    directory when all that is in it is there (``mv``, ``cp -a``, ``rsync -a``, ``shutil.move``).
    """
    try:
        seen = directory.lstat()
    except OSError:
        return False
    return seen.st_ctime_ns > seen.st_mtime_ns and seen.st_ctime_ns >= unit.changed


def _marker(root: Path, unit: Unit, marker: str, names: list[str], sealed: bool) -> LastAct:
    profile = unit.profile
    if marker not in names:
        words = f"its last file, {marker}, is not there yet"
        required = _any(names, profile.required_with)
        return LastAct(Act.MISSING if required else Act.ABSENT, words, sealed)
    problem = _json_problem(root / unit.below(marker), marker)
    if problem:
        return LastAct(Act.MISSING, problem)
    own = dict(unit.files)[marker]
    younger = _younger(unit, own)
    if younger:
        words = f"its last file, {marker}, is older than {younger[0]}: it is being written again"
        return LastAct(Act.STALE, words, sealed, younger)
    written_here = profile.marker_renamed or own.ctime_ns == own.mtime_ns
    return LastAct(Act.DONE if sealed or written_here else Act.LIKELY, sealed=sealed)


def _json_problem(path: Path, marker: str) -> str | None:
    if not marker.endswith(".json"):
        return None
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            fault = check_json(file, size) if size else "empty"
    except OSError as error:
        return f"its last file, {marker}, cannot be read: {error.strerror}"
    return f"its last file, {marker}, is {fault}" if fault else None


def _younger(unit: Unit, act: Stat) -> tuple[str, ...]:
    """The members that were written after the last act, though this writer writes none then."""
    late = unit.profile.late
    after = (path for path, stat in unit.files if stat.mtime_ns > act.mtime_ns)
    logs = {path for path, _ in unit.files if is_log(path) or path in unit.running}
    return tuple(path for path in after if path not in logs and not _any([path], late))


def _tracker(unit: Unit, tracker: Path, sealed: bool) -> LastAct:
    name = tracker.name
    try:
        own = Stat.of(tracker.lstat())
        text = str(tracker.readlink()) if tracker.is_symlink() else tracker.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return LastAct(Act.ABSENT, f"{name}, which names what is finished, is not there", sealed)
    named, mine = (re.search(r"(\d+)\D*$", t) for t in (text, unit.path))
    if not named or not mine or int(named[1]) < int(mine[1]):
        return LastAct(Act.ABSENT, f"{name} does not name it yet", sealed)
    if int(named[1]) > int(mine[1]):
        return LastAct(Act.LIKELY, f"{name} names a later one", sealed)
    younger = _younger(unit, own)
    if younger:
        words = f"{name} is older than {younger[0]}: it is being written again"
        return LastAct(Act.STALE, words, sealed, younger)
    done = sealed or own.ctime_ns == own.mtime_ns
    return LastAct(Act.DONE if done else Act.LIKELY, sealed=sealed)
