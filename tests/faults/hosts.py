"""A machine of a trial: a disk, a writer, a daemon and its line to the store; all can be killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults.children import Child, syncd
from tests.faults.plans import Plan
from tests.faults.writers import Writer, write_for_ever
from tests.servers import links

LINK = 2_500_000
"""Bytes per second from a machine to the store."""

SETTLE = 0.5
"""SYNCD_SETTLE of the daemons."""


class Host:
    """One machine. ``backup`` is what runs beside the writer, the daemon unless a control does."""

    def __init__(
        self,
        disk: Path,
        settings: Mapping[str, str],
        plan: Plan,
        writer: Writer,
        backup: Callable[[Host], Callable[[], object]] | None = None,
    ) -> None:
        disk.mkdir(parents=True)
        self.disk = disk
        self.settings = dict(settings)
        self._plan = plan
        self._writer = writer
        self._backup = backup or _daemon
        self.lives: list[list[float]] = []
        """When each life of the daemon began and, once it has, ended."""

        self.waited = 0.0
        """Seconds that the threads of its last life waited for a processor."""

        self._children: dict[str, Child] = {}

    @property
    def checkpoints(self) -> Path:
        return self.disk / "checkpoints"

    @property
    def saves(self) -> Path:
        """What the writers tell."""
        return self.disk / "saves.jsonl"

    @property
    def log(self) -> Path:
        return self.disk / "daemon.log"

    def environ(self, **more: str) -> dict[str, str]:
        """Of the daemon and of the commands by hand."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CLOUD_"))},
            "AWS_EC2_METADATA_DISABLED": "true",
            "SYNCD_HTTP": "off",
            "SYNCD_SETTLE": str(SETTLE),
            "SYNCD_LOG_INTERVAL": "5",
            **({"SYNCD_KEEP_LAST": str(self._plan.keep)} if self._plan.keep else {}),
            **self.settings,
            **more,
        }

    def lay_line(self, port: int, at_port: Callable[[int], Mapping[str, str]]) -> None:
        """Reach the store over a thin line, and from now on no other way."""
        listener = links.listener()
        here = int(listener.getsockname()[1])
        storm = self._plan.storm
        self._children["line"] = Child(
            lambda: links.run(listener, port, LINK, storm), self.disk / "line.log"
        )
        listener.close()
        self.settings.update(at_port(here))

    def start_backup(self) -> None:
        """The daemon's next life."""
        self._children["backup"] = Child(self._backup(self), self.log)
        self.lives.append([time.monotonic()])

    def start_writer(self, first: int) -> None:
        """A writer that goes on with this save."""
        assert "writer" not in self._children, "nobody could kill the first one any more"
        plan, writer = self._plan, self._writer

        def work() -> None:
            out = os.open(self.saves, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            write_for_ever(writer, self.checkpoints, plan.seed, first, plan.scale, plan.pause, out)

        self._children["writer"] = Child(work, self.disk / "writer.log")

    def kill(self, what: str) -> None:
        """SIGKILL for the ``writer``, the ``backup`` or the ``line``."""
        child = self._children.pop(what, None)
        if child is None:
            return
        waited = child.waited()
        child.kill()
        if what == "backup":
            self.waited = waited
            self.lives[-1].append(time.monotonic())

    def lose(self) -> None:
        """The whole machine, at once."""
        for what in ("writer", "backup", "line"):
            self.kill(what)

    def syncd(self, *arguments: str, kill_after: float | None = None) -> tuple[int | None, str]:
        """A command by hand: its exit code (None: it was killed) and what it said."""
        log = self.disk / f"{arguments[0].strip('-')}.log"
        log.unlink(missing_ok=True)
        child = Child(syncd(arguments, self.disk, self.environ()), log)
        code = child.wait(120.0 if kill_after is None else kill_after)
        if code is None:
            child.kill()
        return code, log.read_text() if log.exists() else ""


def _daemon(host: Host) -> Callable[[], object]:
    return syncd((), host.disk, host.environ())
