"""What travels of a newer version: syncd beside aws s3 sync and rclone, on SeaweedFS.

    python -m tests.benchmarks.delta [--rows log,grown,agents,buffer,model] [--scale 0.25]
        [--peers aws,rclone]

``log``     a log of 64 MiB in LOG_DIR to which 6 MiB are appended
``grown``   a file of 256 MiB among checkpoints to which 40 MiB are appended
``agents``  a population of 16 agents of 32 MiB: in the next generation 6 are the same under other
            numbers, and 10 are new
``buffer``  a replay buffer of 1 GiB, of which 5 % in a row are written anew
``model``   a model of 2 GiB, of which an adapter of 20 MiB is another one

All goes over a line whose bytes are counted, those of all requests included; told is what went up
for the second version. Then each object is fetched by a plain GET and compared. ``blocks`` are
the bytes of the blocks of 8 MiB that differ.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from syncd.transfer import SINGLE_PUT as BLOCK
from tests.benchmarks.growth import work
from tests.benchmarks.peers import BUCKET, PREFIX, Weed, environment, program
from tests.faults.children import Child
from tests.servers import links

MIB = 1024 * 1024


@dataclass
class Change:
    """What a row is about: bytes that are others, and those of the blocks they lie in."""

    changed: int
    blocks: int


def noise(size: int, seed: int) -> Iterator[bytes]:
    """Random bytes, a MiB at a time."""
    rng = random.Random(seed)
    for at in range(0, size, MIB):
        yield rng.randbytes(min(MIB, size - at))


def write(path: Path, size: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(noise(size, seed))


def rewrite(path: Path, start: int, size: int, seed: int) -> Change:
    """Other bytes in the midst of a file."""
    with path.open("r+b") as file:
        file.seek(start)
        file.writelines(noise(size, seed))
        whole = file.seek(0, os.SEEK_END)
    first, last = start // BLOCK, -(-(start + size) // BLOCK)
    return Change(size, min(last * BLOCK, whole) - first * BLOCK)


def lines(path: Path, size: int, seed: int) -> None:
    """More lines at the end of a file, each of 64 bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for data in noise(size // 2, seed):
            digits = data.hex().encode()
            file.writelines(digits[at : at + 63] + b"\n" for at in range(0, len(digits), 64))


# -- the rows: the first version (step 1), and what becomes of it (step 2)


def log(disk: Path, step: int, scale: float) -> Change:
    size = round((64, 6)[step - 1] * scale) * MIB
    lines(disk / "logs/train.jsonl", size, step)
    return Change(size, size)


def grown(disk: Path, step: int, scale: float) -> Change:
    size = round((256, 40)[step - 1] * scale) * MIB + 1024
    path = disk / "checkpoints/history.bin"
    before = path.stat().st_size if step == 2 else 0
    lines(path, size, step)
    return Change(size, path.stat().st_size - before // BLOCK * BLOCK)


def agents(disk: Path, step: int, scale: float) -> Change:
    size = round(32 * scale) * MIB
    folder = disk / f"checkpoints/run/gen-{step:06}"
    for number in range(16):
        # of the last generation numbers 9, 3, 14, 0, 7 and 12 come first
        elite = step == 2 and number < 6
        seed = (9, 3, 14, 0, 7, 12)[number] if elite else step * 100 + number
        seed = 100 + seed if elite else seed
        write(folder / f"agents/agent-{number:02}.bin", size, seed)
    (folder / "state.json").write_text("{}")
    return Change(10 * size, 10 * size)


def buffer(disk: Path, step: int, scale: float) -> Change:
    path, size = disk / "checkpoints/replay.bin", round(1024 * scale) * MIB
    if step == 1:
        write(path, size, 1)
        return Change(size, size)
    return rewrite(path, size // 3, size // 20, 2)


def model(disk: Path, step: int, scale: float) -> Change:
    path, size = disk / "checkpoints/model.bin", round(2048 * scale) * MIB
    if step == 1:
        write(path, size, 1)
        return Change(size, size)
    return rewrite(path, size * 3 // 5 + 12345, 20 * MIB, 2)


ROWS: dict[str, Callable[[Path, int, float], Change]] = {
    "log": log,
    "grown": grown,
    "agents": agents,
    "buffer": buffer,
    "model": model,
}


# -- the tools


def command(tool: str, env: dict[str, str], disk: Path, kind: str) -> list[str]:
    """The command that brings the folder ``kind`` of the disk up to date in the bucket."""
    folder, target = str(disk / kind), f"{BUCKET}/{PREFIX}/{kind}"
    if tool == "syncd":
        return [sys.executable, "-m", "syncd", "--once"]
    if tool == "rclone":
        return [program("rclone"), "sync", "--s3-no-check-bucket", folder, f"s:{target}"]
    words = ["s3", "--endpoint-url", env["AWS_ENDPOINT_URL"], "sync", "--only-show-errors"]
    return [program("aws"), *words, folder, f"s3://{target}"]


@contextmanager
def counted(port: int, folder: Path) -> Iterator[tuple[int, Callable[[], int]]]:
    """A line to the server: its port, and what tells the bytes that went up."""
    upward = multiprocessing.Value("Q", 0)
    listener = links.listener()
    here = int(listener.getsockname()[1])
    line = Child(lambda: links.run(listener, port, None, upward=upward), folder / "line.log")
    listener.close()
    try:
        yield here, lambda: int(upward.value)
    finally:
        line.kill()


def travels(tool: str, row: str, scale: float) -> tuple[int, Change]:
    """Bytes that a tool sends for the second version."""
    with work() as disk:
        server = Weed()
        try:
            server.start()
            server.make_bucket()
            client = server.client()
            env = {**environment(server, disk), "SYNCD_SHUTDOWN_GRACE": "3600"}
            kind = "logs" if row == "log" else "checkpoints"
            (disk / "checkpoints").mkdir()
            with counted(server.port, disk) as (port, upward):
                for name in ("AWS_ENDPOINT_URL", "RCLONE_CONFIG_S_ENDPOINT"):
                    env[name] = env[name].replace(str(server.port), str(port))
                ROWS[row](disk, 1, scale)
                run(command(tool, env, disk, kind), env, disk)
                before = upward()
                change = ROWS[row](disk, 2, scale)
                run(command(tool, env, disk, kind), env, disk)
                sent = upward() - before
            compare(client, disk, kind)
            client.close()
        finally:
            server.stop()
    return sent, change


def run(words: list[str], env: dict[str, str], disk: Path) -> None:
    ended = subprocess.run(words, env=env, cwd=disk, capture_output=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{words[0]} ended with {ended.returncode}: {ended.stderr.decode()}")


def compare(client: object, disk: Path, kind: str) -> None:
    """Each file, fetched by a plain GET, is what lies on the disk."""
    get = client.get_object  # type: ignore[attr-defined]
    for path in (disk / kind).rglob("*"):
        if path.is_file():
            key = f"{PREFIX}/{path.relative_to(disk).as_posix()}"
            found, mine = hashlib.sha256(), hashlib.sha256()
            for chunk in get(Bucket=BUCKET, Key=key)["Body"].iter_chunks(MIB):
                found.update(chunk)
            with path.open("rb") as file:
                while data := file.read(MIB):
                    mine.update(data)
            if found.digest() != mine.digest():
                raise SystemExit(f"{key} is not the file")


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes but the adapter's")
    parser.add_argument("--peers", default="aws,rclone")
    given = parser.parse_args()
    print("row      tool     sent MB   changed MB   in blocks MB   sent/changed   sent/blocks")
    for row in given.rows.split(","):
        for tool in ("syncd", *filter(None, given.peers.split(","))):
            sent, change = travels(tool, row, given.scale)
            print(
                f"{row:8} {tool:7} {sent / 1e6:8.1f} {change.changed / 1e6:12.1f} "
                f"{change.blocks / 1e6:14.1f} {sent / change.changed:14.2f} "
                f"{sent / change.blocks:13.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
