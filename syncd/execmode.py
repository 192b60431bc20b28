"""``python -m syncd -- COMMAND``: restore, run the command, flush, end with its exit code.

For those without a supervisor. The daemon is a process of its own beside the command: whatever
becomes of it, the command goes on. This process only waits, passes signals on, and starts the
daemon again should it end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from syncd import telling
from syncd.clock import Clock, SystemClock
from syncd.config import Settings

EXIT_NOT_INTACT = 3
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127

_PASSED_ON = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_BY_THE_KERNEL = 0x80
"""si_code of a signal that a terminal sent: its whole foreground group has it already."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a daemon that has ended is started again: at first, and at most."""

_STEADY = 60.0
"""Seconds after which a daemon counts as one that lives: the next pause is a short one again."""

_SPARE = 5.0
"""Seconds that the daemon is granted beyond its grace before it is killed."""


def say(text: str) -> None:
    """A line for the person, on stderr: stdout is the command's."""
    telling.say(f"syncd: {text}")


def run(settings: Settings, command: Sequence[str], allow_new: bool = False) -> int:
    """Restore, run ``command`` to its end with a daemon beside it, flush; its exit code.

    127 and 126: the command is not there, or is no program. 3: the store holds commits and none
    is intact, and ``allow_new`` was not given. In these cases the command was not started.
    """
    program = shutil.which(command[0])
    if program is None:
        there = Path(command[0]).exists()
        say(f"{command[0]}: {'it cannot be executed' if there else 'there is no such command'}")
        return EXIT_NOT_EXECUTABLE if there else EXIT_NOT_FOUND
    if not _restore(allow_new):
        return EXIT_NOT_INTACT
    return _Run(settings, SystemClock()).run(program, command)


def _syncd(*words: str) -> list[str]:
    return [sys.executable, "-m", "syncd", *words]


def _restore(allow_new: bool) -> bool:
    """Bring the newest checkpoint back; whether the command may start.

    As at ``start_vast.sh --resume``: a store that is out of reach holds no training up, but
    damaged commits are not trained over unless that was asked for.
    """
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        code = subprocess.run(_syncd("restore"), stdin=subprocess.DEVNULL, stdout=2, check=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    if code.returncode == EXIT_NOT_INTACT and not allow_new:
        say("the command was not started: `python -m syncd verify` names what is damaged;")
        say("`python -m syncd --allow-new -- …` starts it all the same")
        return False
    if code.returncode not in (0, EXIT_NOT_INTACT):
        say("WARNING: it is NOT known whether the store has a checkpoint; starting all the same")
    return True


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # the restore is killed with this: what it has not finished is not there


class _Run:
    """One command, and the daemon beside it."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._grace = settings.shutdown_grace
        self._clock = clock
        self._environ = {
            "CHECKPOINT_DIR": str(settings.checkpoint_dir),
            "LOG_DIR": str(settings.log_dir),
            **os.environ,
        }
        self._command = 0
        self._daemon: int | None = None
        self._flushing = self._flushed = False
        self._began = self._again = 0.0
        self._pause = _FIRST_PAUSE
        self._code = 0

    def run(self, program: str, command: Sequence[str]) -> int:
        """From the start of both to the end of both; the command's exit code."""
        awaited = {signal.SIGCHLD, *_PASSED_ON}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        try:
            self._start_daemon()
            try:
                self._command = _spawn(program, command, self._environ, before)
            except OSError as error:
                say(f"{command[0]}: {error.strerror}")
                self._code = EXIT_NOT_EXECUTABLE
            while self._command:
                self._wait(awaited)
            self._flush(awaited)
            for number in _PASSED_ON:  # from here on the code alone counts
                signal.signal(number, signal.SIG_IGN)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._code

    def _start_daemon(self) -> None:
        """In a session of its own, so that Ctrl-C at the terminal does not end it first."""
        self._again = 0.0
        self._began = self._clock.monotonic()
        try:
            daemon = subprocess.Popen(
                _syncd(), stdin=subprocess.DEVNULL, stdout=2, start_new_session=True,
                preexec_fn=_unblock,  # noqa: PLW1509 - this process has one thread
            )  # fmt: skip
        except OSError as error:
            self._daemon_ended(error.strerror or str(error))
            return
        self._daemon = daemon.pid
        daemon.returncode = 0  # this loop is who waits for it

    def _wait(self, awaited: set[signal.Signals], seconds: float = 3600.0) -> None:
        """One signal, or ``seconds``, or the time for the daemon's next start."""
        if self._again and not self._flushing:
            seconds = min(seconds, max(0.0, self._again - self._clock.monotonic()))
        info = signal.sigtimedwait(awaited, seconds)
        if info is None:
            if self._again and not self._flushing:
                self._start_daemon()
        elif info.si_signo == signal.SIGCHLD:
            self._reap()
        elif self._command:
            if info.si_code != _BY_THE_KERNEL:
                _kill(self._command, info.si_signo)
        elif self._daemon:
            _kill(self._daemon, signal.SIGTERM)  # a second one ends it at once

    def _reap(self) -> None:
        """Take note of all that have ended; as process 1 of a container also of strangers."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._command:
                self._command = 0
                self._code = code if code >= 0 else 128 - code
            elif pid == self._daemon:
                self._daemon = None
                self._flushed = self._flushing and code in (0, 1)  # it has said what is not safe
                self._daemon_ended(f"it ended with {code}")

    def _daemon_ended(self, why: str) -> None:
        if self._flushing:
            return
        if self._clock.monotonic() - self._began > _STEADY:
            self._pause = _FIRST_PAUSE
        say(f"the daemon is not running ({why}); the command goes on, it is started again")
        self._again = self._clock.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _flush(self, awaited: set[signal.Signals]) -> None:
        """Have what the command left committed, within SYNCD_SHUTDOWN_GRACE and a little."""
        self._flushing = True
        until = self._clock.monotonic() + self._grace + _SPARE
        if self._daemon:
            _kill(self._daemon, signal.SIGTERM)
        while self._daemon and (left := until - self._clock.monotonic()) > 0:
            self._wait(awaited, left)
        if self._daemon:
            _kill(self._daemon, signal.SIGKILL)
            say("the daemon did not end in time: not everything is safe")
        elif not self._flushed:
            self._flush_by_hand(until)

    def _flush_by_hand(self, until: float) -> None:
        """The daemon is gone, had hardly begun, or is that of another run of this command."""
        flush = _syncd("--once", "--timeout", f"{self._grace:g}")
        try:
            left = max(1.0, until - self._clock.monotonic())
            subprocess.run(
                flush, stdin=subprocess.DEVNULL, stdout=2, check=False, timeout=left,
                preexec_fn=_unblock,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            say("the flush did not end in time: not everything is safe")


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, *_PASSED_ON})


def _spawn(
    program: str, command: Sequence[str], environ: Mapping[str, str], mask: Iterable[int]
) -> int:
    """Start the command as a shell would: no signal blocked or ignored that was not before."""
    return os.posix_spawn(
        program,
        list(command),
        environ,
        setsigmask=mask,
        setsigdef=[signal.SIGIO, signal.SIGPIPE, signal.SIGXFSZ],
    )


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended; SIGCHLD tells
        os.kill(pid, number)
