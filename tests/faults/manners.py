"""Five manners in which a checkpoint comes about, each done by a process of its own.

normal, killed (by SIGKILL, at one of its writes), reused (an earlier directory again),
moved (across file systems, in any order), late (a member comes after the last act).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.faults.children import die_with_parent
from tests.faults.disks import Content, RealDisk
from tests.faults.morewriters import MORE
from tests.faults.writers import WRITERS, Writer

_PIECE = 16 * 1024
"""Bytes of one write: where a killed one is cut."""


class Lethal(RealDisk):
    """Dies by SIGKILL at one of its writes, or counts them; 0 never dies."""

    def __init__(self, root: Path, seed: int, dies_at: int = 0) -> None:
        super().__init__(root, random.Random(seed))
        self.acts = 0
        self._dies_at = dies_at

    def write(self, path: str, *pieces: bytes) -> None:
        small = [p[at : at + _PIECE] for p in pieces for at in range(0, len(p), _PIECE)]
        super().write(path, *small)

    def rename(self, source: str, target: str) -> None:
        if (self._root / target).is_dir():
            self.remove(target)  # a folder that is used again
        super().rename(source, target)

    def _dawdle(self) -> None:
        self.acts += 1
        if self.acts == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._dawdle()


@dataclass(frozen=True)
class Task:
    """One save, as a process of its own does it."""

    writer: str
    root: Path
    content: Content
    manner: str
    dies_at: int = 0


def perform(task: Task) -> None:
    """In the process of the writer."""
    writer = every_writer()[task.writer]
    if task.manner != "moved":
        disk = Lethal(task.root, task.content.seed, task.dies_at)
        writer.save(disk, task.content)
        return
    memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        writer.save(Lethal(scratch, task.content.seed), task.content)
        _copy_slowly(scratch, task.root, random.Random(task.content.seed))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_slowly(source: Path, target: Path, rng: random.Random) -> None:
    """As ``mv`` and ``cp -a`` do across file systems: in any order, times of a folder last."""
    target.mkdir(exist_ok=True)
    entries = list(os.scandir(source))
    rng.shuffle(entries)
    for entry in entries:
        here, there = Path(entry.path), target / entry.name
        if entry.is_symlink():
            there.unlink(missing_ok=True)
            there.symlink_to(here.readlink())
        elif entry.is_dir():
            _copy_slowly(here, there, rng)
        else:
            with here.open("rb") as old, there.open("wb", buffering=0) as new:
                while data := old.read(_PIECE):
                    new.write(data)
                    time.sleep(rng.random() * 0.01)
            shutil.copystat(here, there)
    shutil.copystat(source, target)


def every_writer() -> dict[str, Writer]:
    """Those of the torture rig and of this corpus, but for the one that never ends.

    And for those whose files are checkpoints beside each other at the root alone: each writer has
    a folder of its own here, which would be one set.
    """
    left_out = {"told_by_endings", *(n for n, w in WRITERS.items() if w.restless)}
    return {n: w for n, w in {**WRITERS, **MORE}.items() if n not in left_out}


def _serve(lines: Sequence[Connection]) -> None:
    """A process with one thread, which may fork: one task at a time on each line."""
    die_with_parent()
    context = multiprocessing.get_context("fork")
    busy: dict[int, tuple[multiprocessing.process.BaseProcess, Connection]] = {}
    while True:
        for ready in wait([*lines, *busy]):
            if isinstance(ready, Connection):
                try:
                    process = context.Process(target=perform, args=(ready.recv(),))
                except EOFError:
                    return
                process.start()
                busy[process.sentinel] = process, ready
            elif isinstance(ready, int):
                ended, line = busy.pop(ready)
                ended.join()
                line.send(ended.exitcode)


class Performers:
    """Has tasks done in processes of their own; any thread may ask."""

    def __init__(self, lanes: int) -> None:
        pipes = [multiprocessing.Pipe() for _ in range(lanes)]
        context = multiprocessing.get_context("spawn")
        there = [pipe[1] for pipe in pipes]
        self._process = context.Process(target=_serve, args=(there,))
        self._process.start()
        for line in there:
            line.close()
        self._lock = threading.Lock()
        self._free = [pipe[0] for pipe in pipes]

    def perform(self, task: Task) -> None:
        """Wait until it is done, or has been killed as it asks for; there are lanes enough."""
        with self._lock:
            line = self._free.pop()
        line.send(task)
        code = line.recv()
        with self._lock:
            self._free.append(line)
        if code != (-signal.SIGKILL if task.dies_at else 0):
            raise RuntimeError(f"the writer {task.writer} ended with {code}")

    def close(self) -> None:
        """No more tasks."""
        self._process.kill()
        self._process.join()
        for line in self._free:
            line.close()
