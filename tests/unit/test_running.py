"""A log beside checkpoints, which never rests and is never closed, keeps none from its commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.detect import Verdict
from syncd.profiles import COMPANION, SET, Unit
from syncd.running import Pacer
from syncd.scan import Stat
from syncd.snapshot import Snapshots
from tests.clocks import FakeClock
from tests.unit.test_detect import Desk
from tests.workbench import Machine, restore_newest, tree

LOGS = (
    "train.log", "metrics.json", "results.csv", "events.out.tfevents.17.host.1.0", "log.txt",
    "20261127/vis_data/scalars.json",
)  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def save(desk: Desk, step: int) -> None:
    desk.write("out/args.yaml", "rate: 1")
    for name in (f"model_{step}.pth", "optimizer.pth"):
        desk.write(f"out/{name}", b"\x80\x02K" + bytes([step]) + b".")


def log_on(desk: Desk, path: str, seconds: float, every: float) -> Iterator[Verdict]:
    """The verdicts while a line comes now and then."""
    target = desk.root / "out" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    for line in range(int(seconds / every)):
        with target.open("a") as file:
            file.write(json.dumps({"line": line, "at": desk.clock.now()}) + "\n")
        yield desk.judge("out")
        desk.clock.sleep(every)


@pytest.mark.parametrize("every", [0.3, 3, 7])
@pytest.mark.parametrize("path", LOGS)
def test_log_that_never_rests_holds_nothing_up(desk: Desk, path: str, every: float) -> None:
    for step in (1, 2):
        save(desk, step)
        verdicts = list(log_on(desk, path, 25, every))
        waited = next((i for i, v in enumerate(verdicts) if v.complete), len(verdicts)) * every
        assert waited <= 10 + every, verdicts[-1].reason
        assert waited >= 2, "the save itself has to rest"
        desk.commit("out")


@pytest.mark.parametrize("path", LOGS)
def test_log_that_is_never_closed_holds_nothing_up(desk: Desk, path: str) -> None:
    save(desk, 1)
    target = desk.write(f"out/{path}", '{"line": 1}\n')
    with target.open("a") as file:
        assert not desk.judge_in(9, "out").complete
        assert desk.judge_in(2, "out").complete
        desk.commit("out")
        file.write('{"line": 2}\n')
        file.flush()
        assert not desk.judge("out").complete, "perhaps a save follows"
        assert desk.judge_in(3, "out").complete
    with (desk.root / "out/model_1.pth").open("ab"):
        verdict = desk.judge_in(60, "out")
    assert (verdict.complete, verdict.reason) == (False, "a process has it open for writing")


def test_save_that_is_under_way_is_waited_for_whatever_the_log_does(desk: Desk) -> None:
    save(desk, 1)
    for seconds in range(60):
        desk.write("out/model_2.pth", b"\x80\x02" + b"N" * seconds + b".")
        desk.write("out/train.log", f"{seconds}")
        assert not desk.judge_in(1, "out").complete


def test_text_that_belongs_to_the_state_is_waited_for(desk: Desk) -> None:
    desk.write("out/model.pth")
    desk.write("out/state.json", "{}")
    desk.judge("out")
    desk.clock.sleep(60)
    assert desk.judge("out").complete
    desk.commit("out")
    desk.write("out/state.json", '{"epoch": 2}')
    assert not desk.judge_in(1, "out").complete
    desk.write("out/model.pth", b"\x80y.")
    assert not desk.judge_in(1, "out").complete
    assert desk.judge_in(10, "out").complete


def test_half_of_a_line_is_no_fault_of_a_log_but_one_of_a_text(desk: Desk) -> None:
    save(desk, 1)
    desk.write("out/train.jsonl", '{"line": 1}\n{"li')
    assert desk.judge_in(30, "out").complete
    desk.write("out/metrics.json", '{"line": 1}\n{"line": 2}\n')
    assert desk.judge_in(30, "out").complete
    desk.write("out/metrics.json", '{"line": 1}\n{"li')
    assert desk.judge_in(30, "out").reason.startswith("out/metrics.json is not whole JSON")


def test_what_has_come_by_the_time_it_is_sent_is_what_is_committed(tmp_path: Path) -> None:
    """It was one when it was looked at, and is another one before its turn comes."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("out/model.pth", b"\x80\x02N.")
    machine.write("out/args.bin", b"settings")
    log = machine.write("out/train.log", "1\n")
    look = machine.pipeline.look()
    (unit, _) = look.pending[0]
    assert unit.running == {"train.log"}
    with log.open("a") as file:
        file.write("2\n")
        file.flush()
        record = machine.pipeline.commit_next(look, machine.publisher)
    assert record
    restore_newest(machine.bucket, tmp_path / "two")
    assert tree(tmp_path / "two") == tree(machine.root)
    assert not list((machine.disk / "snapshots").iterdir())


def test_beginning_of_a_log_is_taken_as_long_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "out").mkdir(parents=True)
    (root / "out/train.log").write_bytes(b"x" * 10_000)
    (root / "out/model.bin").write_bytes(b"m")
    desk = Desk(root)
    unit = desk.units()["out"]
    with (root / "out/train.log").open("ab") as file:
        file.write(b"y" * 500)
    held, taken = Snapshots(tmp_path / "s", root, None).take(
        unit, lambda _p, _s: True, {"train.log"}
    )
    assert taken
    assert not taken.whole
    copy = taken.locate("train.log")
    assert copy
    assert copy[0].read_bytes() == b"x" * 10_000 + b"y" * 500
    assert dict(held.files)["train.log"].size == 10_500
    assert taken.locate("model.bin") is None
    taken.drop()


def unit(path: str, changed: float = 0.0) -> Unit:
    stat = Stat(1, int(changed * 1e9), int(changed * 1e9), 1, 0o644)
    kind = COMPANION if path.endswith(".log") else SET
    return Unit(path, kind, (("", stat),))


def test_text_alone_goes_once_a_minute_and_after_each_save() -> None:
    clock = FakeClock()
    pacer = Pacer(clock)
    log, out = unit("train.log"), unit("out")
    for one in (log, out):
        assert pacer.until(one) is None
        pacer.committed(one)
        clock.sleep(3)
        assert pacer.until(one) == pytest.approx(clock.now() + 57)
    clock.sleep(57)
    assert pacer.until(log) is None
    pacer.committed(log)
    pacer.committed(out)
    assert pacer.until(log) == pytest.approx(clock.now() + 120), "two of them share the requests"
    pacer.saved(unit("model.pt", clock.now() + 1))
    assert pacer.until(log) is None, "it may be of that save"
    assert pacer.until(out), "that is itself a checkpoint"
    clock.sleep(2)
    pacer.committed(log)
    assert pacer.until(log)
    pacer.hurry = True
    assert pacer.until(log) is pacer.until(out) is None


def test_requests_of_many_logs_stay_within_the_budget() -> None:
    clock = FakeClock()
    pacer = Pacer(clock)
    logs = [unit(f"{number}.log") for number in range(20)]
    sent = 0
    for _ in range(3600):
        for one in logs:
            if pacer.until(one) is None:
                pacer.committed(one)
                sent += 1
        clock.sleep(1)
    assert sent * 3 <= 180 + 40 * 3
