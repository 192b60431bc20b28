"""A log beside checkpoints, which never rests and is never closed, keeps none from its commit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.clock import SystemClock
from syncd.companions import grows
from syncd.detect import Verdict
from syncd.errors import Changed
from syncd.filestat import Stat
from syncd.flushing import flush
from syncd.profiles import COMPANION
from syncd.records import CommitRecord
from syncd.running import Pacer, hold_still
from syncd.snapshot import Snapshot, Snapshots
from syncd.units import Unit
from tests.clocks import FakeClock
from tests.unit.test_detect import Desk
from tests.workbench import Machine, restore_newest, tree

LOGS = (
    "result.json", "catboost_training.json", "learn_error.tsv", "time_left.tsv",
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
        assert desk.detector.only_logs(desk.units()["out"]), "that waits for its minute"
        assert desk.judge_in(3, "out").complete
    with (desk.root / "out/model_1.pth").open("ab"):
        verdict = desk.judge_in(60, "out")
    assert (verdict.complete, verdict.reason) == (False, "a process has it open for writing")


@pytest.mark.parametrize("every", [0.3, 1])
def test_saves_that_follow_one_another_fast_are_committed_whatever_the_log_does(
    desk: Desk, every: float
) -> None:
    """RVC, so-vits-svc and nnU-Net: a log and a configuration lie beside what is written anew."""
    committed = []
    for step in range(5):
        save(desk, step)
        (desk.root / f"out/model_{step}.pth").rename(desk.root / "out/model.pth")
        if any(verdict.complete for verdict in log_on(desk, "train.log", 6, every)):
            desk.commit("out")
            committed.append(step)
    assert committed == [2, 3, 4], "two must be seen to know the writer's manner"


def test_save_that_is_under_way_is_waited_for_whatever_the_log_does(desk: Desk) -> None:
    save(desk, 1)
    for seconds in range(60):
        desk.write("out/model_2.pth", b"\x80\x02" + b"N" * seconds + b".")
        desk.write("out/train.log", f"{seconds}")
        assert not desk.judge_in(1, "out").complete


def logged(desk: Desk, *paths: str) -> None:
    """These are written, and the log goes on."""
    for path in paths:
        desk.write(f"out/{path}", f"\x80{desk.clock.now()}.".encode("latin-1"))
    with (desk.root / "out/train.log").open("a") as file:
        file.write("a line\n")


@pytest.mark.parametrize("state", ["state.bin", "state.yaml", "state.txt"])
def test_state_that_is_written_anew_is_waited_for_whatever_the_log_does(
    desk: Desk, state: str
) -> None:
    """A line of the log makes no second save of half of one."""
    logged(desk, "model.pth", state)
    for _ in range(12):
        logged(desk)
        verdict = desk.judge_in(1, "out")
    assert verdict.complete
    desk.commit("out")
    logged(desk, "model.pth")
    for _ in range(60):
        logged(desk)
        verdict = desk.judge_in(1, "out")
        assert not verdict.complete
    assert verdict.reason == f"{state}, written last before, has not been written again yet"
    logged(desk, state)
    for _ in range(12):
        logged(desk)
        verdict = desk.judge_in(1, "out")
    assert verdict.complete


def test_step_without_its_optimizer_is_not_complete_whatever_the_log_does(desk: Desk) -> None:
    for name in ("model.pth", "optimizer.pth", "train.log"):
        desk.write(f"step_1/{name}")
    assert desk.judge_in(20, "step_1").complete
    desk.commit("step_1")
    desk.write("step_2/model.pth")
    for second in range(60):
        desk.write("step_2/train.log", f"{second}")
        verdict = desk.judge_in(1, "step_2")
        assert not verdict.complete
    assert verdict.reason.startswith("there is no file like optimizer.pth")


def test_text_that_is_written_for_long_is_waited_for(desk: Desk) -> None:
    desk.write("out/optimizer.bin")
    with (desk.root / "out/model.txt").open("w") as file:
        for _ in range(60):
            file.write("tree\n")
            file.flush()
            assert not desk.judge_in(1, "out").complete


@pytest.mark.parametrize("path", ["train.log", "metrics.json"])
def test_marker_is_the_last_act_though_a_log_goes_on(desk: Desk, path: str) -> None:
    for name in ("population/agent_0.pth", "best_agent.pth"):
        desk.write(f"run/{name}")
    desk.write("run/trainer_state.json", "{}")
    with desk.write(f"run/{path}", "{}\n").open("a"):
        desk.date(f"run/{path}", 5)
        verdict = desk.judge("run")
    assert (verdict.complete, verdict.profile) == (True, "eigen2")
    desk.commit("run")
    desk.write(f"run/{path}", "{}\n{}\n")
    assert desk.judge("run").complete
    assert desk.detector.only_logs(desk.units()["run"])
    desk.date("run/best_agent.pth", 10)
    assert not desk.judge("run").complete, "it is being written again"
    assert not desk.detector.only_logs(desk.units()["run"])


def test_half_of_a_line_is_no_fault_of_a_log_but_one_of_a_text(desk: Desk) -> None:
    save(desk, 1)
    desk.write("out/train.jsonl", '{"line": 1}\n{"li')
    assert desk.judge_in(30, "out").complete
    desk.write("out/state.json", '{"line": 1}\n{"line": 2}\n')
    assert desk.judge_in(30, "out").complete
    desk.write("out/state.json", '{"line": 1}\n{"li')
    assert desk.judge_in(30, "out").reason.startswith("out/state.json is not whole JSON")
    desk.write("out/state.json", "\n")
    assert desk.judge_in(30, "out").reason.startswith("out/state.json is not whole JSON")


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
        unit, lambda _p, _s: True, frozenset({"train.log"}), every=False
    )
    assert taken
    assert not taken.whole
    copy = taken.locate("train.log")
    assert copy
    assert copy[0].read_bytes() == b"x" * 10_000 + b"y" * 500
    assert dict(held.files)["train.log"].size == 10_500
    assert taken.locate("model.bin") is None
    taken.drop()


def test_what_is_always_copied_is_not_copied_for_ever(tmp_path: Path) -> None:
    """One change in mid-transfer makes a series restless; the log alone does not keep it so."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("out/model.pth", b"\x80\x02N.")
    machine.write("out/args.bin", b"settings")
    with machine.write("out/train.log", "1\n").open("a") as file:
        (unit, _) = machine.pipeline.look().pending[0]
        snapshots = Snapshots(tmp_path / "s", machine.root, None)
        snapshots.changed(unit)
        held, taken = snapshots.take(unit, lambda _path, _stat: False, unit.running, every=True)
        assert taken
        assert taken.whole
        file.write("2\n")
        file.flush()
        snapshots.sent(held, taken)
        assert not snapshots.is_wanted(unit)
        taken.drop()


