"""Real processes for tests: a daemon, commands by hand, and a machine that can be lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PATIENCE = 150.0
"""Seconds after which something that a test waits for will not come any more."""


def wait_until(
    ready: Callable[[], bool], what: str | Callable[[], str], patience: float = PATIENCE
) -> None:
    """Look again and again until ``ready``; fail with ``what`` when patience ends.

    What a daemon has logged by then is told by its ``log``, not called yet. A look that takes long
    is taken half of the time: what it waits for needs the processor, too.
    """
    until = (began := time.monotonic()) + patience
    while not ready():
        if (now := time.monotonic()) > until:
            words = what if isinstance(what, str) else what()
            raise AssertionError(f"in vain waited for: {words}")
        time.sleep(max(0.02, now - began))
        began = time.monotonic()


@contextmanager
def every_core_busy() -> Iterator[None]:
    """Two processes for each core that this one may run on, and that want all of it."""
    busy = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    count = 2 * len(os.sched_getaffinity(0))
    hogs = [subprocess.Popen(busy, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for hog in hogs:
            assert hog.stdout
            hog.stdout.read(1)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.communicate()


class Machine:
    """A disk, an environment, and the processes that run there."""

    def __init__(self, disk: Path, settings: Mapping[str, str]) -> None:
        disk.mkdir(parents=True, exist_ok=True)
        self.disk = disk
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CLOUD_"))},
            "PYTHONPATH": str(ROOT),  # the tree under test, whatever is installed
            "AWS_EC2_METADATA_DISABLED": "true",
            "SYNCD_HTTP": "off",
            "SYNCD_SETTLE": "0.3",
            "SYNCD_LOG_INTERVAL": "0.5",
            "SYNCD_SHUTDOWN_GRACE": "20",
            **settings,
        }
        self.state = disk / ".syncd"
        self.daemon: subprocess.Popen[bytes] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.disk / "checkpoints"

    def write_checkpoint(self, path: str, files: Mapping[str, bytes]) -> None:
        """As our trainer does: aside, then renamed."""
        target = self.checkpoints / path
        aside = target.with_name(f".tmp-{target.name}")
        for name, data in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(data)
        aside.rename(target)

    def start(self, *through: str) -> None:
        """Start the daemon; its words go to ``daemon.log``.

        ``through`` is a command that becomes it, such as ``unshare -m``.
        """
        with (self.disk / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [*through, sys.executable, "-m", "syncd"],
                cwd=self.disk,
                env=self.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: self.status() is not None, f"a daemon; {self.log()}")

    def log(self) -> str:
        return (self.disk / "daemon.log").read_text()

    def kill(self) -> None:
        """SIGKILL: what a rented machine does."""
        if self.daemon:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.daemon
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(60)
        self.daemon = None
        return code

    def syncd(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """One command by hand."""
        return subprocess.run(
            [sys.executable, "-m", "syncd", *arguments],
            cwd=self.disk,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def status(self) -> dict[str, Any] | None:
        """What the daemon says, or None while there is none."""
        from syncd.control import Client

        return Client(self.state).ask("/status")

    def point(self) -> str:
        """The checkpoint of the recovery point, "" for none."""
        state = self.status() or {}
        return str((state.get("recovery_point") or {}).get("checkpoint", ""))

    def has_committed(self, name: str) -> Callable[[], bool]:
        """A question for ``wait_until``: whether this checkpoint is the recovery point."""
        return lambda: self.point() == name

    def reasons(self) -> str:
        """Why the daemon is red, with the remedies."""
        return json.dumps((self.status() or {}).get("reasons", []))


Build = Callable[..., Machine]
"""The fixture ``build``: a machine of this name, with these settings over those of a directory."""
