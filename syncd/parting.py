"""Two histories in one log: where nobody can be fenced, writers may go on side by side.

Each record of such a writer says how much of the log it knew (``after``). A writer that has gone
on after another had joined has parted from it. It is over when a daemon that was started later
knows both: it has gone on from one of them, and both stay in the log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from syncd.records import CommitRecord

HINT = (
    "the store cannot refuse a second writer: stop one of the machines and restart syncd on the "
    "other, or give each its own CLOUD_PREFIX; both lines of checkpoints can be restored"
)


@dataclass(frozen=True)
class Parting:
    """Histories that go on side by side: the newest commit of each, newest first."""

    since: int
    """The last commit that all of them knew; 0: they have nothing in common."""

    heads: tuple[CommitRecord, ...]

    def words(self) -> str:
        """For a person: what has happened, and how to get at each of them."""
        lines = " and ".join(
            f"writer {head.writer} (newest: {head.checkpoint} of {head.committed_at}, "
            f"restore --at '#{head.seq}')"
            for head in self.heads
        )
        common = f"since commit {self.since}" if self.since else "from the beginning"
        return f"{len(self.heads)} machines have written side by side {common}: {lines}"


@dataclass
class _Life:
    joined: int
    last: int
    commits: list[CommitRecord]


def parting(records: Iterable[CommitRecord]) -> Parting | None:
    """Whether a log, claims included, holds histories side by side."""
    lives: dict[str, _Life] = {}
    for record in records:
        if record.after is None:
            continue
        life = lives.setdefault(record.writer, _Life(record.after, record.seq, []))
        life.joined = min(life.joined, record.after)
        life.last = max(life.last, record.seq)
        if not record.is_claim:
            life.commits.append(record)
    latest = max((life.joined for life in lives.values()), default=0)
    parted: dict[str, int] = defaultdict(lambda: latest)
    for name, one in lives.items():
        for other_name, other in lives.items():
            if name == other_name or one.joined > other.joined or not other.commits:
                continue
            went_on = any(commit.seq > other.joined for commit in one.commits)
            if went_on and latest < max(one.last, other.last):
                for either in (name, other_name):
                    parted[either] = min(parted[either], other.joined)
    if not parted:
        return None
    heads = (max(lives[name].commits, key=lambda record: record.rank) for name in parted)
    newest = sorted(heads, key=lambda record: record.rank, reverse=True)
    return Parting(min(parted.values()), tuple(newest))
