"""Every fault turns ``/healthz`` red with the right reason within seconds; a clean day never does.

The faults are injected into real daemons: real stores, real disks, a line in between that does to
connections what networks do.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncd.config import Environment, load_settings
from syncd.engine import Engine
from syncd.health import Health
from syncd.lag import Lag
from syncd.opening import open_journal
from tests.clocks import FakeClock
from tests.e2e.processes import wait_until
from tests.faults.ailments import FAULTS, MIB
from tests.faults.healthrig import Rig

_LOOKS = 5.0
"""Seconds of a made day between two looks at the folder, as the daemon's own."""

BOUND = 10.0
"""Seconds from the fault to the red answer."""


@contextlib.contextmanager
def machines(folder: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    folder.mkdir(exist_ok=True)
    rig = Rig(folder, request)
    try:
        yield rig
    finally:
        rig.close()


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_red_with_its_reason_in_time(
    tmp_path: Path, request: pytest.FixtureRequest, fault: Callable[[Rig], str]
) -> None:
    """A shared machine stands still now and then: where one look is late, two more may not be."""
    took = []
    for name in ("", "2", "3"):
        with machines(tmp_path / name, request) as rig:
            took.append(red_after(rig, fault))
        if took[0] <= BOUND:
            break
    assert max(took[1:] or took) <= BOUND, took


def red_after(rig: Rig, fault: Callable[[Rig], str]) -> float:
    """Seconds until it is red with the right reason and a remedy."""
    words = fault(rig)

    def is_red() -> bool:
        status, text = rig.healthz()
        return status == 503 and words in text

    try:
        wait_until(is_red, repr(words), patience=15)
    except AssertionError:
        pytest.fail(f"not red for {words!r} but {rig.one.reasons()}; {rig.one.log()}")
    took = time.monotonic() - rig.since
    print(f"{fault.__name__}: red after {took:.1f} s")
    remedies = [reason["hint"] for reason in json.loads(rig.one.reasons())]
    assert all(remedies), "every reason has a remedy"
    return took


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 25


# -- a clean day


class Day(FakeClock):
    """A trainer saves every five minutes; health is asked each second that passes."""

    def __init__(self, root: Path, every: float, size: int) -> None:
        super().__init__()
        self._root, self._every, self._size = root, every, size
        self._next = self.now()
        self._busy = threading.RLock()
        self.ends = self.now() + 24 * 3600.0
        self.health: Health | None = None
        self.red: list[str] = []
        self.saves = self.beats = 0

    def sleep(self, seconds: float) -> None:
        until = self.now() + seconds
        while (step := min(1.0, until - self.now())) > 0:
            super().sleep(step)
            del self.waits[:]
            with self._busy:
                if self.now() >= self._next and self.now() < self.ends:
                    self._next += self._every
                    self._save()
                if self.health:
                    self.health.beat()
                    self.beats += 1
                    self.red += [reason.message for reason in self.health.reasons()]

    def _save(self) -> None:
        self.saves += 1
        target = self._root / f"run/gen-{self.saves:06}"
        aside = target.with_name(f".tmp-{target.name}")
        aside.mkdir(parents=True)
        (aside / "w.bin").write_bytes(self.saves.to_bytes(4, "big") * (self._size // 4))
        (aside / "state.json").write_text("{}")
        for path in (*aside.iterdir(), aside):
            os.utime(path, (self.now(), self.now()))
        aside.rename(target)


@pytest.mark.first
@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "size", "bwlimit"),
    [(300.0, 40_000, ""), (1800.0, 6 * MIB, "5K")],
    ids=["a save in five minutes", "each save takes 20 minutes to send"],
)
def test_clean_day_is_never_red(tmp_path: Path, every: float, size: int, bwlimit: str) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    (tmp_path / "bucket").mkdir()
    environ = {
        "CLOUD_BUCKET": str(tmp_path / "bucket"),
        "CHECKPOINT_DIR": str(root),
        "LOG_DIR": str(tmp_path / "logs"),
        "SYNCD_STATE_DIR": str(tmp_path / "state"),
        "SYNCD_KEEP_LAST": "5",
        "SYNCD_KEEP_LAST_LOCAL": "5",
        "SYNCD_BWLIMIT": bwlimit,
    }
    settings = load_settings(Environment(environ, tmp_path / "no-file"))
    day = Day(root, every, size)
    health = day.health = Health(day, lag=Lag(settings.max_lag, settings.bwlimit))
    engine = Engine(settings, open_journal(settings), health, day, threading.Event())
    engine.connect(settings)
    while day.now() < day.ends:
        engine.step(lambda: False)
        day.sleep(_LOOKS)
    engine.disconnect()
    state = health.snapshot()
    print(f"{day.saves} saves, {state['commits']} commits, {day.beats} looks, {len(day.red)} red")
    assert day.red == []
    assert day.beats > 80_000
    assert state["commits"] >= day.saves - 2
