"""A replay memory gets a file every few seconds, and keeps what lies beside it from no commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncd.running import Pacer
from tests.unit.test_detect import Desk

SETTLE, LONG = 2, 10


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A run of DrQ-v2, whose episodes take five seconds."""
    desk = Desk(tmp_path)
    desk.write("run/.hydra/config.yaml", "lr: 1")
    desk.write("run/train.csv", "episode\n")
    return desk


def play(desk: Desk, number: int, folder: str = "buffer") -> bool:
    """An episode comes to the memory; whether the run is complete just before the next one."""
    path = f"run/{folder}/20261128T1010{number:02}_{number}_501.bin"
    desk.write(path, bytes([number + 1]))
    desk.date(path, number)
    desk.write("run/train.csv", "episode\n" * number)
    desk.date("run/train.csv", number)
    complete = desk.judge_in(SETTLE + 1, "run").complete
    desk.clock.sleep(2)
    return complete


def play_on(desk: Desk) -> None:
    """Until it shows that the folder is a memory."""
    for number in range(10):
        play(desk, number)
    save(desk, 9)
    for number in range(10, 20):
        play(desk, number)


def save(desk: Desk, number: int, content: int = 0) -> None:
    """As of the time of that episode."""
    desk.write("run/snapshot.pt", b"\x80\x02K" + bytes([content or number]) + b".")
    desk.date("run/snapshot.pt", number + 0.5)


def test_what_comes_to_a_memory_holds_nothing_up(desk: Desk) -> None:
    assert not any(play(desk, number) for number in range(10))
    save(desk, 9)
    verdicts = [play(desk, number) for number in range(10, 20)]
    assert verdicts == [False] * 5 + [True] * 5, "ten seconds after it is seen to be a memory"


def test_what_lies_beside_a_memory_has_to_rest_for_long_the_first_time(desk: Desk) -> None:
    """Though it keeps the time that says that episodes have come since."""
    play_on(desk)
    verdicts = []
    for number in range(20, 24):
        save(desk, 9, number)
        verdicts.append(play(desk, number))
    assert not any(verdicts)
    assert [play(desk, number) for number in range(24, 27)] == [False, True, True]


def test_a_memory_that_gets_a_file_has_to_rest_a_little(desk: Desk) -> None:
    play_on(desk)
    desk.write("run/buffer/20261128T101021_21_501.bin")
    assert not desk.judge_in(SETTLE - 1, "run").complete
    assert desk.judge_in(1, "run").complete


def test_episodes_that_are_let_go_are_no_loss(desk: Desk) -> None:
    play_on(desk)
    desk.commit("run")
    (desk.root / "run/buffer/20261128T101000_0_501.bin").unlink()
    assert desk.detector.only_logs(desk.units()["run"])
    assert play(desk, 20)
    save(desk, 20)
    assert not desk.detector.only_logs(desk.units()["run"])
    assert [play(desk, number) for number in range(21, 26)] == [False] * 2 + [True] * 3


def test_a_memory_alone_is_sent_every_ten_minutes(desk: Desk) -> None:
    play_on(desk)
    unit, pacer = desk.units()["run"], Pacer(desk.clock)
    pacer.committed(unit, alone=False)
    desk.clock.sleep(599)
    assert pacer.until(unit)
    with pacer.hurry():
        assert not pacer.until(unit), "at the end it is sent"
    desk.clock.sleep(2)
    assert not pacer.until(unit)


@pytest.mark.parametrize("folder", ["", "buffer"])
def test_shards_that_come_slowly_are_no_memory(desk: Desk, folder: str) -> None:
    """Three seconds from one to the next, an index last; and again after training for a while."""
    for step, begin in ((1, 0), (2, 150)):
        for number in range(16):
            path = "/".join(filter(None, ("run", folder, f"layer_{100 * step + number}.bin")))
            desk.write(path, bytes([number + 1]))
            desk.date(path, begin + 3 * number)
            assert not desk.judge_in(SETTLE + 1, "run").complete
        save(desk, begin + 50)
        if step == 1:
            assert desk.judge_in(LONG, "run").complete
            desk.clock.sleep(200)


def test_in_a_step_nothing_is_a_memory(desk: Desk) -> None:
    for number in range(10):
        desk.write(f"run/step_5/shards/{number}.bin")
        desk.date(f"run/step_5/shards/{number}.bin", number)
    desk.write("run/step_5/model.bin")
    desk.date("run/step_5/model.bin", 9.5)
    for number in range(10, 20):
        desk.write(f"run/step_5/shards/{number}.bin")
        desk.date(f"run/step_5/shards/{number}.bin", number)
        assert not desk.judge_in(SETTLE + 1, "run/step_5").complete
