"""What a checkpoint has in common with the one before it of its series.

A writer that was killed between two files leaves files that are each whole. What tells is that the
one before had more of them. And a set that is overwritten in place is a mixture of two saves until
the file that was written last is written again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from syncd.companions import is_log, is_slight
from syncd.formats import is_known
from syncd.journal import Journal
from syncd.memory import but_for
from syncd.parts import files_of
from syncd.records import CommitRecord, Layout
from syncd.series import series, step_of
from syncd.units import Unit

Files = Mapping[str, tuple[int, int]]
"""Size in bytes and time of modification in nanoseconds, by path below the checkpoint."""

_RANDOM = re.compile(r"(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{8,}")
_NUMBER = re.compile(r"\d+")

_SURE = 2
"""Saves to one place that lack the same; one more is the manner though it has not rested."""

_PAGE = 4096
"""Bytes; a write that is killed ends at such a border, as a rule."""


_SERIES_LIMIT = 10_000
_HELD_LIMIT = 200_000
"""Series, and files of checkpoints, that are remembered: some 50 MB at most."""


class Committed:
    """What the commits say of earlier checkpoints: known also to a daemon that has just started."""

    def __init__(self, journal: Journal, layout: Layout, rank: int | None = None) -> None:
        """``rank``: whose files count, where several machines have made a commit."""
        self._journal = journal
        self._layout = layout
        self._rank = rank
        self._newest: dict[str, int] | None = None

    def of(self, path: str) -> Files:
        """The newest commit of one checkpoint; empty if there is none."""
        return self._files(self._journal.newest_commit(self._layout, path))

    def own(self, unit: Unit) -> Files:
        """The files of a checkpoint on disk that this machine writes: a restore brings all."""
        files = members(unit)
        mine = self.of(unit.path) if self._rank is not None else {}
        return {path: stat for path, stat in files.items() if path in mine} or files

    def like(self, wanted: str) -> Files:
        """The newest commit of a series, of those that there were when this was first asked."""
        if self._newest is None:
            self._newest = {}
            for record in self._journal.commits(self._layout):
                for mine in _all_series(record):
                    self._newest.setdefault(mine, record.seq)
        seq = self._newest.get(wanted)
        return self._files(self._journal.commit(seq, self._layout)) if seq else {}

    def _files(self, record: CommitRecord | None) -> Files:
        files = files_of(record, self._rank or 0) if record else ()
        return {e.path: (e.size, e.mtime_ns) for e in files}


@dataclass(frozen=True)
class _Model:
    """The newest complete checkpoint of a series."""

    path: str
    written: tuple[int, int, str]
    files: Files


@dataclass(frozen=True)
class _Doubt:
    """A revision that lacks something, and what it has."""

    series: str
    kinds: frozenset[tuple[str, int]]
    signature: str
    written: tuple[int, int, str]
    times: int = 1
    """How many saves to one place have lacked the same, one after another."""


class Siblings:
    """Remembers the newest complete checkpoint of each series."""

    def __init__(self, root: Path, committed: Committed | None = None) -> None:
        self._root = root
        self._committed = committed
        self._models: dict[str, _Model] = {}
        self._asked: set[str] = set()
        self._doubted: dict[str, _Doubt] = {}
        self._joined = False
        """Whether there are checkpoints of several files beside each other."""

    def learn(self, unit: Unit) -> None:
        """This one is complete: what comes after it is compared with it."""
        self._doubted.pop(unit.path, None)
        self._joined |= unit.beside
        if unit.companion or (unit.lone and not self._joined):
            return  # a file by itself tells nothing, unless others of its series had more
        for mine in _all_series(unit):
            model = self._models.get(mine)
            if model and model.written > unit.written:
                continue
            self._models.pop(mine, None)
            files = self._committed.own(unit) if self._committed else members(unit)
            self._models[mine] = _Model(unit.path, unit.written, files)
            if len(self._models) > _SERIES_LIMIT:
                del self._models[next(iter(self._models))]

    def forget_missing(self, paths: set[str]) -> None:
        """Checkpoints that are gone are nobody's twin."""
        for path in self._doubted.keys() - paths:
            del self._doubted[path]

    def _model(self, unit: Unit) -> _Model | None:
        own = self._committed.of(unit.path) if self._committed and unit.lone else {}
        if "" in own:
            return _Model(unit.path, unit.written, own)
        found = [model for mine in _all_series(unit) if (model := self._of(mine))]
        model = max(found, key=lambda one: one.written, default=None)
        if model and unit.lone and kind_of(unit.path.rpartition("/")[2]) not in kinds(model.files):
            return None  # it was none of several: each is whole by itself
        return replace(model, files=_in_shape(model.files, unit)) if model else None

    def _of(self, mine: str) -> _Model | None:
        if self._committed and mine not in self._models and mine not in self._asked:
            self._asked.add(mine)
            files = self._committed.like(mine)
            if files:
                self._models[mine] = _Model("", (0, 0, ""), files)
                self._joined |= len(files) > 1
        return self._models.get(mine)

    def known(self, unit: Unit) -> bool:
        """Whether there is one to compare with."""
        return self._model(unit) is not None

    def strange(self, unit: Unit, paths: Iterable[str]) -> bool:
        """Whether the one before has no file like any of these: no save writes them, but others."""
        model = self._model(unit)
        return model is not None and not kinds(model.files).keys() & kinds(paths).keys()

    def lack(self, unit: Unit, rested: bool) -> str | None:
        """What the one before has and this one has not, in words; None for nothing.

        Two that lack the same, or two saves to one place, are taken for the writer's new manner,
        once this one has ``rested`` for long: the first may be what a killed writer has left, and
        this one what the next has written so far. Of a step there is one save only, and what is
        older than the one before is left over. A third save to one place need not rest: where
        they follow one another fast none ever does.
        """
        model = self._model(unit)
        if model is None or unit.companion:
            return None
        model = replace(model, files=but_for(unit.memories, model.files))
        words = self._missing(unit, model) or self._short(unit, model)
        if words is None:
            self._doubted.pop(unit.path, None)
            return None
        mine = kinds(path for path, _ in unit.files)
        doubt = _Doubt(series(unit.path), frozenset(mine.items()), unit.core, unit.written)
        before = self._doubted.get(unit.path)
        if before and (before.kinds, step_of(unit.path)) == (doubt.kinds, -1):
            again = before.signature != doubt.signature
            doubt = replace(doubt, times=before.times + again)
        self._doubted[unit.path] = doubt
        twin = doubt.times > 1 or any(
            (doubt.series, doubt.kinds) == (other.series, other.kinds)
            for path, other in self._doubted.items()
            if path != unit.path and model.written < min(other.written, unit.written)
        )
        return None if doubt.times > _SURE or (twin and rested) else words

    @staticmethod
    def _missing(unit: Unit, model: _Model) -> str | None:
        paths = _named(unit, model)
        before, now = kinds(model.files), kinds(paths)
        for kind, count in before.items():
            if now[kind] < (1 if "*" in kind else count):
                same = [path for path in model.files if kind_of(path) == kind]
                name = next((path for path in same if path not in paths), same[0])
                where = model.path or "the one before"
                return f"there is no file like {name}, which {where} has"
        return None

    def _short(self, unit: Unit, model: _Model) -> str | None:
        """A file of no known format that is cut, to all appearance."""
        least: dict[str, int] = {}
        for path, (size, _) in model.files.items():
            kind = kind_of(path)
            least[kind] = min(size, least.get(kind, size))
        for path, stat in unit.files:
            before = least.get(kind_of(path), 0)
            if stat.size >= before or is_log(path) or path in unit.running:
                continue
            cut = stat.size % _PAGE == 0 or (before >= _PAGE and 2 * stat.size < before)
            if cut and not is_known(self._root / unit.below(path)):
                return f"{unit.below(path)} is shorter than before ({stat.size} bytes of {before})"
        return None


