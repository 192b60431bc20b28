"""torchtune's weights and the state of their epoch: never those of one with that of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncd.alongside import Companions
from syncd.detect import Detector, Verdict
from syncd.records import CommitRecord
from syncd.scan import scan
from syncd.siblings import Committed
from syncd.units import units
from tests.clocks import FakeClock
from tests.workbench import LAYOUT, Machine, age, restorer, tree

STATE = "out/recipe_state/recipe_state.pt"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One epoch is saved, and in the store."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    age(write_weights(machine, 0), 100)
    age(machine.write(STATE, b"\x80\x02K\x00."), 90)
    machine.commit_all()
    assert [record.checkpoint for record in machine.commit_all()] == ["out/epoch_0"]
    return machine


def write_weights(machine: Machine, epoch: int) -> Path:
    return machine.write(f"out/epoch_{epoch}/model.bin", b"\x80\x02K" + bytes([epoch]) + b".")


def judge(machine: Machine, quiet: float, path: str = "out/epoch_1") -> Verdict:
    """As seen by a daemon with SYNCD_SETTLE=2, when nothing has changed for so long."""
    tree = scan(machine.root)
    assert tree
    unit = next(unit for unit in units(tree) if unit.path == path)
    clock = FakeClock(now=unit.changed / 1e9 + quiet)
    committed = Committed(machine.journal, LAYOUT)
    return Detector(machine.root, 2.0, clock, committed=committed).judge(unit)


def test_weights_wait_until_the_state_of_their_epoch_is_in_the_store(machine: Machine) -> None:
    write_weights(machine, 1)
    with (machine.root / STATE).open("wb") as state:
        state.write(b"\x80\x02K")
        state.flush()
        assert machine.commit_all() == []
        waiting = {item.path: item.reason for item in machine.pipeline.look().incomplete}
        assert waiting["out/epoch_1"] == f"{STATE}, which belongs to it, is not in the store yet"
        state.write(b"\x01.")
    assert [record.checkpoint for record in machine.commit_all()] == ["out/recipe_state"]
    assert [record.checkpoint for record in machine.commit_all()] == ["out/epoch_1"]


def test_weights_wait_for_a_state_that_is_about_to_be_written(machine: Machine) -> None:
    write_weights(machine, 1)
    assert "is not in the store yet" in judge(machine, 9.0).reason
    assert judge(machine, 9.0).again is not None


def test_last_weights_of_a_training_get_no_state_and_are_committed(machine: Machine) -> None:
    write_weights(machine, 1)
    assert judge(machine, 10.1).complete


def test_first_weights_have_no_state_beside_them(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    write_weights(machine, 1)
    assert judge(machine, 10.1).complete


def test_state_goes_first_after_a_restart_as_well(
    machine: Machine,
) -> None:
    again = Machine(machine.disk, machine.bucket, "writer-b").start()
    write_weights(again, 1)
    again.write(STATE, b"\x80\x02K\x01.")
    for expected in ("out/recipe_state", "out/epoch_1"):
        assert [record.checkpoint for record in again.commit_all()] == [expected]


def test_weights_whose_state_was_written_over_before_it_was_sent_wait_no_more(
    machine: Machine,
) -> None:
    age(write_weights(machine, 1), 50)
    machine.write(STATE, b"\x80\x02K\x01.")
    write_weights(machine, 2)
    assert judge(machine, 10.1).complete
    assert "is not in the store yet" in judge(machine, 9.0, "out/epoch_2").reason


def test_state_of_another_epoch_is_not_brought_beside_weights(
    machine: Machine, tmp_path: Path
) -> None:
    age(write_weights(machine, 1), 50)
    assert [record.checkpoint for record in machine.commit_all()] == ["out/epoch_1"]
    back = restorer(machine.bucket)
    result = back.restore_newest(back.commits(), tmp_path / "two")
    assert sorted(tree(tmp_path / "two")) == ["out/epoch_1/model.bin"]
    assert result.along.left_out == [
        "out/recipe_state: the store has none that was saved with out/epoch_1"
    ]


def test_each_epoch_has_the_state_that_was_saved_with_it(machine: Machine) -> None:
    age(write_weights(machine, 1), 50)
    machine.commit_all()
    age(write_weights(machine, 2), 20)
    machine.write(STATE, b"\x80\x02K\x02.")
    machine.commit_all()
    machine.commit_all()
    commits = [one for one in restorer(machine.bucket).commits() if isinstance(one, CommitRecord)]
    texts = Companions(commits)
    own = {one.checkpoint: texts.as_of(one, "out/recipe_state") for one in commits}
    seqs = {path: [one.seq for one in own[path]] for path in sorted(own) if "epoch" in path}
    assert seqs == {"out/epoch_0": [1], "out/epoch_1": [], "out/epoch_2": [4]}
