"""Two or three writers over one store, every order of their requests: is anything committed lost?

``python -m tests.faults.interleave --seeds 20000 [--from N] [--jobs 2] [--numbered]``: each seed
lets daemons that believe to be the only one, and a person who prunes, take turns at every single
request. A seeded scheduler decides who goes next, who dies before or after a request took effect,
whose acknowledgement is lost, whose request arrives much later, and who sleeps for a long time.
After each change of the store it is looked at:

- a record never changes, and none appears below one that is there already;
- whatever a record names can be restored, byte for byte, until retention has taken the record out;
- a record names what lay on a disk at one moment, never a mixture;
- a writer that has learnt that it is fenced makes no further change.

With ``--parts`` most files go up in parts, some of which the store copies from the version before,
and each part is a request at which a machine may die: the next life goes on with the upload. With
``--numbered`` the store ignores put-if-absent, and all writers go on side by side: then every
commit of each has to stay restorable.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import syncd.commit
import syncd.transfer
from syncd.clock import SystemClock
from syncd.commit import Publisher
from syncd.commitlog import CommitLog
from syncd.errors import Changed, Corrupt, Fenced, Permanent, Transient
from syncd.journal import Journal
from syncd.pace import RateLimit
from syncd.records import CommitRecord, parse_record
from syncd.restore import Restorer
from syncd.retention import Retention
from syncd.scan import scan
from syncd.stores.base import ObjectInfo
from syncd.transfer import Transfer
from syncd.units import units
from syncd.uploads import Uploads
from tests.faults.simstore import SimStore
from tests.workbench import LAYOUT, Died

_LARGE = 31 * 64
"""Bytes from which a file goes up in parts here; of most of them the second one is the same."""

_MOST_STEPS = 600


class Violation(AssertionError):
    """Something that must never happen."""


class Inline(Executor):
    """Does the work at once, in the thread that asks: one machine makes one request at a time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - a death too
            future.set_exception(error)
        return future


class World:
    """The bucket, what was on the disks, and what must hold after each change."""

    def __init__(self, numbered: bool, conditional_copy: bool, parts: bool = False) -> None:
        self.parts = parts
        self.store = SimStore(not numbered, conditional_copy, copies_ranges=parts)
        self.store.watch = self.changed
        self.numbered = numbered
        self.states: dict[str, set[frozenset[tuple[str, str]]]] = {}
        self.records: dict[str, CommitRecord] = {}
        self.highest = 0
        self.committed = 0
        self.pruned: set[str] = set()
        self.trace: list[str] = []
        self.restorer = Restorer(self.store, LAYOUT, Inline())

    def changed(self, key: str) -> None:
        if key.startswith(LAYOUT.commits):
            self._log_changed(key)
        for record in self.records.values():
            self._look(record)

    def _log_changed(self, key: str) -> None:
        found = self.store.objects.get(key)
        before = self.records.pop(key, None)
        if found is None:
            if before:
                self.pruned.add(before.checkpoint)
            return
        seq = LAYOUT.seq_of(key)
        if seq is None:
            raise Violation(f"{key} is no record's key")
        record = parse_record(found.data, seq, LAYOUT.prefix)
        pruned = record.is_claim and before and record.writer == before.writer
        if before is not None and before != record and not pruned:
            raise Violation(f"record {seq} of {before.writer} was replaced by {record.writer}")
        if before is None and record.seq <= self.highest and not (record.is_claim or self.numbered):
            raise Violation(f"record {seq} of {record.writer} came after {self.highest}")
        self.highest = max(self.highest, record.seq)
        if not record.is_claim:
            self.committed += 1
            state = frozenset((entry.path, entry.sha256) for entry in record.files)
            if state not in self.states.get(record.checkpoint, ()):
                raise Violation(f"record {seq} is a mixture: {record.checkpoint}")
        if before and record.is_claim:
            self.pruned.add(before.checkpoint)
        self.records[key] = record

    def _look(self, record: CommitRecord) -> None:
        for entry in record.files:
            found = self.store.objects.get(entry.key)
            if found and found.sha256 == entry.sha256:
                continue
            try:
                self.restorer.verify(record)
            except Corrupt as error:
                raise Violation(
                    f"record {record.seq} of {record.writer} ({record.checkpoint}) is torn: "
                    f"{error.message}; it named {entry.key}"
                ) from None
            return


