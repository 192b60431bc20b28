"""What the daemon costs as a tree, a commit log or a file grows.

    python -m tests.benchmarks.growth files [--counts 1000,10000,100000]     committed, unchanged
    python -m tests.benchmarks.growth crowd [--counts 1000000] [--minutes 5] not one committed
    python -m tests.benchmarks.growth log [--counts 10,1000,10000]
    python -m tests.benchmarks.growth size [--counts 1,64,1024,16384]        MiB, sparse

``files``: folders of 1,000 files of 8 bytes each. A scan, the first ``--once``, one of an unchanged
tree (its time, memory and requests), and the daemon's start. ``crowd``: the same files beside a
store that is out of reach, so that nothing of them is ever settled; the daemon's share of a core
and its peak memory. ``log``: so many commits of one small checkpoint; what ``--once`` and
``restore`` take with a fresh journal, and the requests that find the recovery point. The store is
the sink for requests, or a directory, both on this machine and in memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from syncd.commitlog import CommitLog
from syncd.records import CommitRecord, Layout
from syncd.scan import scan
from syncd.stores.directory import DirectoryStore
from tests.benchmarks.footprint import cpu_seconds, start
from tests.benchmarks.measure import Run, measure
from tests.benchmarks.peers import BUCKET, PREFIX, Sink, environment

ONCE = (sys.executable, "-m", "syncd", "--once")
RESTORE = (sys.executable, "-m", "syncd", "restore")


def make_tree(root: Path, count: int) -> None:
    """So many files, a thousand in a folder, with a marker in each."""
    for number in range(0, count, 1000):
        folder = root / f"run/gen-{number // 1000:06d}"
        folder.mkdir(parents=True)
        for one in range(number, min(count, number + 1000) - 1):
            (folder / f"{one:07d}.bin").write_bytes(b"%08d" % one)
        (folder / "state.json").write_bytes(b"%d" % number)


@contextmanager
def work() -> Iterator[Path]:
    """A folder in memory, where there is room for it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def local(disk: Path) -> dict[str, str]:
    """Settings of a directory store beside the disk."""
    (disk / "bucket").mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path.cwd()),
        "CLOUD_PROVIDER": "local",
        "CLOUD_BUCKET": str(disk / "bucket"),
        "CLOUD_PREFIX": PREFIX,
        "CHECKPOINT_DIR": str(disk / "checkpoints"),
        "SYNCD_STATE_DIR": str(disk / ".syncd"),
        "SYNCD_HTTP": "off",
        "SYNCD_SETTLE": "0",
        "SYNCD_SHUTDOWN_GRACE": "3600",
    }


def told(run: Run) -> str:
    """Its figures in words."""
    return f"{run.wall:8.2f} s  CPU {run.cpu:8.2f} s  peak {run.rss:5.0f} MiB"


def files(count: int, _minutes: float) -> None:
    """A tree that is committed and does not change."""
    with work() as disk:
        make_tree(disk / "checkpoints", count)
        took = []
        for _ in range(5):
            began = time.perf_counter()
            scan(disk / "checkpoints")
            took.append(time.perf_counter() - began)
        print(f"{count:>9} files: scan {sorted(took)[2]:.3f} s")
        sink = Sink()
        try:
            sink.start()
            env = environment(sink, disk)
            print(f"{count:>9} files: first --once     {told(measure(ONCE, env, disk))}")
            sink.requests()
            print(f"{count:>9} files: unchanged --once {told(measure(ONCE, env, disk))}")
            print(f"{count:>9} files: requests of that: {sink.requests()}")
            process, seconds = start(env, disk)
            process.terminate()
            process.communicate()
            print(f"{count:>9} files: start to watching {seconds:.2f} s", flush=True)
        finally:
            sink.stop()


