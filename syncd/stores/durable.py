"""What outlives a power cut: the copy of a file, and a name in a folder."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from syncd.stores.base import Buffer
from syncd.stores.wire import CHUNK

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
"""What file systems say that know no hard links."""

_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What network file systems say that have nothing to do to make a folder durable."""


def copy_file(old: BinaryIO, target: Path, tail: Buffer = b"") -> None:
    """Copy within the kernel; file systems that can, share the blocks."""
    with target.open("wb") as new:
        try:
            while os.copy_file_range(old.fileno(), new.fileno(), 1 << 30):
                pass
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, *NO_LINKS):
                raise
            shutil.copyfileobj(old, new, CHUNK)
        new.seek(0, os.SEEK_END)
        new.write(tail)
        new.flush()
        os.fsync(new.fileno())


def fault_of(folder: Path) -> OSError | None:
    """What is in the way of making the names in a folder durable."""
    try:
        sync_folder(folder)
    except OSError as error:
        return error
    return None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; OSError if the disk refuses."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(fd)
