"""A labelled corpus: every writer in every manner, looked at by the daemon's own engine.

``python -m tests.faults.corpus`` prints, for each of five manners, how many incomplete checkpoints
were committed (bound: 0), how many complete ones (bound: 99 %), and how long after the writer's
last act, where that is known (bound: 2 s). Writers are processes that are really killed; the clock
of the engine is put forward at the end, so that waiting makes nothing complete that is not.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import posixpath
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from syncd.clock import SystemClock
from syncd.config import Settings
from syncd.engine import Engine
from syncd.health import Health
from syncd.opening import open_journal
from syncd.records import UNREADABLE, CommitRecord, parse_record
from syncd.watch import Watcher
from tests.faults.disks import Content, RealDisk, Rehearsal
from tests.faults.ledger import Files
from tests.faults.manners import Lethal, Performers, Task, every_writer
from tests.faults.writers import Writer

MANNERS = ("normal", "killed", "reused", "moved", "late")

MARKED = (
    "eigen2", "hugging_face", "our_own", "orbax", "dcp_reused", "lightning", "deepspeed",
    "megatron", "lerobot",
)  # fmt: skip
"""Writers whose last act is known."""

LONE = (
    "lone_in_place", "lightning", "ultralytics", "keras", "stable_baselines3", "files_in_place",
    "adversaries", "run_folder", "state_folders",
)  # fmt: skip
"""Writers of files in a folder of many checkpoints: what comes late is another one."""

SETTLE = 0.3
_PATIENCE = 20.0
_LATE = "rng_state_7.pth"


class Ahead(SystemClock):
    """A clock that can be put forward."""

    offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset

    def monotonic(self) -> float:
        return super().monotonic() + self.offset


class Watched:
    """The engine of a daemon with its watcher, in a thread, on one root for all cells."""

    def __init__(self, home: Path) -> None:
        self.root = home / "checkpoints"
        self.root.mkdir(parents=True)
        self._log = home / "bucket/eigen2/.syncd/commits"
        (home / "bucket").mkdir()
        self.clock = Ahead()
        self._stop, self._wake = threading.Event(), threading.Event()
        settings = Settings(
            cloud_bucket=str(home / "bucket"),
            checkpoint_dir=self.root,
            log_dir=home / "logs",
            state_dir=home / "state",
            settle=SETTLE,
        )
        self._engine = Engine(
            settings, open_journal(settings), Health(self.clock), self.clock, threading.Event()
        )
        self._engine.connect(settings)
        self._watcher = Watcher(self.root, self._wake)
        self._engine.pipeline.watch(self._watcher)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._read: set[str] = set()
        self._lock = threading.Lock()
        self.commits: list[tuple[CommitRecord, float]] = []
        """Each with when it was made, by the clock of the disk."""

        self.looks = 0
        self.failed: Exception | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._wake.clear()
                self._watcher.ensure(time.monotonic())
                look = self._engine.step(self._stop.is_set)
                self.looks += 1
                self._wake.wait(look.next_interval(0.5))
        except Exception as error:  # noqa: BLE001 - told to the thread that waits
            self.failed = error

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._watcher.close()
        self._engine.disconnect()
        self._engine.journal.close()

    def waiting(self, below: str) -> list[str]:
        """Why checkpoints below a folder are not committed."""
        told = self._engine.health.snapshot()["incomplete"]
        return [
            f"{item['path']}: {item['reason']}" for item in told if item["path"].startswith(below)
        ]

    def look_ahead(self, seconds: float) -> None:
        """So much time passes at once, and the engine looks at everything that this completes."""
        for step in (6 * SETTLE, 160 * SETTLE, seconds):
            self.clock.offset += step
            self._wake.set()
            until, looks = time.monotonic() + 3.0, self.looks + 3
            while self.looks < looks and time.monotonic() < until:
                self._wake.set()
                time.sleep(0.05)

    def read(self) -> list[tuple[CommitRecord, float]]:
        """The commits that there are by now."""
        if self.failed:
            raise self.failed
        with self._lock:
            names = sorted(path.name for path in self._log.glob("*.json"))
            for name in names:
                if name in self._read:
                    continue
                self._read.add(name)
                path = self._log / name
                record = parse_record(path.read_bytes(), int(path.stem), "eigen2")
                if record.profile != "claim" and record.writer != UNREADABLE:
                    self.commits.append((record, path.stat().st_mtime))
            return list(self.commits)


@dataclass
class Cell:
    """One writer in one manner, and what has come of it."""

    writer: Writer
    manner: str
    seed: int
    torn: list[str] = field(default_factory=list)
    complete: int = 0
    missed: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = f"{self.writer.name}_{self.manner}"
        self.allowed: list[Files] = []
        """Every checkpoint that is whole, by the paths and contents of its files."""

        self.expected: list[Files] = []
        """Of those, what lies on the disk at the end."""


class Corpus:
    """All cells, a few at a time."""

    def __init__(self, watched: Watched, performers: Performers, scale: int) -> None:
        self._watched = watched
        self._performers = performers
        self._scale = scale

    def live(self, cell: Cell) -> None:
        """Two saves, then the one that the manner is about, then one of another writer."""
        rounds = [1, 2]
        for number in rounds:
            self._save(cell, Content(cell.seed, number, self._scale), "normal", wait=True)
        third = Content(cell.seed, 3, self._scale)
        if cell.manner == "killed":
            acts = self._acts(cell, third)
            dies_at = random.Random(cell.seed).randint(1, acts)
            self._save(cell, third, "killed", dies_at=dies_at)
            time.sleep(7 * SETTLE)
            self._save(cell, Content(cell.seed, 4, self._scale), "normal", wait=True)
        elif cell.manner == "reused":
            self._save(cell, Content(cell.seed + 1, 2, self._scale), "reused", wait=True)
        elif cell.manner == "late":
            self._save(cell, third, "late", wait=False)
            self._add_late(cell)
        else:
            self._save(cell, third, cell.manner, wait=True)

    def _save(
        self, cell: Cell, content: Content, manner: str, wait: bool = False, dies_at: int = 0
    ) -> None:
        rehearsal = Rehearsal()
        units = cell.writer.save(rehearsal, content)
        files = [{path: rehearsal.files[path] for path in unit} for unit in units]
        cell.allowed += files
        task = Task(cell.writer.name, self._watched.root / cell.folder, content, manner, dies_at)
        self._performers.perform(task)
        done = time.time()
        if not dies_at:
            cell.expected = files
            if wait:
                self._await(cell, files, done, manner)

    def _await(self, cell: Cell, units: list[Files], done: float, manner: str) -> None:
        """All of these are to be committed soon, as they are."""
        until = time.monotonic() + _PATIENCE
        cell.complete += len(units)
        while missing := [unit for unit in units if self._commit_of(cell, unit) is None]:
            if time.monotonic() > until:
                why = "; ".join(self._watched.waiting(f"{cell.folder}/")) or "is not there"
                cell.missed += [f"{manner}: {min(unit)} ({why})" for unit in missing]
                return
            time.sleep(0.03)
        if cell.writer.name in MARKED and manner == "normal":
            cell.delays += [(self._commit_of(cell, unit) or done) - done for unit in units]

    def _commit_of(self, cell: Cell, unit: Files) -> float | None:
        for record, at in self._watched.read():
            if self._files(record, cell) == unit:
                return at
        return None

    @staticmethod
    def _files(record: CommitRecord, cell: Cell) -> Files:
        prefix = f"{cell.folder}/"
        return {record.below(e.path).removeprefix(prefix): (e.size, e.sha256) for e in record.files}

    def _acts(self, cell: Cell, content: Content) -> int:
        with tempfile.TemporaryDirectory() as scratch:
            disk = Lethal(Path(scratch), content.seed)
            cell.writer.save(disk, content)
            return disk.acts

    def _add_late(self, cell: Cell) -> None:
        """A member that another process writes when the last act is done: slowly, then whole."""
        where = {posixpath.dirname(path) for unit in cell.expected for path in unit}
        folder = min(where, key=len)
        lone = cell.writer.name in LONE
        content = Content(cell.seed, 3, self._scale)
        pieces = content.torch("late", 0.3)
        name = f"{folder}/{_LATE}".lstrip("/")
        place = self._watched.root / cell.folder / name
        time.sleep(random.Random(cell.seed).random() * 4 * SETTLE)
        RealDisk(self._watched.root / cell.folder, random.Random(cell.seed)).write(name, *pieces)
        rehearsal = Rehearsal()
        rehearsal.write(name, *pieces)
        assert place.stat().st_size == rehearsal.files[name][0]
        whole = [{**unit, **({} if lone else rehearsal.files)} for unit in cell.expected]
        if lone:
            cell.allowed.append(dict(rehearsal.files))
        cell.allowed += whole
        cell.expected = whole
        self._await(cell, whole, time.time(), "late")

    def judge(self, cell: Cell) -> None:
        """Nothing but whole checkpoints of one save each may be committed."""
        for record, _ in self._watched.read():
            if record.checkpoint.startswith(f"{cell.folder}/") and record.profile != "companion":
                files = self._files(record, cell)
                if files and files not in cell.allowed and not self._is_part(files, cell):
                    names = ", ".join(sorted(files))
                    cell.torn.append(f"{record.checkpoint} ({record.profile}): {names}")

    @staticmethod
    def _is_part(files: Files, cell: Cell) -> bool:
        """Ranks' own files and trackers that belong to no checkpoint of the label."""
        labelled = {path for unit in cell.allowed for path in unit}
        return not files.keys() & labelled