class Gate:
    """A machine's way to the store: every request waits for its turn, and may go wrong."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._store = actor.world.store
        self.name = self._store.name
        self.capabilities = self._store.capabilities

    def __getattr__(self, name: str) -> Any:
        if name == "close":
            return lambda: None
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            what = f"{name} {' '.join(str(arg) for arg in args if isinstance(arg, str))}"
            if name in ("start_upload", "resume_upload"):
                upload = self._actor.request(what, False, lambda: method(*args, **kwargs))
                return GatedUpload(self._actor, upload)
            if name == "delete":
                args = (list(args[0]),)
                what += f" {len(args[0])}: {' '.join(args[0][:3])}"
            writes = name in ("put", "copy", "delete")
            if name in ("read", "list", "pending_uploads"):
                return iter(self._actor.request(what, False, lambda: [*method(*args, **kwargs)]))
            late = self._slow_copy(*args) if name == "copy" else None
            return self._actor.request(what, writes, lambda: method(*args, **kwargs), late)

        return call

    def _slow_copy(self, source: str, target: str, condition: Any = None) -> Callable[[], Any]:
        """A copy that takes long: what it copies is what was there when it began."""
        found = self._store.objects.get(source)
        return lambda: self._store.put(target, found.data, condition) if found else None


class GatedUpload:
    """An upload whose last request is one that waits, too; with ``--parts`` all of them do."""

    def __init__(self, actor: Actor, upload: Any) -> None:
        self._actor = actor
        self._upload = upload
        self.key = upload.key
        self.id = upload.id
        self.holds = upload.holds
        self.has = upload.has
        self.leave = upload.leave
        self.abort = upload.abort

    def send(self, number: int, data: Any) -> str:
        if not self._actor.world.parts:
            return str(self._upload.send(number, data))
        what = f"part {number} of {self.key}"
        return str(self._actor.request(what, True, lambda: self._upload.send(number, data)))

    def copy(self, number: int, source: ObjectInfo, start: int, length: int) -> str:
        what = f"part {number} of {self.key} from {source.key}"
        work = lambda: self._upload.copy(number, source, start, length)  # noqa: E731
        return str(self._actor.request(what, True, work))

    def finish(self, condition: Any = None) -> ObjectInfo:
        info: ObjectInfo = self._actor.request(
            f"finish {self.key}", True, lambda: self._upload.finish(condition)
        )
        return info


class Actor:
    """One machine: a thread that stands still before each request until it is its turn."""

    def __init__(self, name: str, world: World, rng: random.Random, disk: Path) -> None:
        self.name = name
        self.world = world
        self.rng = rng
        self.disk = disk
        self.go = threading.Semaphore(0)
        self.back = threading.Semaphore(0)
        self.fate = "go"
        self.asleep_until = 0
        self.done = False
        self.fenced = False
        self.dead = False
        self.failure: BaseException | None = None
        self.lives = itertools.count(1)
        self.writer = ""
        self.late: list[tuple[str, Callable[[], Any]]] = []
        self.thread = threading.Thread(target=self._run, daemon=True)

    # -- the turns

    def _run(self) -> None:
        self.go.acquire()
        try:
            self.live()
        except BaseException as error:  # noqa: BLE001 - told by the scheduler
            self.failure = error
        self.done = True
        self.back.release()

    def turn(self, fate: str) -> None:
        """Let it go on up to its next request."""
        self.fate = fate
        self.go.release()
        self.back.acquire()
        if isinstance(self.failure, Violation):
            raise self.failure
        if self.failure:
            raise Violation(f"{self.writer} broke: {self.failure!r}") from self.failure

    def pause(self) -> str:
        """Stand still; what becomes of the request that is due."""
        if self.dead:
            raise Died
        self.back.release()
        self.go.acquire()
        return self.fate

    def request(
        self,
        what: str,
        writes: bool,
        work: Callable[[], Any],
        late: Callable[[], Any] | None = None,
    ) -> Any:
        while True:
            fate = self.pause()
            self.world.trace.append(f"{self.writer or self.name}: {what} [{fate}]")
            if fate == "stop":
                self.dead = True
                raise Died
            if writes and self.fenced:
                raise Violation(f"{self.writer} is fenced and goes on: {what}")
            if fate == "die before":
                self.dead = True
                raise Died
            if fate == "late" and writes:
                self.late.append((f"{self.writer}: {what}", late or work))
            else:
                result = work()
            if fate == "die after":
                self.dead = True
                raise Died
            if fate in ("lost", "late") and writes:
                if self.rng.random() < 0.6:
                    continue  # tried again by itself
                raise Transient("no answer")
            if fate == "late":
                continue
            return result

    # -- what a machine does

    def live(self) -> None:
        raise NotImplementedError


class Pruner(Actor):
    """A person, or another machine, with ``python -m syncd prune``."""

    def live(self) -> None:
        while True:
            self.dead = False
            try:
                self.pause()
                Retention(Gate(self), LAYOUT, SystemClock()).prune(self.rng.choice((1, 1, 2, 3)))
            except (Died, Transient, Corrupt):
                if self.fate == "stop":
                    return


class Daemon(Actor):
    """A machine that trains, and its daemon: dies, comes back, with or without its journal."""

    def __init__(self, name: str, world: World, rng: random.Random, disk: Path) -> None:
        super().__init__(name, world, rng, disk)
        self.root = disk / "checkpoints"
        self.root.mkdir(parents=True)
        self.journal = Journal(None, "test")
        self.snapshot: Journal | None = None
        self.written = 0
        self.contents: list[bytes] = []
        self.home = f"{name}-home"

    def live(self) -> None:
        while True:
            self.dead = self.fenced = False
            self.writer = f"{self.name}{next(self.lives)}"
            try:
                self.one_life()
            except Died:
                if self.fate == "stop":
                    return
                self.next_journal()
            except Fenced:
                self.fenced = True
                for _ in range(self.rng.choice((3, 20))):
                    self.pause()  # it holds still until a person starts it again
                    if self.fate == "stop":
                        return

    def next_journal(self) -> None:
        fate = self.rng.random()
        if fate < 0.25:
            self.journal.close()
            self.journal = Journal(None, "test")
            shutil.rmtree(self.root)  # another disk: what lay there cannot be sent again
            self.root.mkdir()
        elif fate < 0.45 and self.snapshot:  # the disk of a snapshot, on another machine
            self.journal.close()
            self.journal = _clone(self.snapshot)
            self.home = f"{self.name}-home-{next(self.lives)}"

    def one_life(self) -> None:
        while True:
            try:
                publisher = self.connect()
                while True:
                    self.work(publisher)
            except Transient:
                continue

    def connect(self) -> Publisher:
        store: Any = Gate(self)
        clock = SystemClock()
        uploads = Uploads(store, self.journal, LAYOUT, clock)
        limit = RateLimit(None, clock, threading.Event())
        transfer = Transfer(store, 1, limit, uploads=uploads)
        transfer.files.shutdown(wait=False)
        transfer._parts.close()
        transfer.files = transfer._parts._workers = Inline()
        publisher = Publisher(
            self.root, store, self.journal, LAYOUT, transfer, clock, self.writer, self.home
        )
        publisher.join_log()
        publisher.refresh()
        return publisher

    def work(self, publisher: Publisher) -> None:
        self.pause_to_train()
        self.save()
        tree = scan(self.root)
        for unit in sorted(units(tree) if tree else (), key=lambda unit: unit.written):
            gone = unit.path in self.world.pruned and not self.journal.is_taken(unit.path)
            if not gone and not self.journal.is_safe(unit.path, unit.signature):
                try:
                    publisher.publish(unit, "set")
                except (Changed, Permanent):
                    continue
        if self.rng.random() < 0.2:
            self.retain()
        if self.rng.random() < 0.15:
            self.snapshot = _clone(self.journal)

    def pause_to_train(self) -> None:
        if self.pause() == "stop" or self.fate.startswith("die"):
            self.dead = True
            raise Died

    def retain(self) -> None:
        store: Any = Gate(self)
        pruned = Retention(store, LAYOUT, SystemClock()).prune(self.rng.choice((1, 2, 3)))
        self.journal.drop_commits(record.seq for record in pruned.commits)

    # -- the trainer

    def save(self) -> None:
        """A new checkpoint, a set that changes in place, a lone file; names are used again."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.35:
            folder = f"run/gen-{rng.randint(1, 4):03}"
            while folder in self.world.pruned and not self.journal.is_taken(folder):
                # known limit: a name whose commits are all gone, used again by a machine that
                # never knew of them, while another has slept in the middle of deleting them
                folder = f"run/gen-{rng.randint(5, 1000):03}"
            self.write(folder, [f"{n}.bin" for n in "ab"[: rng.randint(1, 2)]])
        elif kind < 0.8:
            names = rng.sample(["a.bin", "b.bin", "c.bin"], rng.randint(1, 3))
            for name in ("a.bin", "b.bin", "c.bin"):
                if rng.random() < 0.2:
                    (self.root / "model" / name).unlink(missing_ok=True)
            self.write("model", names)
        else:
            self.write("", ["last.bin"])

    def write(self, folder: str, names: list[str]) -> None:
        place = self.root / folder
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            (place / name).write_bytes(self.content())
        if folder:
            self.seen(folder, {path.name: path.read_bytes() for path in place.iterdir()})
        else:
            self.seen(names[0], {"": (place / names[0]).read_bytes()})

    def content(self) -> bytes:
        """New bytes, or such as there were before; lengths repeat, so that mistakes show."""
        if self.contents and self.rng.random() < 0.25:
            return self.rng.choice(self.contents)
        self.written += 1
        size = 3000 if self.rng.random() < (0.6 if self.world.parts else 0.15) else 100
        data = f"{self.name} {self.written:06}".encode().ljust(size, b".")
        self.contents.append(data)
        return data

    def seen(self, checkpoint: str, files: dict[str, bytes]) -> None:
        state = frozenset((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())
        self.world.states.setdefault(checkpoint, set()).add(state)


def _clone(journal: Journal) -> Journal:
    """What a snapshot of a disk does to a journal."""
    other = Journal(None, "test")
    journal._db.backup(other._db)
    return other


def simulate(seed: int, numbered: bool = False, parts: bool = False) -> World:
    """One interleaving; Violation if anything is wrong, with the trace in its notes."""
    rng = random.Random(seed)
    world = World(numbered, conditional_copy=rng.random() < 0.4, parts=parts)
    syncd.commit._ATTEMPTS = itertools.count(1)
    disk = Path(tempfile.mkdtemp(prefix="syncd-interleave-", dir=_fast_disk()))
    actors: list[Actor] = [
        Daemon(name, world, random.Random(f"{seed} {name}"), disk / name)
        for name in "abc"[: rng.choice((2, 2, 3))]
    ]
    if rng.random() < 0.5:
        actors.append(Pruner("p", world, random.Random(f"{seed} p"), disk / "p"))
    try:
        _play(world, actors, rng)
    except BaseException as error:
        if hasattr(error, "add_note"):
            error.add_note(f"seed {seed}, the last steps:\n" + "\n".join(world.trace[-400:]))
        world.trace.append(str(error))
        raise
    finally:
        for actor in actors:
            _end(actor)
        shutil.rmtree(disk, ignore_errors=True)
    _in_the_end(world)
    return world


def _play(world: World, actors: list[Actor], rng: random.Random) -> None:
    mishaps = rng.choice((0.0, 0.02, 0.05))
    steps = rng.randint(60, _MOST_STEPS)
    begins = {actor.name: rng.choice((0, 0, 30, 100)) for actor in actors[1:]}
    for step in range(steps):
        ready = [
            actor
            for actor in actors
            if actor.asleep_until <= step and begins.get(actor.name, 0) <= step
        ]
        late = [(actor, item) for actor in actors for item in actor.late]
        if late and rng.random() < 0.05:
            actor, item = rng.choice(late)
            actor.late.remove(item)
            world.trace.append(f"{item[0]} [arrives late]")
            with contextlib.suppress(Permanent, Corrupt):
                item[1]()
            continue
        if not ready:
            continue
        actor = rng.choice(ready)
        if not actor.thread.is_alive():
            actor.thread.start()
        fate = "go"
        if rng.random() < mishaps:
            fate = rng.choice(("die before", "die after", "lost", "late", "sleep"))
        if rng.random() < 0.01 or fate == "sleep":
            actor.asleep_until = step + rng.choice((10, 40, 150))
            world.trace.append(f"{actor.name} sleeps")
            continue
        actor.turn(fate)


def _end(actor: Actor) -> None:
    if not actor.thread.is_alive():
        return
    actor.dead = True
    actor.fate = "stop"
    while actor.thread.is_alive() and not actor.done:
        actor.go.release()
        actor.back.acquire()


def _in_the_end(world: World) -> None:
    """A fresh machine finds every record whole."""
    for record in CommitLog(world.store, LAYOUT).newest_first():
        if isinstance(record, Corrupt):
            raise Violation(f"in the end: {record.message}")
        world.restorer.verify(record)


def _fast_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _prepare() -> None:
    syncd.transfer.SINGLE_PUT = _LARGE
    logging.disable(logging.CRITICAL)


def run(
    seeds: range, numbered: bool = False, parts: bool = False
) -> Iterator[tuple[int, str, int]]:
    """Each seed, what was wrong with it ("": nothing), and how many commits it made."""
    single_put = syncd.transfer.SINGLE_PUT
    _prepare()
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, random.sample(sorted(processors), 1))  # the threads take turns
    try:
        for seed in seeds:
            try:
                yield seed, "", simulate(seed, numbered, parts).committed
            except Violation as violation:
                yield seed, str(violation), 0
    finally:
        os.sched_setaffinity(0, processors)
        syncd.transfer.SINGLE_PUT = single_put
        logging.disable(logging.NOTSET)


