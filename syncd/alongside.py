"""What a restore brings beside a checkpoint, so that the folder it lies in is as it was."""

from __future__ import annotations

from pathlib import PurePosixPath

from syncd.profiles import COMPANION
from syncd.records import CommitRecord
from syncd.series import series


def is_companion(record: CommitRecord) -> bool:
    """Whether a commit is of what only accompanies checkpoints."""
    return record.profile == COMPANION.name


class Alongside:
    """Chooses among the other commits, which it is asked about newest first.

    Companions; of other files in the same folder the newest of each series, for nobody knows which
    of ``last.pt``, ``replay.bin`` and ``study.db`` a trainer goes on from; and where the checkpoint
    is a file itself, the newest directory.
    """

    def __init__(self, record: CommitRecord) -> None:
        """``record`` is what has been restored."""
        path = PurePosixPath(record.checkpoint)
        self._above = {str(parent) for parent in path.parents}
        self._folder = str(path.parent)
        self._series: set[str] = set()
        self._companions: set[str] = set()
        self._wants_directory = _is_file(record)
        self.has(record)

    def wants(self, commit: CommitRecord) -> bool:
        """Whether this one belongs beside it."""
        folder = str(PurePosixPath(commit.checkpoint).parent)
        if is_companion(commit):
            newest = commit.checkpoint not in self._companions
            self._companions.add(commit.checkpoint)
            return newest and folder in self._above
        if folder != self._folder:
            return False
        if _is_file(commit):
            return series(commit.checkpoint) not in self._series
        return self._wants_directory

    def has(self, commit: CommitRecord) -> None:
        """This one is there now, or something is where it belongs."""
        if _is_file(commit):
            self._series |= {series(commit.below(entry.path)) for entry in commit.files}
        elif not is_companion(commit):
            self._wants_directory = False


def _is_file(record: CommitRecord) -> bool:
    """Whether it is one file, or several in a folder of others."""
    return record.beside or [entry.path for entry in record.files] == [""]
