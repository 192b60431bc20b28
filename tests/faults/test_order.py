"""What goes first, and that nothing starves: a slow link, a daemon, and more than fits."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine, every_core_busy, wait_until
from tests.faults.deadlines import end, starting
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire

pytestmark = pytest.mark.timed

MB = 1_000_000


def committed(machine: Machine) -> list[str]:
    """Names of the commits in the order in which they were made."""
    rows = json.loads(machine.syncd("ls", "--json").stdout)
    return [row["checkpoint"] for row in sorted(rows, key=lambda row: row["seq"])]


class Restless(threading.Thread):
    """Saves again and again, as torch.save does; each record tells its save."""

    def __init__(self, save: Callable[[int], None], pause: float) -> None:
        super().__init__(daemon=True)
        self._save, self._pause = save, pause
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        number = 0
        while not self._over.wait(self._pause):
            number += 1
            self._save(number)

    def end(self) -> None:
        self._over.set()
        self.join()


def save_zip(path: Path, number: int, size: int) -> None:
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for record in range(4):
            archive.writestr(f"data/{record}", number.to_bytes(8, "big") * (size // 32))


def saves_of(path: Path) -> set[bytes]:
    with zipfile.ZipFile(path) as archive:
        data = [archive.read(name) for name in archive.namelist()]
    return {part[at : at + 8] for part in data for at in range(0, len(part), 8)}


@pytest.mark.slow
def test_checkpoint_that_never_rests_is_committed_all_the_same(build: Build) -> None:
    """A transfer takes 2 s, and a new save comes each 0.7 s."""
    one = build(SYNCD_BWLIMIT="2M")
    path = one.checkpoints / "last.pt"
    one.checkpoints.mkdir()
    writer = Restless(lambda number: save_zip(path, number, 4 * MB), 0.7)
    one.start()
    try:
        wait_until(lambda: (one.status() or {}).get("commits", 0) >= 3, "three commits")
    finally:
        writer.end()
        one.kill()
    two = build("two")
    assert two.syncd("restore").returncode == 0
    assert len(saves_of(two.checkpoints / "last.pt")) == 1
    assert not list(one.state.glob("snapshots/*/*"))[3:]  # of a life that was cut short, at most


@pytest.mark.slow
def test_line_that_is_thin_is_not_taken_for_one_that_is_down(build: Build) -> None:
    """A checkpoint takes 6 s, nothing is heard meanwhile, and each 4 s something newer comes."""
    one = build(SYNCD_BWLIMIT="400K")
    one.checkpoints.mkdir()

    def save(number: int) -> None:
        save_zip(one.checkpoints / f"step_{number}.pt", number, 2_400_000)
        (one.checkpoints / "last_checkpoint").write_text(f"step_{number}.pt")
        (one.checkpoints / f"step_{number - 3}.pt").unlink(missing_ok=True)

    writer = Restless(save, 4.0)
    one.start()
    try:
        wait_until(
            lambda: sum(name.endswith(".pt") for name in committed(one)) >= 2,
            lambda: f"two checkpoints:\n{one.log}",
        )
    finally:
        writer.end()
        one.kill()


def test_small_extract_after_each_pair_does_not_starve_the_pairs(build: Build) -> None:
    """RVC: what is newest of all is small, and the line carries less than is saved."""
    one = build(SYNCD_BWLIMIT="500K", SYNCD_SETTLE="0.5")
    for folder in ("run", "weights"):
        (one.checkpoints / folder).mkdir(parents=True)

    def save(number: int) -> None:
        for name in "GD":
            save_zip(one.checkpoints / f"run/{name}_{200 * number}.pth", number, 1_000_000)
            (one.checkpoints / f"run/{name}_{200 * (number - 6)}.pth").unlink(missing_ok=True)
        save_zip(one.checkpoints / f"weights/voice_e{number}.pth", number, 200_000)

    writer = Restless(save, 3.0)
    one.start()
    try:
        wait_until(
            lambda: sum(name.startswith("run/G_") for name in committed(one)) >= 2,
            lambda: f"two pairs:\n{one.log()}",
            60,
        )
    finally:
        writer.end()
        one.kill()


@pytest.mark.slow
def test_set_that_never_rests_is_committed_whole(build: Build) -> None:
    one = build(SYNCD_BWLIMIT="2M")
    folder = one.checkpoints / "run"
    (folder / "population").mkdir(parents=True)

    def save(number: int) -> None:
        for agent in range(3):
            save_zip(folder / f"population/agent_{agent}.pth", number, MB)
        (folder / "trainer_state.json").write_text(json.dumps({"generation": number}))

    writer = Restless(save, 0.9)
    one.start()
    try:
        wait_until(lambda: (one.status() or {}).get("commits", 0) >= 3, "three commits")
    finally:
        writer.end()
        one.kill()
    two = build("two")
    assert two.syncd("restore").returncode == 0
    number = json.loads((two.checkpoints / "run/trainer_state.json").read_text())["generation"]
    for agent in (two.checkpoints / "run/population").iterdir():
        assert saves_of(agent) == {number.to_bytes(8, "big")}


@pytest.mark.slow
def test_each_that_is_deleted_before_its_transfer_ends_is_committed_now_and_then(
    build: Build,
) -> None:
    """A trainer that keeps one checkpoint, and a line that takes longer than it lives."""
    one = build(SYNCD_BWLIMIT="2M")
    (one.checkpoints / "run").mkdir(parents=True)

    def save(number: int) -> None:
        files = {"w": number.to_bytes(8, "big") * (6 * MB // 8), "trainer_state.json": b"{}"}
        one.write_checkpoint(f"run/checkpoint-{number}", files)
        shutil.rmtree(one.checkpoints / f"run/checkpoint-{number - 1}", ignore_errors=True)

    writer = Restless(save, 1.2)
    one.start()
    try:
        wait_until(lambda: (one.status() or {}).get("commits", 0) >= 3, "three commits", 60)
    finally:
        writer.end()
        one.kill()
    two = build("two")
    assert two.syncd("restore").returncode == 0
    (folder,) = (two.checkpoints / "run").iterdir()
    number = int(folder.name.partition("-")[2])
    assert (folder / "w").read_bytes() == number.to_bytes(8, "big") * (6 * MB // 8)


@pytest.mark.slow
def test_new_checkpoint_does_not_wait_for_a_backlog(build: Build) -> None:
    one = build(SYNCD_BWLIMIT="4M")
    for number in (1, 2, 3):
        one.write_checkpoint(
            f"run/gen-{number:06}", {"w": os.urandom(10 * MB), "state.json": b"{}"}
        )
        at = time.time() - 100 + number
        for path in (one.checkpoints / f"run/gen-{number:06}").iterdir():
            os.utime(path, (at, at))
    one.start()
    wait_until(one.has_committed("run/gen-000003"), "the newest")
    one.write_checkpoint("run/gen-000004", {"w": os.urandom(MB), "state.json": b"{}"})
    wait_until(one.has_committed("run/gen-000004"), "the new one")
    assert committed(one)[:2] == ["run/gen-000003", "run/gen-000004"]
    wait_until(lambda: len(committed(one)) == 4, "the backlog")
    assert one.point() == "run/gen-000004"


@pytest.mark.alone
@pytest.mark.slow
def test_trainer_on_every_core_delays_a_checkpoint_but_not_for_ever(build: Build) -> None:
    """Beside two busy processes for each core it has little, but not nothing."""
    one = build()
    one.start()
    one.write_checkpoint("run/gen-000001", {"w": os.urandom(MB), "state.json": b"{}"})
    wait_until(one.has_committed("run/gen-000001"), "the first")
    # not by asking the daemon, which would have the less time for its work
    log = one.disk.parent / "bucket/eigen2/.syncd/commits"

    def there() -> bool:
        return any("gen-000002" in record.read_text() for record in log.glob("*.json"))

    with every_core_busy():
        one.write_checkpoint("run/gen-000002", {"w": os.urandom(20 * MB), "state.json": b"{}"})
        began = time.monotonic()
        wait_until(there, one.log, 120)
        print(f"committed after {time.monotonic() - began:.1f} s")


@pytest.mark.slow
def test_what_can_still_be_committed_goes_first_at_the_end(build: Build) -> None:
    one = build(SYNCD_BWLIMIT="2M", SYNCD_SHUTDOWN_GRACE="4")
    one.write_checkpoint("run/gen-000001", {"w": os.urandom(4 * MB), "state.json": b"{}"})
    one.start()
    wait_until(one.has_committed("run/gen-000001"), "the first: now the pace is known")
    one.write_checkpoint("run/gen-000002", {"w": os.urandom(2 * MB), "state.json": b"{}"})
    one.write_checkpoint("run/gen-000003", {"w": os.urandom(60 * MB), "state.json": b"{}"})
    (one.disk / "logs").mkdir()
    (one.disk / "logs/train.log").write_text("the last words\n")
    assert one.daemon
    began = time.monotonic()
    assert one.stop() == 1
    assert time.monotonic() - began < 6
    assert "run/gen-000002" in committed(one)
    assert (one.disk.parent / "bucket/eigen2/logs/train.log").read_text() == "the last words\n"


@pytest.mark.slow
@pytest.mark.parametrize("grace", ["0.5", "3"])
@pytest.mark.parametrize("hole", [True, False])
def test_end_comes_in_time(build: Build, seaweedfs: SeaweedFS, grace: str, hole: bool) -> None:
    """At the deadline and half a second, whether the store is a black hole or only slow."""
    seaweedfs.client().create_bucket(Bucket=(name := f"end-{os.getpid()}-{grace[0]}-{hole:d}"))
    wire = Wire(seaweedfs.port)
    url = seaweedfs.url.replace(str(seaweedfs.port), str(wire.port))
    settings = {**seaweedfs.env(), "AWS_ENDPOINT_URL": url, "SYNCD_SHUTDOWN_GRACE": grace}
    limit = {} if hole else {"SYNCD_BWLIMIT": "500K"}
    one = build(CLOUD_PROVIDER="s3", CLOUD_BUCKET=name, **settings, **limit)
    one.start()
    one.write_checkpoint("run/gen-000001", {"state.json": b"{}"})
    wait_until(one.has_committed("run/gen-000001"), "the first")
    if hole:
        wire.flows.clear()
    one.write_checkpoint("run/gen-000002", {"w": os.urandom(20 * MB), "state.json": b"{}"})
    wait_until(lambda: bool((one.status() or {}).get("backlog")), "the second, under way")
    assert one.daemon
    began = time.monotonic()
    one.daemon.send_signal(signal.SIGTERM)
    assert one.daemon.wait(30) == 1
    assert time.monotonic() - began < float(grace) + 0.5 + 1.5  # the last: a busy machine's pardon
    wire.flows.set()
    wire.close()


@pytest.mark.slow
def test_second_signal_ends_it_at_once(build: Build) -> None:
    one = build(SYNCD_BWLIMIT="500K", SYNCD_SHUTDOWN_GRACE="120")
    one.start()
    one.write_checkpoint("run/gen-000001", {"w": os.urandom(20 * MB), "state.json": b"{}"})
    wait_until(lambda: bool((one.status() or {}).get("backlog")), "it is under way")
    assert one.daemon
    one.daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in one.log(), "it has heard the first")
    time.sleep(0.4)  # a second signal within 0.3 s is the first, sent to process and group
    one.daemon.send_signal(signal.SIGTERM)
    assert one.daemon.wait(3) == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["once", "asked", "keeper"])
def test_flush_by_hand_ends_though_its_requests_hang(
    tmp_path: Path, seaweedfs: SeaweedFS, way: str
) -> None:
    """``python -m tests.faults.deadlines`` measures it; a request by itself hangs for a minute."""
    seen = end((way, "hole", 1.0), seaweedfs, tmp_path, starting(tmp_path))
    print(seen)
    assert seen.code == 1 or way == "keeper"
    assert seen.over < 10.0  # a busy machine's pardon


def test_signal_that_another_thread_gets_ends_it_too(build: Build) -> None:
    """The system chooses the thread; Python's handlers run in the main one, which may sleep."""
    one = build()
    one.start()
    assert one.daemon
    threads = {int(task.name) for task in Path(f"/proc/{one.daemon.pid}/task").iterdir()}
    other = max(threads - {one.daemon.pid})
    assert ctypes.CDLL(None).tgkill(one.daemon.pid, other, signal.SIGTERM) == 0
    assert one.daemon.wait(30) == 0
