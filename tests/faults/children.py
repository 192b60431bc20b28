"""Processes that start in milliseconds: forked from one that has imported everything already.

A child is a process of its own that SIGKILL ends as it ends any other. Only a process with one
thread may fork; the lanes of the rig are such.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def be_one_machine() -> None:
    """Let all that this process forks share its session, as the programs of a machine may.

    A daemon that has a session to itself lowers that one's share of the processors, and then gets
    nothing beside the other tests, whose session takes all of them.
    """
    os.setsid()
    Child.has_session = False


class Child:
    """A forked process that does ``work``; its output goes to ``log``."""

    has_session = True

    def __init__(self, work: Callable[[], object], log: Path | None = None) -> None:
        self.began = time.monotonic()
        self.code: int | None = None
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setsid() if self.has_session else os.setpgid(0, 0)
            die_with_parent()
            if os.getppid() != parent:
                os._exit(70)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(out, 1)
            os.dup2(out, 2)
            result = work()
            code = result if isinstance(result, int) else 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:  # noqa: BLE001 - nothing of the parent may run on in the child
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)

    def wait(self, timeout: float) -> int | None:
        """The exit code, negative for a signal; None if it is still running."""
        if self.code is None:
            watch = os.pidfd_open(self.pid)
            ready, _, _ = select.select([watch], [], [], max(0.0, timeout))
            os.close(watch)
            if ready:
                self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def waited(self) -> float:
        """Seconds that its threads were ready to run and had no processor, all together."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread, or all of it, that has just ended
                total += int(task.read_text().split()[1])
        return total / 1e9

    def kill(self) -> None:
        """SIGKILL, with all that it has started itself."""
        if self.code is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(self.pid, signal.SIGKILL)
            self.wait(60)


def syncd(arguments: Sequence[str], disk: Path, environ: Mapping[str, str]) -> Callable[[], int]:
    """``python -m syncd`` with these arguments, as the work of a child."""

    def work() -> int:
        from syncd.cli import main

        os.chdir(disk)
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["syncd", *arguments]
        main()
        return 0

    return work


def call(work: Callable[[], _T], timeout: float = 120.0) -> _T:
    """What ``work`` returns in a child of its own; RuntimeError if it raises or takes too long."""
    reading, writing = os.pipe()

    def answer() -> None:
        os.close(reading)
        try:
            result: tuple[bool, Any] = True, work()
        except Exception:  # noqa: BLE001 - raised again on the other side
            result = False, traceback.format_exc()
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)

    child = Child(answer)
    os.close(writing)
    received, until = b"", time.monotonic() + timeout
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            data = pipe.read(1 << 20)
            if not data:
                break
            received += data
        else:
            child.kill()
            raise RuntimeError(f"a child took longer than {timeout:.0f} s")
    child.wait(60)
    if not received:
        raise RuntimeError(f"a child ended with {child.code} and said nothing")
    fine, value = pickle.loads(received)
    if not fine:
        raise RuntimeError(value)
    result: _T = value
    return result
