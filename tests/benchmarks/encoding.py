"""The price of compression and of encryption: `--once` as it is, compressed, encrypted, and both.

    python -m tests.benchmarks.encoding [--files 1x512M|2000x8K] [--server sink|seaweedfs]
        [--content random|text] [--bwlimit 50M] [--pairs 5]

Each run has a fresh server and a fresh journal, and the four ways take turns. Text is hexadecimal
digits of random bytes, which become half as long. Said is the speed as a part of the plain one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from syncd.config import parse_bytes
from syncd.keys import new_key
from tests.benchmarks.measure import Run, measure
from tests.benchmarks.peers import SERVERS, environment, upload
from tests.benchmarks.transfer import CHECKPOINT, make_files, turn

WAYS = ("plain", "zstd", "key", "zstd and key")


def make_text(folder: Path, shape: str) -> bool:
    """Files of digits, ``count x size``; whether they are small and many."""
    count, size = int(shape.partition("x")[0]), parse_bytes(shape.partition("x")[2])
    (folder / CHECKPOINT).mkdir(parents=True)
    for number in range(count):
        with (folder / CHECKPOINT / f"table-{number:05d}.txt").open("wb") as file:
            for start in range(0, size, 2**24):
                file.write(os.urandom(2**23).hex().encode()[: size - start])
    return count > 1000


def run_once(way: str, kind: str, disk: Path, small: bool, limit: str) -> Run:
    """One upload in one way to a fresh server."""
    server = SERVERS[kind]()
    try:
        server.start()
        server.make_bucket()
        shutil.rmtree(disk / ".syncd", ignore_errors=True)
        env = environment(server, disk)
        if limit:
            env["SYNCD_BWLIMIT"] = limit
        if "zstd" in way:
            env["SYNCD_COMPRESS"] = "zstd"
        if "key" in way:
            env["SYNCD_ENCRYPT_KEY_FILE"] = str(disk / "key")
        return measure(upload("syncd", env, small), env, disk)
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", default="1x512M")
    parser.add_argument("--server", default="sink", choices=tuple(SERVERS))
    parser.add_argument("--content", default="random", choices=("random", "text"))
    parser.add_argument("--bwlimit", default="")
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    memory = Path("/dev/shm")
    if memory.is_dir():
        tempfile.tempdir = str(memory)
    with tempfile.TemporaryDirectory() as work:
        disk = Path(work, "disk")
        make = make_text if asked.content == "text" else make_files
        small = make(disk / "checkpoints", asked.files)
        new_key(disk / "key")
        runs: dict[str, list[Run]] = {way: [] for way in WAYS}
        for pair in range(asked.pairs):
            for way in turn(WAYS, pair):
                runs[way].append(run_once(way, asked.server, disk, small, asked.bwlimit))
    limit = f", at most {asked.bwlimit}/s" if asked.bwlimit else ""
    print(f"{asked.files} of {asked.content}, {asked.server}{limit}: medians of {asked.pairs}")
    plain = statistics.median(run.wall for run in runs["plain"])
    for way, found in runs.items():
        wall = [run.wall for run in found]
        cpu, rss = (statistics.median(getattr(r, n) for r in found) for n in ("cpu", "rss"))
        middle = statistics.median(wall)
        print(
            f"{way:<13} wall {middle:6.2f} s ({min(wall):.2f}-{max(wall):.2f})  CPU {cpu:6.2f} s  "
            f"peak RSS {rss:4.0f} MiB  speed {plain / middle:.2f} of plain",
            flush=True,
        )


if __name__ == "__main__":
    main()
