"""What users of other tools complain of, one by one, where no other file holds the test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.processes import Build, wait_until
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire
from tests.workbench import CountingStore, age, tree
from tests.workbench import Machine as Bench

MIB = 2**20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    from syncd.stores.directory import DirectoryStore

    store = CountingStore(DirectoryStore(tmp_path / "bucket"))
    return Bench(tmp_path / "one", tmp_path / "bucket", store=store).start()


def writes(bench: Bench) -> list[str]:
    assert isinstance(bench.store, CountingStore)
    return bench.store.writes


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_rewrite_of_the_same_size_and_time_is_seen(bench: Bench, tmp_path: Path) -> None:
    """aws-cli#1074, #8377: comparing size and time misses it."""
    path = bench.write("last.bin", b"one")
    bench.commit_all()
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(bench.commit_all()) == 1
    assert (tmp_path / "bucket/eigen2/checkpoints/last.bin").read_bytes() == b"two"


def test_time_alone_sends_nothing(bench: Bench) -> None:
    """aws-cli#1808, #3273: a hard link, or summer time, and all goes up again."""
    path = bench.write("run/gen-000001/w.bin", b"weights" * 1000)
    bench.write("run/gen-000001/state.json", "{}")
    bench.commit_all()
    before = len(writes(bench))
    (bench.disk / "another-name").hardlink_to(path)
    age(path, 3600)
    assert bench.commit_all() == []
    assert writes(bench)[before:] == []


def test_what_is_deleted_here_stays_there(bench: Bench, tmp_path: Path) -> None:
    """SageMaker and Polyaxon delete the copy with the original."""
    path = bench.write("run/gen-000001/state.json", "{}")
    bench.commit_all()
    path.unlink()
    path.parent.rmdir()
    assert bench.commit_all() == []
    assert tree(tmp_path / "bucket/eigen2/checkpoints") == {"run/gen-000001/state.json": b"{}"}


def test_unchanged_folder_costs_no_request(build: Build, seaweedfs: SeaweedFS) -> None:
    """huggingface_hub#2518: asking the store what it has uses the quota up."""
    seaweedfs.client().create_bucket(Bucket=(bucket := f"quiet-{os.getpid()}"))
    wire = Wire(seaweedfs.port)
    url = seaweedfs.url.replace(str(seaweedfs.port), str(wire.port))
    settings = {**seaweedfs.env(), "AWS_ENDPOINT_URL": url, "SYNCD_SETTLE": "0.1"}
    one = build(CLOUD_PROVIDER="s3", CLOUD_BUCKET=bucket, **settings)
    (one.disk / "logs").mkdir()
    (one.disk / "logs/train.log").write_text("a line\n")
    one.start()
    one.write_checkpoint("run/gen-000001", {"state.json": b"{}"})
    wait_until(one.has_committed("run/gen-000001"), "the checkpoint")
    seen = -1
    while seen != (seen := wire.upward):  # until what was still going on has ended
        time.sleep(1.5)
    (one.checkpoints / "run/gen-000001/state.json").read_bytes()  # reading is no change
    for name in ("a.tmp", "b.tmp"):  # events wake it: it looks, and asks the store nothing
        (one.checkpoints / name).write_bytes(b"not yet")
    time.sleep(6)
    assert wire.upward == seen
    wire.close()


@pytest.mark.timed
@pytest.mark.slow
def test_refusal_burns_no_cpu_and_few_requests(build: Build, seaweedfs: SeaweedFS) -> None:
    """huggingface_hub#3325: a permanent 403, tried for ever, and each file hashed each time."""
    seaweedfs.client().create_bucket(Bucket=(bucket := f"refused-{os.getpid()}"))
    wire = Wire(seaweedfs.port)
    url = seaweedfs.url.replace(str(seaweedfs.port), str(wire.port))
    settings = {**seaweedfs.env(), "AWS_ENDPOINT_URL": url, "AWS_SECRET_ACCESS_KEY": "wrong"}
    one = build(CLOUD_PROVIDER="s3", CLOUD_BUCKET=bucket, **settings)
    one.write_checkpoint("run/gen-000001", {"w": os.urandom(30 * MIB), "state.json": b"{}"})
    one.start()
    wait_until(lambda: "AWS_SECRET_ACCESS_KEY" in one.reasons(), f"red; {one.reasons()}")
    assert one.daemon
    before, sent, began = cpu_seconds(one.daemon.pid), wire.upward, time.monotonic()
    time.sleep(10)
    share = (cpu_seconds(one.daemon.pid) - before) / (time.monotonic() - began)
    assert share < 0.08  # looking for changed settings, each second, on a busy machine
    assert wire.upward - sent < 20_000
    wire.close()


@pytest.mark.slow
def test_large_file_needs_little_memory_both_ways(build: Build) -> None:
    """The replaced code held a file in memory, and its trainer peaked at 175 GB."""
    one = build()
    one.checkpoints.mkdir()
    with (one.checkpoints / "replay.dat").open("wb") as file:
        file.write(b"begins")
        file.truncate(700 * MIB - 4)
        file.seek(0, os.SEEK_END)
        file.write(b"ends")
    one.start()
    wait_until(one.has_committed("replay.dat"), "the checkpoint", 120)
    assert one.daemon
    status = Path(f"/proc/{one.daemon.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    assert peak < 150, f"{peak:.0f} MiB"
    one.kill()
    two = build("two")
    script = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run([sys.executable, '-m', 'syncd', 'restore']).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)\n"
    )
    command = [sys.executable, "-c", script]
    said = subprocess.run(
        command, cwd=two.disk, env=two.environ, capture_output=True, text=True, check=False
    )
    code, peak_back = said.stdout.split()[-2:]
    assert code == "0", said.stderr
    assert int(peak_back) < 150
    assert (two.checkpoints / "replay.dat").stat().st_size == 700 * MIB


@pytest.mark.slow
def test_thin_uplink_is_no_error(build: Build, seaweedfs: SeaweedFS) -> None:
    """azure-sdk-for-python#12166: 'the write operation timed out' where the link is slow."""
    seaweedfs.client().create_bucket(Bucket=(bucket := f"thin-{os.getpid()}"))
    wire = Wire(seaweedfs.port)
    wire.rate = 400_000
    url = seaweedfs.url.replace(str(seaweedfs.port), str(wire.port))
    settings = {**seaweedfs.env(), "AWS_ENDPOINT_URL": url}
    one = build(CLOUD_PROVIDER="s3", CLOUD_BUCKET=bucket, **settings)
    one.write_checkpoint("run/gen-000001", {"w": os.urandom(6 * MIB), "state.json": b"{}"})
    one.start()
    wait_until(one.has_committed("run/gen-000001"), "the checkpoint", 60)
    state = one.status()
    assert state
    assert state["errors"] == 0
    assert state["sent_bytes"] < 6.2 * MIB
    wire.close()
