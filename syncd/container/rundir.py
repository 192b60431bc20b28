"""The files by which launcher, keeper and trainer tell each other how things stand.

All of them lie in ``$SYNCD_STATE_DIR/container`` and are about one life of the container: the
launcher empties the folder at its start. None of them is needed: on a full disk the keeper has its
own words in memory, and the launcher hears of the outcome through supervisord.
"""

from __future__ import annotations

import fnmatch
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

NOT_YET = (".*", "tmp*", "*.tmp", "*.partial", "*.part", "*.orbax-checkpoint-tmp*")

OUTCOME = "syncd-outcome"
"""Type of the event by which the keeper tells the launcher the outcome, through supervisord."""


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

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome | None:
        """Back from JSON; None for what is none."""
        try:
            found = json.loads(text)
            return cls(**found) if isinstance(found, dict) else None
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Tally:
    """Restarts in a row since the mark (the newest checkpoint's time) last moved."""

    restarts: int = 0
    mark: int = 0


class RunDir:
    """The folder of one life of the container."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, str] = {}

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> RunDir:
        """Find it from the environment that every program of the container shares."""
        return cls(Path(environ.get("SYNCD_STATE_DIR") or ".syncd") / "container")

    def renew(self) -> None:
        """Make the folder, readable by its owner only, and forget the previous life."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("outcome.json", "tally.json"):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # then the trainer resumes from its first start on
            (self.path / "first").touch()

    def first_start(self) -> bool:
        """Say whether the trainer starts for the first time in this life, and note that it has.

        By taking a file away, which can be done on a full disk, too. In doubt it is not the first:
        to resume is right then as well.
        """
        try:
            (self.path / "first").unlink()
        except OSError:
            return False
        return True

    def outcome(self) -> Outcome | None:
        """How the trainer ended; None when it was stopped from outside, or runs still."""
        return Outcome.from_json(self._load("outcome.json"))

    def save_outcome(self, outcome: Outcome) -> None:
        """Leave the outcome for the launcher."""
        self._save("outcome.json", outcome.to_json())

    def tally(self) -> Tally | None:
        """The restarts so far; None before the keeper's first look."""
        try:
            found = json.loads(self._load("tally.json"))
            return Tally(**found) if isinstance(found, dict) else None
        except (ValueError, TypeError):
            return None

    def save_tally(self, tally: Tally) -> None:
        """Keep the count where a keeper that dies does not lose it."""
        self._save("tally.json", json.dumps(asdict(tally)))

    def _load(self, name: str) -> str:
        try:
            return self._kept.get(name) or (self.path / name).read_text()
        except (OSError, ValueError):
            return ""

    def _save(self, name: str, content: str) -> None:
        """Write it, or keep it for this process alone: what follows must not depend on a disk."""
        aside = self.path / f"{name}.new"
        try:
            aside.write_text(content)
            aside.replace(self.path / name)
            self._kept.pop(name, None)
        except OSError:
            self._kept[name] = content
            with suppress(OSError):
                aside.unlink()


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
