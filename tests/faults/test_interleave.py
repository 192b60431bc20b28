"""Two or three writers over one store, in every order: nothing committed is ever lost or stale."""

from __future__ import annotations

import pytest

from tests.faults.interleave import run

pytestmark = pytest.mark.first

CAUGHT = {
    45: "a pruning that slept deleted what another had begun to use again",
    60: "a commit learnt while claiming left its plain key trusted as a source of copies",
    63: "a number that was pruned while it was read was claimed again",
    272: "a pruning judged what another had taken out by a view of the log from before",
    5108: "a life that ended while it learnt the log left outdated plain keys trusted",
    13279: "the same, and the next life learnt the rest",
    5196: "a pruning read the log while another pruned: the newest of a series was missing to it",
    8323: "the same, with a lone file",
    10394: "the same, of a checkpoint that leans on an older commit's objects",
    10648: "the same, by a person who slept",
    361: "records were taken out newest first: the older one then told only half",
}
"""Seeds that once ended with something torn, and by what."""


@pytest.mark.parametrize("seed", CAUGHT, ids=str)
def test_what_was_once_torn_is_not(seed: int) -> None:
    assert [words for _, words, _ in run(range(seed, seed + 1))] == [""]


def test_a_death_while_learning_the_log_trusts_no_stale_name() -> None:
    """What was learnt was known to the next life, what it meant for plain keys was not."""
    assert [words for _, words, _ in run(range(191, 192), parts=True)] == [""]


@pytest.mark.slow
def test_uploads_that_others_go_on_with() -> None:
    results = list(run(range(300), parts=True))
    assert [(seed, words) for seed, words, _ in results if words] == []


@pytest.mark.slow
def test_side_by_side_where_nobody_can_be_fenced() -> None:
    results = list(run(range(300), numbered=True))
    assert [(seed, words) for seed, words, _ in results if words] == []


@pytest.mark.slow
def test_a_thousand_interleavings() -> None:
    results = list(run(range(1000)))
    assert [(seed, words) for seed, words, _ in results if words] == []
    assert sum(commits for _, _, commits in results) > 5000
