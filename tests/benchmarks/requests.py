"""What a store is asked, and what that costs: requests of checkpoints, of idle hours and of logs.

    python -m tests.benchmarks.requests [--files 10] [--minutes 5]

A real daemon and SeaweedFS, with a wire between them that counts. Prints requests by method for the
start, for each of five checkpoints of so many small files, for so many minutes in which nothing
changes, and for as many in which five logs grow each second. A file of more than 8 MiB costs one
request more for each 8 MiB. At the end a month of the worked example of docs/providers.md, at the
list prices of Amazon S3 (us-east-1, Standard), which ``--write``, ``--read`` and ``--keep`` change.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.benchmarks.delay import BUCKET, Watched, machine
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire

PART = 8 * 2**20
CHECKPOINTS_A_DAY, FILES, GIGABYTES, DAYS, KEPT = 48, 10, 2.0, 30, 5


def save(root: Path, number: int, files: int) -> str:
    """A directory of small files that appears by a rename."""
    name, aside = f"run/gen-{number:06d}", root / f"run/.tmp-gen-{number:06d}"
    aside.mkdir(parents=True)
    for index in range(files):
        (aside / f"{index:03d}.bin").write_bytes(f"{number} {index}".encode() * 1000)
    aside.rename(root / name)
    return name


class Count:
    """Requests since it was last asked."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._seen = 0

    def take(self) -> Counter[str]:
        """By method."""
        found = Counter(line.split()[0] for line in self._wire.requests[self._seen :])
        self._seen += found.total()
        return found


def told(what: str, found: Counter[str], asked: float | None = None) -> None:
    """One line."""
    methods = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    bound = "" if asked is None else f", asked {asked:g}"
    print(f"{what:<44}{found.total():>6} requests{bound}   {methods}", flush=True)


def logs(one: Watched, minutes: float) -> None:
    """Five logs that grow each second."""
    folder = one.disk / "logs/run"
    folder.mkdir(parents=True, exist_ok=True)
    until, turn = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < until:
        turn += 1
        for number in range(5):
            with (folder / f"{number}.log").open("a") as file:
                file.write(f"{turn} loss {1 / turn:.6f}\n" * 5)
        time.sleep(1)


def money(write: float, read: float, keep: float) -> None:
    """A month of the worked example."""
    checkpoints, parts = CHECKPOINTS_A_DAY * DAYS, -(-int(GIGABYTES * 1e9) // PART)
    puts = checkpoints * (parts + 2 + FILES - 1 + 3)
    of_logs, back = 24 * DAYS * 180, parts + FILES + 2
    print(
        f"a month of {CHECKPOINTS_A_DAY} checkpoints a day, of {FILES} files and {GIGABYTES:g} GB, "
        "nearly all of it in one file:"
    )
    for what, count, price in (
        ("requests for checkpoints", puts, write / 1000),
        ("requests for logs, at most", of_logs, write / 1000),
        ("requests for a restore", back, read / 1000),
        (f"GB kept, SYNCD_KEEP_LAST={KEPT}", round(KEPT * GIGABYTES), keep),
    ):
        print(f"    {what:<40}{count:>9,}{count * price:>10.4f} $")


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--write", type=float, default=0.005, help="$ for 1,000 writes or lists")
    parser.add_argument("--read", type=float, default=0.0004, help="$ for 1,000 reads")
    parser.add_argument("--keep", type=float, default=0.023, help="$ for 1 GB and month")
    asked = parser.parse_args()
    server = SeaweedFS()
    server.start()
    wire = Wire(server.port)
    try:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        there = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}"}
        with (
            tempfile.TemporaryDirectory() as folder,
            machine(Path(folder) / "disk", server, **there, SYNCD_LOG_INTERVAL="30") as one,
        ):
            count = Count(wire)
            told("start, at an empty bucket", count.take())
            for number in range(1, 6):
                one.hear(f"committed {save(one.checkpoints, number, asked.files)} ")
                told(f"checkpoint {number}, of {asked.files} files", count.take(), asked.files + 3)
            time.sleep(60 * asked.minutes)
            told(f"{asked.minutes:g} minutes without a change", count.take(), 0)
            logs(one, asked.minutes)
            hour = 3 * asked.minutes + 30 + 5  # what an hour gives, is saved up, and the first five
            told(f"{asked.minutes:g} minutes of five logs", count.take(), hour)
        money(asked.write, asked.read, asked.keep)
    finally:
        wire.close()
        server.stop()


if __name__ == "__main__":
    main()