class Rewrites:
    """Remembers each checkpoint as it was when it was last complete."""

    def __init__(self, committed: Committed | None = None) -> None:
        self._committed = committed
        self._before: dict[str, Files] = {}
        self._held = 0
        self._seen: dict[str, tuple[str, frozenset[str], int]] = {}
        """What is in doubt of each: its revision, what has changed, and in how many saves."""

    def learn(self, unit: Unit) -> None:
        """This revision is committed."""
        self._seen.pop(unit.path, None)
        self._hold(unit.path, self._committed.own(unit) if self._committed else members(unit))

    def _hold(self, path: str, files: Files) -> None:
        self._held += len(files) - len(self._before.pop(path, ()))
        self._before[path] = files
        while self._held > _HELD_LIMIT and len(self._before) > 1:
            self._held -= len(self._before.pop(next(iter(self._before))))

    def forget_missing(self, paths: set[str]) -> None:
        """What is gone, or waits for nothing, is in no doubt."""
        for path in self._seen.keys() - paths:
            del self._seen[path]

    def only_added(self, unit: Unit) -> bool:
        """Whether it has been complete, and nothing but new files has come since."""
        before = {path: s for path, s in self._of(unit).items() if path not in unit.running}
        now = members(unit)
        return bool(before) and all(now.get(path) == stat for path, stat in before.items())

    def only_lost(self, unit: Unit) -> bool:
        """Whether it has been complete, and nothing has happened since but that files have gone.

        What is left of a step when its writer makes room for the next one is no newer checkpoint.
        """
        if unit.lone or unit.companion:
            return False
        before, now = (
            {p: stat for p, stat in files.items() if not (is_log(p) or p in unit.running)}
            for files in (self._of(unit), members(unit))
        )
        if not now.items() < before.items():
            return False
        gone = before.keys() - now.keys()  # a mark that says "not yet" goes last of all
        return not all(_is_mark(path, before[path][0]) for path in gone)

    def only(self, unit: Unit, paths: Collection[str]) -> bool:
        """Whether it has been complete, and nothing but these members has changed since.

        Or what lies in its memories, and logs beside those.
        """
        known = self._of(unit)
        before, now = (
            {
                path: stat
                for path, stat in but_for(unit.memories, files).items()
                if not (path in paths or (unit.memories and is_log(path)))
            }
            for files in (known, members(unit))
        )
        return bool(known) and before == now

    def half_way(self, unit: Unit, rested: bool) -> str | None:
        """In words, what was written last before, and has not been written for this save yet.

        A second save in a row that leaves the same files alone shows the writer's manner, once it
        has ``rested`` for long; a third one need not.
        """
        before = but_for(unit.memories, self._of(unit))
        lasting = {
            path: stat
            for path, stat in before.items()
            if not (is_log(path) or path in unit.running - unit.databases)
        }
        if not lasting:
            return None
        last = max(lasting, key=lambda path: lasting[path][1])
        now = but_for(unit.memories, members(unit))
        changed = frozenset(
            path for path in lasting if now.get(path, lasting[path]) != before[path]
        )
        words, mark = "", unit.core
        if changed and last not in changed and last in now and not _is_followed(last, before, now):
            words = f"{last}, written last before, has not been written again yet"
        else:
            lacking = _next_lacks(lasting, now)
            if lacking:
                begun = now.keys() - before.keys()
                changed, mark = frozenset(kinds(begun)), str(max(map(step_of, begun)))
                words = f"there is no file like {lacking} of the step that was begun"
        if not words:
            return None
        signature, earlier, times = self._seen.get(unit.path, ("", frozenset(), 0))
        times = times + (signature != mark) if earlier == changed else 1
        self._seen[unit.path] = (mark, changed, times)
        return None if times > _SURE or (times > 1 and rested) else words

    def _of(self, unit: Unit) -> Files:
        if unit.path not in self._before and self._committed:
            self._hold(unit.path, self._committed.of(unit.path))
        return _in_shape(self._before.get(unit.path, {}), unit)


