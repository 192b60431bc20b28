"""What the daemon costs while nothing happens.

    python -m tests.benchmarks.footprint [--files 1000] [--minutes 10]

One root of 1,000 committed files, an S3 store on this machine. Prints how long it takes from the
start of the process until it watches, the memory it holds (RSS and what is its own), the share of
a core it takes, and which imports take longest (``-X importtime``).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measure import measure
from tests.benchmarks.peers import SERVERS, environment, upload
from tests.benchmarks.transfer import make_files


def cpu_seconds(pid: int) -> float:
    """CPU that a process has taken, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> tuple[float, float]:
    """MiB in memory, and of them what no other process shares."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        found[name] = int(value) / 1024
    return found["Rss:"], found["Private_Clean:"] + found["Private_Dirty:"]


def start(env: dict[str, str], disk: Path) -> tuple[subprocess.Popen[bytes], float]:
    """A daemon, and the seconds until it says that it has joined the log."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "syncd"],
        env=env,
        cwd=disk,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout
    for line in process.stdout:
        if b"copying" in line:
            return process, time.perf_counter() - began
    raise AssertionError("it ended without watching")


def imports(env: dict[str, str], disk: Path) -> list[tuple[float, str]]:
    """Milliseconds of the imports of a daemon's start, the longest first."""
    words = [sys.executable, "-X", "importtime", "-c", "import syncd.cli, syncd.daemon"]
    told = subprocess.run(words, env=env, cwd=disk, capture_output=True, check=True)
    rows = []
    for line in told.stderr.decode().splitlines()[1:]:
        _, total, name = line.split("|")
        rows.append((int(total) / 1000, name.strip()))
    return sorted(rows, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10)
    asked = parser.parse_args()
    server = SERVERS["seaweedfs"]()
    with tempfile.TemporaryDirectory() as work:
        disk = Path(work)
        make_files(disk / "checkpoints", f"{asked.files}x1K")
        try:
            server.start()
            server.make_bucket()
            env = environment(server, disk)
            measure(upload("syncd", env, small=True), env, disk)
            took = []
            for _ in range(5):
                process, seconds = start(env, disk)
                took.append(seconds)
                process.terminate()
                process.communicate()
            print(f"start to watching: {sorted(took)[2]:.2f} s ({min(took):.2f}-{max(took):.2f})")
            process, _ = start(env, disk)
            try:
                time.sleep(10)  # the first look, which is no idleness
                before, began = cpu_seconds(process.pid), time.monotonic()
                time.sleep(asked.minutes * 60)
                used = cpu_seconds(process.pid) - before
                share = 100 * used / (time.monotonic() - began)
                rss, own = memory(process.pid)
                print(f"idle for {asked.minutes:g} min: RSS {rss:.1f} MiB, its own {own:.1f} MiB")
                print(f"CPU {share:.3f} % of a core ({used:.2f} s)")
            finally:
                process.terminate()
                process.communicate()
            for milliseconds, name in imports(env, disk)[:12]:
                print(f"import {milliseconds:7.1f} ms  {name}")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
