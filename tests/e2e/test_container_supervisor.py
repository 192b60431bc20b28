"""A real supervisord and a real syncd around a toy trainer: ends, crashes, stops."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPERVISORCTL = [sys.executable, "-m", "supervisor.supervisorctl", "-c", "supervisord.conf"]

# Its plan is a list of words, one per life: the exit code, "kill", or "wait" for SIGTERM; with
# "+" it writes a checkpoint first, with "!" it prints more than any pipe holds.
TOY = """
import os, pathlib, signal, sys, time

root = pathlib.Path("checkpoints/run-1")
root.mkdir(parents=True, exist_ok=True)
lives = pathlib.Path("lives.txt")

def save(name):
    aside = root / f"tmp-{name}"
    aside.mkdir()
    (aside / "weights.bin").write_bytes(os.urandom(5000))
    aside.rename(root / name)

def stop(signum, frame):
    time.sleep(0.5)
    save("gen-999999")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
with lives.open("a") as file:
    print(*sys.argv[1:], file=file)
life = len(lives.read_text().splitlines())
plan = os.environ["PLAN"].split()
what = plan[min(life, len(plan)) - 1]
print(f"toy trainer, life {life}: {what}", flush=True)
if what.startswith("+"):
    save(f"gen-{life:06d}")
what = what.lstrip("+")
if what.endswith("!"):
    print(f"{'x' * 99}\\n" * 10_000, flush=True)
    what = what.rstrip("!")
if what == "wait":
    pathlib.Path("ready").touch()
    while True:
        time.sleep(0.05)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(what))