def _is_mark(path: str, size: int) -> bool:
    return size == 0 or is_slight(path.rpartition("/")[2], size)


def _is_followed(path: str, before: Files, now: Files) -> bool:
    """Whether the file of the next step has come since: a numbered one is not written again."""
    kind, step = kind_of(path), step_of(path)
    new = now.keys() - before.keys()
    return step >= 0 and any(kind_of(other) == kind and step_of(other) > step for other in new)


def _next_lacks(before: Files, now: Files) -> str:
    """A file of the step that was written last of which the next, begun since, has no like yet.

    In a folder that keeps ``G_20.pth, D_20.pth`` and then ``G_40.pth`` the step of the name tells.
    The numbers of shards, agents and layers follow one another without a gap.
    """
    numbered = [path for path in before if step_of(path) >= 0]
    if not numbered:
        return ""
    step = step_of(max(numbered, key=lambda path: before[path][1]))
    begun = kinds(path for path in now.keys() - before.keys() if step_of(path) > step + 1)
    of_last = {kind_of(path): path for path in sorted(numbered) if step_of(path) == step}
    lacking = (path for kind, path in of_last.items() if kind not in begun)
    return next(lacking, "") if begun.keys() & of_last.keys() else ""


def members(unit: Unit) -> Files:
    """The files of a checkpoint as they are now."""
    return {path: (stat.size, stat.mtime_ns) for path, stat in unit.files}


def _in_shape(files: Files, unit: Unit) -> Files:
    """What was one file by then may be several now: named as in ``unit``."""
    return {unit.path.rpartition("/")[2]: files[""]} if unit.beside and "" in files else files


def _named(unit: Unit, model: _Model) -> set[str]:
    """The files of ``unit``, the only one by its own name where ``model`` has several."""
    name = unit.path.rpartition("/")[2]
    return {path if "" in model.files else path or name for path, _ in unit.files}


def _all_series(one: Unit | CommitRecord) -> set[str]:
    """What a checkpoint is one of: of files beside each other, whichever of them names it."""
    if isinstance(one, Unit):
        paths = [one.below(path) for path, _ in one.files] if one.beside else []
        return {series(path) for path in paths or [one.path]}
    paths = [one.below(entry.path) for entry in one.files] if one.beside else []
    return {series(path) for path in paths or [one.checkpoint]}


def kind_of(path: str) -> str:
    """A file's name without what is another one each time."""
    return _NUMBER.sub("#", _RANDOM.sub("*", path))


def kinds(paths: Iterable[str]) -> Counter[str]:
    """How many there are of each kind of file, logs left out."""
    return Counter(kind_of(path) for path in paths if not is_log(path))
