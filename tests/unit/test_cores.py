"""What a process may use of the processors, with a quota and without one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from syncd.cores import Cores

HERE = len(os.sched_getaffinity(0))


def test_what_there_is_to_do_is_told_of_those_that_may_be_used(tmp_path: Path) -> None:
    (stat := tmp_path / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 0 0\n"
        + "".join(f"cpu{n} 10 20 30 400 50 6 7 8 0 0\n" for n in os.sched_getaffinity(0))
        + "cpu9999 1 1 1 1 1 1 1 1 0 0\nintr 1 2 3\n"
    )
    ticks = os.sysconf("SC_CLK_TCK")
    assert Cores(tmp_path, stat).used() == (450 * HERE / ticks, 531 * HERE / ticks)
    assert Cores(tmp_path, tmp_path / "none").used() == (0, 0)


def cgroup(folder: Path, version: int, quota: float) -> Path:
    """A container that is allowed ``quota`` processors and has used 12.5 s of them."""
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota * 100000:.0f} 100000\n")
        (folder / "cpu.stat").write_text("usage_usec 12500000\nuser_usec 1\n")
        return folder
    for name, number in (("quota", quota * 50000), ("period", 50000)):
        (folder / "cpu").mkdir(exist_ok=True)
        (folder / f"cpu/cpu.cfs_{name}_us").write_text(f"{number:.0f}\n")
    (folder / "cpuacct").mkdir()
    (folder / "cpuacct/cpuacct.usage").write_text("12500000000\n")
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_with_a_quota_has_what_is_left_of_that(tmp_path: Path, version: int) -> None:
    """Whoever else uses the same processors."""
    cores = Cores(cgroup(tmp_path, version, 0.25))
    assert cores.count == 0.25
    before = time.monotonic()
    idle, whole = cores.used()
    assert 0.25 * before <= whole <= 0.25 * time.monotonic()
    assert idle == pytest.approx(whole - 12.5)


@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_of_more_than_there_is_limits_nothing(tmp_path: Path, version: int) -> None:
    cores = Cores(cgroup(tmp_path, version, HERE + 1), tmp_path / "none")
    assert cores.count == HERE
    assert cores.used() == (0, 0)


def test_no_quota_limits_nothing(tmp_path: Path) -> None:
    assert Cores(tmp_path).count == HERE
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert Cores(tmp_path).count == HERE
    cgroup(tmp_path, 1, -0.00002)
    assert Cores(tmp_path).count == HERE


def test_a_quota_whose_use_is_not_told_is_taken_for_idle(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("25000 100000\n")
    assert Cores(tmp_path).used() == (0, 0)
