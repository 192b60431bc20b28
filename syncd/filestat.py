"""What the file system says of one revision of a file."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple


class Stat(NamedTuple):
    """What tells one revision of a file from another."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int

    @classmethod
    def of(cls, result: os.stat_result) -> Stat:
        """From a stat call."""
        return cls(
            result.st_size,
            result.st_mtime_ns,
            result.st_ctime_ns,
            result.st_ino,
            stat.S_IMODE(result.st_mode),
        )

    def text(self) -> str:
        """Compact and comparable, for the journal."""
        return f"{self.size}:{self.mtime_ns}:{self.ctime_ns}:{self.inode}"
