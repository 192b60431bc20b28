"""A shipper of logs on a machine with a disk, for tests; time passes only when they say so."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from syncd.health import Health
from syncd.journal import Journal
from syncd.logs import LogShipper
from syncd.pace import RateLimit
from syncd.stores.base import ObjectStore
from syncd.stores.directory import DirectoryStore
from syncd.stores.resilient import Resilient
from syncd.transfer import Transfer
from tests.clocks import FakeClock
from tests.workbench import LAYOUT, Died

LOGS = LAYOUT.logs


class Counted:
    """Passes every request on; counts them and the bytes of their bodies; can die around one."""

    def __init__(self, store: ObjectStore, **can: Any) -> None:
        self._store = store
        self.name = store.name
        self.capabilities = replace(store.capabilities, **can)
        self.bodies = 0
        self.body_of: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.writes: list[tuple[str, float]] = []
        self.now: Callable[[], float] = lambda: 0.0
        self.die_in: int | None = None
        self.die_after = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name == "close":
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.die_in is not None:
                self.die_in -= 1
            dying = self.die_in is not None and self.die_in < 0
            if dying and not self.die_after:
                raise Died
            self.made[name] += 1
            if name in ("put", "append", "start_upload"):
                self.writes.append((args[0], self.now()))
            if name in ("put", "append"):
                size = len(args[1 if name == "put" else 2])
                self.bodies += size
                self.body_of[args[0]] += size
            result = method(*args, **kwargs)
            if dying:
                raise Died
            return result

        return call


@dataclass
class Logger:
    """One machine that writes logs, and what copies them."""

    disk: Path
    store: Any
    interval: float = 30.0
    clock: FakeClock = field(default_factory=FakeClock)
    rate: int | None = None

    def __post_init__(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.live()

    def live(self, forget: bool = False) -> None:
        """Begin a new life of the daemon, with the journal of the one before or without."""
        if forget:
            for path in self.disk.glob("journal*"):
                path.unlink()
        self.journal = Journal(self.disk / "journal.sqlite", "test")
        self.health = Health(self.clock)
        self.store.now = self.clock.monotonic
        stop = threading.Event()
        patient = Resilient(self.store, self.clock, stop)
        limit = RateLimit(self.rate, self.clock, stop)
        self.transfer = Transfer(patient, 2, limit, self.health.sent)
        self.shipper = LogShipper(
            self.logs,
            self.journal,
            LAYOUT,
            self.health,
            clock=self.clock,
            interval=self.interval,
            scratch=self.disk / "state/logs",
        )

    @property
    def logs(self) -> Path:
        return self.disk / "logs"

    def write(self, path: str, data: bytes) -> None:
        """Append, as loggers do."""
        (self.logs / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.logs / path).open("ab") as file:
            file.write(data)

    def overwrite(self, path: str, data: bytes) -> None:
        """Write in place from the beginning, as a writer that opens with "w"."""
        with (self.logs / path).open("wb") as file:
            file.write(data)

    def ship(self, after: float = 0.0, flush: bool = False) -> int:
        """One turn, some seconds later."""
        self.clock.sleep(after)
        return self.shipper.ship(self.transfer, flush=flush)

    def there(self, path: str) -> bytes | None:
        """The object of a log; None if there is none."""
        from syncd.errors import NotFound

        try:
            return b"".join(self.store._store.read(LOGS + path))
        except NotFound:
            return None

    def names(self) -> set[str]:
        """Of all logs in the store."""
        return {info.key.removeprefix(LOGS) for info in self.store._store.list(LOGS)}


def logger(tmp_path: Path, name: str = "one", **can: Any) -> Logger:
    """A machine that copies its logs to a directory, which can do what ``can`` says."""
    return Logger(tmp_path / name, Counted(DirectoryStore(tmp_path / "bucket"), **can))


def lines(count: int, start: int = 0) -> bytes:
    """Lines of a log, each one different."""
    return b"".join(
        b"step %d loss %s\n" % (n, os.urandom(8).hex().encode())
        for n in range(start, start + count)
    )
