"""What a flush says of saves that it did not send: the machine may be destroyed afterwards."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import Machine, wait_until

HOUR = 3600.0


def whole(number: int) -> bytes:
    """A pickle."""
    return b"\x80\x02K%c." % number


TORN = b"PK\x03\x04" + bytes(100)
"""The beginning of a torch file."""


@pytest.fixture
def one(tmp_path: Path) -> Machine:
    return Machine(
        tmp_path / "disk",
        {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": str(tmp_path / "bucket"), "SYNCD_SETTLE": "0"},
    )


def write(one: Machine, path: str, data: bytes, age: float = 0.0) -> None:
    file = one.checkpoints / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    if age:
        os.utime(file, (time.time() - age,) * 2)


def newer(one: Machine) -> dict[str, str]:
    done = one.syncd("--once", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)["newer"]
    assert all(f"not sent: {path}" in done.stderr for path in found)
    assert ("all safe" in done.stderr) == (not json.loads(done.stdout)["incomplete"] and not found)
    return found


def _torn(one: Machine) -> None:
    write(one, "step_2.pt", TORN)


def _torn_with_an_old_date(one: Machine) -> None:
    write(one, "step_2.pt", TORN, age=HOUR)  # as cp -p leaves it


def _torn_before_the_last_line_of_a_log(one: Machine) -> None:
    write(one, "step_2.pt", TORN)
    write(one, "events.out.tfevents.1.host", b"line\n")


def _by_another_name(one: Machine) -> None:
    write(one, "step_2.pt.tmp", b"x")


def _in_a_folder_aside(one: Machine) -> None:
    write(one, "tmp-checkpoint-2/model.pt", b"x")


def _in_a_hidden_folder(one: Machine) -> None:
    write(one, ".tmp-gen-2/model/weights.pt", b"x")


@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (_torn, "step_2.pt"),
        (_torn_with_an_old_date, "step_2.pt"),
        (_torn_before_the_last_line_of_a_log, "step_2.pt"),
        (_by_another_name, "step_2.pt.tmp"),
        (_in_a_folder_aside, "tmp-checkpoint-2"),
        (_in_a_hidden_folder, ".tmp-gen-2"),
    ],
)
def test_a_newer_save_that_failed_is_told(
    one: Machine, spoil: Callable[[Machine], None], path: str
) -> None:
    write(one, "step_1.pt", whole(1))
    assert newer(one) == {}
    spoil(one)
    assert list(newer(one)) == [path]


def test_what_an_earlier_kill_has_left_is_not_newer(one: Machine) -> None:
    write(one, "step_0.pt", TORN)
    write(one, "tmp-1/model.pt", b"x")
    assert set(newer(one)) == {"step_0.pt", "tmp-1"}
    write(one, "step_1.pt", whole(1))
    assert newer(one) == {}
    (one.checkpoints / "step_1.pt").unlink()  # the trainer keeps none
    assert newer(one) == {}


def test_what_is_nobodys_save_is_not_told(one: Machine) -> None:
    write(one, "step_1.pt", whole(1))
    one.environ["SYNCD_EXCLUDE"] = "cache"
    for path in (".git/index", "x.lock", ".cache/a.lock", "cache/y.tmp", ".syncd-restore-1/z"):
        write(one, path, b"x")
    write(one, "empty.tmp", b"")
    assert newer(one) == {}


def test_a_log_that_was_sent_just_now_is_no_save(one: Machine) -> None:
    write(one, "run/model.pt", whole(1))
    write(one, "run/log.txt", b"1\n")
    assert newer(one) == {}
    with (one.checkpoints / "run/log.txt").open("ab") as log:
        log.write(b"2\n")
        assert newer(one) == {}


def test_a_daemon_tells_as_well(one: Machine) -> None:
    one.start()
    write(one, "step_1.pt", whole(1))
    wait_until(one.has_committed("step_1.pt"), one.log)
    write(one, "step_2.pt", TORN)
    assert list(newer(one)) == ["step_2.pt"]
    shutil.rmtree(one.checkpoints)
    assert newer(one) == {}
    one.stop()
