"""A server of the tests: a process on loopback with a free port, a folder and a log."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).parent.parent / ".servers"
START_TIMEOUT = 60.0
_TAKEN = "address already in use", "is not available", "EADDRINUSE"
_TRIES = 3
"""Starts of one server, where another process has taken a port that was free."""


class NotInstalled(Exception):
    """The server's program is not here; says what to run."""


def program(*places: str) -> str:
    """A program that install.sh put below tests/.servers."""
    path = HOME.joinpath(*places)
    if not path.exists():
        raise NotInstalled(f"{places[-1]} is not installed: run tests/servers/install.sh")
    return str(path)


def free_port() -> int:
    """A free port below the ephemeral range, where no outgoing connection can take it.

    SeaweedFS wants the port 10,000 above for itself too.
    """
    while True:
        port = random.randrange(10_000, 22_000)
        try:
            for number in (port, port + 10_000):
                socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        return port


class Server:
    """Started on demand, stopped at the end; its log is kept if it never became ready."""

    def __init__(self) -> None:
        self.choose_ports()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def choose_ports(self) -> None:
        """Free ones, which nobody holds until the server listens."""
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)}

    def ready(self) -> bool:
        """Whether a connection is taken; servers that listen before they work say more."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def start(self) -> None:
        """Start, or start again on the same folder and port after a kill."""
        again = self.log.exists()
        for left in reversed(range(_TRIES)):
            try:
                return self._start()
            except RuntimeError as error:
                taken = any(words in str(error) for words in _TAKEN)
                if again or not left or not taken:
                    raise
                self.choose_ports()
        return None

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command()],
                cwd=self.folder,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        give_up = time.monotonic() + START_TIMEOUT
        while not self.ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                tail = self.log.read_text(errors="replace")[-4000:]
                raise RuntimeError(f"{type(self).__name__} did not start:\n{tail}")
            time.sleep(0.05)

    def kill(self) -> None:
        """As a power cut would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Stop and forget its data."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)