def run(writers: Sequence[str], manners: Sequence[str], seed: int, lanes: int) -> list[Cell]:
    """All cells once."""
    home = Path(tempfile.mkdtemp(prefix="corpus-"))
    watched = Watched(home)
    performers = Performers(lanes)
    corpus = Corpus(watched, performers, 60_000)
    pairs = itertools.product(writers, manners)
    cells = [
        Cell(every_writer()[name], manner, seed * 1000 + number)
        for number, (name, manner) in enumerate(pairs)
    ]
    try:
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(corpus.live, cells))
        watched.look_ahead(3600.0)
        for cell in cells:
            corpus.judge(cell)
    finally:
        performers.close()
        watched.close()
        shutil.rmtree(home, ignore_errors=True)
    return cells


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """One line for each manner, and what went wrong below."""
    yield f"{'':9}{'cells':>6}{'complete':>10}{'committed':>11}{'incomplete committed':>22}" + (
        f"{'delay median':>14}{'longest':>9}"
    )
    for manner in (*MANNERS, "all"):
        mine = [cell for cell in cells if manner in (cell.manner, "all")]
        if not mine:
            continue
        complete = sum(cell.complete for cell in mine)
        done = complete - sum(len(cell.missed) for cell in mine)
        delays = [delay for cell in mine for delay in cell.delays] or [0.0]
        yield (
            f"{manner:9}{len(mine):6}{complete:10}{100 * done / max(1, complete):10.1f}%"
            f"{sum(len(cell.torn) for cell in mine):22}"
            f"{statistics.median(delays):12.2f} s{max(delays):7.2f} s"
        )
    for cell in cells:
        for words in (
            *(f"INCOMPLETE {t}" for t in cell.torn),
            *(f"missed {m}" for m in cell.missed),
        ):
            yield f"{cell.folder} (seed {cell.seed}): {words}"


def main() -> int:
    """By hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writer", action="append", choices=[*every_writer()])
    parser.add_argument("--manner", action="append", choices=MANNERS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=8)
    given = parser.parse_args()
    logging.disable()
    cells: list[Cell] = []
    for seed in range(given.seed, given.seed + given.rounds):
        writers, manners = given.writer or [*every_writer()], given.manner or MANNERS
        cells += run(writers, manners, seed, given.lanes)
    print("\n".join(table(cells)))
    return 1 if any(cell.torn for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