def run_all(
    seeds: range, numbered: bool = False, parts: bool = False
) -> list[tuple[int, str, int]]:
    """The same, for another process."""
    return list(run(seeds, numbered, parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--numbered", action="store_true")
    parser.add_argument("--parts", action="store_true", help="mostly large files, gone on with")
    parser.add_argument("--trace", action="store_true", help="print every step of the one seed")
    chosen = parser.parse_args()
    if chosen.trace:
        _prepare()
        try:
            print("\n".join(simulate(chosen.first, chosen.numbered, chosen.parts).trace))
        except Violation as violation:
            print("\n".join(getattr(violation, "__notes__", [])), violation)
            return 1
        return 0
    began = time.monotonic()
    wrong = commits = 0
    shares = [
        range(at, min(at + 100, chosen.first + chosen.seeds))
        for at in range(chosen.first, chosen.first + chosen.seeds, 100)
    ]
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for results in pool.map(
            run_all, shares, itertools.repeat(chosen.numbered), itertools.repeat(chosen.parts)
        ):
            for seed, words, count in results:
                commits += count
                if words:
                    wrong += 1
                    print(f"seed {seed}: {words}", flush=True)
    seconds = time.monotonic() - began
    print(f"{chosen.seeds} interleavings, {commits} commits, {wrong} wrong, {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
