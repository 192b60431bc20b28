"""What a restore brings beside a checkpoint, so that the trainer finds all that it goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from syncd.errors import Corrupt
from syncd.profiles import COMPANION
from syncd.records import CommitRecord
from syncd.series import series

_LATE = 2
"""Times the pause between the last two of a series after which no other is awaited."""


def is_companion(record: CommitRecord) -> bool:
    """Whether a commit is of what only accompanies checkpoints."""
    return record.profile == COMPANION.name


class Alongside:
    """Chooses among the other commits, which it is asked about newest first.

    Companions; and of other series the newest that is intact, for nobody knows which of
    ``last.pt``, ``replay/`` and ``study.db`` a trainer goes on from. Of files in the same folder
    every one, and the newest directory where the checkpoint is a file itself; else those that
    were still written: the next of such a series was not overdue yet.
    """

    def __init__(
        self, record: CommitRecord, commits: Iterable[CommitRecord | Corrupt] = ()
    ) -> None:
        """``record`` is what has been restored, ``commits`` are all, newest first."""
        path = PurePosixPath(record.checkpoint)
        self._above = {str(parent) for parent in path.parents}
        self._folder = str(path.parent)
        self._series: set[str] = set()
        self._companions: set[str] = set()
        self._wants_directory = _is_file(record)
        self._written = _still_written(record, commits)
        self.has(record)

    def wants(self, commit: CommitRecord) -> bool:
        """Whether this one belongs beside it."""
        folder = str(PurePosixPath(commit.checkpoint).parent)
        if is_companion(commit):
            newest = commit.checkpoint not in self._companions
            self._companions.add(commit.checkpoint)
            return newest and folder in self._above
        mine = series(commit.checkpoint)
        if mine in self._series:
            return False
        near = folder == self._folder and (_is_file(commit) or self._wants_directory)
        return near or mine in self._written

    def has(self, commit: CommitRecord) -> None:
        """This one is there now, or something is where it belongs."""
        if is_companion(commit):
            return
        self._series.add(series(commit.checkpoint))
        if _is_file(commit):
            self._series |= {series(commit.below(entry.path)) for entry in commit.files}
        elif str(PurePosixPath(commit.checkpoint).parent) == self._folder:
            self._wants_directory = False


def _is_file(record: CommitRecord) -> bool:
    """Whether it is one file, or several in a folder of others."""
    return record.beside or [entry.path for entry in record.files] == [""]


def _still_written(record: CommitRecord, commits: Iterable[CommitRecord | Corrupt]) -> set[str]:
    """The series that were written when ``record`` was, by the times of their files.

    One of a single commit is measured by the time since the oldest of all.
    """
    times: dict[str, list[int]] = {}
    for commit in commits:
        if isinstance(commit, CommitRecord) and commit.files and not is_companion(commit):
            times.setdefault(series(commit.checkpoint), []).append(_written(commit))
    first = min(map(min, times.values()), default=0)
    still = set()
    for mine, found in times.items():
        newest, before, *_ = (*sorted(found, reverse=True), first)
        if _written(record) - newest <= _LATE * (newest - before):
            still.add(mine)
    return still


def _written(record: CommitRecord) -> int:
    """Nanoseconds since the epoch."""
    return max((entry.mtime_ns for entry in record.files), default=0)
