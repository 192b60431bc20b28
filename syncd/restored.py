"""What a restore may do, what it did, and which commit is meant."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from syncd.alongside import Along
from syncd.errors import Corrupt
from syncd.records import CommitRecord


class Replace(enum.Enum):
    """What becomes of something that is where a checkpoint belongs."""

    NO = "it stays, and the restore is refused"
    KEEP = "it is put aside, under a hidden name"
    DROP = "it is deleted"


@dataclass
class Restored:
    """What a restore did."""

    record: CommitRecord | None = None
    rejected: list[str] = field(default_factory=list)
    """Newer commits that were not intact: which, and why."""

    put_aside: Path | None = None
    """Where that lies now which was in the checkpoint's place."""

    along: Along = field(default_factory=Along)
    """What lay beside it."""


class LetGo(Exception):
    """Retention has deleted a commit while it was being restored."""


class Damaged(Exception):
    """A commit is not intact, and an older one has to be taken unless another store has it."""

    def __init__(self, record: CommitRecord, words: str) -> None:
        """``words`` say what is wrong with it."""
        super().__init__(words)
        self.record = record


def is_meant(commit: CommitRecord | Corrupt, at: str) -> bool:
    """Whether ``at`` names a commit: by the end of its path, its number, or both (``run#7``)."""
    if isinstance(commit, Corrupt):
        return False
    at, _, number = at.partition("#")
    if number and (str(commit.seq) != number or not at):
        return str(commit.seq) == number
    return commit.checkpoint == at.strip("/") or commit.checkpoint.endswith(f"/{at.strip('/')}")
