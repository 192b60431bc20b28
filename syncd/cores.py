"""Processors: how many this process may use, how busy they are, and who goes first."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")


def run_time() -> float:
    """Seconds that this thread has run."""
    return time.thread_time()


def thread_times() -> tuple[float, float]:
    """Seconds that this thread has run, and has waited for a processor, be it for a quota's sake.

    Where nothing tells, it has never waited.
    """
    with suppress(OSError, ValueError):
        ran, waited = Path("/proc/thread-self/schedstat").read_text().split()[:2]
        return int(ran) / 1e9, int(waited) / 1e9
    return run_time(), 0.0


class Cores:
    """Those that this process may run on, or as much of them as its container is allowed."""

    def __init__(self, cgroup: Path = _CGROUP, stat: Path = Path("/proc/stat")) -> None:
        """``cgroup`` is where the container's are mounted, of either version."""
        self._cgroup = cgroup
        self._stat = stat
        here = float(len(os.sched_getaffinity(0)))
        quota = self._quota()
        self._limited = quota is not None and quota < here
        self.count = min(here, quota or here)

    def used(self) -> tuple[float, float]:
        """Seconds that these had nothing to do, and seconds in all, since some moment.

        Where there is a quota, what all of the container has left of it: the others who use the
        same processors are none of its business.
        """
        if not self._limited:
            return self._of_all()
        whole = time.monotonic() * self.count
        used = _first([self._usage_2, self._usage_1])
        return (whole - used, whole) if used is not None else (0.0, 0.0)

    def _of_all(self) -> tuple[float, float]:
        idle = whole = 0
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        with suppress(OSError, ValueError, IndexError):
            for line in self._stat.read_text().splitlines():
                name, *spent = line.split()
                if name in mine:
                    idle += int(spent[3]) + int(spent[4])  # waiting for a disk as well
                    whole += sum(map(int, spent[:8]))
        ticks = os.sysconf("SC_CLK_TCK")
        return idle / ticks, whole / ticks

    def _quota(self) -> float | None:
        return _first([self._quota_2, self._quota_1])

    def _quota_2(self) -> float:
        quota, period = map(int, (self._cgroup / "cpu.max").read_text().split())  # or "max"
        return quota / period

    def _quota_1(self) -> float:
        quota, period = (
            int((self._cgroup / f"cpu/cpu.cfs_{name}_us").read_text())
            for name in ("quota", "period")
        )
        if quota <= 0:
            raise ValueError
        return quota / period

    def _usage_2(self) -> float:
        told = dict(line.split() for line in (self._cgroup / "cpu.stat").read_text().splitlines())
        return int(told["usage_usec"]) / 1e6

    def _usage_1(self) -> float:
        return int((self._cgroup / "cpuacct/cpuacct.usage").read_text()) / 1e9


def _first(ways: Iterable[Callable[[], float]]) -> float | None:
    """What the first tells that can; None where none does, as in other kinds of cgroups."""
    for way in ways:
        with suppress(OSError, ValueError, KeyError):
            return way()
    return None


_NICENESS = 10
"""Beside one busy thread of the trainer one of ours has a tenth of a processor. What has to be done
has to be done: at the lowest niceness, 19, it takes seven times as long, and beside several busy
threads the work that is due each second takes all that there is."""


def lower_priority() -> None:
    """Give the trainer the machine: low CPU priority, idle I/O class.

    Where Linux shares the processor among sessions first (autogroup), that counts against the
    programs of one's own session only. A daemon that has a session to itself lowers all of it.
    """
    try:
        os.nice(_NICENESS)
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(str(_NICENESS))
    except OSError as error:
        log.debug("CPU priority stays: %s", error)
    _idle_io()


def _idle_io() -> None:
    import ctypes
    import platform

    numbers = {"x86_64": 251, "aarch64": 30}  # ioprio_set
    number = numbers.get(platform.machine())
    if number is not None:
        who_process, idle_class = 1, 3 << 13
        ctypes.CDLL(None).syscall(number, who_process, 0, idle_class)
