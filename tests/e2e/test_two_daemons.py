"""Two real daemons and one bucket: the old one is fenced, or both lines are told and kept."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Machine, wait_until
from tests.servers.fixtures import Bucket, s3_bucket
from tests.servers.s3 import Rclone, SeaweedFS
from tests.servers.wires import Wire
from tests.workbench import tree

MIB = 1024 * 1024


@pytest.fixture
def fencing(seaweedfs: SeaweedFS) -> Iterator[Bucket]:
    yield from s3_bucket("s3-seaweedfs", seaweedfs, frozenset())


@pytest.fixture
def heedless(rclone: Rclone) -> Iterator[Bucket]:
    yield from s3_bucket("s3-rclone", rclone, frozenset())


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    running: list[Machine] = []
    yield running
    for machine in running:
        if machine.daemon:
            machine.daemon.send_signal(signal.SIGCONT)
        machine.kill()


def writes(wire: Wire) -> list[str]:
    return [line for line in wire.requests if line.startswith(("PUT", "POST", "DELETE"))]


@pytest.mark.slow
def test_machine_that_wakes_up_is_fenced_and_touches_nothing(
    fencing: Bucket, tmp_path: Path, machines: list[Machine]
) -> None:
    wire = Wire(fencing.port)
    slow = {**fencing.settings(), **fencing.at_port(wire.port), "SYNCD_BWLIMIT": "3M"}
    old = Machine(tmp_path / "old", slow)
    new = Machine(tmp_path / "new", fencing.settings())
    machines += [old, new]
    old.write_checkpoint("run/gen-000005", {"state.json": b"{}", "w.bin": b"five"})
    old.start()
    wait_until(old.has_committed("run/gen-000005"), "the first checkpoint")
    old.write_checkpoint("run/gen-000010", {"w.bin": os.urandom(30 * MIB), "state.json": b"{}"})
    parts = "partNumber="
    wait_until(lambda: sum(parts in line for line in wire.requests) >= 2, "two parts")
    assert old.daemon
    old.daemon.send_signal(signal.SIGSTOP)

    restored = new.syncd("restore")
    assert "restored run/gen-000005" in restored.stderr
    new.start()
    new.write_checkpoint("run/gen-000010", {"w.bin": b"another ten", "state.json": b"{}"})
    wait_until(new.has_committed("run/gen-000010"), "the successor's checkpoint")
    before = tree(old.checkpoints)

    old.daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: "another machine" in old.reasons(), f"the fence; {old.log()}")
    said = old.syncd("status")
    assert said.returncode == 1
    assert "needs attention" in said.stdout
    assert "stop one of them, or give each its own CLOUD_PREFIX" in " ".join(said.stdout.split())
    seen = len(writes(wire))
    old.write_checkpoint("run/gen-000015", {"w.bin": b"in vain", "state.json": b"{}"})
    once = old.syncd("--once")
    assert once.returncode == 1
    assert "run/gen-000015" in once.stderr
    assert "another machine" in once.stderr
    assert old.stop() == 1
    assert writes(wire)[seen:] == []
    gen_15 = {f"run/gen-000015/{name}" for name in ("w.bin", "state.json")}
    assert {k: v for k, v in tree(old.checkpoints).items() if k not in gen_15} == before

    fresh = Machine(tmp_path / "fresh", fencing.settings())
    assert fresh.syncd("restore").returncode == 0
    assert (fresh.checkpoints / "run/gen-000010/w.bin").read_bytes() == b"another ten"
    assert fresh.syncd("verify").returncode == 0
    wire.close()


@pytest.mark.slow
def test_store_that_cannot_fence_keeps_both_lines_and_says_so(
    heedless: Bucket, tmp_path: Path, machines: list[Machine]
) -> None:
    one, two = (Machine(tmp_path / name, heedless.settings()) for name in ("one", "two"))
    machines += [one, two]
    for machine in (one, two):
        machine.start()
        machine.write_checkpoint("run/gen-000005", {"w.bin": machine.disk.name.encode()})
        wait_until(machine.has_committed("run/gen-000005"), f"a commit; {machine.log()}")
    assert "cannot refuse a second writer" in one.log()
    for machine in (one, two, one):
        (machine.checkpoints / "run/gen-000005/w.bin").write_bytes(
            f"{machine.disk.name} goes on".encode() + os.urandom(4)
        )
        committed = (machine.status() or {})["commits"]
        wait_until(lambda m=machine, n=committed: (m.status() or {})["commits"] > n, "a commit")  # type: ignore[misc]
    wait_until(lambda: "side by side" in one.reasons(), f"the reason; {one.log()}")
    wait_until(lambda: "writer" in two.reasons(), f"the reason; {two.log()}")
    writers = {str((machine.status() or {})["writer"]) for machine in (one, two)}

    listed = one.syncd("ls", "--json")
    rows = json.loads(listed.stdout)
    assert {row["writer"] for row in rows} == writers
    assert all(writer in listed.stderr for writer in writers)
    checked = one.syncd("check")
    assert checked.returncode == 1
    assert "side by side" in checked.stdout.replace("\n", " ")
    assert one.syncd("verify").returncode == 0

    for row in rows[:2]:
        target = tmp_path / f"back-{row['seq']}"
        back = one.syncd("restore", "--to", str(target), "--at", f"#{row['seq']}")
        assert back.returncode == 0
        assert "side by side" in back.stderr
    lines = [tmp_path / f"back-{row['seq']}/run/gen-000005/w.bin" for row in rows[:2]]
    assert {line.read_bytes()[:3] for line in lines} == {b"one", b"two"}

    two.stop()
    one.stop()
    one.start()
    wait_until(lambda: "side by side" not in one.syncd("ls").stderr, "a life that knows both")
