"""From finished to safe: seconds between a writer's last act and the commit of its checkpoint.

    python -m tests.benchmarks.delay loopback [--rounds 15]    100 MB on SeaweedFS
    python -m tests.benchmarks.delay link [--rounds 3]         25 MB over a line of 2.5 MB/s
    python -m tests.benchmarks.delay limit [--rounds 3]        SYNCD_BWLIMIT, as it is kept

A real daemon, a real server. ``loopback`` also sends the same bytes by the same store with nothing
around it, in turns, and prints what the daemon takes beyond that: watching, judging, digesting,
planning, the record. The moment of the commit is when the daemon says so.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path

from syncd.clock import SystemClock
from syncd.filestat import Stat
from syncd.pace import RateLimit
from syncd.stores import open_store
from syncd.transfer import Transfer
from tests.e2e.processes import Machine
from tests.faults.children import die_with_parent
from tests.servers import links
from tests.servers.s3 import SeaweedFS

BUCKET = "delay"
LINE = 2.5e6
SETTLE = 2.0
"""SYNCD_SETTLE as it is unless set."""

PATIENCE = 180.0


class Watched(Machine):
    """A machine whose daemon's words are waited for."""

    def begin(self) -> None:
        """Start the daemon and wait until it copies."""
        self.daemon = subprocess.Popen(
            [sys.executable, "-u", "-m", "syncd"],
            cwd=self.disk,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._rest = b""
        self.hear("copying ")

    def hear(self, words: str) -> float:
        """The moment at which the daemon says a line with these words."""
        assert self.daemon
        assert self.daemon.stdout
        until = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self.daemon.stdout, selectors.EVENT_READ)
            while time.monotonic() < until:
                if not selector.select(1.0):
                    continue
                self._rest += os.read(self.daemon.stdout.fileno(), 65536)
                now = time.monotonic()
                *lines, self._rest = self._rest.split(b"\n")
                if any(words.encode() in line for line in lines):
                    return now
        raise AssertionError(f"in vain waited for: {words}")


