"""A replay memory: a folder of its own to which files come one after another while all else rests.

DrQ-v2's ``buffer/``, DreamerV3's ``replay/``, videos of each episode. What lies in it is written
once, and an episode more or less makes no other checkpoint of the folder above it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TypeVar

from syncd.companions import is_log, is_step
from syncd.filestat import Stat

_BEFORE, _SINCE = 8, 4
"""Files that have come before and after the last save of all else."""

_BREAK = 20
"""Times as long as it is as a rule from one to the next: the shards of two saves have such a break
between them, in which training goes on."""

_T = TypeVar("_T")


def memories_of(
    path: str, files: Iterable[tuple[str, Stat]], running: frozenset[str]
) -> frozenset[str]:
    """The folders within a directory that are memories, by its files; of a step there are none."""
    if is_step(path.rpartition("/")[2]):
        return frozenset()
    folders: defaultdict[str, list[tuple[str, Stat]]] = defaultdict(list)
    for name, stat in files:
        if not (name in running or is_log(name)):
            folders[name.rpartition("/")[0]].append((name, stat))
    found = {folder for folder, inside in folders.items() if folder and _may_be_one(inside)}
    rest = (stat.mtime_ns for folder in folders.keys() - found for _, stat in folders[folder])
    saved = max(rest, default=0)
    return frozenset(folder for folder in found if _goes_on(folders[folder], saved))


def but_for(folders: frozenset[str], files: Mapping[str, _T]) -> Mapping[str, _T]:
    """Those that lie in none of these folders."""
    if not folders:
        return files
    return {path: one for path, one in files.items() if path.rpartition("/")[0] not in folders}


def _may_be_one(files: list[tuple[str, Stat]]) -> bool:
    """Whether all are of one kind, and numbered."""
    names = [name.rpartition("/")[2] for name, _ in files]
    kinds = {name.rpartition(".")[2] for name in names}
    many = len(names) >= _BEFORE + _SINCE
    return many and len(kinds) == 1 and all(any(map(str.isdigit, name)) for name in names)


def _goes_on(files: list[tuple[str, Stat]], saved: int) -> bool:
    """Whether they came before the last save of all else and have come since, without a break."""
    times = sorted(stat.mtime_ns for _, stat in files)
    at = bisect_right(times, saved)
    about = times[max(0, at - _BEFORE) : at + _SINCE]
    if len(about) < _BEFORE + _SINCE or at < _BEFORE:
        return False
    gaps = sorted(after - before for before, after in pairwise(about))
    return gaps[-1] <= _BREAK * gaps[len(gaps) // 2]
