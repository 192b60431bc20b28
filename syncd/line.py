"""One store and the threads that serve it: connect, look, send, wait for a person, flush.

The daemon has one of these for its store, and a second one where there is a mirror. Each has a
journal, a commit log and a health of its own, so that neither ever waits for the other's faults.
The mirror gives way: it sends only while the first has nothing to send, or cannot send it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from syncd.backlog import Look
from syncd.clock import Clock
from syncd.config import Environment, Settings
from syncd.engine import Engine
from syncd.errors import Fenced, NeedsOperator, SettingsError, StoreError, Transient
from syncd.flushing import FlushReport
from syncd.health import Health
from syncd.opening import open_journal, store_identity
from syncd.pace import RateLimit
from syncd.watch import Watcher

log = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0
"""Seconds between looks at the watch and at what is due; a scan comes when it is worth while."""

_OPERATOR_POLL = 1.0
"""Seconds between looks whether a person has changed the settings."""

_OPERATOR_RETRY, _OPERATOR_RETRY_LIMIT = 5.0, 60.0
"""Seconds after which a refusal is tried again unchanged: at first, and at most after doubling."""

_STALLED, _STALLED_AT_END = 30.0, 5.0
"""Seconds without a byte taken by the first store after which the mirror goes all the same."""

_STARVED = 3600.0
"""Seconds for which the mirror gives way in silence."""

Answered = Callable[[dict[str, Any]], None]


@dataclass
class Ending:
    """The end of the process: whether it has come, and by when all must be over."""

    stopping: threading.Event = field(default_factory=threading.Event)
    abort: threading.Event = field(default_factory=threading.Event)
    deadline: float | None = None


class Line:
    """The way to one store, for the life of the process."""

    def __init__(
        self,
        environment: Environment,
        load: Callable[[], Settings],
        health: Health,
        clock: Clock,
        writer: str,
        ending: Ending,
        mind: Callable[[], None] = lambda: None,
        limit: RateLimit | None = None,
        first: Line | None = None,
    ) -> None:
        """``load`` reads the settings, ``mind`` is called at each turn; ``first`` goes first."""
        self._environment = environment
        self._load = load
        self.settings = load()
        self._read = environment.read()
        self.health = health
        self._clock = clock
        self._writer = writer
        self._ending = ending
        self._mind = mind
        self._first = first
        self.wake = threading.Event()
        self._reconnect = threading.Event()
        self.ended = threading.Event()
        self._flushes: queue.SimpleQueue[Answered] = queue.SimpleQueue()
        self._asked: list[Answered] = []
        self.report: FlushReport | None = None
        self._retry_after = _OPERATOR_RETRY
        self._journal_error: sqlite3.Error | None = None
        self._watcher = Watcher(self.settings.checkpoint_dir, self.wake)
        self._engine: Engine | None = None
        self.limit = limit or RateLimit(self.settings.bwlimit, clock, ending.abort)
        self._deferred: float | None = None

    @property
    def _title(self) -> str:
        return "the mirror" if self._first else "the store"

    def start(self) -> None:
        """Begin, in threads of its own."""
        names = ("mirror", "mirror logs") if self._first else ("checkpoints", "logs")
        for name, work in zip(names, (self._work, self._ship_logs), strict=True):
            threading.Thread(target=work, name=name, daemon=True).start()

    def ask_flush(self, done: Answered) -> None:
        """Have everything complete committed; ``done`` gets the report."""
        self._flushes.put(done)
        self.hurry()

    def hurry(self) -> None:
        """Wake what waits, and have what is being sent spare nobody."""
        if engine := self._engine:
            engine.hurry()
        self.wake.set()

    # -- who goes first

    def busy(self) -> bool:
        """Whether there is something to send and the store takes it."""
        engine = self._engine
        if engine is None or engine.publisher is None or engine.out_of_reach:
            return False
        at_end = self._ending.deadline is not None
        patience = _STALLED_AT_END if at_end else _STALLED
        return not self.ended.is_set() and self.health.works(patience)

    def _gives_way(self) -> bool:
        return self._first is not None and self._first.busy()

    def _may_not(self) -> bool:
        return self._ending.stopping.is_set() or self._gives_way()

    def _mind_turn(self, look: Look) -> None:
        """Giving way is no fault, until it has gone on for very long."""
        if not (look.pending and self._gives_way()):
            self._deferred = None
            self.health.green("starved")
            return
        now = self._clock.monotonic()
        self._deferred = now if self._deferred is None else self._deferred
        if now - self._deferred < _STARVED:
            self.health.waits_on_purpose()
        elif not self.health.reasons("starved"):
            words = f"the line has had no time for the mirror for {_STARVED / 60:.0f} minutes"
            self.health.red("starved", words, "a faster line, or fewer or smaller checkpoints")

    # -- the thread of the checkpoints

    def _work(self) -> None:
        settings = self.settings
        try:
            if not settings.copies:
                self._idle()
                return
            while not self._ending.stopping.is_set():
                self._guarded()
            while self._gives_way() and not self._over():
                self._clock.sleep(0.1)
            self._last_flush()
        finally:
            self.ended.set()

    def _new_engine(self) -> Engine:
        if self._engine:
            self._engine.disconnect()
        self._engine = Engine(
            self.settings,
            open_journal(self.settings),
            self.health,
            self._clock,
            self._ending.abort,
            self._limit,
            self._writer,
            lambda: self._ending.deadline,
            self.limit,
            self._title,
            lenient=True,
        )
        self._engine.pipeline.gives_way = self._gives_way
        self._engine.pipeline.watch(self._watcher)
        return self._engine

    def _limit(self) -> float | None:
        """When trying again ends: at the deadline of a stop, or at once when settings change."""
        if self._ending.deadline is None and self._settings_changed():
            return 0.0
        return self._ending.deadline

    def _settings_changed(self) -> bool:
        return self._environment.read() != self._read

    def _idle(self) -> None:
        """``local`` without a bucket: nothing is copied, and that is said once."""
        log.warning(
            "CLOUD_PROVIDER=local without CLOUD_BUCKET: nothing is copied anywhere. Set "
            "CLOUD_BUCKET to a directory on another disk, or choose s3, gcs or azure"
        )
        while not self._ending.stopping.is_set():
            self._answer_flushes({"safe": True, "committed": 0, "failed": {}, "nothing": True})
            self.wake.wait(3600)
            self.wake.clear()

    def _guarded(self) -> None:
        """Work until something is wrong, and wait until that may have gone; never raises."""
        try:
            self._loop(self._connect())
        except Fenced as error:
            self.health.red("fenced", error)
            log.error("%s; copying has stopped", error.explain())
            self._hold(error.explain(), forever=True)
        except NeedsOperator as error:
            if self.health.red("store", error):
                log.error("%s", error.explain())
            self._hold(error.explain())
        except Transient as error:
            log.warning("%s", error.explain())
            self._hold(error.explain())
        except sqlite3.Error as error:
            self._without_journal(error)
        except Exception as error:
            log.exception("unexpected failure; starting over")
            words = f"{type(error).__name__}: {error}"
            self.health.red("internal", words, "please report it")
            self._hold(words)

    def _without_journal(self, error: sqlite3.Error) -> None:
        """A full disk, mostly: checkpoints matter more than what the journal saves."""
        engine = self._engine or self._new_engine()
        again = bool(engine.journal.volatile)
        engine.journal.recover(error)
        words = f"the journal failed: {error}"
        log.error("%s; going on without it", words)
        engine.mind_journal()
        if again:  # in memory, too: that is no disk's fault
            self._hold(words)

    def _connect(self) -> Engine:
        engine = self._engine or self._new_engine()
        engine.pipeline.look()
        self._read = self._environment.read()
        try:
            settings = self._load()
        except SettingsError as error:
            raise NeedsOperator(
                error.message, hint="mend the environment file; it is read again by itself"
            ) from None
        if store_identity(settings) != store_identity(engine.settings):
            self.settings = settings  # another bucket: nothing that is known holds for it
            engine = self._new_engine()
        engine.connect(settings)
        verb = "mirroring" if self._first else "copying"
        log.info("%s %s to %s", verb, settings.checkpoint_dir, self.health.store)
        return engine

    def _works(self) -> None:
        """The store has taken what there was: whatever was wrong with it is over."""
        self._retry_after = _OPERATOR_RETRY
        for code in ("store", "internal", "fenced"):
            if self.health.green(code):
                log.info("%s works again", self._title)

    def _loop(self, engine: Engine) -> None:
        while not self._ending.stopping.is_set() and not self._reconnect.is_set():
            self.wake.clear()
            self._mind()
            engine.mind_journal()
            self._watcher.ensure(self._clock.monotonic())
            engine.mind_folder()
            look = engine.step(self._may_not)
            self._mind_turn(look)
            self.health.watching = self._watcher.problem or "events and scans"
            if not look.pending:
                self._works()
            self._flush_if_asked(engine)
            if not look.pending:
                self._clock.wait(self.wake, look.next_interval(_LONGEST_WAIT))
            elif self._first:
                self._clock.wait(self.wake, 1.0)  # it has given way
            # events come in swarms: one look for all that come while a scan would take
            self._clock.wait(self._ending.stopping, min(10 * look.cost, 1.0))
        self._reconnect.clear()
        error, self._journal_error = self._journal_error, None
        if error:
            raise error

    def _hold(self, reason: str, forever: bool = False) -> None:
        """Wait for a person: try again when the settings change, and now and then unchanged."""
        engine = self._engine
        if engine:
            engine.disconnect()
        until = self._clock.monotonic() + self._retry_after
        self._retry_after = min(2 * self._retry_after, _OPERATOR_RETRY_LIMIT)
        while not self._ending.stopping.is_set():
            failed = {"the store": reason}
            with contextlib.suppress(Exception):
                pending = engine.pipeline.look().pending if engine else []
                failed = {unit.path: reason for unit, _ in pending} or failed
            self._answer_flushes({"safe": False, "committed": 0, "failed": failed})
            self.wake.clear()
            self._clock.wait(self._ending.stopping, _OPERATOR_POLL)
            changed = self._settings_changed()
            if changed:
                self._retry_after = _OPERATOR_RETRY
            if changed or (not forever and self._clock.monotonic() > until):
                return

    def _take_flushes(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._asked.append(self._flushes.get_nowait())

    def _answer_flushes(self, report: dict[str, Any]) -> None:
        self._take_flushes()
        with contextlib.suppress(IndexError):  # each is answered once, by whichever thread
            while True:
                self._asked.pop()(report)

    def answer_if_down(self) -> None:
        """Nobody waits for a flush of what cannot be reached; from any thread."""
        reasons = self.health.reasons()
        if reasons:
            self._answer_flushes({"safe": False, "failed": {self._title: reasons[0].message}})

    def _flush_if_asked(self, engine: Engine) -> None:
        self._take_flushes()
        if not self._asked:
            return
        report: dict[str, Any] = {"safe": False, "failed": {"syncd": "failed; see its log"}}
        try:
            report = as_document(engine.flush(self._may_not))
        finally:
            self._answer_flushes(report)

    def _last_flush(self) -> None:
        if self.health.reasons("fenced"):
            self.report = FlushReport(0, 0, (("the store", "another machine took over"),), ())
            return
        try:
            self.report = self._flush_to_the_end()
        except sqlite3.Error as error:
            self._without_journal(error)
            self.report = self._flush_to_the_end()
        self._answer_flushes(as_document(self.report))

    def _over(self) -> bool:
        return self._clock.monotonic() >= (self._ending.deadline or 0.0)

    def _flush_to_the_end(self) -> FlushReport:
        engine = self._engine or self._new_engine()
        with contextlib.suppress(StoreError):
            if engine.publisher is None:
                engine = self._connect()
        return engine.flush(self._over)

    # -- the thread of the logs

    def _ship_logs(self) -> None:
        while not self._clock.wait(self._ending.stopping, self.settings.log_interval):
            engine = self._engine
            transfer = engine.transfer if engine else None
            if engine is None or transfer is None or engine.publisher is None:
                continue
            try:
                engine.logs.ship(transfer, self._ending.stopping.is_set)
            except NeedsOperator as error:
                self.health.red("store", error)
                self._reconnect.set()
                self.wake.set()
            except sqlite3.Error as error:
                self._journal_error = error  # for the thread that can join the log anew
                self._reconnect.set()
                self.wake.set()
            except Exception as error:  # noqa: BLE001 - logs are sent again at the next turn
                log.warning("logs wait: %s", error)


def as_document(report: FlushReport) -> dict[str, Any]:
    """A flush report as JSON."""
    return {
        "safe": report.safe,
        "committed": report.committed,
        "logs": report.logs,
        "failed": dict(report.failed),
        "incomplete": {item.path: item.reason for item in report.incomplete},
        "newer": dict(report.newer),
    }
