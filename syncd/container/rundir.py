"""The files by which launcher, keeper and trainer tell each other how things stand.

All of them lie in ``$SYNCD_STATE_DIR/container`` and are about one life of the container: the
launcher empties the folder at its start.
"""

from __future__ import annotations

import fnmatch
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NOT_YET = (".*", "tmp*", "*.tmp", "*.partial", "*.part", "*.orbax-checkpoint-tmp*")


@dataclass(frozen=True)
class Outcome:
    """How the trainer ended: its exit code, in words why, and whether the flush was complete.

    ``safe`` is None while the flush has not answered; ``left`` says what is newer than all that
    is safe and was not complete.
    """

    code: int
    reason: str
    safe: bool | None = None
    left: str = ""


@dataclass(frozen=True)
class Tally:
    """Restarts in a row since the mark (the newest checkpoint's time) last moved."""

    restarts: int = 0
    mark: int = 0


class RunDir:
    """The folder of one life of the container."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> RunDir:
        """Find it from the environment that every program of the container shares."""
        return cls(Path(environ.get("SYNCD_STATE_DIR") or ".syncd") / "container")

    def renew(self) -> None:
        """Make the folder, readable by its owner only, and forget the previous life."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("outcome.json", "tally.json", "started"):
            (self.path / name).unlink(missing_ok=True)

    def first_start(self) -> bool:
        """Say whether the trainer starts for the first time in this life, and note that it has."""
        try:
            (self.path / "started").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def outcome(self) -> Outcome | None:
        """How the trainer ended; None when it was stopped from outside, or runs still."""
        found = self._load("outcome.json")
        try:
            return None if found is None else Outcome(**found)
        except TypeError:
            return None

    def save_outcome(self, outcome: Outcome) -> None:
        """Leave the outcome for the launcher."""
        self._save("outcome.json", asdict(outcome))

    def tally(self) -> Tally | None:
        """The restarts so far; None before the keeper's first look."""
        found = self._load("tally.json")
        try:
            return None if found is None else Tally(**found)
        except TypeError:
            return None

    def save_tally(self, tally: Tally) -> None:
        """Keep the count where a keeper that dies does not lose it."""
        self._save("tally.json", asdict(tally))

    def _load(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _save(self, name: str, content: dict[str, Any]) -> None:
        aside = self.path / f"{name}.new"
        aside.write_text(json.dumps(content))
        aside.replace(self.path / name)


def checkpoints(root: Path) -> Iterator[Path]:
    """Yield what may be a checkpoint: entries one and two levels down, not the unfinished ones."""
    for depth in ("*", "*/*"):
        for path in root.glob(depth):
            if all(map(_is_finished, path.relative_to(root).parts)):
                yield path


def _is_finished(name: str) -> bool:
    return not any(fnmatch.fnmatch(name, pattern) for pattern in NOT_YET)


def newest_mark(root: Path) -> int:
    """Return the time (ns) of the newest finished file under ``root``; 0 when there is none.

    Folders do not count: a trainer makes one for each run before it has saved anything, and one
    that crashes each time before it saves would be started again for ever.
    """
    newest, seen = 0, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        try:
            there = Path(folder).stat()
        except OSError:
            continue
        if (there.st_dev, there.st_ino) in seen:  # a link to a folder above itself
            folders.clear()
            continue
        seen.add((there.st_dev, there.st_ino))
        folders[:] = filter(_is_finished, folders)
        for name in filter(_is_finished, files):
            try:
                found = Path(folder, name).stat()
            except OSError:
                continue  # renamed or tidied away between the listing and the look
            if stat.S_ISREG(found.st_mode):
                newest = max(newest, found.st_mtime_ns)
    return newest
