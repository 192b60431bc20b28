"""Runs supervisord in this process, and ends with the trainer's exit code.

supervisord itself exits 0 whatever its programs did, so a container that ran it directly could
not tell a finished training from a crashed one.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from supervisor import events, loggers
from supervisor.compat import as_string
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor

from syncd.container import instance, probe, report
from syncd.container.rundir import OUTCOME, Outcome, RunDir
from syncd.telling import let_go

EXIT_STOPPED = 128 + signal.SIGTERM
SPARE = 15.0
"""Seconds that supervisord grants syncd beyond its own grace, before it kills it."""
PUMP_PATIENCE = 10.0
"""Seconds without a byte taken after which the end does not wait for the output."""
LONGEST_SOCKET = 107 - len(".12345678")  # supervisord binds a name with its PID, then renames


class Options(ServerOptions):  # type: ignore[misc]
    """supervisord's options, with three habits changed."""

    def waitpid(self) -> tuple[int | None, int | None]:
        """Reap a child; one that a signal killed gets the shell's 128 + signal, not -1."""
        pid, status = super().waitpid()
        if status is not None and os.WIFSIGNALED(status):
            status = (128 + os.WTERMSIG(status)) << 8
        return pid, status

    def setsignals(self) -> None:
        """Ignore SIGHUP: a terminal that goes away must not restart the training."""
        super().setsignals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def make_logger(self) -> None:
        """Log, but raise no alarm over a socket that only its owner can open."""
        super().make_logger()
        critical = self.logger.critical

        def less_alarm(message: str, **values: object) -> None:
            if "without any HTTP authentication" not in message:
                critical(message, **values)

        self.logger.critical = less_alarm


def find_config(given: Path | None) -> Path:
    """Return the absolute path of supervisord.conf: the given one, the folder's, the source's."""
    here = Path.cwd() / "supervisord.conf"
    config = given or (here if here.is_file() else Path(__file__).parents[2] / "supervisord.conf")
    if not config.is_file():
        raise click.UsageError(f"{config} is not there; name one with --config")
    return config.resolve()


def prepare(config: Path, trainer_args: Sequence[str]) -> RunDir:
    """Make the folders, and the environment that the programs inherit."""
    state = config.parent / ".syncd"
    state.mkdir(exist_ok=True, mode=0o700)
    if len(bytes(state / "supervisor.sock")) > LONGEST_SOCKET:
        raise click.UsageError(f"{state} is too deep a folder for a socket: use a shorter path")
    run_dir = RunDir.of()
    run_dir.renew()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    os.environ["PYTHONUNBUFFERED"] = "1"
    given = [shlex.join(trainer_args), os.environ.get("TRAINER_ARGS", "")]
    os.environ["TRAINER_ARGS"] = " ".join(words for words in given if words)
    return run_dir


