"""Progress is seen where it happens: in the kernel, and not when a part is over."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from syncd.motion import Motion, taken_upstream
from tests.e2e.processes import wait_until


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def send(listener: socket.socket, count: int) -> socket.socket:
    """A connection on which the far end's kernel took ``count`` bytes, which nobody reads."""
    client = socket.create_connection(listener.getsockname())
    before = taken_upstream()
    client.sendall(b"x" * count)
    wait_until(lambda: taken_upstream() == before + count, "the acknowledgement", 10)
    return client


def test_bytes_that_are_acknowledged_are_progress(listener: socket.socket) -> None:
    motion = Motion()
    with closing(send(listener, 1000)):
        open_now = descriptors()
        assert motion.goes_on(0.0)
        assert not motion.goes_on(0.0)
        assert descriptors() == open_now


def test_bytes_that_are_read_are_progress(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(5 << 20))
    motion = Motion()
    (tmp_path / "large").read_bytes()
    assert motion.goes_on(0.0)
    assert not motion.goes_on(0.0)


def test_waiting_is_none() -> None:
    motion = Motion()
    time.sleep(0.05)
    assert not motion.goes_on(0.0)


def test_the_same_request_once_more_is_none(listener: socket.socket) -> None:
    """Into a black hole: each try has its bytes acknowledged by some kernel, and no answer."""
    motion = Motion()
    first = send(listener, 1000)
    assert motion.goes_on(0.0)
    first.close()
    assert not motion.goes_on(0.0)  # a time-out is no progress
    with closing(send(listener, 1000)):
        assert not motion.goes_on(0.0)
        with closing(send(listener, 1)):  # further than the last one came
            assert motion.goes_on(0.0)


def test_after_a_part_has_arrived_the_next_one_counts_from_its_first_byte(
    listener: socket.socket,
) -> None:
    motion = Motion()
    with closing(send(listener, 1000)):
        assert motion.goes_on(0.0)
    assert motion.goes_on(1.0)
    with closing(send(listener, 10)):
        assert motion.goes_on(1.0)


def test_looking_gives_up_no_lock_on_a_file(tmp_path: Path, listener: socket.socket) -> None:
    """As SQLite holds one while a database is copied: without it, the copy is torn."""
    another = (
        "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    ask = [sys.executable, "-c", another, str(tmp_path / "database")]
    with (tmp_path / "database").open("w") as file, closing(send(listener, 1000)):
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert taken_upstream() >= 1000
        refused = subprocess.run(ask, stderr=subprocess.PIPE, text=True, check=False)
    assert "BlockingIOError" in refused.stderr
    assert subprocess.run(ask, check=False).returncode == 0
