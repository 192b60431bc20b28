"""One process at a time works with a state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

_LOCK = "lock"


class AlreadyRunning(Exception):
    """Another daemon works with this state directory."""


class Lock:
    """A state directory that is held, until it is closed or the process ends."""

    def __init__(self, fd: int, state_dir: Path) -> None:
        self._fd = fd
        self._state_dir = state_dir

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    @property
    def holds(self) -> bool:
        """Whether it is still this directory that is held: it may have been deleted."""
        mine = os.fstat(self._fd)
        for path in (self._state_dir / _LOCK, self._state_dir):
            with contextlib.suppress(OSError):
                if os.path.samestat(mine, path.stat()):
                    return True
        return False


def lock_state(state_dir: Path) -> Lock:
    """Hold this state directory for this process; AlreadyRunning if another one does.

    OSError if the directory cannot be made. On a full or read-only disk it is held all the same.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / _LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        # no file can be made there, or written: it is held as it is, or else the folder itself
        fd = os.open(path if path.is_file() else state_dir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = ""
        with contextlib.suppress(OSError):
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
        os.close(fd)
        raise AlreadyRunning(
            f"syncd is running already with {state_dir} (process {holder or 'unknown'})"
        ) from None
    except OSError:
        pass  # a file system without locks
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
    return Lock(fd, state_dir)
