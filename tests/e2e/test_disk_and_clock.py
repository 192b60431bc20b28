"""The daemon on a bad disk and with a wrong clock: never a crash loop, always with words."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine, wait_until
from tests.servers.s3 import SeaweedFS


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def checkpoint(machine: Machine, generation: int) -> str:
    machine.write_checkpoint(f"run/gen-{generation:06}", {"state.json": b"{}"})
    return f"run/gen-{generation:06}"


def commit(machine: Machine, generation: int) -> None:
    """A checkpoint is written, and becomes the recovery point."""
    wait_until(machine.has_committed(checkpoint(machine, generation)), machine.log)


# -- the journal


def test_journal_on_a_full_disk_costs_no_checkpoint_and_comes_back(
    build: Build, small: Path
) -> None:
    one = build(SYNCD_STATE_DIR=str(small))
    one.state = small
    one.start()
    commit(one, 5)
    with (small / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    number = 10
    while "journal" not in one.reasons():  # until it has no page left of its own
        commit(one, number)
        number += 5
    assert "free space in SYNCD_STATE_DIR" in one.reasons()
    commit(one, number)
    (small / "fill").unlink()
    wait_until(lambda: one.reasons() == "[]", one.reasons())
    assert "the journal is on disk again" in one.log()
    commit(one, number + 5)
    sent = (one.status() or {})["sent_bytes"]
    assert sent
    assert one.stop() == 0
    one.start()
    wait_until(one.has_committed(f"run/gen-{number + 5:06}"), one.log)
    assert (one.status() or {})["sent_bytes"] == 0
    assert one.syncd("verify").returncode == 0


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_flush_by_hand_and_restore_with_a_bad_state_disk(
    build: Build, small: Path, fault: str
) -> None:
    one, two = (build(name, SYNCD_STATE_DIR=str(small)) for name in ("one", "two"))
    if fault == "full":
        with (small / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    name = checkpoint(one, 5)
    flushed = one.syncd("--once")
    assert (flushed.returncode, "Traceback" in flushed.stderr) == (0, False), flushed.stderr
    assert "kept in memory only" in flushed.stderr
    restored = two.syncd("restore")
    assert (restored.returncode, "Traceback" in restored.stderr) == (0, False), restored.stderr
    assert (two.checkpoints / name / "state.json").read_bytes() == b"{}"


@pytest.mark.parametrize("damage", ["deleted", "folder deleted", "rubbish", "cut", "a directory"])
def test_journal_that_is_damaged_under_the_daemon(build: Build, damage: str) -> None:
    one = build()
    one.start()
    commit(one, 5)
    journal = one.state / "journal.sqlite"
    if damage == "deleted":
        for path in one.state.glob("journal.sqlite*"):
            path.unlink()
    elif damage == "folder deleted":
        for path in one.state.iterdir():
            path.unlink() if not path.is_dir() else path.rmdir()
        one.state.rmdir()
    elif damage == "rubbish":
        journal.write_bytes(os.urandom(200_000))
    elif damage == "cut":
        os.truncate(journal, 5000)
    else:
        journal.unlink()
        journal.mkdir()
    names = [checkpoint(one, generation) for generation in (10, 15, 20)]
    bucket = Path(one.environ["CLOUD_BUCKET"])
    plain = bucket / "eigen2/checkpoints" / names[-1]
    wait_until((plain / "state.json").exists, one.log)
    assert one.daemon
    assert one.daemon.poll() is None
    if damage == "deleted":
        wait_until(journal.exists, one.log)
    elif damage == "folder deleted":
        wait_until(lambda: one.status() is not None, "a socket")
    one.stop()
    two = build("two")
    rows = two.syncd("ls", "--json").stdout
    assert all(name in rows for name in names)
    assert two.syncd("verify").returncode == 0


# -- the clock


def clock(*offset: str, file: Path | None = None) -> Mapping[str, str]:
    """The environment of a process whose clock is wrong; its monotonic clock is right."""
    library = "lib/python*/site-packages/libfaketime/vendor/libfaketime/src/libfaketime.so.1"
    found = [
        *sorted((Path(__file__).parents[1] / ".servers").glob(library)),
        *sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")),
    ]
    if not found:
        pytest.skip("libfaketime is not installed (tests/servers/install.sh)")
    fake = {"LD_PRELOAD": str(found[0]), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    if file:
        return {**fake, "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}
    return {**fake, "FAKETIME": offset[0]}


def words_of(one: Machine, *words: str) -> Callable[[], bool]:
    return lambda: all(word in one.reasons() for word in words)


@pytest.mark.parametrize("offset", ["+20m", "-20m"])
def test_clock_that_is_20_minutes_off_is_named_as_the_reason(
    build: Build, seaweedfs: SeaweedFS, tmp_path: Path, offset: str
) -> None:
    bucket = f"clock-{os.getpid()}-{'ahead' if offset[0] == '+' else 'behind'}"
    client = seaweedfs.client()
    client.create_bucket(Bucket=bucket)
    client.close()
    moment = tmp_path / "clock"
    moment.write_text(offset)
    cloud = {**seaweedfs.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": bucket}
    one = build(**cloud, **clock(file=moment))
    name = checkpoint(one, 5)
    one.start()
    wait_until(words_of(one, "clock"), one.log)
    assert one.syncd("status").returncode == 1
    checked = one.syncd("check")
    assert checked.returncode == 1
    assert "clock" in checked.stdout
    moment.write_text("+0")
    wait_until(one.has_committed(name), one.log)
    wait_until(lambda: one.reasons() == "[]", one.log)


def test_clock_that_jumps_both_ways_holds_nothing_up(build: Build, tmp_path: Path) -> None:
    moment = tmp_path / "clock"
    moment.write_text("+0")
    one = build(**clock(file=moment))
    one.start()
    commit(one, 5)
    for number, offset in enumerate(("+3d", "-40y", "+10y", "+0"), start=2):
        moment.write_text(offset)
        began = time.monotonic()
        commit(one, 5 * number)
        (one.checkpoints / f"lone-{number}.bin").write_bytes(b"x" * number)
        wait_until(one.has_committed(f"lone-{number}.bin"), one.log)
        assert time.monotonic() - began < 30
    assert one.stop() == 0
    two = build("two")
    assert two.syncd("restore").returncode == 0
    assert two.syncd("verify").returncode == 0


@pytest.mark.parametrize("moment", [0, 4_000_000_000])
def test_files_of_1970_and_of_the_future_are_complete_like_others(
    build: Build, moment: int
) -> None:
    one, two = build("one"), build("two")
    one.start()
    path = one.checkpoints / "set-1/w.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    os.utime(path, (moment, moment))
    wait_until(one.has_committed("set-1"), one.log)
    assert one.stop() == 0
    assert two.syncd("restore").returncode == 0
    assert (two.checkpoints / "set-1/w.bin").stat().st_mtime == moment
