"""What lies on this disk already: a checkpoint to go on from, or one of the commits."""

from __future__ import annotations

from pathlib import Path

from syncd.clock import SystemClock
from syncd.config import Settings
from syncd.detect import Detector
from syncd.errors import Changed, Permanent
from syncd.filestat import Stat
from syncd.reader import digest_file
from syncd.records import CommitRecord
from syncd.scan import scan
from syncd.series import series
from syncd.sqlitefiles import in_use, sides_of
from syncd.units import Unit, units


def newest_local(settings: Settings, root: Path) -> Unit | None:
    """The newest complete checkpoint on disk; torn ones do not count, nor doubtful ones.

    What its writer never finished by its own sign is left to the trainer to find.
    """
    tree = scan(root, settings.exclude)
    found = [u for u in units(tree) if not u.companion] if tree else []
    detector = Detector(root, 0.0, SystemClock(), exclude=settings.exclude)
    found.sort(key=lambda u: u.written, reverse=True)
    for index, unit in enumerate(found):
        mine = series(unit.path)
        before = next((u for u in found[index + 1 :] if series(u.path) == mine), None)
        if before:
            detector.learn(before)
        verdict = detector.judge(unit)
        if verdict.complete and not verdict.flagged:
            return unit
    return None


def on_disk(root: Path, record: CommitRecord) -> bool:
    """Whether every file of a commit lies at its place, with the committed content."""
    for entry in record.files:
        path = root / record.below(entry.path)
        try:
            seen = Stat.of(path.lstat())
            if seen.size != entry.size or (sides_of(path) and in_use(path)):
                return False
            if seen.mtime_ns != entry.mtime_ns and digest_file(path, seen) != entry.sha256:
                return False
        except (OSError, Permanent, Changed):
            return False
    return True
