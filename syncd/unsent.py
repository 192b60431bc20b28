"""What a flush leaves on the disk though it is newer than all that is safe.

A flush is content with what is complete. What is not is mostly what a kill has left; but where it
is the newest of all it may be a save that failed, and that nobody has anywhere else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from syncd.backlog import PACED, SUPERSEDED, Look
from syncd.companions import grows
from syncd.pathrules import is_ours
from syncd.records import CommitRecord
from syncd.scan import any_of, directory_not_yet, file_not_yet

_NOBODYS = (".git", ".ipynb_checkpoints")
_NOT_YET = "its name says that it is not finished"


def newer(
    root: Path, exclude: tuple[str, ...], look: Look, safe: CommitRecord | None
) -> dict[str, str]:
    """What below ``root`` is newer than the content of ``safe`` and not sent, and why, by path.

    Of a time of what is safe the earlier is taken, of others the later: files come with the times
    of another clock, or of what they are copies of.
    """
    since = _written(safe) if safe else 0
    benign = (PACED, SUPERSEDED)
    found = {
        item.path: item.reason
        for item in look.incomplete
        if item.reason not in benign and look.touched.get(item.path, since + 1) > since
    }
    for path, touched in _unfinished(root, exclude):
        if touched > since:
            found.setdefault(path, _NOT_YET)
    return found


def _written(record: CommitRecord) -> int:
    """When the newest of its files was written that is no log, in ns since the epoch."""
    committed = int(record.moment.timestamp() * 1e9)
    files = [f.mtime_ns for f in record.files if not grows(f.path or record.checkpoint)]
    return min([committed, max(files, default=committed)])


def _unfinished(root: Path, exclude: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """What has a name that no checkpoint has, and when that was written to."""
    excluded = any_of(exclude) if exclude else _none

    def counts(path: str) -> bool:
        name = path.rpartition("/")[2]
        return not (excluded(name) or excluded(path) or is_ours(path) or name in _NOBODYS)

    for place, folders, names in os.walk(root):
        above = f"{Path(place).relative_to(root).as_posix()}/".removeprefix("./")
        folders[:] = [name for name in folders if counts(above + name)]
        parts = above.split("/")
        aside = next((n for n, part in enumerate(parts) if directory_not_yet(part)), -1)
        whole = "/".join(parts[: aside + 1])
        for name in names:
            if (whole or file_not_yet(name)) and not name.endswith("lock") and counts(above + name):
                yield whole or above + name, _touched(root / (above + name))


def _none(_name: str) -> object:
    return None


def _touched(path: Path) -> int:
    """When a file that holds something was written to or changed; 0 if it is none."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return 0
    return max(found.st_mtime_ns, found.st_ctime_ns)
