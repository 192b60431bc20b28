"""Minutes in which the store swallows everything: what does the trainer feel, and the memory?

``python -m tests.faults.blackhole --minutes 10``: a daemon, a store behind a wire, and a process
that takes steps and saves. The wire lets nothing through any more; in turns the daemon is frozen
and goes on, and the steps of both are compared. It ends with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import Machine, wait_until
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire

_TURN = 4.0
"""Seconds for which the daemon is frozen, and for which it goes on."""

_TRAINER = """
import os, sys, time
from pathlib import Path
import numpy
root, said = Path(sys.argv[1]), open(sys.argv[2], "w", buffering=1)
a = numpy.random.default_rng(0).standard_normal((192, 192))
saved, number = time.monotonic(), 0
while True:
    began = time.monotonic()
    for _ in range(4):
        a = numpy.tanh(a @ a / 192)
    said.write(f"{began} {time.monotonic() - began}\\n")
    if time.monotonic() - saved > 10:
        saved, number = time.monotonic(), number + 1
        aside = root / f"run/.tmp-{number}"
        aside.mkdir(parents=True)
        (aside / "w.bin").write_bytes(os.urandom(3_000_000))
        (aside / "state.json").write_text("{}")
        aside.rename(root / f"run/gen-{number:06}")
"""


@dataclass(frozen=True)
class Seen:
    """What a black hole cost: step time with the daemon by step time without, and so on."""

    minutes: float
    ratio: float
    spread: float
    grown_mib: float
    connections: int
    late: float
    saves: int

    def __str__(self) -> str:
        return (
            f"{self.minutes:.1f} min of black hole: steps {100 * (self.ratio - 1):+.2f} % "
            f"(± {100 * self.spread:.2f}), memory {self.grown_mib:+.1f} MiB, {self.connections} "
            f"connections tried, {self.saves} saves, the newest committed {self.late:.1f} s after"
        )


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def _medians(said: Path, turns: list[tuple[float, float]]) -> list[float]:
    rows = [line.split() for line in said.read_text().splitlines()[:-1]]
    steps = [(float(at), float(took)) for at, took in rows]
    return [
        statistics.median(took for at, took in steps if begin + 0.3 <= at < end - 0.1)
        for begin, end in turns
    ]


def black_hole(minutes: float, server: SeaweedFS, home: Path) -> Seen:
    """One run; the bucket is made here."""
    bucket = f"hole-{os.getpid()}-{home.name}"
    server.client().create_bucket(Bucket=bucket)
    wire = Wire(server.port)
    url = server.url.replace(str(server.port), str(wire.port))
    settings = {**server.env(), "AWS_ENDPOINT_URL": url, "SYNCD_KEEP_LAST": "2"}
    machine = Machine(home, {**settings, "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": bucket})
    machine.checkpoints.mkdir()
    machine.start()
    assert machine.daemon
    daemon = machine.daemon.pid
    said = home / "steps"
    command = [sys.executable, "-c", _TRAINER, str(machine.checkpoints), str(said)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    trainer = subprocess.Popen(command, env={**os.environ, **threads})
    try:
        wait_until(lambda: bool(machine.point()), "a first commit")
        wire.flows.clear()
        before, tried, began = _rss(daemon), wire.connections, time.monotonic()
        most = before
        turns: list[tuple[float, float]] = []
        while time.monotonic() - began < minutes * 60:
            for what in (signal.SIGSTOP, signal.SIGCONT):
                os.kill(daemon, what)
                at = time.monotonic()
                time.sleep(_TURN)
                turns.append((at, time.monotonic()))
                most = max(most, _rss(daemon))
        lasted = (time.monotonic() - began) / 60
        tried = wire.connections - tried
        trainer.send_signal(signal.SIGSTOP)
        newest = max(path.name for path in (machine.checkpoints / "run").glob("gen-*"))
        wire.flows.set()
        over = time.monotonic()
        wait_until(machine.has_committed(f"run/{newest}"), "the newest, after the hole", 150)
        late = time.monotonic() - over
    finally:
        trainer.kill()
        trainer.wait()
        machine.kill()
        wire.close()
    medians = _medians(said, turns)
    ratios = [on / off for off, on in zip(medians[::2], medians[1::2], strict=True)]
    spread = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
    ratio = statistics.median(ratios)
    return Seen(lasted, ratio, spread, most - before, tried, late, int(newest[4:]))


def main() -> int:
    """Print what was seen; 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    server = SeaweedFS()
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="hole-") as home:
            seen = black_hole(given.minutes, server, Path(home))
    finally:
        server.stop()
    print(seen)
    broken = seen.grown_mib > 10 or seen.ratio > 1.01 or seen.connections > seen.minutes + 8
    return int(broken or seen.late > 61 + 30)


if __name__ == "__main__":
    sys.exit(main())
