"""What a trial has left, looked at byte for byte: the bucket, the restored disk, the time lost."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from syncd.clock import SystemClock
from syncd.config import Environment, load_settings
from syncd.engine import Engine
from syncd.errors import Corrupt
from syncd.health import Health
from syncd.opening import open_journal
from syncd.profiles import COMPANION
from syncd.records import CommitRecord, Layout
from syncd.restore import Restorer
from syncd.stores import open_store
from tests.faults.hosts import LINK, SETTLE
from tests.faults.ledger import Finding, Ledger, files_below

PREFIX = "eigen2"


@dataclass(frozen=True)
class Commit:
    """One record of the log, restored by itself and looked at."""

    seq: int
    checkpoint: str
    companion: bool
    finding: Finding


def inspect(settings: Mapping[str, str], ledger: Ledger, scratch: Path) -> list[Commit]:
    """Every commit of a bucket, oldest first, each proven from its first byte to its last."""
    store = open_store(settings["CLOUD_PROVIDER"], settings["CLOUD_BUCKET"], settings)
    found: list[Commit] = []
    with ThreadPoolExecutor(4) as workers:
        restorer = Restorer(store, Layout(PREFIX), workers)
        for number, record in enumerate(restorer.commits()):
            if isinstance(record, Corrupt):
                found.append(Commit(-number, "", False, Finding("torn", 0, record.message)))
                continue
            companion = record.profile == COMPANION.name
            place = scratch / str(record.seq)
            finding = _look(restorer, record, place, Ledger() if companion else ledger)
            found.append(Commit(record.seq, record.checkpoint, companion, finding))
            shutil.rmtree(place, ignore_errors=True)
    store.close()
    return sorted(found, key=lambda commit: commit.seq)


def _look(restorer: Restorer, record: CommitRecord, place: Path, ledger: Ledger) -> Finding:
    try:
        restorer.restore(record, place)
    except Corrupt as error:
        return Finding("torn", 0, f"commit {record.seq} is broken: {error.message}")
    return ledger.judge(files_below(place)) if ledger.saves else Finding("nothing")


def sent_again(environ: Mapping[str, str], disk: Path) -> int:
    """Bytes of content that a flush on a machine sends which has just been restored."""
    given = {**environ, "CHECKPOINT_DIR": str(disk / "checkpoints")}
    given |= {"SYNCD_STATE_DIR": str(disk / ".syncd"), "LOG_DIR": str(disk / "logs")}
    settings, clock = load_settings(Environment(given, disk / ".env")), SystemClock()
    health, until = Health(clock), clock.monotonic() + 60
    engine = Engine(
        settings, open_journal(settings), health, clock, threading.Event(), lambda: until
    )
    engine.connect(settings)
    report = engine.flush(lambda: clock.monotonic() > until)
    engine.disconnect()
    if not report.safe:
        raise RuntimeError(f"the flush after the restore failed: {report.failed}")
    return int(health.snapshot()["sent_bytes"])


@dataclass(frozen=True)
class Loss:
    """What was lost: how long the oldest lost save had been complete while the daemon lived."""

    seconds: float
    bound: float

    @property
    def late(self) -> bool:
        """Whether there was time enough to have it in the store."""
        return self.seconds > self.bound


def loss(ledger: Ledger, lives: Sequence[Sequence[float]], restored: int, lost: float) -> Loss:
    """Of one machine. ``lives`` of the daemon begin and end; ``lost`` is when the machine was.

    A daemon that is killed loses what was under way, so only its last life counts. In it there
    are two transfers at most between the end of a save and its commit, or that of a newer one:
    the one that was under way, and its own.
    """
    newer = [at for save, at in ledger.finished.items() if save > restored]
    largest = max((save.size for save in ledger.saves.values()), default=0)
    bound = 2 * SETTLE + 2.5 + 3 * largest / LINK
    if not newer or not lives:
        return Loss(0.0, bound)
    return Loss(max(0.0, lost - max(min(newer), lives[-1][0])), bound)
