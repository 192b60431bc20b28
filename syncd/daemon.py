"""The life of the daemon: start, watch, commit, survive everything, flush, end."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

from syncd.clock import Clock, SystemClock
from syncd.config import Environment, load_settings
from syncd.control import Servers
from syncd.engine import (
    Engine,
    FlushReport,
    lower_priority,
    new_writer,
    open_journal,
    store_identity,
)
from syncd.errors import Fenced, NeedsOperator, SettingsError, StoreError, Transient
from syncd.health import Health
from syncd.hooks import Hooks
from syncd.lag import Lag
from syncd.lock import AlreadyRunning, Lock, lock_state
from syncd.programs import Programs
from syncd.watch import Watcher
from syncd.web import Application

log = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0
"""Seconds between looks at the watch and at what is due; a scan comes when it is worth while."""

_OPERATOR_POLL = 1.0
"""Seconds between looks whether a person has changed the settings."""

_OPERATOR_RETRY, _OPERATOR_RETRY_LIMIT = 5.0, 60.0
"""Seconds after which a refusal is tried again unchanged: at first, and at most after doubling."""


_PULSE = 1.0
"""Seconds between looks whether what waits has waited too long."""

_HOOKS_END = 5.0
"""Seconds at most, of the grace, for the hooks of the last commits."""

_SAME_SIGNAL = 0.3
"""Seconds within which a second signal is the first one, sent to process and group alike."""


class Daemon:
    """One life of the daemon."""

    def __init__(self, environment: Environment, clock: Clock | None = None) -> None:
        self._environment = environment
        self._settings = load_settings(environment)
        self._read = environment.read()
        self._clock = clock or SystemClock()
        self._writer = new_writer()
        lag = Lag(self._settings.max_lag, self._settings.bwlimit)
        self._health = Health(self._clock, self._writer, lag)
        self._hooks = Hooks(self._settings.hook, self._health, self._clock)
        self._abort = threading.Event()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._reconnect = threading.Event()
        self._ended = threading.Event()
        self._deadline: float | None = None
        self._flushes: queue.SimpleQueue[Callable[[dict[str, Any]], None]] = queue.SimpleQueue()
        self._report: FlushReport | None = None
        self._retry_after = _OPERATOR_RETRY
        self._signalled = 0.0
        self._journal_error: sqlite3.Error | None = None
        self._lock: Lock | None = None
        self._servers = Servers()
        settings = self._settings
        self._watcher = Watcher(settings.checkpoint_dir, self._wake)
        self._engine: Engine | None = None

    # -- the main thread

    def run(self) -> int:
        """Live until a signal; 0 when everything complete was safe at the end."""
        try:
            self._lock = lock_state(self._settings.state_dir)
        except AlreadyRunning as error:
            log.error("%s", error)
            return 1
        except OSError as error:
            raise SettingsError(
                [f"SYNCD_STATE_DIR: {self._settings.state_dir} cannot be used: {error.strerror}"]
            ) from None
        with self._lock:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
            lower_priority()
            self._serve()
            threading.Thread(target=self._work, name="checkpoints", daemon=True).start()
            threading.Thread(target=self._ship_logs, name="logs", daemon=True).start()
            threading.Thread(target=self._beat, name="pulse", daemon=True).start()
            while not self._stopping.wait(3600):
                pass
            return self._await_end()

    def _on_signal(self, number: int, _frame: object) -> None:
        now = self._clock.monotonic()
        if self._stopping.is_set():
            if now - self._signalled > _SAME_SIGNAL:
                os._exit(1)  # the second signal: at once
            return
        self._signalled = now
        self._deadline = now + self._settings.shutdown_grace
        self._stopping.set()
        self._wake.set()
        del number

    def _await_end(self) -> int:
        grace = self._settings.shutdown_grace
        log.info("stopping: flushing for up to %.0f s", grace)
        ended = self._ended.wait(self._deadline_left() + 0.2)
        self._abort.set()
        self._hooks.close(min(_HOOKS_END, self._deadline_left() + 0.2))
        report = self._report
        if not self._settings.copies:
            return 0
        if not ended or report is None:
            log.error("the time for flushing is over; not everything is safe")
            return 1
        for name, reason in report.failed:
            log.error("not safe: %s: %s", name, reason)
        if report.safe:
            log.info("everything complete is safe")
        return 0 if report.safe else 1

    def _deadline_left(self) -> float:
        return max(0.0, (self._deadline or 0.0) - self._clock.monotonic())

    def _beat(self) -> None:
        while not self._clock.wait(self._stopping, _PULSE):
            self._health.beat()

    def _serve(self) -> None:
        self._listen()
        if self._settings.http:
            programs = Programs(self._settings.environ, self._settings.state_dir)
            page = Application(self._health, token=self._settings.http_token, programs=programs)
            self._servers.listen_http(page, *self._settings.http)

    def _listen(self) -> None:
        application = Application(self._health, self._ask_flush)
        try:
            self._servers.listen_socket(application, self._settings.state_dir)
        except OSError as error:
            log.warning("no control socket: %s", error)

    def _mind_state(self) -> None:
        """Hold the state directory, and listen there, also after somebody has deleted it."""
        if self._lock is None or self._lock.holds:
            return
        try:
            lock = lock_state(self._settings.state_dir)
        except AlreadyRunning as error:
            raise Fenced(str(error), hint="stop one of the two") from None
        except OSError:
            return
        log.warning("%s was deleted: made anew", self._settings.state_dir)
        self._lock.close()
        self._lock = lock
        self._listen()

    def _ask_flush(self, done: Callable[[dict[str, Any]], None]) -> None:
        self._flushes.put(done)
        self._wake.set()

    # -- the thread of the checkpoints

    def _work(self) -> None:
        settings = self._settings
        try:
            if not settings.copies:
                self._idle()
                return
            while not self._stopping.is_set():
                self._guarded()
            self._last_flush()
        finally:
            self._ended.set()

    def _new_engine(self) -> Engine:
        if self._engine:
            self._engine.disconnect()
        self._engine = Engine(
            self._settings,
            open_journal(self._settings),
            self._health,
            self._clock,
            self._abort,
            self._limit,
            self._writer,
            lambda: self._deadline,
        )
        self._engine.pipeline.watch(self._watcher)
        return self._engine

    def _limit(self) -> float | None:
        """When trying again ends: at the deadline of a stop, or at once when settings change."""
        if self._deadline is None and self._settings_changed():
            return 0.0
        return self._deadline

    def _settings_changed(self) -> bool:
        return self._environment.read() != self._read

    def _idle(self) -> None:
        """``local`` without a bucket: nothing is copied, and that is said once."""
        log.warning(
            "CLOUD_PROVIDER=local without CLOUD_BUCKET: nothing is copied anywhere. Set "
            "CLOUD_BUCKET to a directory on another disk, or choose s3, gcs or azure"
        )
        while not self._stopping.is_set():
            self._answer_flushes({"safe": True, "committed": 0, "failed": {}, "nothing": True})
            self._wake.wait(3600)
            self._wake.clear()

    def _guarded(self) -> None:
        """Work until something is wrong, and wait until that may have gone; never raises."""
        try:
            self._loop(self._connect())
        except Fenced as error:
            self._health.red("fenced", error)
            log.error("%s; copying has stopped", error.explain())
            self._hold(error.explain(), forever=True)
        except NeedsOperator as error:
            if self._health.red("store", error):
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
            self._health.red("internal", words, "please report it")
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
            settings = load_settings(self._environment)
        except SettingsError as error:
            raise NeedsOperator(
                error.message, hint="mend the environment file; it is read again by itself"
            ) from None
        if store_identity(settings) != store_identity(engine.settings):
            self._settings = settings  # another bucket: nothing that is known holds for it
            engine = self._new_engine()
        engine.connect(settings)
        log.info("copying %s to %s", settings.checkpoint_dir, self._health.store)
        return engine

    def _works(self) -> None:
        """The store has taken what there was: whatever was wrong with it is over."""
        self._retry_after = _OPERATOR_RETRY
        for code in ("store", "internal", "fenced"):
            if self._health.green(code):
                log.info("the store works again")

    def _loop(self, engine: Engine) -> None:
        while not self._stopping.is_set() and not self._reconnect.is_set():
            self._wake.clear()
            self._mind_state()
            engine.mind_journal()
            self._watcher.ensure(self._clock.monotonic())
            look = engine.step(self._stopping.is_set)
            self._health.watching = self._watcher.problem or "events and scans"
            if not look.pending:
                self._works()
            self._flush_if_asked(engine)
            if not look.pending:
                self._clock.wait(self._wake, look.next_interval(_LONGEST_WAIT))
            # events come in swarms: one look for all that come while a scan would take
            self._clock.wait(self._stopping, min(10 * look.cost, 1.0))
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
        while not self._stopping.is_set():
            failed = {"the store": reason}
            with contextlib.suppress(Exception):
                pending = engine.pipeline.look().pending if engine else []
                failed = {unit.path: reason for unit, _ in pending} or failed
            self._answer_flushes({"safe": False, "committed": 0, "failed": failed})
            self._wake.clear()
            self._clock.wait(self._stopping, _OPERATOR_POLL)
            changed = self._settings_changed()
            if changed:
                self._retry_after = _OPERATOR_RETRY
            if changed or (not forever and self._clock.monotonic() > until):
                return

    def _answer_flushes(self, report: dict[str, Any]) -> None:
        while not self._flushes.empty():
            self._flushes.get()(report)

    def _flush_if_asked(self, engine: Engine) -> None:
        waiting = []
        while not self._flushes.empty():
            waiting.append(self._flushes.get())
        if not waiting:
            return
        report: dict[str, Any] = {"safe": False, "failed": {"syncd": "failed; see its log"}}
        try:
            report = as_document(engine.flush(self._stopping.is_set))
        finally:
            for done in waiting:
                done(report)

    def _last_flush(self) -> None:
        if self._health.reasons("fenced"):
            self._report = FlushReport(0, 0, (("the store", "another machine took over"),), ())
            return
        try:
            self._report = self._flush_to_the_end()
        except sqlite3.Error as error:
            self._without_journal(error)
            self._report = self._flush_to_the_end()
        self._answer_flushes(as_document(self._report))

    def _flush_to_the_end(self) -> FlushReport:
        def over() -> bool:
            return self._clock.monotonic() >= (self._deadline or 0.0)

        engine = self._engine or self._new_engine()
        with contextlib.suppress(StoreError):
            if engine.publisher is None:
                engine = self._connect()
        return engine.flush(over)

    # -- the thread of the logs

    def _ship_logs(self) -> None:
        while not self._clock.wait(self._stopping, self._settings.log_interval):
            engine = self._engine
            transfer = engine.transfer if engine else None
            if engine is None or transfer is None or engine.publisher is None:
                continue
            try:
                engine.logs.ship(transfer, self._stopping.is_set)
            except NeedsOperator as error:
                self._health.red("store", error)
                self._reconnect.set()
                self._wake.set()
            except sqlite3.Error as error:
                self._journal_error = error  # for the thread that can join the log anew
                self._reconnect.set()
                self._wake.set()
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
    }
