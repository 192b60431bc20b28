"""Events that are lost, refused or never come: the next scan finds everything all the same."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine, wait_until
from tests.servers.process import NotInstalled, program

pytestmark = pytest.mark.timed

_LIMITS = Path("/proc/sys/fs/inotify")


def generation(machine: Machine, number: int, run: str = "run") -> str:
    machine.write_checkpoint(f"{run}/gen-{number:06}", {"state.json": b"{}", "w": bytes([number])})
    return f"{run}/gen-{number:06}"


def committed(machine: Machine) -> dict[str, int]:
    """What the log of the bucket names, and of how many files."""
    log = Path(machine.environ["CLOUD_BUCKET"]) / "eigen2/.syncd/commits"
    records = [json.loads(path.read_bytes()) for path in log.glob("*.json")]
    return {record["checkpoint"]: len(record["files"]) for record in records}


def waiting(machine: Machine) -> dict[str, int]:
    """Bytes of each checkpoint that is not complete."""
    told = (machine.status() or {}).get("incomplete", [])
    return {item["path"]: item["size"] for item in told}


def problem(machine: Machine) -> str:
    """What the daemon says of its watch."""
    return str((machine.status() or {}).get("watching", ""))


def possible(*command: str) -> None:
    """Skip where this machine does not allow it."""
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{shlex.join(command)}: {done.stderr.strip()}")


def test_overflow_while_the_daemon_is_frozen(build: Build) -> None:
    """20,000 files appear at once; the checkpoint after them raises no event any more."""
    queue = int((_LIMITS / "max_queued_events").read_text())
    files = max(20_000, queue)  # two events each
    one = build()
    one.start()
    growing = one.checkpoints / "hf/checkpoint-7"
    growing.mkdir(parents=True)
    (growing / "optimizer.pt").write_bytes(b"its last file is not there yet")
    wait_until(one.has_committed(generation(one, 1)), one.log)
    wait_until(lambda: waiting(one).get("hf/checkpoint-7", 0) > 0, one.log)
    assert one.daemon
    os.kill(one.daemon.pid, signal.SIGSTOP)
    for number in range(files):
        (growing / f"part-{number:05}.bin").write_bytes(b"x")
    lost = generation(one, 2)
    os.kill(one.daemon.pid, signal.SIGCONT)
    wait_until(lambda: lost in committed(one), one.log, 120)
    wait_until(lambda: waiting(one).get("hf/checkpoint-7", 0) == files + 30, str(waiting(one)), 120)
    wait_until(lambda: problem(one) == "events and scans", problem(one))
    after = generation(one, 3)  # and events come again
    wait_until(lambda: after in committed(one), one.log)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("max_inotify_watches", "max_user_watches, is reached"),
        ("max_inotify_instances", "scanning only"),
    ],
)
def test_limit_of_the_kernel_is_said_and_everything_is_found(
    build: Build, limit: str, words: str
) -> None:
    """Of watches, and of instances: with none there are no events at all."""
    most = {"max_inotify_watches": 4, "max_inotify_instances": 0}[limit]
    lower = f'echo {most} > /proc/sys/user/{limit} && exec "$@"'
    possible("unshare", "-U", "-r", "sh", "-c", lower, "sh", "true")
    one = build()
    names = {generation(one, number, f"run-{number}") for number in range(1, 13)}
    one.start("unshare", "-U", "-r", "sh", "-c", lower, "sh")
    wait_until(lambda: words in problem(one), f"{problem(one)} {one.log()}")
    assert words in one.log()
    wait_until(lambda: committed(one).keys() == names, one.log)
    for number in (1, 12):  # into a folder that is watched, and into one that may not be
        names.add(generation(one, number + 20, f"run-{number}"))
    names.add(generation(one, 1, "new/and/deep"))
    (one.checkpoints / "run-5/gen-000005/w").write_bytes(b"overwritten in place")
    wait_until(lambda: committed(one).keys() == names, one.log)
    plain = Path(one.environ["CLOUD_BUCKET"]) / "eigen2/checkpoints/run-5/gen-000005/w"
    wait_until(lambda: plain.read_bytes() == b"overwritten in place", one.log)
    assert one.reasons() == "[]"


def test_network_file_system_raises_no_events(build: Build, tmp_path: Path) -> None:
    """What others write there is found by scans, and the status says that it scans."""
    try:
        rclone = program("bin", "rclone")
    except NotInstalled as missing:
        pytest.skip(str(missing))
    far = tmp_path / "far"
    far.mkdir()
    one = build()
    one.checkpoints.mkdir()
    mount = [rclone, "mount", str(far), str(one.checkpoints), "--config", "/dev/null"]
    mount += ["--dir-cache-time", "200ms", "--attr-timeout", "0s"]
    with subprocess.Popen(mount, stderr=subprocess.PIPE, text=True) as served:
        try:
            until = time.monotonic() + 20
            while not one.checkpoints.is_mount():
                if served.poll() is not None or time.monotonic() > until:
                    pytest.skip("no file system can be mounted here by a process")
                time.sleep(0.05)
            one.start()
            wait_until(lambda: "fuse.rclone" in problem(one), problem(one))
            for number in (1, 2):
                place = far / f"run/gen-{number:06}"
                aside = far / f"run/.tmp-{number}"
                aside.mkdir(parents=True)
                (aside / "state.json").write_text("{}")
                aside.rename(place)
                wait_until(one.has_committed(f"run/gen-{number:06}"), one.log)
            one.kill()
        finally:
            subprocess.run(["umount", "-l", str(one.checkpoints)], check=False)
            served.terminate()


def test_folders_that_are_filled_before_a_watch_can_stand(build: Build) -> None:
    """Made, filled and moved within microseconds of each other, by several writers at once."""
    one = build()
    one.start()
    names: set[str] = set()

    def write(writer: int) -> None:
        for number in range(1, 9):
            names.add(generation(one, number, f"w{writer}/{number % 3}/deep"))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(names) == 32
    wait_until(
        lambda: committed(one).keys() == names, f"{names - committed(one).keys()}; {one.log()}"
    )


def test_root_under_which_a_disk_is_mounted_and_taken_away(build: Build) -> None:
    """The root is another one each time; what is in the store stays there."""
    one = build()
    one.checkpoints.mkdir()
    possible("unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(one.checkpoints))
    one.start("unshare", "-m")
    wait_until(one.has_committed(generation(one, 1)), one.log)
    assert one.daemon
    inside = ["nsenter", "-t", str(one.daemon.pid), "-m"]
    root = shlex.quote(str(one.checkpoints))
    subprocess.run([*inside, "mount", "-t", "tmpfs", "tmpfs", str(one.checkpoints)], check=True)
    write = (
        f"mkdir -p {root}/run/.tmp-2 && cd {root}/run && "
        f"echo {{}} > .tmp-2/state.json && echo 2 > .tmp-2/w && "
        f"mv {root}/run/.tmp-2 {root}/run/gen-000002"
    )
    subprocess.run([*inside, "sh", "-c", write], check=True)
    wait_until(one.has_committed("run/gen-000002"), one.log)
    away = [*inside, "umount", str(one.checkpoints)]  # refused in the moment of a look at it
    wait_until(lambda: subprocess.run(away, check=False).returncode == 0, one.log)
    wait_until(one.has_committed(generation(one, 3)), one.log)
    assert committed(one).keys() == {f"run/gen-{number:06}" for number in (1, 2, 3)}
    assert one.syncd("verify").returncode == 0
    assert one.reasons() == "[]"


def test_root_that_is_deleted_and_made_again_at_once(build: Build) -> None:
    """Between two looks of the daemon it is another folder of the same name."""
    one = build()
    one.start()
    for number in range(1, 4):
        wait_until(one.has_committed(generation(one, number)), one.log)
        one.checkpoints.rename(one.disk / f"old-{number}")
        one.checkpoints.mkdir()
    wait_until(one.has_committed(generation(one, 4)), one.log)
    assert len(committed(one)) == 4
