"""Commands that take hours: a late broken connection ends none, a store that is gone does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd import datafile, manual
from syncd.config import Environment, Settings, load_settings
from syncd.errors import Transient
from syncd.stores.base import Buffer, Condition, ObjectInfo
from syncd.stores.directory import DirectoryStore
from tests.clocks import FakeClock
from tests.e2e.processes import Machine

SIZE = 20_000_000


class Line:
    """Takes an hour for each chunk, and breaks at some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.carried = 0
        self.breaks_at = range(3, 4)
        read, put = DirectoryStore.read, DirectoryStore.put

        def slow_read(
            store: DirectoryStore, key: str, start: int = 0, length: int | None = None,
            version: str | None = None,
        ) -> Iterator[bytes]:  # fmt: skip
            for chunk in read(store, key, start, length, version):
                self._carry()
                yield chunk

        def slow_put(
            store: DirectoryStore, key: str, data: Buffer, condition: Condition = None
        ) -> ObjectInfo:
            self._carry()
            return put(store, key, data, condition)

        monkeypatch.setattr(DirectoryStore, "read", slow_read)
        monkeypatch.setattr(DirectoryStore, "put", slow_put)
        for module in (manual, datafile):
            monkeypatch.setattr(module, "SystemClock", lambda: self.clock)

    def _carry(self) -> None:
        self.carried += 1
        self.clock.sleep(3600)
        if self.carried in self.breaks_at:
            raise Transient("connection reset by peer")


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(monkeypatch)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """One checkpoint and one data file are in the bucket."""
    (tmp_path / "bucket").mkdir()
    machine = Machine(tmp_path / "disk", {"CLOUD_BUCKET": str(tmp_path / "bucket")})
    machine.write_checkpoint("run/gen-000001", {"weights.bin": os.urandom(SIZE)})
    assert machine.syncd("--once").returncode == 0
    (machine.disk / "market.csv").write_bytes(os.urandom(SIZE))
    assert machine.syncd("data", "put", "market.csv").returncode == 0
    given = {"CLOUD_BUCKET": str(tmp_path / "bucket"), "SYNCD_HTTP": "off"}
    places = {name: str(tmp_path / name) for name in ("CHECKPOINT_DIR", "SYNCD_STATE_DIR")}
    return load_settings(Environment({**given, **places}, tmp_path / "no-file"))


def restore(settings: Settings, retry_for: float = 60.0) -> int:
    return manual.restore(settings, None, None, False, False, retry_for)


def test_a_restore_survives_what_breaks_late(settings: Settings, line: Line) -> None:
    assert restore(settings) == 0
    assert line.carried > line.breaks_at.start
    assert (settings.checkpoint_dir / "run" / "gen-000001" / "weights.bin").stat().st_size == SIZE


def test_a_verification_does(settings: Settings, line: Line) -> None:
    assert manual.verify(settings, as_json=True) == 0
    assert line.carried > line.breaks_at.start


def test_the_data_file_does_in_both_directions(
    settings: Settings, line: Line, tmp_path: Path
) -> None:
    assert "verified" in datafile.get(settings, "market.csv", tmp_path / "back.csv")
    assert line.carried > line.breaks_at.start
    line.breaks_at = range(line.carried + 1, line.carried + 2)
    assert "20.0 MB" in datafile.put(settings, tmp_path / "back.csv")
    assert line.carried > line.breaks_at.start


def test_a_store_that_goes_for_good_is_given_up(settings: Settings, line: Line) -> None:
    line.breaks_at = range(3, 10_000)
    assert restore(settings) == 1
    assert line.carried < 10
