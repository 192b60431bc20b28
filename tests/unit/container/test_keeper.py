"""The keeper's decisions, against a supervisord that only notes what it is asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

import pytest

from syncd.container import keeper as module
from syncd.container import probe
from syncd.container.keeper import Keeper
from syncd.container.probe import Flush
from syncd.container.rundir import OUTCOME, Outcome, RunDir


class NotingSupervisor:
    def __init__(self) -> None:
        self.info: dict[str, Any] = {"statename": "RUNNING", "exitstatus": 0, "spawnerr": ""}
        self.calls: list[str] = []
        self.told: list[Outcome | None] = []
        self.stopping = False

    def getProcessInfo(self, name: str) -> Mapping[str, Any]:
        assert name == "trainer"
        return self.info

    def startProcess(self, name: str, wait: bool) -> None:
        if self.stopping:
            raise Fault(6, "SHUTDOWN_STATE")
        assert not wait
        self.calls.append(f"start {name}")

    def sendRemoteCommEvent(self, type: str, data: str) -> None:  # noqa: A002
        assert type == OUTCOME
        self.told.append(Outcome.from_json(data))

    def shutdown(self) -> None:
        if self.stopping:
            raise Fault(6, "SHUTDOWN_STATE")
        self.calls.append("shutdown")

    def exits(self, code: int) -> None:
        self.info = {"statename": "EXITED", "exitstatus": code, "spawnerr": ""}


class NotingPause(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        return False


class Scene:
    def __init__(self, folder: Path) -> None:
        self.supervisor = NotingSupervisor()
        self.run_dir = RunDir(folder / "container")
        self.run_dir.renew()
        self.checkpoints = folder / "checkpoints"
        self.pause = NotingPause()
        self.flushes: list[float] = []
        self.flush_answer: bool | None = True
        self.left = ""
        self.keeper = self.another_keeper()

    def another_keeper(self) -> Keeper:
        return Keeper(
            self.supervisor, self.run_dir, self.checkpoints, restarts=3, delay=5, grace=60,
            pause=self.pause,
        )  # fmt: skip

    def trainer_exits(self, code: int) -> None:
        self.supervisor.exits(code)
        self.keeper.look()

    def checkpoint(self, name: str, time_ns: int) -> None:
        folder = self.checkpoints / "run-1" / name
        folder.mkdir(parents=True)
        (folder / "weights.bin").touch()
        for path in (folder / "weights.bin", folder, folder.parent):
            os.utime(path, ns=(time_ns, time_ns))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene(tmp_path)

    def flush(grace: float) -> Flush:
        scene.flushes.append(grace)
        return Flush(scene.flush_answer, scene.left)

    monkeypatch.setattr(probe, "flush", flush)
    return scene


@pytest.mark.parametrize("code", [0, 2, 143])
def test_an_end_that_is_no_crash_flushes_and_ends_the_container(scene: Scene, code: int) -> None:
    scene.trainer_exits(code)
    assert scene.supervisor.calls == ["shutdown"]
    assert scene.flushes == [60]
    outcome = scene.run_dir.outcome()
    assert outcome is not None
    assert (outcome.code, outcome.safe) == (code, True)


@pytest.mark.parametrize("answer", [False, None])
def test_a_flush_that_fails_or_hangs_is_not_called_safe(scene: Scene, answer: bool | None) -> None:
    scene.flush_answer = answer
    scene.trainer_exits(0)
    assert scene.run_dir.outcome() == Outcome(0, "the trainer finished", safe=False)


def test_what_a_flush_leaves_out_is_kept_for_the_report(scene: Scene) -> None:
    scene.left = "step_9.pt is not complete and was not sent: it is cut off"
    scene.trainer_exits(0)
    assert scene.run_dir.outcome() == Outcome(0, "the trainer finished", True, scene.left)


def test_a_crash_loop_is_bounded_and_slows_down(scene: Scene) -> None:
    for _ in range(4):
        scene.trainer_exits(7)
    assert scene.supervisor.calls == ["start trainer"] * 3 + ["shutdown"]
    assert scene.pause.waits == [5, 10, 20]
    outcome = scene.run_dir.outcome()
    assert outcome is not None
    assert outcome.code == 7
    assert "4 times in a row" in outcome.reason


def test_a_new_checkpoint_sets_the_count_back(scene: Scene) -> None:
    for number in range(10):
        scene.checkpoint(f"gen-{number:06d}", time_ns=10**18 + number)
        scene.trainer_exits(7)
    assert scene.supervisor.calls == ["start trainer"] * 10
    assert set(scene.pause.waits) == {5}


def test_an_unfinished_checkpoint_is_no_progress(scene: Scene) -> None:
    for number in range(4):
        scene.checkpoint(f"tmp-{number}", time_ns=10**18 + number)
        os.utime(scene.checkpoints / "run-1", ns=(1, 1))
        scene.trainer_exits(7)
    assert scene.supervisor.calls[-1] == "shutdown"


def test_a_new_folder_for_each_run_is_no_progress(scene: Scene) -> None:
    """A trainer that crashes before it saves makes one each time it is started."""
    for number in range(4):
        (scene.checkpoints / f"run-{number}" / "gen-000001").mkdir(parents=True)
        scene.trainer_exits(7)
    assert scene.supervisor.calls == ["start trainer"] * 3 + ["shutdown"]


def test_a_checkpoint_of_one_file_is_progress_also_behind_a_link(
    scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    scene.checkpoints.mkdir()
    (scene.checkpoints / "run-1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(scene.checkpoints)
    for number in range(5):
        file = tmp_path / "elsewhere" / f"step_{number}.pt"
        file.touch()
        os.utime(file, ns=(10**18 + number, 10**18 + number))
        scene.trainer_exits(7)
    assert scene.supervisor.calls == ["start trainer"] * 5


def test_checkpoints_from_before_the_start_are_no_progress(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "run-1" / "gen-000005").mkdir(parents=True)
    (tmp_path / "checkpoints" / "run-1" / "gen-000005" / "weights.bin").touch()
    scene = Scene(tmp_path)
    scene.trainer_exits(7)
    scene.trainer_exits(7)
    assert scene.pause.waits == [5, 10]


def test_the_count_outlives_the_keeper(scene: Scene) -> None:
    scene.trainer_exits(7)
    scene.trainer_exits(7)
    scene.keeper = scene.another_keeper()
    scene.trainer_exits(7)
    assert scene.pause.waits == [5, 10, 20]


@pytest.mark.parametrize("state", ["RUNNING", "STARTING", "STOPPED", "STOPPING", "BACKOFF"])
def test_a_trainer_that_runs_or_was_stopped_by_hand_is_left_alone(scene: Scene, state: str) -> None:
    scene.supervisor.info["statename"] = state
    scene.keeper.look()
    assert scene.supervisor.calls == []
    assert scene.run_dir.outcome() is None


def test_a_trainer_that_cannot_be_started_ends_the_container(scene: Scene) -> None:
    scene.supervisor.info = {"statename": "FATAL", "exitstatus": 0, "spawnerr": "no such file"}
    scene.keeper.look()
    outcome = scene.run_dir.outcome()
    assert outcome is not None
    assert outcome.code == 127
    assert "no such file" in outcome.reason


def test_nothing_is_restarted_while_the_container_stops(scene: Scene) -> None:
    scene.supervisor.stopping = True
    scene.trainer_exits(7)
    assert scene.supervisor.calls == []
    assert scene.run_dir.outcome() is None


@pytest.fixture
def nowhere_to_write(scene: Scene) -> None:
    """As on a full disk; root may write into each folder, but not into what is none."""
    scene.run_dir.path.rename(scene.run_dir.path.with_name("aside"))
    scene.run_dir.path.touch()


@pytest.mark.usefixtures("nowhere_to_write")
def test_a_full_disk_changes_no_decision(scene: Scene) -> None:
    for _ in range(4):
        scene.trainer_exits(7)
    assert scene.supervisor.calls == ["start trainer"] * 3 + ["shutdown"]
    assert scene.pause.waits == [5, 10, 20]
    assert scene.flushes == [60]
    assert [told and (told.code, told.safe) for told in scene.supervisor.told] == [
        (7, None), (7, True),
    ]  # fmt: skip


@pytest.mark.usefixtures("nowhere_to_write")
def test_a_keeper_that_starts_on_a_full_disk_ends_a_finished_training(scene: Scene) -> None:
    scene.keeper = scene.another_keeper()
    scene.trainer_exits(0)
    assert scene.supervisor.calls == ["shutdown"]
    assert scene.supervisor.told[-1] == Outcome(0, "the trainer finished", safe=True)


def test_a_setting_that_is_no_number_falls_back_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINER_RESTARTS", "often")
    assert module.number("TRAINER_RESTARTS", 3) == 3
    assert "TRAINER_RESTARTS='often' is not a number" in capsys.readouterr().err
