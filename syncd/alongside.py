"""What a restore brings beside a checkpoint, so that the trainer finds all that it goes on from."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from syncd.companions import RECIPE, is_step, tells_of_state
from syncd.errors import Corrupt, Permanent
from syncd.place import remove
from syncd.profiles import COMPANION
from syncd.records import CommitRecord
from syncd.series import series
from syncd.sqlitefiles import SIDE_FILES, is_side
from syncd.stores.durable import sync_folder
from syncd.trackers import leads_to, may_track
from syncd.units import Unit

_LATE = 2
"""Times the pause between the last two of a series after which no other is awaited."""

_AT_LEAST = 600 * 10**9
"""Nanoseconds for which one is awaited all the same: on a line that carries less than is saved the
last that has arrived is several saves old."""

_BEGUN = ".syncd-beside-"
"""Beginning of the names of folders that tell what was begun; no scan looks into them."""

_FAR = 3
"""Times as far from a checkpoint as the nearest version of a companion is one of another save."""

_BEST = re.compile(r"(?<![a-z])best(?![a-z])[^/]*$", re.IGNORECASE)
_SWEEP = re.compile(r"experiment_state-[^/]*\.json")
"""The state of a sweep of Ray Tune; it names what each of its trials has saved."""

_STATE = "trainer_state.json"
_STATE_LIMIT = 64 * 1024 * 1024

_ONCE = 86400 * 10**9
"""Nanoseconds for which another one is awaited of what came only once."""


def is_companion(record: CommitRecord) -> bool:
    """Whether a commit is of what only accompanies checkpoints."""
    return record.profile == COMPANION.name


class Alongside:
    """Chooses among the other commits, which it is asked about newest first.

    Companions; and of other series the newest that is intact, for nobody knows which of
    ``last.pt``, ``replay/`` and ``study.db`` a trainer goes on from: those that were still written,
    for the next of such a series was not overdue yet. In the same folder every file whose name has
    no number or says that it is the best, and the newest directory where the checkpoint is a file
    itself; the newest file of each series beside a ``last.ckpt``, which may be the best one. And
    what is named; and of a sweep, whose state names all trials, those that have ended too.
    """

    def __init__(
        self,
        record: CommitRecord,
        commits: Sequence[CommitRecord | Corrupt],
        named: Iterable[str] = (),
    ) -> None:
        """``record`` is what has been restored, ``commits`` are all, newest first.

        ``named`` are checkpoints that it speaks of.
        """
        path = PurePosixPath(record.checkpoint)
        self._above: set[str] = set()
        self._folder = str(path.parent)
        self._series: set[str] = set()
        self._companions: set[str] = set()
        self._wants_directory = _is_file(record)
        self._is_last = _is_file(record) and "#" not in series(path.name) and may_track(path.name)
        self._named = set(named)
        self._sweeps = set(_sweeps(record, commits))
        self._written = _still_written(record, commits)
        self.has(record)

    def wants(self, commit: CommitRecord) -> bool:
        """Whether this one belongs beside it."""
        folder = str(PurePosixPath(commit.checkpoint).parent)
        if is_side(commit.checkpoint):
            return False  # SQLite would take it for what lay beside the database that comes now
        if is_companion(commit):
            return commit.checkpoint not in self._companions and folder in self._above
        if commit.checkpoint in self._named:
            return True
        mine = series(commit.checkpoint)
        if mine in self._series:
            return False
        lasts = self._wants_directory
        if _is_file(commit):
            lasts = self._is_last or "#" not in mine or bool(_BEST.search(mine))
        ours = self._sweeps.intersection(map(str, PurePosixPath(commit.checkpoint).parents))
        return (lasts and folder == self._folder) or mine in self._written or bool(ours)

    def has(self, commit: CommitRecord) -> None:
        """This one is there now, or something is where it belongs."""
        if is_companion(commit):
            self._companions.add(commit.checkpoint)
            return
        self._named.discard(commit.checkpoint)
        self._above |= {str(parent) for parent in PurePosixPath(commit.checkpoint).parents}
        self._series.add(series(commit.checkpoint))
        if _is_file(commit):
            self._series |= {series(commit.below(entry.path)) for entry in commit.files}
        elif str(PurePosixPath(commit.checkpoint).parent) == self._folder:
            self._wants_directory = False


@dataclass
class Along:
    """What became of that which belongs beside a checkpoint."""

    brought: list[CommitRecord] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    """What was not intact, and why."""

    left_out: list[str] = field(default_factory=list)
    """What could not be brought, and why."""

    there: list[CommitRecord] = field(default_factory=list)
    """What lay there already, or something else where it belongs."""

    not_newest: list[CommitRecord] = field(default_factory=list)
    """Companions of which a newer version stays in the store."""


def bring_along(
    record: CommitRecord,
    commits: Sequence[CommitRecord | Corrupt],
    root: Path,
    restore: Callable[[CommitRecord], object],
) -> Along:
    """Have ``restore`` bring what lay beside ``record``, as far as nothing is there yet.

    Companions come last: they accompany all that has come.
    """
    along, alongside = Along(), Alongside(record, commits, _best_of(record, root))
    known = [commit for commit in commits if isinstance(commit, CommitRecord)]
    others = (commit for commit in known if not is_companion(commit))
    _bring(others, record, along, alongside, root, restore)
    there = [record, *along.brought, *along.there]
    texts = Companions(known)
    for path in texts.paths:
        mine = owner(path, there)
        versions = texts.as_of(mine, path)
        if not versions:
            along.left_out.append(
                f"{path}: the store has none that was saved with {mine.checkpoint}"
            )
        before = len(along.brought)
        _bring(versions, record, along, alongside, root, restore)
        for brought in along.brought[before:]:
            if brought is not texts.newest(path):
                along.not_newest.append(brought)
    return along


def _bring(
    wanted: Iterable[CommitRecord],
    record: CommitRecord,
    along: Along,
    alongside: Alongside,
    root: Path,
    restore: Callable[[CommitRecord], object],
) -> None:
    for commit in wanted:
        if not alongside.wants(commit):
            continue
        if any(os.path.lexists(root / place) for place in places_of(commit)):
            alongside.has(commit)
            if not is_companion(commit):
                along.there.append(commit)
            continue
        targets = [link.target for link in commit.links if not link.path]
        if any(_leads_nowhere(root, commit, to, [record, *along.brought]) for to in targets):
            alongside.has(commit)  # it points to a checkpoint that was not brought back
            continue
        try:
            restore(commit)
        except (Corrupt, ValueError, OverflowError) as error:
            along.rejected.append(f"{commit.checkpoint} (commit {commit.seq}): {error}")
            continue
        except (Permanent, OSError) as error:
            along.left_out.append(f"{commit.checkpoint} (commit {commit.seq}): {error}")
            alongside.has(commit)  # an older one is no answer to that
            continue
        alongside.has(commit)
        along.brought.append(commit)


def _sweeps(record: CommitRecord, commits: Iterable[CommitRecord | Corrupt]) -> Iterator[str]:
    """The folders above a checkpoint in which the state of a sweep lies."""
    above = {str(parent) for parent in PurePosixPath(record.checkpoint).parents}
    for commit in commits:
        if isinstance(commit, CommitRecord):
            path = PurePosixPath(commit.checkpoint)
            if _SWEEP.fullmatch(path.name) and str(path.parent) in above:
                yield str(path.parent)


def _best_of(record: CommitRecord, root: Path) -> list[str]:
    """Which checkpoint is the best so far, where a trainer's state names it (Hugging Face).

    It is loaded at the end of the training.
    """
    for entry in record.files:
        if entry.path.rpartition("/")[2] == _STATE and entry.size <= _STATE_LIMIT:
            with suppress(OSError, ValueError, AttributeError, TypeError):
                state = json.loads((root / record.below(entry.path)).read_bytes())
                name = PurePosixPath(state.get("best_model_checkpoint") or "").name
                return [str(PurePosixPath(record.checkpoint).parent / name)] if name else []
    return []


class Companions:
    """The versions of each companion, and which of them belongs to a checkpoint.

    A ``state.json`` that is written with each ``model.pt`` is in the store long before it. If the
    one that was written about the time of the model is there, a later one is of another save,
    which may never have arrived.
    """

    def __init__(self, commits: Iterable[CommitRecord]) -> None:
        """Of ``commits``, newest first."""
        self._versions: defaultdict[str, list[CommitRecord]] = defaultdict(list)
        self._others: list[CommitRecord] = []
        for commit in commits:
            if is_companion(commit):
                self._versions[commit.checkpoint].append(commit)
            else:
                self._others.append(commit)

    @property
    def paths(self) -> list[str]:
        """Those that there are, the newest first."""
        return list(self._versions)

    def newest(self, path: str) -> CommitRecord:
        """The newest version of one."""
        return self._versions[path][0]

    def as_of(self, record: CommitRecord, path: str) -> list[CommitRecord]:
        """The versions of one, first that which belongs to ``record``, then the newest first.

        Of logs, code and pictures, and of links, that is always the newest. Of torchtune's state
        only what was written after these weights and before the next ones: the trainer says
        what is missing, and would not see that it is another epoch's.
        """
        found = self._versions[path]
        if path.rpartition("/")[2] == RECIPE and is_step(record.checkpoint.rpartition("/")[2]):
            return self._saved_after(record, found)
        if len(found) == 1 or found[0].links or not tells_of_state(path):
            return found
        at = _written(record)
        far = [abs(_written(one) - at) for one in found]
        near = far.index(min(far))
        if far[near] * _FAR > far[0]:
            return found
        return [found[near], *found[:near], *found[near + 1 :]]

    def _saved_after(
        self, record: CommitRecord, versions: Iterable[CommitRecord]
    ) -> list[CommitRecord]:
        """Those that were written before the next of its series was, the oldest first."""
        at = _written(record)
        mine = series(record.checkpoint)
        times = (_written(one) for one in self._others if series(one.checkpoint) == mine)
        until = min((time for time in times if time > at), default=math.inf)
        return sorted((v for v in versions if at <= _written(v) < until), key=_written)


def owner(path: str, there: Sequence[CommitRecord]) -> CommitRecord:
    """Which of several checkpoints a companion belongs to: the first in the innermost folder."""

    def shared(record: CommitRecord) -> int:
        parents = {str(parent) for parent in PurePosixPath(record.checkpoint).parents}
        above = PurePosixPath(path).parent
        return len(above.parts) if str(above) in parents else -1

    return max(there, key=shared)


def _leads_nowhere(
    root: Path, link: CommitRecord, target: str, there: Iterable[CommitRecord]
) -> bool:
    """Whether a link leads to nothing, and will not be made to lead to one of those there."""
    path = link.checkpoint
    there_is = os.path.exists  # Path.exists raises where a name is too long
    if there_is((root / path).parent / target):
        return False
    return not (may_track(path) and any(leads_to(path, target, c.checkpoint) for c in there))


@contextmanager
def noted(root: Path, record: CommitRecord) -> Iterator[None]:
    """Have a folder in the root meanwhile whose name tells the number of the commit.

    So the next restore goes on with what a kill, or a store that does not answer, has cut off.
    Where no such folder can be made there is none.
    """
    for older in root.glob(f"{_BEGUN}*"):
        remove(older)
    note = root / f"{_BEGUN}{record.seq}"
    with suppress(OSError):
        note.mkdir(parents=True)
    try:
        if note.is_dir():
            sync_folder(root)
        yield
    except (Corrupt, Permanent, OSError, ValueError, OverflowError):  # it is not restored at all
        remove(note)
        raise
    remove(note)


def cut_off(root: Path, commits: Iterable[CommitRecord | Corrupt]) -> CommitRecord | None:
    """The commit that was restored here, but not all that lay beside it."""
    begun = {path.name.removeprefix(_BEGUN) for path in root.glob(f"{_BEGUN}*")}
    known = (commit for commit in commits if isinstance(commit, CommitRecord))
    return next((commit for commit in known if str(commit.seq) in begun), None)


def places_of(record: CommitRecord) -> list[str]:
    """Where a commit belongs, below the root."""
    return [record.checkpoint, *(record.below(entry.path) for entry in record.files)]


def places_on_disk(unit: Unit) -> list[str]:
    """What there is to move, below the root, so that all of a checkpoint is moved."""
    sides = [f"{unit.path}{end}" for end in SIDE_FILES] if "" in unit.databases else []
    return [unit.below(path) for path, _ in unit.files] if unit.beside else [unit.path, *sides]


class Occupied:
    """Places that newer commits have, which older ones must leave to them."""

    def __init__(self) -> None:
        """None yet."""
        self._places: set[str] = set()
        self._above: set[str] = set()

    def lies_at(self, record: CommitRecord) -> bool:
        """Whether one of its places is taken, or lies in or around one."""
        places, above = self._of(record)
        return not self._places.isdisjoint(places | above) or not self._above.isdisjoint(places)

    def take(self, record: CommitRecord) -> None:
        """This one is there."""
        places, above = self._of(record)
        self._places |= places
        self._above |= above

    @staticmethod
    def _of(record: CommitRecord) -> tuple[set[str], set[str]]:
        places = set(places_of(record) if _is_file(record) else [record.checkpoint])
        return places, {str(parent) for p in places for parent in PurePosixPath(p).parents}


def _is_file(record: CommitRecord) -> bool:
    """Whether it is one file, or several in a folder of others."""
    return record.beside or [entry.path for entry in record.files] == [""]


def _still_written(record: CommitRecord, commits: Iterable[CommitRecord | Corrupt]) -> set[str]:
    """The series that were written when ``record`` was, by the times of their files."""
    times: dict[str, list[int]] = {}
    for commit in commits:
        if isinstance(commit, CommitRecord) and commit.files and not is_companion(commit):
            times.setdefault(series(commit.checkpoint), []).append(_written(commit))
    still = set()
    for mine, found in times.items():
        newest, *before = sorted(found, reverse=True)
        awaited = max(_LATE * (newest - before[0]), _AT_LEAST) if before else _ONCE
        if _written(record) - newest <= awaited:
            still.add(mine)
    return still


def _written(record: CommitRecord) -> int:
    """Nanoseconds since the epoch."""
    return max((entry.mtime_ns for entry in record.files), default=0)
