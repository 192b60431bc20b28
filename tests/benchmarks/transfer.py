"""Upload and restore beside other tools, in turns on the same server and files.

    python -m tests.benchmarks.transfer upload|restore [--files 1x1G|64x16M|5000x8K]
        [--server sink|sink-far|seaweedfs|seaweedfs-far|seaweedfs-tls|azurite|fakegcs|directory]
        [--peers s5cmd,rclone,aws,obstore] [--pairs 5]

Of the peers only rclone speaks to what is not S3. Each run has a server of its own, with nothing
in it. ``syncd`` is the command a person types, with a fresh journal, its commit included;
``restore`` proves every byte and renames. Files, and what the server stores, lie in memory
(/dev/shm). Two cores hold client and server both. What arrived is compared with the source after
every run, except on the sink, which keeps nothing.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from syncd.config import parse_bytes
from tests.benchmarks.measure import Run, measure
from tests.benchmarks.peers import SERVERS, download, environment, upload

CHECKPOINT = "checkpoint-100"


def make_files(folder: Path, shape: str) -> bool:
    """Random files, ``count x size``; whether they are small and many."""
    count, size = (int(shape.split("x", maxsplit=1)[0]), parse_bytes(shape.split("x")[1]))
    (folder / CHECKPOINT).mkdir(parents=True)
    block = os.urandom(min(size, 64 * 2**20))
    for number in range(count):
        with (folder / CHECKPOINT / f"shard-{number:05d}.bin").open("wb") as file:
            for start in range(0, size, len(block)):
                head = f"{number} {start} ".encode().ljust(32)
                file.write((head + block[len(head) :])[: size - start])
    return count > 1000


def check_same(one: Path, other: Path) -> None:
    """Every file of a folder is in the other one, byte for byte."""
    for path in sorted(path for path in one.rglob("*") if path.is_file()):
        there = other / path.relative_to(one)
        if not there.is_file() or not filecmp.cmp(path, there, shallow=False):
            raise AssertionError(f"{there} is not what {path} is")


def run_upload(tool: str, shape: str, kind: str, disk: Path, small: bool) -> Run:
    """One upload by one tool to a fresh server."""
    server = SERVERS[kind]()
    try:
        server.start()
        server.make_bucket()
        shutil.rmtree(disk / ".syncd", ignore_errors=True)
        env = environment(server, disk)
        run = measure(upload(tool, env, small), env, disk)
        if server.keeps:
            plain = "s5cmd" if env["CLOUD_PROVIDER"] == "s3" else "rclone"
            with tempfile.TemporaryDirectory(dir=disk.parent) as back:
                subprocess.run(download(plain, env, small, Path(back)), env=env, check=True)
                check_same(disk / "checkpoints", Path(back))
                if tool == "syncd":
                    checked = measure(download("syncd", env, small, Path(back, "r")), env, disk)
                    check_same(disk / "checkpoints", Path(back, "r"))
                    del checked
        return run
    finally:
        server.stop()


def run_restores(
    tools: Sequence[str], kind: str, disk: Path, small: bool, pairs: int
) -> dict[str, list[Run]]:
    """Restores by each tool in turns, of one upload by syncd."""
    runs: dict[str, list[Run]] = {tool: [] for tool in tools}
    server = SERVERS[kind]()
    try:
        server.start()
        server.make_bucket()
        env = environment(server, disk)
        shutil.rmtree(disk / ".syncd", ignore_errors=True)
        measure(upload("syncd", env, small), env, disk)
        for pair in range(pairs):
            for tool in turn(tools, pair):
                back = Path(tempfile.mkdtemp(dir=disk.parent))
                runs[tool].append(measure(download(tool, env, small, back), env, disk))
                check_same(disk / "checkpoints", back)
                shutil.rmtree(back)
        return runs
    finally:
        server.stop()


def turn(tools: Sequence[str], pair: int) -> Sequence[str]:
    """Who goes first changes from pair to pair."""
    first = pair % len(tools)
    return [*tools[first:], *tools[:first]]


def report(title: str, runs: dict[str, list[Run]]) -> None:
    """The medians of each tool, and syncd's as ratios to the others'."""
    print(f"{title}: medians of {len(runs['syncd'])} (least to most)")
    middle = {}
    for tool, found in runs.items():
        wall, cpu, rss = ([getattr(run, name) for run in found] for name in ("wall", "cpu", "rss"))
        middle[tool] = [statistics.median(values) for values in (wall, cpu, rss)]
        words = (
            f"{tool:<8} wall {middle[tool][0]:6.2f} s ({min(wall):.2f}-{max(wall):.2f})  "
            f"CPU {middle[tool][1]:6.2f} s ({min(cpu):.2f}-{max(cpu):.2f})  "
            f"peak RSS {middle[tool][2]:4.0f} MiB"
        )
        if tool != "syncd":
            ours = middle["syncd"]
            wall_ratio, cpu_ratio = (ours[n] / max(middle[tool][n], 1e-9) for n in (0, 1))
            words += f"   syncd/{tool}: wall {wall_ratio:.2f}, CPU {cpu_ratio:.2f}"
        print(words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", choices=("upload", "restore"))
    parser.add_argument("--files", default="1x1G")
    parser.add_argument("--server", default="sink", choices=tuple(SERVERS))
    parser.add_argument("--peers", default="s5cmd")
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    memory = Path("/dev/shm")
    if memory.is_dir():
        tempfile.tempdir = str(memory)
    tools = ["syncd", *(peer for peer in asked.peers.split(",") if peer)]
    with tempfile.TemporaryDirectory() as work:
        disk = Path(work, "disk")
        small = make_files(disk / "checkpoints", asked.files)
        if asked.way == "restore":
            runs = run_restores(tools, asked.server, disk, small, asked.pairs)
        else:
            runs = {tool: [] for tool in tools}
            for pair in range(asked.pairs):
                for tool in turn(tools, pair):
                    run = run_upload(tool, asked.files, asked.server, disk, small)
                    runs[tool].append(run)
        report(f"{asked.way} of {asked.files}, {asked.server}", runs)


if __name__ == "__main__":
    main()
