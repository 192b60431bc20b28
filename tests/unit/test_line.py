"""The mirror gives way to the first store, and says so when that never ends."""

from __future__ import annotations

import errno
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from syncd.backlog import Look
from syncd.clock import SystemClock
from syncd.config import Environment, load_settings
from syncd.engine import Engine
from syncd.health import Health, Waiting
from syncd.line import Ending, Line
from syncd.opening import open_journal
from syncd.profiles import SET
from syncd.spare import Spare
from syncd.units import Unit
from tests.clocks import FakeClock
from tests.workbench import engine_on


class Busy(Line):
    """A first store that always has something to send."""

    def busy(self) -> bool:
        return True


def test_mirror_that_never_gets_its_turn_says_so(tmp_path: Path) -> None:
    clock = FakeClock()
    environ = {"CHECKPOINT_DIR": str(tmp_path), "SYNCD_STATE_DIR": str(tmp_path / "state")}
    environment = Environment(environ, tmp_path / ".env")

    def line(kind: type[Line], first: Line | None = None) -> Line:
        health = Health(clock)
        return kind(
            environment,
            lambda: load_settings(environment),
            health,
            clock,
            "writer",
            Ending(),
            first=first,
        )

    mirror = line(Line, line(Busy))
    look = Look([(Unit("run/5", SET, ()), "set")])
    mirror.health.waiting([Waiting("run/5", 1, "waits")], [])
    for _ in range(60):
        mirror._mind_turn(look)
        mirror.health.beat()
        assert mirror.health.reasons() == []
        clock.sleep(59)
    clock.sleep(120)
    mirror._mind_turn(look)
    assert "no time for the mirror" in mirror.health.reasons()[0].message
    mirror._mind_turn(Look())
    assert mirror.health.reasons() == []


def test_first_store_that_takes_nothing_makes_nobody_wait() -> None:
    clock = FakeClock()
    health = Health(clock)
    assert not health.works(30)
    health.waiting([Waiting("run/5", 1, "waits")], [])
    assert health.works(30)
    health.sending("run/5", 100)
    clock.sleep(29)
    assert health.works(30)
    health.sent("key", 10)
    clock.sleep(29)
    assert health.works(30)
    clock.sleep(2)
    assert not health.works(30)


@pytest.mark.parametrize("what", ["the end", "a flush"])
def test_who_rests_goes_on_when_there_is_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What is under way rests at that moment for a minute, as beside busy cores."""
    resting = threading.Event()

    def charge(self: Spare) -> float:
        resting.set()
        return self._clock.monotonic() + 60.0

    monkeypatch.setattr(Spare, "_charge", charge)
    environ = {
        "CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "SYNCD_STATE_DIR": str(tmp_path / "state"),
        "CLOUD_PROVIDER": "local",
        "CLOUD_BUCKET": str(tmp_path / "bucket"),
        "SYNCD_SETTLE": "0",
    }
    for folder in ("checkpoints", "bucket"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoints/last.bin").write_bytes(bytes(range(256)) * 100_000)
    environment, clock, ending = Environment(environ, tmp_path / ".env"), SystemClock(), Ending()
    line = Line(
        environment, lambda: load_settings(environment), Health(clock), clock, "writer", ending
    )
    line.start()
    assert resting.wait(30)
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    if what == "a flush":
        line.ask_flush(answers.put)
        assert answers.get(timeout=30)["safe"]
    ending.deadline = clock.monotonic() + 30
    ending.stopping.set()
    line.hurry()
    assert line.ended.wait(30)
    assert line.report
    assert line.report.safe
    assert line.health.snapshot()["commits"] == 1


def test_a_folder_that_nobody_makes_is_told(tmp_path: Path) -> None:
    """Its name is mistyped: all that is in it is safe, for ever."""
    clock = FakeClock()
    root = tmp_path / "chekpoints"
    environ = {"CHECKPOINT_DIR": str(root), "SYNCD_STATE_DIR": str(tmp_path / "state")}
    settings = load_settings(Environment(environ, tmp_path / ".env"))
    health = Health(clock)
    engine = Engine(settings, open_journal(settings), health, clock, threading.Event())
    clock.sleep(1799)
    engine.mind_folder()
    assert health.reasons() == []
    clock.sleep(2)
    engine.mind_folder()
    assert f"CHECKPOINT_DIR {root} is not there" in health.reasons()[0].message
    root.mkdir()
    engine.mind_folder()
    assert health.reasons() == []


def test_logs_that_fail_at_the_end_cost_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever way: what waits for quiet is committed after them."""
    engine = engine_on(tmp_path, SYNCD_SETTLE="0.2")
    (tmp_path / "checkpoints/last.bin").write_bytes(b"weights")

    def ship(*_args: object, **_kwargs: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(engine.logs, "ship", ship)
    report = engine.flush(lambda: False)
    assert report.committed == 1
    assert report.failed == (("the logs", "[Errno 116] Stale file handle"),)
    engine.disconnect()
