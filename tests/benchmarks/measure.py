"""One command as a child: its wall time, CPU and peak memory, and its outcome.

    python -m tests.benchmarks.measure COMMAND...

A process of its own, without packages, since a child's peak memory counts from its parent's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """What one run took: seconds, seconds of CPU in user and system mode, MiB."""

    wall: float
    cpu: float
    rss: float


class Failed(Exception):
    """The command ended with an error; says what it said."""


def measure(command: Sequence[str], env: Mapping[str, str], folder: Path) -> Run:
    """Run a command and wait for it; Failed unless it ends with 0."""
    told = subprocess.run(
        [sys.executable, "-I", "-S", __file__, *command],
        env=dict(env),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=600,
    )
    lines = told.stdout.decode(errors="replace").splitlines()
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {"status": told.returncode}
    if result["status"]:
        words = (told.stderr.decode(errors="replace") + "\n".join(lines))[-2000:]
        raise Failed(f"{' '.join(command)[:200]} ended with {result['status']}:\n{words}")
    return Run(result["wall"], result["cpu"], result["rss"])


def _main(command: Sequence[str]) -> None:
    began = time.perf_counter()
    child = os.posix_spawnp(
        command[0],
        [*command],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)],  # the last line of stdout is ours
    )
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - began
    result = {
        "status": os.waitstatus_to_exitcode(status),
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": usage.ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    _main(sys.argv[1:])
