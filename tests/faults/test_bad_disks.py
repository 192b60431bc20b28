"""Snapshots on a full disk, and a journal on one that fails: copying goes on, whole."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Build, wait_until
from tests.faults.test_order import MB, Restless, save_zip, saves_of


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Path]:
    """A file system whose blocks have no place any more: each write to them ends with EIO."""
    below, folder = tmp_path / "below", tmp_path / "failing"
    below.mkdir()
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(below))
    image = below / "image"
    try:
        with image.open("wb") as file:
            file.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        mount("-o", "loop,errors=continue", str(image), str(folder))
        yield folder
        (below / "fill").unlink(missing_ok=True)
        subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(below)], check=True)


def fill(folder: Path) -> None:
    with (folder / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["", "100M"], ids=["half of what is free", "more than there is"])
def test_snapshot_that_finds_no_room_is_done_without(build: Build, tiny: Path, limit: str) -> None:
    """A set that never rests; once it does, it is committed, and nothing is left on the disk."""
    one = build(SYNCD_BWLIMIT="2M", SYNCD_STATE_DIR=str(tiny), SYNCD_SNAPSHOT_LIMIT=limit)
    one.state = tiny
    path = one.checkpoints / "last.pt"
    one.checkpoints.mkdir()
    one.start()
    writer = Restless(lambda number: save_zip(path, number, 4 * MB), 0.7)
    try:
        wait_until(lambda: "is sent without a snapshot" in one.log(), one.log)
    finally:
        writer.end()
    wait_until(one.has_committed("last.pt"), one.log)
    assert not list(tiny.glob("snapshots/*/*"))
    two = build("two")
    assert two.syncd("restore").returncode == 0
    assert len(saves_of(two.checkpoints / "last.pt")) == 1


@pytest.mark.slow
def test_journal_on_a_disk_that_fails_costs_no_checkpoint(build: Build, failing: Path) -> None:
    one = build(SYNCD_STATE_DIR=str(failing))
    one.state = failing
    one.start()
    one.write_checkpoint("run/gen-000001", {"state.json": b"{}"})
    wait_until(one.has_committed("run/gen-000001"), one.log)
    fill(failing.parent / "below")
    for number in range(2, 12):
        name = f"run/gen-{number:06}"
        files = {f"{part}.bin": os.urandom(1000) for part in range(200)}  # rows for the journal
        one.write_checkpoint(name, {**files, "state.json": b"{}"})
        wait_until(one.has_committed(name), one.log)
        os.sync()
    assert one.daemon
    assert one.daemon.poll() is None
    one.kill()
    two = build("two")
    assert two.syncd("verify").returncode == 0
    assert two.syncd("restore").returncode == 0
    assert (two.checkpoints / "run/gen-000011/state.json").read_bytes() == b"{}"