@contextmanager
def machine(folder: Path, server: SeaweedFS, **settings: str) -> Iterator[Watched]:
    """A disk and a daemon that copies from it to the server."""
    given = {**server.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": BUCKET}
    made = Watched(folder, {**given, "SYNCD_SETTLE": f"{SETTLE:g}", **settings})
    made.checkpoints.mkdir()
    made.begin()
    try:
        yield made
    finally:
        made.kill()


def _fill(folder: Path, names: tuple[str, ...], size: int) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(os.urandom(size // len(names)))


def renamed(root: Path, number: int, size: int) -> str:
    """A directory that appears whole, by a rename: our own trainer's way."""
    name = f"run/gen-{number:06d}"
    aside = root / f"run/.tmp-gen-{number:06d}"
    _fill(aside, ("agent-00.bin", "agent-01.bin", "replay.bin"), size)
    (aside / "state.json").write_text(json.dumps({"generation": number}))
    aside.rename(root / name)
    return name


def marked(root: Path, number: int, size: int) -> str:
    """A directory that is filled in place, its marker last: the Hugging Face Trainer's way."""
    name = f"hf/checkpoint-{number}"
    _fill(root / name, ("weights-0.bin", "weights-1.bin"), size)
    (root / name / "trainer_state.json").write_text(json.dumps({"global_step": number}))
    return name


def unmarked(root: Path, number: int, size: int) -> str:
    """A lone file of a kind that does not say where it ends."""
    name = f"step_{number}.bin"  # in a folder of its own it would be taken for a set
    with (root / name).open("wb") as file:
        file.write(os.urandom(size))
    return name


WRITERS: dict[str, Callable[[Path, int, int], str]] = {
    "renamed": renamed,
    "marked": marked,
    "unmarked": unmarked,
}


def bare(server: SeaweedFS, folder: Path, size: int) -> float:
    """Seconds that the same store takes for the same bytes, in three files side by side."""
    given = {**server.env(), "CLOUD_PROVIDER": "s3"}
    store = open_store("s3", BUCKET, given)
    clock, stop = SystemClock(), threading.Event()
    transfer = Transfer(store, 4, RateLimit(None, clock, stop))
    paths = [folder / f"bare-{number}" for number in range(3)]
    for path in paths:
        path.write_bytes(os.urandom(size // 3))
    transfer.send(_small(folder), "warm", Stat.of(_small(folder).lstat()))
    began = time.monotonic()
    jobs = [
        transfer.files.submit(transfer.send, path, f"bare/{path.name}", Stat.of(path.lstat()))
        for path in paths
    ]
    for job in jobs:
        job.result()
    took = time.monotonic() - began
    transfer.close()
    store.close()
    for path in paths:
        path.unlink()
    return took


def _small(folder: Path) -> Path:
    path = folder / "warm"
    path.write_bytes(b"warm")
    return path


def _line(title: str, values: list[float], unit: str = "s") -> None:
    print(
        f"{title:<46} median {statistics.median(values):6.2f} {unit}"
        f"  ({min(values):.2f} to {max(values):.2f}, {len(values)} times)",
        flush=True,
    )


def loopback(server: SeaweedFS, folder: Path, rounds: int) -> None:
    """100 MB: what is needed beyond the bare transfer."""
    size = 100_000_000
    with machine(folder / "disk", server) as here:
        for name, write in WRITERS.items():
            write(here.checkpoints, 1, 1_000_000)  # the daemon has seen this writer before
            here.hear("committed ")
            beyond, bares = [], []
            for number in range(2, rounds + 2):
                bares.append(bare(server, folder, size))
                path = write(here.checkpoints, number, size)
                finished = time.monotonic()
                beyond.append(here.hear(f"committed {path} ") - finished - bares[-1])
            _line(f"{name}: bare transfer of 100 MB", bares)
            _line(f"{name}: from finished to safe, beyond it", beyond)


def link(server: SeaweedFS, folder: Path, rounds: int) -> None:
    """A thin line: the time is the bytes' own."""
    size = 25_000_000
    entrance = links.listener()
    port = entrance.getsockname()[1]
    line = Process(target=_thin, args=(entrance, server.port), daemon=True)
    line.start()
    try:
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        with machine(folder / "disk", server, **endpoint) as here:
            renamed(here.checkpoints, 1, 1_000_000)
            here.hear("committed ")
            ratios = []
            for number in range(2, rounds + 2):
                path = renamed(here.checkpoints, number, size)
                finished = time.monotonic()
                ratios.append((here.hear(f"committed {path} ") - finished) / (size / LINE))
            _line("line of 2.5 MB/s: time over bytes by rate", ratios, "")
    finally:
        line.kill()
        line.join()


def _thin(entrance: object, port: int) -> None:
    die_with_parent()
    links.run(entrance, port, LINE)  # type: ignore[arg-type]


def limit(server: SeaweedFS, folder: Path, rounds: int) -> None:
    """SYNCD_BWLIMIT: how near to it the bytes go."""
    rate, size = 5 * 2**20, 40_000_000
    with machine(folder / "disk", server, SYNCD_BWLIMIT="5M") as here:
        renamed(here.checkpoints, 1, 1_000)
        here.hear("committed ")
        ratios = []
        for number in range(2, rounds + 2):
            path = renamed(here.checkpoints, number, size)
            finished = time.monotonic()
            ratios.append(size / (here.hear(f"committed {path} ") - finished) / rate)
        _line("SYNCD_BWLIMIT=5M: rate over limit", ratios, "")


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("loopback", "link", "limit"))
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    rounds = given.rounds or (15 if given.what == "loopback" else 3)
    memory = Path("/dev/shm")
    work = {"loopback": loopback, "link": link, "limit": limit}[given.what]
    server = SeaweedFS()
    try:
        server.start()
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            work(server, Path(folder), rounds)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
