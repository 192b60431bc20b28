"""Which of two stores is ahead: beyond doubt, in doubt, or not at all."""

from __future__ import annotations

import pytest

from syncd.errors import Corrupt
from syncd.fallback import newer_in
from syncd.records import CommitRecord, FileEntry


def commit(
    step: int, *, writer: str = "one", at: int | None = None, run: str = "run"
) -> CommitRecord:
    """A commit of a step, written at its number of seconds unless said otherwise."""
    at = step if at is None else at
    entry = FileEntry("w", "eigen2/w", 1, f"{step:064x}", 0o644, at * 10**9)
    return CommitRecord(
        step + 1, f"{run}/gen-{step:06}", writer, "2027-01-15T08:00:00.000Z", "set", (entry,)
    )


def test_what_follows_the_very_commit_is_newer() -> None:
    first = [commit(20), commit(10)]
    second: list[CommitRecord | Corrupt] = [
        commit(40, writer="two", at=1),
        Corrupt("broken"),
        commit(30),
        commit(20),
        commit(10),
    ]
    newer, doubt = newer_in(second, first[0], first)
    assert [record.checkpoint for record in newer] == ["run/gen-000040", "run/gen-000030"]
    assert doubt is None


def test_mirror_that_lags_has_nothing_newer() -> None:
    first = [commit(30), commit(20), commit(10)]
    assert newer_in([commit(20), commit(10)], first[0], first) == ([], None)
    assert newer_in([commit(30), commit(20)], first[0], first) == ([], None)
    assert newer_in([], first[0], first) == ([], None)


@pytest.mark.parametrize(
    ("record", "sure"),
    [
        (commit(90), True),  # a later step of the same life, which retention has cut off from it
        (commit(90, writer="two"), True),  # a later step of the same series
        (commit(90, run="other"), True),  # the same life went on to another run
        (commit(90, writer="two", run="other"), False),
        (
            commit(90, writer="two", at=5),
            False,
        ),  # a later step, written earlier: a branch left behind
        (commit(5, writer="two", at=90), False),  # an earlier step, written later: so is the other
        (commit(90, at=5), False),
    ],
)
def test_where_retention_has_cut_the_logs_apart(record: CommitRecord, sure: bool) -> None:
    first = [commit(20), commit(10)]
    newer, doubt = newer_in([record], first[0], first)
    assert (newer, doubt) == (([record], None) if sure else ([], record))
