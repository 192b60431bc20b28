"""What is never complete is never safe: somebody has to say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from syncd.backlog import Backlog
from syncd.detect import Verdict
from syncd.health import Health
from syncd.scan import scan
from syncd.units import Unit, units
from tests.clocks import FakeClock
from tests.workbench import Machine

NOT_YET = Verdict(False, reason="changed just now")


class Desk:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.backlog = Backlog(self.clock, str)
        (folder / "backup").mkdir()
        for name in ("weights.bin", "state.json"):
            (folder / "backup" / name).write_bytes(b"{}")
        tree = scan(folder)
        assert tree
        (self.unit,) = units(tree)

    def written(self) -> Unit:
        """As it is if it is written to now."""
        now = int(self.clock.now() * 1e9)
        files = tuple((name, stat._replace(ctime_ns=now)) for name, stat in self.unit.files)
        return replace(self.unit, files=files)

    def minutes(self, count: int, verdict: Verdict = NOT_YET) -> list[str]:
        for _ in range(count):
            self.clock.sleep(60)
            self.backlog.judged(self.written(), verdict)
        return list(self.backlog.restless())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_what_is_written_to_for_half_an_hour_is_named(desk: Desk) -> None:
    assert desk.minutes(30) == []
    assert desk.minutes(1) == ["backup"]
    assert desk.minutes(60) == ["backup"]
    assert desk.minutes(1, Verdict(True, "set")) == []
    assert desk.minutes(30) == [], "it was complete in between"
    assert desk.minutes(1) == ["backup"]
    desk.backlog.drop("backup")
    assert desk.backlog.restless() == {}


def test_the_log_says_so_after_five_minutes_and_names_the_file(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    health = Health(desk.clock)
    for minute in range(12):
        desk.minutes(1)
        desk.backlog.tell_restless(health)
        assert len(caplog.messages) == (minute >= 5), "once"
    assert "the last was backup/weights.bin" in caplog.messages[0]
    assert "SYNCD_EXCLUDE" in caplog.messages[0]
    assert health.reasons() == []
    desk.minutes(1, Verdict(True, "set"))
    desk.backlog.tell_restless(health)
    desk.minutes(7)
    desk.backlog.tell_restless(health)
    assert len(caplog.messages) == 2, "it is so again"


def test_what_lies_there_half_written_is_not(desk: Desk) -> None:
    """A machine was lost while it saved: that is no news."""
    desk.minutes(5)
    left = desk.written()
    for _ in range(60):
        desk.clock.sleep(60)
        desk.backlog.judged(left, NOT_YET)
    assert desk.backlog.restless() == {}


def test_health_says_so_until_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncd.backlog._LONG", 0.0)
    machine = Machine(tmp_path / "one", tmp_path / "bucket", settle=60.0).start()
    machine.write("backup/weights.bin", "w")
    machine.pipeline.look()
    (reason,) = machine.health.reasons()
    assert (reason.code, "never complete" in reason.message) == ("restless backup", True)
    assert "SYNCD_EXCLUDE" in reason.hint
    (machine.root / "backup/weights.bin").unlink()
    machine.pipeline.look(thorough=True)
    assert machine.health.reasons() == []