class Pump:
    """Carries what is written to ``numbers`` to where the first of them led before.

    What nobody takes any more is dropped: a terminal that was closed, or a reader that is gone,
    must neither end the training nor hold it up.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._outside = os.dup(numbers[0])
        self._reader, writer = os.pipe()
        for number in numbers:
            os.dup2(writer, number)
        os.close(writer)
        self._carried = 0
        self._thread = threading.Thread(target=self._work, name="pump", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while chunk := os.read(self._reader, 65536):
            view = memoryview(chunk)
            while view:
                try:
                    taken = os.write(self._outside, view)
                except BlockingIOError:  # who gave it to us does not wait when he writes
                    select.select([], [self._outside], [])
                    continue
                except OSError:
                    taken = len(view)
                view = view[taken:]
                self._carried += taken

    def end(self) -> None:
        """Put things back, and wait until all has come out, or nothing does any more."""
        for number in self._numbers:
            os.dup2(self._outside, number)  # the last writer of ours goes: it drains and ends
        before = -1
        while self._thread.is_alive() and self._carried != before:
            before = self._carried
            self._thread.join(PUMP_PATIENCE)


@contextmanager
def openable(*numbers: int) -> Iterator[None]:
    """See to it that the programs can open ``/dev/fd/<number>`` and write to it, at any time.

    A file is only switched to appending, so that nobody overwrites. All else goes through a pipe
    of our own: a socket, or what another user owns, cannot be opened at all, a terminal that was
    closed not any more, and of a pipe without a reader it would be waited for one. Two that are
    the same share it, so that what is said by both keeps its order.
    """
    pumped: list[list[int]] = []
    for number in numbers:
        if _is_file(number):
            continue
        for others in pumped:
            if os.path.sameopenfile(others[0], number):
                others.append(number)
                break
        else:
            pumped.append([number])
    pumps = [Pump(same) for same in pumped]
    try:
        yield
    finally:
        for pump in pumps:
            pump.end()


def _is_file(number: int) -> bool:
    """Whether it is a file that we can open and append to; from now on it is appended to."""
    if not stat.S_ISREG(os.fstat(number).st_mode):
        return False
    fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_APPEND)
    try:
        os.close(os.open(f"/dev/fd/{number}", os.O_WRONLY | os.O_APPEND))
    except OSError:
        return False
    return True


def tell(lines: Sequence[str]) -> None:
    """Print, if it can be printed: the disk of the output may be full."""
    with suppress(OSError):
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


def overlook_unwritten_output() -> None:
    """Have supervisord go on where a line cannot be written.

    It would print the error, to a place that is as full or as gone as that of the line, and end.
    """
    plain = loggers.Handler.handleError

    def less_alarm(handler: loggers.Handler) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            with suppress(OSError):
                plain(handler)

    loggers.Handler.handleError = less_alarm


class Hearing(Supervisor):  # type: ignore[misc]
    """supervisord, and what its keeper said of the outcome."""

    outcome: Outcome | None = None

    def runforever(self) -> None:
        """Listen: what listened before has been forgotten by now."""
        events.subscribe(events.RemoteCommunicationEvent, self._hear)
        super().runforever()

    def _hear(self, event: Any) -> None:
        if as_string(event.type) == OUTCOME:
            self.outcome = Outcome.from_json(as_string(event.data)) or self.outcome


def supervise(config: Path) -> Hearing:
    """Run supervisord to its end and return it, for what it knows of its programs."""
    options = Options()
    arguments = ["-c", str(config)]
    if os.getuid() == 0:
        arguments += ["-u", "root"]  # said aloud, it is no reason for a warning
    options.realize(arguments, doc=__doc__)
    options.first = True
    options.test = False
    for group in options.process_group_configs:
        for process in group.process_configs:
            if process.name == "syncd":
                needed = probe.shutdown_grace() + SPARE
                process.stopwaitsecs = max(process.stopwaitsecs, needed)
    supervisor = Hearing(options)
    try:
        supervisor.main()
    except asyncore.ExitNow:
        pass
    finally:
        options.close_httpservers()
        options.close_logger()
    return supervisor


def exit_status(supervisor: Any, program: str) -> int | None:
    """Return the last exit code of a program; None when it never ended."""
    group = supervisor.process_groups.get(program)
    status = group.processes[program].exitstatus if group else None
    return status if isinstance(status, int) else None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="supervisord.conf; else the one of this folder.",
)
@click.argument("trainer_args", nargs=-1, type=click.UNPROCESSED)
def launch(config: Path | None, trainer_args: tuple[str, ...]) -> int:
    """Run trainer and syncd under supervisord; end with the trainer's exit code.

    Words after `--` are the trainer's arguments. Exit 143: stopped from outside, after the
    trainer saved and syncd flushed.
    """
    found = find_config(config)
    run_dir = prepare(found, trainer_args)
    overlook_unwritten_output()
    with openable(1, 2):
        supervisor = supervise(found)
        outcome = supervisor.outcome or run_dir.outcome()
        tell(report.final(outcome, exit_status(supervisor, "trainer")))
        done = instance.finish(outcome)
        if done:
            tell([f"  {'instance':<14}  {done}"])
    return outcome.code if outcome else EXIT_STOPPED


def main(arguments: Sequence[str]) -> int:
    """Entry point of ``python -m syncd.container``."""
    try:
        code = launch.main(
            list(arguments), prog_name="python -m syncd.container", standalone_mode=False
        )
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        code = error.exit_code
    let_go(sys.stdout, sys.stderr)
    return int(code or 0)
