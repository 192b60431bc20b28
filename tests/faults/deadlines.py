"""Does a process that must end in time do so, whatever the store does?

``python -m tests.faults.deadlines`` takes deadlines from 0.5 to 120 seconds, a store that swallows
everything and one that is slow, and each way in which syncd is told to come to an end: SIGTERM for
the daemon, ``--once`` by itself, ``--once`` through a daemon, and the container's keeper when the
trainer is gone. All run side by side. It prints how much later than its deadline each one ended
(bound: 0.5 s), and ends with 1 if one is over it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import Machine, wait_until
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire

WAYS = ("stop", "once", "asked", "keeper")
SECONDS = (0.5, 2.0, 10.0, 30.0, 60.0, 120.0)
BOUND = 0.5
_SLOW = 150_000
"""Bytes per second through a slow store."""

_KEEPER = "import sys; from syncd.container.probe import flush; flush(float(sys.argv[1]))"
_numbers = itertools.count(1)
_starting = threading.Lock()


@dataclass(frozen=True)
class End:
    """``over``: seconds after the deadline, which runs from when the process has started."""

    way: str
    store: str
    seconds: float
    over: float
    code: int


def cases(seconds: Iterable[float]) -> Iterator[tuple[str, str, float]]:
    """Every way against every store; a flush by hand may last while a slow store takes bytes."""
    for limit in seconds:
        yield "stop", "hole", limit
        yield "stop", "slow", limit
        for way in WAYS[1:]:
            yield way, "hole", limit


def starting(home: Path) -> float:
    """Seconds that a command needs before it does anything."""
    machine = Machine(home / "starting", {})
    took = []
    for _ in range(3):
        began = time.monotonic()
        machine.syncd("--once")
        took.append(time.monotonic() - began)
    return statistics.median(took)


def end(case: tuple[str, str, float], server: SeaweedFS, home: Path, start: float) -> End:
    """One process with 20 MB to send, told to come to its end."""
    way, store, seconds = case
    number = next(_numbers)
    bucket = f"deadline-{os.getpid()}-{number}"
    server.client().create_bucket(Bucket=bucket)
    wire = Wire(server.port)
    settings = {
        **server.env(),
        "AWS_ENDPOINT_URL": server.url.replace(str(server.port), str(wire.port)),
        "CLOUD_PROVIDER": "s3",
        "CLOUD_BUCKET": bucket,
        "SYNCD_SHUTDOWN_GRACE": str(seconds),
    }
    machine = Machine(home / str(number), settings)
    machine.write_checkpoint("run/gen-000001", {"state.json": b"{}"})
    try:
        if way in ("stop", "asked"):
            with _starting:  # one at a time: else each start disturbs the ends of others
                machine.start()
                wait_until(machine.has_committed("run/gen-000001"), machine.log)
        wire.rate = _SLOW
        machine.write_checkpoint(
            "run/gen-000002", {"w": os.urandom(20_000_000), "state.json": b"{}"}
        )
        if machine.daemon:
            wait_until(lambda: bool((machine.status() or {}).get("backlog")), "it is under way")
        if store == "hole":
            wire.flows.clear()
        began, code = _told(way, seconds, machine, wire, start)
        over = time.monotonic() - began - seconds
    finally:
        machine.kill()
        wire.flows.set()
        wire.close()
    return End(way, store, seconds, over, code)


def _told(
    way: str, seconds: float, machine: Machine, wire: Wire, start: float
) -> tuple[float, int]:
    """Tell it, and wait for its end: when its time began to run, and its exit code."""
    if way == "stop":
        assert machine.daemon
        began = time.monotonic()
        machine.daemon.send_signal(signal.SIGTERM)
        return began, machine.daemon.wait(seconds + 60)
    command = [sys.executable, "-c", _KEEPER, str(seconds)]
    if way != "keeper":
        command = [sys.executable, "-m", "syncd", "--once", "--timeout", str(seconds)]
    before, quiet = wire.connections, subprocess.DEVNULL
    with _starting:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=machine.disk, env=machine.environ, stderr=quiet)
        if way == "once":
            wait_until(
                lambda: wire.connections > before or process.poll() is not None, "a request", 300
            )
            began = time.monotonic()
        else:
            time.sleep(2 * start)  # nobody else starts meanwhile
            began += start * (2 if way == "keeper" else 1)
    return began, process.wait(seconds + 120)


def ends(server: SeaweedFS, seconds: Sequence[float]) -> list[End]:
    """All cases, side by side; they mostly wait."""
    with tempfile.TemporaryDirectory(prefix="deadlines-") as folder:
        home = Path(folder)
        start = starting(home)
        todo = list(cases(seconds))
        with ThreadPoolExecutor(len(todo)) as pool:
            return list(pool.map(lambda case: end(case, server, home, start), todo))


def table(found: Sequence[End]) -> str:
    """Seconds over the deadline: a line for each way and store, a column for each deadline."""
    limits = sorted({e.seconds for e in found})
    lines = [f"{'seconds over':<14}" + "".join(f"{limit:>9g} s" for limit in limits)]
    for way, store in dict.fromkeys((e.way, e.store) for e in found):
        mine = {e.seconds: e.over for e in found if (e.way, e.store) == (way, store)}
        lines.append(f"{way + ', ' + store:<14}" + "".join(f"{mine[s]:>+9.2f}  " for s in limits))
    return "\n".join(lines)


def main() -> int:
    """By hand: some minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, action="append", help="only these deadlines")
    given = parser.parse_args()
    server = SeaweedFS()
    server.start()
    try:
        found = ends(server, given.seconds or SECONDS)
    finally:
        server.stop()
    print(table(found))
    return int(any(e.over > BOUND or (e.code == 0 and e.way != "keeper") for e in found))


if __name__ == "__main__":
    sys.exit(main())
