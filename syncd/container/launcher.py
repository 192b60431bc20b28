"""Runs supervisord in this process, and ends with the trainer's exit code.

supervisord itself exits 0 whatever its programs did, so a container that ran it directly could
not tell a finished training from a crashed one.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor

from syncd.container import instance, probe, report
from syncd.container.rundir import RunDir

EXIT_STOPPED = 128 + signal.SIGTERM
SPARE = 15.0
"""Seconds that supervisord grants syncd beyond its own grace, before it kills it."""
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


@contextmanager
def openable(number: int) -> Iterator[None]:
    """See to it that the programs can open ``/dev/fd/<number>`` and append to it.

    They cannot when it is a socket, or a pipe or terminal of another user: then what they write
    goes through a pipe of our own. A file is switched to appending, so that nobody overwrites.
    """
    fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_APPEND)
    try:
        os.close(os.open(f"/dev/fd/{number}", os.O_WRONLY | os.O_APPEND))
    except OSError:
        pass
    else:
        yield
        return
    outside = os.dup(number)
    reader, writer = os.pipe()
    os.dup2(writer, number)
    os.close(writer)

    def pump() -> None:
        while chunk := os.read(reader, 65536):
            view = memoryview(chunk)
            while view:
                view = view[os.write(outside, view) :]

    thread = threading.Thread(target=pump, name=f"fd{number}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(outside, number)  # closes the last writer of ours: the pump drains and ends
        thread.join(timeout=2)


def supervise(config: Path) -> Supervisor:
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
    supervisor = Supervisor(options)
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
    with openable(1), openable(2):
        supervisor = supervise(found)
        outcome = run_dir.outcome()
        lines = report.final(outcome, exit_status(supervisor, "trainer"))
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        done = instance.finish(outcome)
        if done:
            sys.stdout.write(f"  {'instance':<14}  {done}\n")
            sys.stdout.flush()
    return outcome.code if outcome else EXIT_STOPPED


def main(arguments: Sequence[str]) -> int:
    """Entry point of ``python -m syncd.container``."""
    try:
        code = launch.main(
            list(arguments), prog_name="python -m syncd.container", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return int(code or 0)
