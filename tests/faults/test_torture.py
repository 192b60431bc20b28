"""The torture rig for a while: machines are lost, and what comes back is whole. And its controls.

``SYNCD_TORTURE_MINUTES`` is shared by the four stores, ``SYNCD_TORTURE_LANES`` is how many machines
live at a time. ``SYNCD_TORTURE_SEED`` says which trials, by default other ones every day. A trial
that failed once is done again for ever (``AGAIN``).
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Iterator

import pytest

from tests.faults.places import STORES
from tests.faults.torture import Rig, bad, rig, table, tasks
from tests.faults.trials import Trial
from tests.faults.writers import WRITERS
from tests.servers.process import NotInstalled

pytestmark = pytest.mark.first

MINUTES = float(os.environ.get("SYNCD_TORTURE_MINUTES", "2"))
SEED = int(os.environ.get("SYNCD_TORTURE_SEED", datetime.date.today().toordinal()))
LANES = int(os.environ.get("SYNCD_TORTURE_LANES", "2"))

AGAIN: dict[str, list[tuple[str, int]]] = {
    # a first checkpoint was under way: what lay at its plain keys came back as if put there by hand
    "s3": [("accelerate", 300004), ("stable_baselines3", 300013), ("eigen2", 300017)],
    "gcs": [
        ("hugging_face", 300003),
        ("hugging_face", 300018),
        ("lerobot", 1100056),  # weights renamed into a folder that was looked at before
        ("lightning", 1100008),  # the first record became a claim while a restore read it
        ("eigen2", 3100032),  # killed while it overwrote its set, and another writer began
    ],
    "azure": [("hugging_face", 300003), ("stable_baselines3", 300013)],
    "local": [("accelerate", 200019)],
}
"""Trials that have failed, by store."""


ENOUGH = 30
"""Trials of which most must bring something back; of a dozen, most may be lost too early for it."""


def _run(made: Rig, todo: Iterator[tuple[str, int]]) -> list[Trial]:
    trials = []
    for trial in made.run(todo):
        trials.append(trial)
        for words in trial.seen:
            print(f"seed {trial.seed} {trial.writer}: {words}\n    {trial.plan}")
    return trials


def _rig(store: str, control: str | None = None) -> Iterator[Rig]:
    try:
        with rig(store, LANES, control=control) as made:
            yield made
    except NotInstalled as missing:
        if os.environ.get("SYNCD_REQUIRE_SERVERS"):
            raise
        pytest.skip(str(missing))


@pytest.mark.figures
@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 15 + 400)
@pytest.mark.parametrize("store", STORES)
def test_nothing_that_comes_back_is_torn_or_mixed(store: str) -> None:
    print(f"python -m tests.faults.torture --store {store} --seed {SEED} --lanes {LANES}")
    for made in _rig(store):
        todo = itertools.chain(AGAIN[store], tasks([*WRITERS], SEED, MINUTES / 4, None))
        trials = _run(made, todo)
        print(table(trials, f"syncd on {store}"))
        assert trials
        assert bad(trials) == []
        if len(trials) >= ENOUGH:
            # those that only quiet time completes are mostly lost before their first has had it
            quick = [trial for trial in trials if not WRITERS[trial.writer].quiet]
            assert sum(trial.verdict == "intact" for trial in quick) > len(quick) / 2
            assert sum(trial.verdict == "intact" for trial in trials) > 0.4 * len(trials)


@pytest.mark.slow
@pytest.mark.parametrize("control", ["rclone", "aws"])
def test_plain_sync_in_a_loop_fails_in_the_same_rig(control: str) -> None:
    """Or the rig would prove nothing."""
    writers = ["dcp_reused", "eigen2", "hugging_face", "accelerate", "set_in_place"]
    for made in _rig("s3", control):
        failed = []
        for trial in made.run(tasks(writers, 4, 4.0, 60)):
            assert not [fault for fault in trial.faults if fault.startswith("rig")]
            failed += [trial] if bad([trial]) else []
            if len(failed) >= 2:
                break
        assert len(failed) >= 2