def test_where_there_is_no_room_for_all_the_log_alone_is_copied(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("out/model.pth", b"\x80\x02" + b"N" * 5000 + b".")
    with machine.write("out/train.log", "1\n").open("a"):
        (unit, _) = machine.pipeline.look().pending[0]
        snapshots = Snapshots(tmp_path / "s", machine.root, 1000)
        snapshots.changed(unit)
        held, taken = hold_still(machine.root, unit, snapshots, machine.journal)
    assert held == unit
    assert taken
    assert not taken.whole
    assert taken.locate("train.log")
    assert not taken.locate("model.pth")


def test_flush_beside_a_trainer_that_logs_ends(tmp_path: Path) -> None:
    """Each line that comes while the one before is sent would be another commit."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("out/model.pth", b"\x80\x02N.")
    machine.write("out/args.bin", b"settings")
    log = machine.write("out/train.log", "1\n")
    publish, sent = machine.publisher.publish, []

    def logged(*args: Any) -> CommitRecord | None:
        record = publish(*args)
        sent.append(record)
        with log.open("a") as file:
            file.write("a line\n")
        return record

    machine.publisher.publish = logged  # type: ignore[method-assign, assignment]
    for flushed in (1, 2):
        flush(machine.pipeline, machine.publisher, SystemClock(), lambda: False, patience=1.0)
        assert len(sent) == flushed


@pytest.mark.parametrize("files", ["scalars.json", "scalars.json config.py", "train.log"])
def test_logs_in_any_shape_wait_for_their_minute(files: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    folder = "" if files == "train.log" else "vis_data/"
    for name in files.split():
        machine.write(folder + name, '{"line": 1}\n')
    assert len(machine.commit_all()) == 1
    for line in (2, 3):
        machine.write(folder + files.split(maxsplit=1)[0], f'{{"line": {line}}}\n')
        assert machine.pipeline.look().pending == []
    (waiting,) = machine.pipeline.look().incomplete
    assert (
        waiting.reason == "only logs, a memory or a database have changed, and were sent just now"
    )
    assert len(machine.commit_all()) == 1, "at the end"


def log(path: str, size: int = 100) -> Unit:
    return Unit(path, COMPANION, (("", Stat(size, 0, 0, 1, 0o644)),))


def test_logs_alone_go_once_a_minute_and_once_at_the_end() -> None:
    clock = FakeClock()
    pacer = Pacer(clock)
    one, other = log("train.log"), log("metrics.json")
    assert pacer.until(one) is None
    for unit, alone in ((one, False), (other, True)):
        pacer.committed(unit, alone)
        assert pacer.until(unit) == pytest.approx(clock.now() + 60)
    clock.sleep(60)
    assert pacer.until(one) is None
    pacer.committed(one, True)
    assert pacer.until(one) == pytest.approx(clock.now() + 120), "two of them share the requests"
    clock.sleep(1)
    with pacer.hurry():
        assert pacer.until(one) is None
        pacer.committed(one, True)
        assert pacer.until(one)
    large = log("events.out.tfevents.1", 100_000_000)
    pacer.committed(large, False)
    assert pacer.until(large) == pytest.approx(clock.now() + 2000)


def test_requests_of_many_logs_stay_within_the_budget() -> None:
    clock = FakeClock()
    pacer = Pacer(clock)
    logs = [log(f"{number}.log") for number in range(20)]
    sent: list[str] = []
    for _ in range(3600):
        for one in logs:
            if pacer.until(one) is None:
                pacer.committed(one, alone=one.path in sent)
                sent.append(one.path)
        clock.sleep(1)
    assert len(sent) * 3 <= 180 + 40 * 3


def test_what_is_a_log_by_its_name() -> None:
    for name in (
        "train.log", "a/events.out.tfevents.17.host", "metrics.json", "x/vis_data/2026_11.json",
        "log.txt", "train_log.txt", "mylog.txt", "loss_log.txt", "results.csv", "progress.csv",
        "version_0/metrics.csv", "monitor.csv", "a.jsonl", "stdout.txt", "run-1.wandb",
    ):  # fmt: skip
        assert grows(name), name
    for name in (
        "state.json", "trainer_state.json", "progress.json", "model.txt", "vocab.txt",
        "vectors.csv", "config.yaml", "metrics.bin", "changelog.md", "history.json", "model.json",
    ):  # fmt: skip
        assert not grows(name), name


def test_a_member_that_has_become_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    """Whoever opens it waits for the other end, which never comes."""
    snapshot = Snapshot(tmp_path / "copy")
    member = tmp_path / "w.bin"
    member.write_bytes(b"weights")
    seen = Stat.of(member.lstat())
    member.unlink()
    os.mkfifo(member)
    with pytest.raises(Changed):
        snapshot.add("w.bin", member, seen)
