"""A clock that was ahead, and is set back, makes no old checkpoint newer than the next ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncd.clock import SystemClock
from syncd.retention import Retention
from tests.workbench import LAYOUT, Machine, age, engine_on, restore_newest

AHEAD = -3600
"""Seconds ago that something was written by a clock that is an hour ahead."""


def save(machine: Machine, step: int, ahead: bool = False) -> list[str]:
    path = machine.write(f"step-{step}/model.bin", b"%d" % step)
    if ahead:
        age(path, AHEAD + step / 1000)
    return [record.checkpoint for record in machine.commit_all()]


def newest(machine: Machine, tmp_path: Path) -> str:
    record = restore_newest(machine.bucket, tmp_path / "back")
    assert record
    return record.checkpoint


def test_what_is_saved_after_it_is_sent_though_few_are_kept(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket", keep_last=1).start()
    assert save(machine, 100, ahead=True) == ["step-100"]
    for step in (200, 300):
        assert save(machine, step) == [f"step-{step}"]
    units = {unit.path: unit for unit, _ in machine.pipeline.look(thorough=True).pending}
    assert units == {}
    assert newest(machine, tmp_path) == "step-300"


def test_the_next_machine_commits_though_the_lost_ones_clock_was_ahead(tmp_path: Path) -> None:
    lost = Machine(tmp_path / "one", tmp_path / "bucket", keep_last=1).start()
    save(lost, 100, ahead=True)
    machine = Machine(tmp_path / "two", tmp_path / "bucket", "writer-b", keep_last=1)
    record = restore_newest(machine.bucket, machine.root)
    assert record
    machine.start()
    for unit, _ in machine.pipeline.look().pending:
        machine.journal.mark_safe(unit.path, unit.signature, record.seq, unit.changed)
    machine.pipeline.look(thorough=True)
    for step in (110, 120):
        assert save(machine, step) == [f"step-{step}"]
    assert newest(machine, tmp_path) == "step-120"


@pytest.mark.parametrize("what", ["another life of the daemon", "another connection"])
def test_what_is_saved_after_it_is_behind_nothing(tmp_path: Path, what: str) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    save(machine, 100, ahead=True)
    if what == "another connection":
        moments = machine.publisher.moments
        machine.publisher = type(machine.publisher)(
            machine.root,
            machine.publisher._store,
            machine.journal,
            LAYOUT,
            machine.transfer,
            SystemClock(),
            machine.writer,
        )
        machine.publisher.moments = moments
        machine.start()
    else:
        machine.journal.close()
        machine = Machine(machine.disk, machine.bucket, "writer-b").start()
        machine.commit_all()
    save(machine, 200)
    assert newest(machine, tmp_path) == "step-200"
    pruned = Retention(machine.publisher._store, LAYOUT, SystemClock()).prune(1)
    assert [record.checkpoint for record in pruned.commits] == ["step-100"]


def test_the_newest_stay_on_disk(tmp_path: Path) -> None:
    """As the order of the commits says, whatever the times of the files."""
    engine = engine_on(tmp_path, SYNCD_KEEP_LAST_LOCAL="2")
    for step in (100, 200, 300, 400):
        path = tmp_path / f"checkpoints/step-{step}/model.bin"
        path.parent.mkdir()
        path.write_bytes(b"%d" % step)
        if step < 300:
            age(path, AHEAD + step / 1000)
        assert engine.flush(lambda: False).safe
    engine.retain()
    engine.disconnect()
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-300", "step-400"]
