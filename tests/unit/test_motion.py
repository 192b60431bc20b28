"""Progress is seen where it happens: in the kernel, and not when a part is over."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from syncd.motion import motion
from tests.e2e.processes import wait_until


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_bytes_that_are_acknowledged_and_bytes_that_are_read_are_progress(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as far,
    ):
        before = motion()
        assert motion() == before
        client.sendall(b"x" * 1000)
        wait_until(lambda: motion() == before + 1000, "the acknowledgement", 10)
        assert far.recv(1)
        open_now = descriptors()
        (tmp_path / "large").write_bytes(bytes(3 << 20))
        (tmp_path / "large").read_bytes()
        assert motion() >= before + 1000 + 3
        assert descriptors() == open_now


def test_waiting_is_none() -> None:
    before = motion()
    time.sleep(0.05)
    assert motion() == before
