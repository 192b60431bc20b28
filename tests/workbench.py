"""A daemon's inner parts on a directory store, put together for tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncd.clock import SystemClock
from syncd.commit import Publisher
from syncd.config import Environment, load_settings
from syncd.engine import Engine
from syncd.errors import StoreError
from syncd.health import Health
from syncd.inflight import Room
from syncd.journal import Journal
from syncd.opening import open_journal
from syncd.pace import RateLimit
from syncd.pipeline import Pipeline
from syncd.records import CommitRecord, Layout
from syncd.restore import Restorer
from syncd.snapshot import Snapshots
from syncd.stores.base import Body, ObjectInfo, ObjectStore
from syncd.stores.directory import DirectoryStore
from syncd.transfer import Transfer
from syncd.uploads import Uploads

LAYOUT = Layout("eigen2")


class Died(BaseException):
    """The machine is gone: nothing may catch this."""


def put_one_by_one(
    put: Callable[..., ObjectInfo], bodies: Iterable[Body]
) -> Iterator[ObjectInfo | StoreError]:
    """``put_each`` in order, for a store whose requests a test counts or stops at."""
    for body in bodies:
        try:
            yield put(body.key, body.data, body.condition)
        except StoreError as error:
            yield error


class CountingStore:
    """Passes every request on, counts those that write, and can die before or after one."""

    def __init__(self, store: ObjectStore, die_at: int | None = None, after: bool = False) -> None:
        self._store = store
        self._die_at = die_at
        self._after = after
        self.writes: list[str] = []
        self.sent_bytes = 0
        self.name = store.name
        self.capabilities = store.capabilities

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._store, name)
        if name not in ("put", "copy", "delete", "start_upload"):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            dying = self._die_at is not None and len(self.writes) >= self._die_at
            if dying and not self._after:
                raise Died
            self.writes.append(f"{name} {args[0]}")
            if name == "put" and "/.syncd/commits/" not in args[0]:
                self.sent_bytes += len(args[1])
            result = method(*args, **kwargs)
            if dying:
                raise Died
            return result

        return call

    def put_each(self, bodies: Iterable[Body]) -> Iterator[ObjectInfo | StoreError]:
        """Each of them is a request that can be the last one."""
        return put_one_by_one(self.put, bodies)


@dataclass
class Machine:
    """One machine with a disk, a journal and one life of a daemon."""

    disk: Path
    bucket: Path
    writer: str = "writer-a"
    store: ObjectStore | None = None
    settle: float = 0.0
    home: str = ""
    keep_last: int | None = None
    keep_every: int | None = None
    journal: Journal = field(init=False)
    publisher: Publisher = field(init=False)
    pipeline: Pipeline = field(init=False)
    health: Health = field(init=False)
    transfer: Transfer = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        store: Any = self.store or DirectoryStore(self.bucket)
        self.store = store
        clock = SystemClock()
        self.journal = Journal(self.disk / "journal.sqlite", "test")
        self.health = Health(clock)
        transfer = self.transfer = Transfer(
            store,
            2,
            RateLimit(None, clock, threading.Event()),
            self.health.sent,
            uploads=Uploads(store, self.journal, LAYOUT, clock),
        )
        self.publisher = Publisher(
            self.root, store, self.journal, LAYOUT, transfer, clock, self.writer, self.home
        )
        snapshots = Snapshots(self.disk / "snapshots", self.root, None)
        self.pipeline = Pipeline(
            self.root,
            self.journal,
            self.health,
            clock,
            self.settle,
            keep_last=self.keep_last,
            keep_every=self.keep_every,
            snapshots=snapshots,
            layout=LAYOUT,
        )

    @property
    def root(self) -> Path:
        return self.disk / "checkpoints"

    def start(self) -> Machine:
        self.publisher.join_log()
        self.publisher.refresh()
        return self

    def write(self, path: str, content: bytes | str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def commit_all(self) -> list[CommitRecord]:
        """Commit everything complete, as a flush does."""
        committed = []
        try:
            with self.pipeline.pacer.hurry():
                look = self.pipeline.look()
                while look.pending:
                    record = self.pipeline.commit_next(look, self.publisher)
                    if record:
                        committed.append(record)
        finally:
            all_given_back(self.transfer.room)
        return committed


def all_given_back(room: Room) -> None:
    """Whatever has failed, nothing may be missing of the room that the next one needs."""
    with room._changed:
        assert room._changed.wait_for(lambda: not room._held, 5)
        assert room._taken == 0


def engine_on(folder: Path, **environ: str) -> Engine:
    """A connected one, of a fresh disk on a fresh directory store, all of it below ``folder``."""
    for name in ("checkpoints", "bucket"):
        (folder / name).mkdir()
    known = {
        "CHECKPOINT_DIR": str(folder / "checkpoints"),
        "LOG_DIR": str(folder / "logs"),
        "SYNCD_STATE_DIR": str(folder / "state"),
        "CLOUD_PROVIDER": "local",
        "CLOUD_BUCKET": str(folder / "bucket"),
        "SYNCD_SETTLE": "0",
    }
    settings = load_settings(Environment({**known, **environ}, folder / ".env"))
    clock = SystemClock()
    engine = Engine(settings, open_journal(settings), Health(clock), clock, threading.Event())
    engine.connect(settings)
    return engine


def restorer(bucket: Path) -> Restorer:
    return Restorer(DirectoryStore(bucket), LAYOUT, ThreadPoolExecutor(2))


def restore_newest(bucket: Path, target: Path) -> CommitRecord | None:
    """What a fresh machine gets."""
    back = restorer(bucket)
    return back.restore_newest(back.commits(), target).record


def tree(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """Every file below a folder with its content, by relative path after ``prefix``."""
    return {
        prefix + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def age(path: Path, seconds: float) -> None:
    """Make a file look as if it had been modified that long ago."""
    stat = path.stat()
    os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))
