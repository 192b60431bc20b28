"""The life of the daemon: start, watch, commit, survive everything, flush, end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from syncd.clock import Clock, SystemClock
from syncd.config import Environment, Settings, load_settings
from syncd.control import Servers
from syncd.cores import lower_priority
from syncd.engine import new_writer
from syncd.errors import Fenced, SettingsError
from syncd.health import Health
from syncd.hooks import Hooks
from syncd.lag import PATIENCE, Lag
from syncd.line import Ending, Line
from syncd.lock import AlreadyRunning, Lock, lock_state
from syncd.programs import Programs
from syncd.web import Application

log = logging.getLogger(__name__)

_PULSE = 3.0
"""Seconds between looks whether what waits has waited too long."""

_TICK = 0.1

_MIRROR_DOWN = 5.0
"""Seconds that a mirror which is out of reach may hold up the end."""

_PATIENT = ("waiting", "stuck", "starved")
"""Reasons that only come after a long time."""

_HOOKS_END = 5.0
"""Seconds at most, of the grace, for the hooks of the last commits."""

_SAME_SIGNAL = 0.3
"""Seconds within which a second signal is the first one, sent to process and group alike."""


class Daemon:
    """One life of the daemon."""

    def __init__(self, environment: Environment, clock: Clock | None = None) -> None:
        settings = self._settings = load_settings(environment)
        self._environment = environment
        self._clock = clock or SystemClock()
        self._writer = new_writer()
        self._health = self._new_health()
        self._hooks = Hooks(settings.hook, self._health, self._clock)
        self._ending = Ending()
        self._signalled = 0.0
        self._lock: Lock | None = None
        self._servers = Servers()
        self._line = Line(
            environment,
            lambda: load_settings(environment),
            self._health,
            self._clock,
            self._writer,
            self._ending,
            self._mind_state,
        )
        self._mirror = self._new_mirror() if settings.mirror else None

    def _new_health(self) -> Health:
        lag = Lag(self._settings.max_lag, self._settings.bwlimit)
        return Health(self._clock, self._writer, lag)

    def _new_mirror(self) -> Line:
        """The second store has all of its own, but for the process and the bandwidth."""
        self._health.mirror = self._new_health()
        environment = self._environment

        def load() -> Settings:
            settings = load_settings(environment).mirror
            if settings is None:
                raise SettingsError(["CLOUD_MIRROR is not set any more; restart syncd"])
            return settings

        for handler in logging.getLogger().handlers:
            handler.addFilter(_named)
        return Line(
            environment,
            load,
            self._health.mirror,
            self._clock,
            self._writer,
            self._ending,
            limit=self._line.limit,
            first=self._line,
        )

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
            for line in self._lines:
                line.start()
            threading.Thread(target=self._beat, name="pulse", daemon=True).start()
            self._await_signal()
            return self._await_end()

    def _await_signal(self) -> None:
        """Sleep until a signal has come.

        Python runs its handlers in the main thread alone, and the system may give the signal to
        any other: the byte that is written then, whichever it is, wakes this one.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            while not self._ending.stopping.is_set():
                os.read(reader, 64)
        finally:
            signal.set_wakeup_fd(before)
            os.close(reader)
            os.close(writer)

    def _on_signal(self, number: int, _frame: object) -> None:
        now = self._clock.monotonic()
        if self._ending.stopping.is_set():
            if now - self._signalled > _SAME_SIGNAL:
                os._exit(1)  # the second signal: at once
            return
        self._signalled = now
        self._ending.deadline = now + self._settings.shutdown_grace
        self._ending.stopping.set()
        for line in self._lines:
            line.hurry()
        del number

    @property
    def _lines(self) -> list[Line]:
        return [self._line, self._mirror] if self._mirror else [self._line]

    def _await_end(self) -> int:
        grace = self._settings.shutdown_grace
        log.info("stopping: flushing for up to %.0f s", grace)
        ended = self._line.ended.wait(self._deadline_left() + 0.2)
        if self._mirror:
            self._await_mirror(self._mirror)
        self._ending.abort.set()
        self._hooks.close(min(_HOOKS_END, self._deadline_left() + 0.2))
        report = self._line.report
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
        return max(0.0, (self._ending.deadline or 0.0) - self._clock.monotonic())

    def _await_mirror(self, mirror: Line) -> None:
        """It has the time that the first store has left, and little where it is out of reach."""
        until = self._clock.monotonic() + _MIRROR_DOWN
        while not mirror.ended.wait(min(_TICK, self._deadline_left())):
            down = mirror.health.reasons() and self._clock.monotonic() > until
            if down or not self._deadline_left():
                break
        report = mirror.report if mirror.ended.is_set() else None
        if report is None:
            log.warning("mirror: not everything is there")
        for name, reason in report.failed if report else ():
            log.warning("mirror: not there: %s: %s", name, reason)

    def _beat(self) -> None:
        while not self._clock.wait(self._ending.stopping, _PULSE):
            self._health.beat()
            if self._mirror:
                self._mirror.health.beat()
                self._mirror.answer_if_down()
                self._tell_mirror(self._mirror.health)

    def _tell_mirror(self, mirror: Health) -> None:
        """What has been wrong with the mirror for long enough is a reason for red."""
        bound = self._settings.max_lag
        grace = bound if bound is not None and bound < float("inf") else PATIENCE
        lasting = [r for r in mirror.reasons() if r.code in _PATIENT or self._age(r.since) > grace]
        if not lasting:
            self._health.green("mirror")
            return
        words = f"the mirror: {lasting[0].message}"
        if not any(reason.message == words for reason in self._health.reasons("mirror")):
            self._health.red("mirror", words, lasting[0].hint)

    def _age(self, since: float) -> float:
        return self._clock.now() - since

    def _serve(self) -> None:
        self._listen()
        if self._settings.http:
            programs = Programs(self._settings.environ, self._settings.state_dir)
            page = Application(self._health, token=self._settings.http_token, programs=programs)
            self._servers.listen_http(page, *self._settings.http)

    def _listen(self) -> None:
        application = Application(self._health, self._ask_flush, set_limit=self._set_limit)
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

    def _set_limit(self, rate: int | None) -> None:
        self._line.limit.change(rate)
        for line in self._lines:
            line.health.limited(rate)
        log.info("the limit is %s from now on", f"{rate} bytes a second" if rate else "off")

    def _ask_flush(self, done: Callable[[dict[str, Any]], None]) -> None:
        mirror = self._mirror
        if mirror is None:
            self._line.ask_flush(done)
            return

        def then(report: dict[str, Any]) -> None:
            mirror.ask_flush(lambda second: done({**report, "mirror": second}))

        self._line.ask_flush(then)


def _named(record: logging.LogRecord) -> bool:
    """A log line of the mirror's threads says so."""
    if (record.threadName or "").startswith("mirror") and not record.__dict__.get("named"):
        record.msg, record.__dict__["named"] = f"mirror: {record.msg}", True
    return True