"""


class Container:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.output = subprocess.PIPE
        (folder / "toy" / "trainer").mkdir(parents=True)
        (folder / "toy" / "trainer" / "__init__.py").touch()
        (folder / "toy" / "trainer" / "__main__.py").write_text(TOY)
        shutil.copy(ROOT / "supervisord.conf", folder)
        (folder / "bucket").mkdir()

    def environ(self, plan: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        return {
            **kept,
            "PYTHONPATH": f"{self.folder / 'toy'}:{ROOT}",
            "PLAN": plan,
            "CLOUD_BUCKET": str(self.folder / "bucket"),
            "SYNCD_HTTP": "off",
            "SYNCD_SETTLE": "0.2",
            "TRAINER_RESTART_DELAY": "0.05",
        }

    def start(self, plan: str, *trainer_args: str, **more: str) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "syncd.container", "--", *trainer_args],
            cwd=self.folder,
            env={**self.environ(plan), **more},
            stdout=self.output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def run(self, plan: str, *trainer_args: str, **more: str) -> tuple[int, str]:
        process = self.start(plan, *trainer_args, **more)
        said, _ = process.communicate(timeout=90)
        return process.returncode, said

    def control(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SUPERVISORCTL, *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def lives(self) -> list[str]:
        return (self.folder / "lives.txt").read_text().splitlines()

    def in_bucket(self, checkpoint: str) -> bool:
        name = self.folder / "bucket" / "eigen2" / "checkpoints" / "run-1" / checkpoint
        return (name / "weights.bin").is_file()

    def committed(self, checkpoint: str) -> bool:
        commits = (self.folder / "bucket" / "eigen2" / ".syncd" / "commits").glob("*.json")
        return any(f'"run-1/{checkpoint}"' in commit.read_text() for commit in commits)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    container = Container(tmp_path)
    yield container
    if container.process and container.process.poll() is None:
        container.process.terminate()
        try:
            container.process.wait(30)
        except subprocess.TimeoutExpired:
            container.process.kill()
    if container.process and container.process.stdout:
        container.process.stdout.close()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def test_a_finished_training_is_flushed_and_ends_the_container_with_0(container: Container) -> None:
    code, said = container.run("+0", "--data", "a file.csv")
    assert code == 0, said
    assert container.lives() == ["--data a file.csv"]
    assert container.in_bucket("gen-000001")
    assert container.committed("gen-000001")
    assert "the trainer finished (exit 0)" in said
    assert "nothing: all that is complete is in the bucket" in said
    assert "toy trainer, life 1" in said, "the trainer's words pass through"


def test_a_refusal_is_not_tried_again(container: Container) -> None:
    code, said = container.run("2")
    assert code == 2, said
    assert len(container.lives()) == 1
    assert "refused its settings" in said


def test_a_crash_loop_ends_with_the_trainers_own_code(container: Container) -> None:
    code, said = container.run("7")
    assert code == 7, said
    assert container.lives() == ["", "--resume", "--resume", "--resume"]
    assert "4 times in a row" in said


def test_a_crash_is_resumed_and_a_checkpoint_sets_the_count_back(container: Container) -> None:
    code, said = container.run("7 7 +7 7 7 +0")
    assert code == 0, said
    assert len(container.lives()) == 6
    assert container.committed("gen-000003")
    assert container.committed("gen-000006")


def test_a_trainer_killed_by_the_kernel_ends_with_137(container: Container) -> None:
    code, said = container.run("kill", TRAINER_RESTARTS="0")
    assert code == 137, said
    assert "crashed once" in said


def test_a_stop_saves_then_commits_then_ends_with_143(container: Container) -> None:
    process = container.start("wait")
    wait_for((container.folder / "ready").exists)
    wait_for(lambda: "RUNNING" in container.control("status", "syncd").stdout)
    status = container.control("status")
    assert status.returncode == 0, status.stdout
    assert {line.split()[0] for line in status.stdout.splitlines()} == {
        "keeper", "syncd", "trainer",
    }  # fmt: skip

    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)

    assert process.returncode == 143, said
    assert container.committed("gen-999999"), said
    assert said.index("stopped: trainer") < said.index("stopped: syncd")
    assert len(container.lives()) == 1
    assert "stopped from outside" in said


def test_the_health_of_the_copies_is_one_command(container: Container) -> None:
    container.start("+wait")
    wait_for(lambda: container.committed("gen-000001"))
    healthy = container.control("sync")
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "recovery point: run-1/gen-000001" in healthy.stdout

    container.control("stop", "syncd")
    assert container.control("sync").returncode == 4


def test_the_health_command_without_a_container_says_so(container: Container) -> None:
    (container.folder / ".syncd").mkdir()
    assert container.control("sync").returncode == 4


def test_a_trainer_stopped_by_hand_stays_stopped(container: Container) -> None:
    process = container.start("wait")
    wait_for((container.folder / "ready").exists)
    assert container.control("stop", "trainer").returncode == 0
    time.sleep(1)
    assert process.poll() is None
    assert container.control("status", "trainer").returncode == 3
    assert len(container.lives()) == 1


def test_a_keeper_that_dies_loses_nothing(container: Container) -> None:
    process = container.start("wait +0")
    wait_for((container.folder / "ready").exists)
    keeper = int(container.control("pid", "keeper").stdout)
    trainer = int(container.control("pid", "trainer").stdout)
    os.kill(keeper, signal.SIGSTOP)
    os.kill(trainer, signal.SIGKILL)
    wait_for(lambda: container.control("status", "trainer").returncode == 3)
    os.kill(keeper, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert container.lives() == ["", "--resume"]


def test_syncd_that_cannot_run_does_not_hinder_the_training(container: Container) -> None:
    code, said = container.run("+0", CLOUD_PROVIDER="nowhere")
    assert code == 0, said
    assert "not proven" in said or "unknown" in said


def test_hanging_up_the_terminal_does_not_restart_the_training(container: Container) -> None:
    process = container.start("wait")
    wait_for((container.folder / "ready").exists)
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert container.control("status", "trainer").returncode == 0
    assert len(container.lives()) == 1


def a_pipe() -> tuple[int, int]:
    return os.pipe()


def a_socket() -> tuple[int, int]:
    here, there = socket.socketpair()
    return here.detach(), there.detach()


def a_terminal() -> tuple[int, int]:
    return pty.openpty()


@pytest.mark.parametrize("place", [a_pipe, a_socket, a_terminal])
def test_a_reader_of_the_output_that_goes_away_ends_nothing(
    container: Container, place: Callable[[], tuple[int, int]]
) -> None:
    reader, writer = place()
    container.output = writer
    process = container.start("wait +7! +0!")
    os.close(writer)
    wait_for((container.folder / "ready").exists)
    trainer = int(container.control("pid", "trainer").stdout)
    os.close(reader)
    os.kill(trainer, signal.SIGKILL)
    assert process.wait(90) == 0
    assert len(container.lives()) == 3
    assert container.committed("gen-000003")


def test_a_place_for_the_output_that_is_full_ends_nothing(container: Container) -> None:
    with Path("/dev/full").open("w") as full:
        container.output = full.fileno()
        process = container.start("7! +0!")
    assert process.wait(90) == 0
    assert container.committed("gen-000002")


def test_a_full_disk_below_the_output_ends_nothing(container: Container) -> None:
    disk = container.folder / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        with (disk / "start.log").open("w") as log:
            container.output = log.fileno()
            process = container.start("7! +0!")
        assert process.wait(90) == 0
        assert (disk / "start.log").stat().st_size >= 60_000
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert container.committed("gen-000002")


def test_a_full_disk_below_the_state_neither_stops_restarts_nor_hides_the_outcome(
    container: Container,
) -> None:
    disk = container.folder / ".syncd" / "container"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=3", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        process = container.start("wait +7 +0")
        wait_for((container.folder / "ready").exists)
        with suppress(OSError):
            (disk / "all").write_bytes(bytes(1_000_000))
        with suppress(OSError):
            (disk / "more").touch()
        with pytest.raises(OSError):
            (disk / "nothing").touch()
        os.kill(int(container.control("pid", "trainer").stdout), signal.SIGKILL)
        said, _ = process.communicate(timeout=90)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert process.returncode == 0, said
    assert container.lives() == ["", "--resume", "--resume"]
    assert container.committed("gen-000003")
    assert "the trainer finished (exit 0)" in said
    assert "nothing: all that is complete is in the bucket" in said


def test_no_configuration_is_bad_usage(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "syncd.container", "--config", "nothing.conf"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "nothing.conf is not there" in done.stderr
