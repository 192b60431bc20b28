"""``supervisorctl sync``: the health of the copies, for people and for HEALTHCHECK.

Exit 0: healthy; 3: not; 4: supervisord or syncd does not answer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from supervisor.supervisorctl import ControllerPluginBase

from syncd.container import probe

NOT_HEALTHY, UNKNOWN = 3, 4


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; one's own where it cannot be read.

    A shell opened later in the container does not have the variables the programs run with, and
    syncd is found by SYNCD_STATE_DIR.
    """
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return dict(os.environ)
    pairs = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0") if b"=" in entry)
    return {**os.environ, **{name: value for name, _, value in pairs}}


def folder_of(pid: int) -> Path | None:
    """Return the working directory of a process; None where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def describe(status: probe.Status) -> list[str]:
    """Say in lines what the daemon answered."""
    if status.code is None:
        return ["syncd does not answer"]
    if status.code == probe.NO_DAEMON:
        return ["syncd is not running"]
    point = status.recovery_point
    lines = ["healthy" if status.code == 0 else "NOT HEALTHY"]
    if point:
        age = point.get("age_seconds")
        old = f", {age:.0f} s old" if isinstance(age, int | float) else ""
        lines.append(f"recovery point: {point.get('checkpoint')} (commit {point.get('seq')}){old}")
    else:
        lines.append("recovery point: none yet")
    return lines + [f"problem: {reason}" for reason in status.reasons]


class SyncPlugin(ControllerPluginBase):  # type: ignore[misc]
    """Adds the action ``sync`` to supervisorctl."""

    name = "sync"

    def __init__(self, controller: Any) -> None:
        self.ctl = controller

    def do_sync(self, _words: str) -> None:
        """Print the health and set the exit code."""
        if not self.ctl.upcheck():
            self.ctl.exitstatus = UNKNOWN
            return
        pid = int(self.ctl.get_supervisor().getPID())
        status = probe.status(environ=environment_of(pid), cwd=folder_of(pid))
        for line in describe(status):
            self.ctl.output(line)
        if status.code is None or status.code == probe.NO_DAEMON:
            self.ctl.exitstatus = UNKNOWN
        elif status.code != 0:
            self.ctl.exitstatus = NOT_HEALTHY

    def help_sync(self) -> None:
        """Explain the action."""
        self.ctl.output("sync\t\tHealth of the copies: exit 0 healthy, 3 not, 4 no answer")


def make_sync_plugin(controller: Any, **_config: Any) -> SyncPlugin:
    """Make the plugin, as supervisorctl asks for it."""
    return SyncPlugin(controller)
