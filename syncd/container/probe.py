"""Asks syncd how things stand, as a child process: a hung or broken syncd hurts nobody here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_DAEMON = 4


@dataclass(frozen=True)
class Status:
    """What ``status --json`` answered; ``code`` is its exit code, None when it never answered."""

    code: int | None
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> list[str]:
        """Why it is not healthy, one line each, with the remedy where one is known."""
        lines = []
        for reason in self.document.get("reasons") or []:
            if isinstance(reason, Mapping):
                hint = reason.get("hint")
                lines.append(f"{reason.get('message')}" + (f" ({hint})" if hint else ""))
            else:
                lines.append(str(reason))
        return lines

    @property
    def recovery_point(self) -> Mapping[str, Any] | None:
        """The newest commit, None when there is none yet."""
        point = self.document.get("recovery_point")
        return point if isinstance(point, Mapping) else None


def ask(
    words: Sequence[str],
    *,
    timeout: float,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[int | None, Any]:
    """Run ``python -m syncd`` with ``words``; return its exit code and the JSON it printed."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "syncd", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
            env=None if environ is None else dict(environ),
            cwd=cwd,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, None


def status(
    *, timeout: float = 15.0, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Status:
    """Ask the running daemon for its status."""
    code, document = ask(["status", "--json"], timeout=timeout, environ=environ, cwd=cwd)
    return Status(code, document if isinstance(document, dict) else {})


def newest_commit(*, timeout: float = 15.0) -> Mapping[str, Any] | None:
    """Read the recovery point from the store itself: the daemon need not be there."""
    _, commits = ask(["ls", "--json"], timeout=timeout)
    if isinstance(commits, list):
        for commit in commits:
            if isinstance(commit, dict) and "checkpoint" in commit:
                return commit
    return None


def newest_is_intact(*, timeout: float = 6 * 3600.0) -> bool:
    """Read the newest commit back from the store and prove it; False when that cannot be done."""
    code, _ = ask(["verify", "--newest", "--json"], timeout=timeout)
    return code == 0


@dataclass(frozen=True)
class Flush:
    """What a flush said: ``safe`` is None without an answer.

    ``left`` says what is newer than all that is safe, and was not complete.
    """

    safe: bool | None
    left: str = ""


def flush(grace: float) -> Flush:
    """Have everything complete on disk committed.

    It gives up after ``grace`` seconds without progress. The tenfold of that is the end also for
    one that goes on and on: the machine costs money.
    """
    command = [sys.executable, "-m", "syncd", "--once", "--json", "--timeout", f"{grace:g}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # its words for people go where those of the keeper go
            timeout=max(10.0, 10 * grace),
            check=False,
        )
        report = json.loads(done.stdout)
        newer = dict(report["newer"]) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        return Flush(None)
    words = [f"{path} is not complete and was not sent: {why}" for path, why in newer.items()]
    return Flush({0: True, 1: False}.get(done.returncode), "; ".join(words[:3]))


def shutdown_grace(environ: Mapping[str, str] = os.environ) -> float:
    """Return SYNCD_SHUTDOWN_GRACE in seconds; about one that is no number syncd complains."""
    try:
        return max(0.0, float(environ.get("SYNCD_SHUTDOWN_GRACE") or 60.0))
    except ValueError:
        return 60.0
