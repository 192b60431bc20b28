"""One process at a time works with a state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

_LOCK = "lock"


class AlreadyRunning(Exception):
    """Another daemon works with this state directory."""


def lock_state(state_dir: Path) -> IO[str]:
    """Hold this state directory for this process; AlreadyRunning if another one does.

    OSError if the directory cannot be made. On a full or read-only disk it is held all the same.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / _LOCK
    try:
        file: IO[str] = path.open("a+")
    except OSError:
        # no file can be made there, or written: the folder itself is held instead
        held = path if path.is_file() else state_dir
        file = os.fdopen(os.open(held, os.O_RDONLY | os.O_CLOEXEC), closefd=True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = "unknown"
        with contextlib.suppress(OSError):
            file.seek(0)
            holder = file.read().strip() or holder
        file.close()
        raise AlreadyRunning(
            f"syncd is running already with {state_dir} (process {holder})"
        ) from None
    except OSError:
        pass  # a file system without locks
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())
    return file


def still_held(lock: IO[str], state_dir: Path) -> bool:
    """Whether the lock is still that of this directory: it may have been deleted."""
    mine = os.fstat(lock.fileno())
    for path in (state_dir / _LOCK, state_dir):
        with contextlib.suppress(OSError):
            if os.path.samestat(mine, path.stat()):
                return True
    return False