def crowd(count: int, minutes: float) -> None:
    """Nothing is ever settled: the daemon looks on, and looks rarely."""
    with work() as disk:
        make_tree(disk / "checkpoints", count)
        env = {
            **local(disk),
            "CLOUD_PROVIDER": "s3",
            "CLOUD_BUCKET": BUCKET,
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
        }
        log = (disk / "log").open("w+b")
        daemon = subprocess.Popen(
            [sys.executable, "-m", "syncd"], env=env, cwd=disk, stdout=log, stderr=log
        )
        try:
            began = time.monotonic()
            for minute in range(1, round(minutes) + 1):
                time.sleep(max(0.0, began + 60 * minute - time.monotonic()))
                used, most = cpu_seconds(daemon.pid), peak(daemon.pid)
                share = 100 * used / (60 * minute)
                print(
                    f"{count:>9} files: after {minute} min {used:.1f} s of CPU, "
                    f"{share:.2f} % of a core; peak {most:.0f} MiB",
                    flush=True,
                )
        finally:
            daemon.kill()
            daemon.wait()
            log.close()


def peak(pid: int) -> float:
    """The most memory that a process ever held, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def log(count: int, _minutes: float) -> None:
    """A machine meets a log of so many commits."""
    with work() as disk:
        env = local(disk)
        folder = disk / "checkpoints/run/gen-000001"
        folder.mkdir(parents=True)
        (folder / "w.bin").write_bytes(b"0")
        measure(ONCE, env, disk)
        multiply(DirectoryStore(disk / "bucket"), count)
        shutil.rmtree(disk / ".syncd")
        print(f"{count:>9} commits: restore          {told(measure(RESTORE, env, disk))}")
        folder.rename(folder.with_name("gen-999999"))
        print(f"{count:>9} commits: first --once     {told(measure(ONCE, env, disk))}")
        print(f"{count:>9} commits: unchanged --once {told(measure(ONCE, env, disk))}")
        shutil.rmtree(disk / ".syncd")
        shutil.rmtree(disk / "checkpoints")
        compacted = told(measure(RESTORE, env, disk))
        print(f"{count:>9} commits: restore, compacted {compacted}", flush=True)


def multiply(store: DirectoryStore, count: int) -> None:
    """So many commits of the same content, each a generation of its own."""
    layout = Layout(PREFIX)
    records = CommitLog(store, layout).newest_first(sorted(CommitLog(store, layout).sizes()))
    first = next(record for record in records if isinstance(record, CommitRecord))
    for seq in range(first.seq + 1, first.seq + count):
        checkpoint = f"run/gen-{seq:06d}"
        entry = replace(first.files[0], key=layout.plain(f"{checkpoint}/w.bin"))
        store.put(entry.key, b"0")
        again = replace(first, seq=seq, checkpoint=checkpoint, files=(entry,))
        store.put(layout.commit(seq), again.to_json())


def size(count: int, _minutes: float) -> None:
    """One sparse file of so many MiB."""
    with work() as disk:
        folder = disk / "checkpoints/run/gen-000001"
        folder.mkdir(parents=True)
        with (folder / "w.bin").open("wb") as file:
            file.write(b"begins")
            file.truncate((count << 20) - 4)  # one of zeros alone counts as not written yet
            file.seek(0, os.SEEK_END)
            file.write(b"ends")
        (folder / "state.json").write_bytes(b"{}")
        sink = Sink()
        try:
            sink.start()
            env = environment(sink, disk)
            print(f"{count:>9} MiB: first --once     {told(measure(ONCE, env, disk))}")
            print(f"{count:>9} MiB: unchanged --once {told(measure(ONCE, env, disk))}", flush=True)
        finally:
            sink.stop()


PARTS: dict[str, tuple[Callable[[int, float], None], str]] = {
    "files": (files, "1000,10000,100000"),
    "crowd": (crowd, "1000000"),
    "log": (log, "10,1000,10000"),
    "size": (size, "1,64,1024,16384,65536"),
}


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--counts", default="")
    parser.add_argument("--minutes", type=float, default=5)
    given = parser.parse_args()
    part, counts = PARTS[given.part]
    for count in (given.counts or counts).split(","):
        part(int(count), given.minutes)


if __name__ == "__main__":
    main()
