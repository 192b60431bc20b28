"""A minute of the torture rig: machines are lost, and what comes back is whole."""

from __future__ import annotations

import pytest

from tests.faults.torture import torture


@pytest.mark.slow
def test_nothing_that_comes_back_is_torn_or_mixed() -> None:
    trials = torture(1.0, seed=1, settings={})
    assert len(trials) >= 5
    assert [t for t in trials if not t.verdict.startswith(("intact", "nothing"))] == []
    assert sum(t.verdict == "intact" for t in trials) > len(trials) / 2
