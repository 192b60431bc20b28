"""The keeper: a supervisord event listener that decides what follows when the trainer ends.

    exit 0            finished: flush, end the container with 0
    exit 2            its settings or its data are refused: trying again changes nothing; end with 2
    exit 143          somebody asked the trainer itself to stop: flush, end with 143
    anything else     a crash: start it again with --resume, later each time, a few times in a row
                      (TRAINER_RESTARTS); a new checkpoint sets the count back; then give up

supervisord's own restarts would hide the exit code, and are not bounded for a slow crash loop.
A program that is stopped by hand (``supervisorctl stop trainer``) is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from xmlrpc.client import Error as RpcError

from syncd.container import probe
from syncd.container.rundir import OUTCOME, Outcome, RunDir, Tally, newest_mark

EXIT_REFUSED = 2
EXIT_STOPPED = 128 + signal.SIGTERM
EXIT_NOT_STARTED = 127
MAX_DELAY = 60.0


class Supervisor(Protocol):
    """The part of supervisord's XML-RPC interface that the keeper uses."""

    def getProcessInfo(self, name: str) -> Mapping[str, Any]:  # noqa: N802
        """State and exit status of one program."""
        ...

    def startProcess(self, name: str, wait: bool) -> Any:  # noqa: N802
        """Start one program."""
        ...

    def sendRemoteCommEvent(self, type: str, data: str) -> Any:  # noqa: A002, N802
        """Tell those who listen within supervisord's own process."""
        ...

    def shutdown(self) -> Any:
        """Stop everything and end."""
        ...


class Keeper:
    """Follows one trainer through its restarts to its end."""

    def __init__(
        self,
        supervisor: Supervisor,
        run_dir: RunDir,
        checkpoint_dir: Path,
        *,
        restarts: int = 3,
        delay: float = 5.0,
        grace: float = 60.0,
        pause: threading.Event | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._run_dir = run_dir
        self._checkpoint_dir = checkpoint_dir
        self._restarts = restarts
        self._delay = delay
        self._grace = grace
        self._pause = pause or threading.Event()
        tally = run_dir.tally()
        if tally is None:
            run_dir.save_tally(Tally(0, newest_mark(checkpoint_dir)))

    def look(self) -> None:
        """Act on the trainer's state as it is now: events before this keeper lived are lost."""
        info = self._supervisor.getProcessInfo("trainer")
        if info["statename"] == "EXITED":
            self.ended(int(info["exitstatus"]))
        elif info["statename"] == "FATAL":
            self.give_up(EXIT_NOT_STARTED, f"the trainer cannot be started: {info['spawnerr']}")

    def ended(self, code: int) -> None:
        """Decide what follows an exit code."""
        if code == 0:
            self.finish(Outcome(code, "the trainer finished"))
        elif code == EXIT_REFUSED:
            self.give_up(code, "the trainer refused its settings or its data; its words are above")
        elif code == EXIT_STOPPED:
            self.finish(Outcome(code, "the trainer was asked to stop"))
        else:
            self.crashed(code)

    def crashed(self, code: int) -> None:
        """Start the trainer again, unless it has crashed too often without a new checkpoint."""
        tally = self._run_dir.tally() or Tally()
        mark = newest_mark(self._checkpoint_dir)
        done = 0 if mark > tally.mark else tally.restarts
        if done >= self._restarts:
            times = f"{done + 1} times in a row without a new checkpoint" if done else "once"
            self.give_up(code, f"the trainer crashed {times}, last with exit code {code}")
            return
        delay = min(MAX_DELAY, self._delay * 2**done)
        say(
            f"the trainer crashed with exit code {code}: restart {done + 1} of {self._restarts} "
            f"with --resume in {delay:g} s"
        )
        self._run_dir.save_tally(Tally(done + 1, mark))
        self._pause.wait(delay)
        try:
            self._supervisor.startProcess("trainer", False)
        except RpcError as error:
            # the container is being stopped, or a person was quicker and started it
            say(f"the trainer was not restarted: {error}")

    def give_up(self, code: int, reason: str) -> None:
        """Leave the trainer stopped and end the container with its code."""
        say(f"giving up: {reason}")
        self.finish(Outcome(code, reason))

    def finish(self, outcome: Outcome) -> None:
        """Flush, leave the outcome for the launcher, end the container."""
        self._note(outcome)
        say("flushing what is not in the bucket yet")
        flushed = probe.flush(self._grace)
        if flushed.safe is None:
            say("syncd did not answer in time: the flush is not proven")
        safe = bool(flushed.safe)
        self._note(Outcome(outcome.code, outcome.reason, safe, flushed.left))
        try:
            self._supervisor.shutdown()
        except RpcError as error:
            say(f"supervisord is ending already: {error}")

    def _note(self, outcome: Outcome) -> None:
        """Leave the outcome for the launcher, in a file and by word: the disk may be full."""
        self._run_dir.save_outcome(outcome)
        with suppress(RpcError, OSError):
            self._supervisor.sendRemoteCommEvent(OUTCOME, outcome.to_json())


def say(text: str) -> None:
    """Log to stderr: stdout is the protocol."""
    sys.stderr.write(f"keeper: {text}\n")
    sys.stderr.flush()


def number(name: str, default: float) -> float:
    """Read a setting; one that is no number falls back to the default and says so."""
    text = os.environ.get(name, "").strip()
    try:
        return max(0.0, float(text)) if text else default
    except ValueError:
        say(f"{name}={text!r} is not a number: {default:g} is used")
        return default


def main() -> int:
    """Speak the listener protocol until supervisord ends it."""
    from supervisor import childutils

    server = childutils.getRPCInterface(os.environ)
    keeper = Keeper(
        server.supervisor,
        RunDir.of(),
        Path(os.environ.get("CHECKPOINT_DIR") or "checkpoints"),
        restarts=int(number("TRAINER_RESTARTS", 3)),
        delay=number("TRAINER_RESTART_DELAY", 5.0),
        grace=probe.shutdown_grace(),
    )
    keeper.look()
    while True:
        headers, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        about, _ = childutils.eventdata(payload + "\n")
        if about.get("processname") == "trainer":
            keeper.look()
        elif headers["eventname"] == "PROCESS_STATE_FATAL":
            say(f"{about.get('processname')} cannot be kept running; its words are above")
        childutils.listener.ok(sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
