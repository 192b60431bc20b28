"""What a daemon and its commands open: the store of the settings, and the journal for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from syncd.clock import Clock
from syncd.config import Settings
from syncd.errors import NeedsOperator
from syncd.journal import Journal
from syncd.keys import key_name
from syncd.records import Layout
from syncd.sealed import Sealed
from syncd.sealing import Sealer
from syncd.stores import open_store
from syncd.stores.attempts import Circuit
from syncd.stores.base import ObjectStore
from syncd.stores.resilient import Resilient

log = logging.getLogger(__name__)

JOURNAL = "journal.sqlite"


def store_identity(settings: Settings) -> str:
    """What a journal belongs to: another bucket, prefix or endpoint needs another one."""
    endpoint = (
        settings.environ.get("AWS_ENDPOINT_URL", "") if settings.cloud_provider == "s3" else ""
    )
    bucket = settings.cloud_bucket
    if settings.cloud_provider == "local":
        bucket = str(Path(bucket).absolute())
    root = settings.checkpoint_dir.absolute()
    key = f" {key_name(settings.encrypt_key)}" if settings.encrypt_key else ""
    return f"{settings.cloud_provider} {endpoint} {bucket} {settings.cloud_prefix} {root}{key}"


def home_of(state_dir: Path) -> str:
    """This directory on this machine since it was switched on: no copy of it has the same.

    A disk that was copied, or a snapshot of it, may run twice at one time; this one, with its
    lock, cannot.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = state_dir.stat()
    except OSError:
        return ""
    return f"{boot} {stat.st_dev} {stat.st_ino}"


def open_resilient(
    settings: Settings,
    clock: Clock,
    abort: threading.Event,
    deadline: Callable[[], float | None] = lambda: None,
    on_change: Callable[[Circuit], None] = lambda _circuit: None,
    patience: float | None = None,
) -> ObjectStore:
    """The store of the settings, which retries for as long as ``deadline`` or ``patience`` says.

    Where there is a key, all that is put there is encrypted with it.
    """
    if not settings.copies:
        raise NeedsOperator(
            "there is no bucket: CLOUD_PROVIDER=local without CLOUD_BUCKET copies nothing",
            hint="set CLOUD_BUCKET to a directory on another disk, or choose s3, gcs or azure",
        )
    store = open_store(settings.cloud_provider, settings.cloud_bucket, settings.environ)
    resilient = Resilient(store, clock, abort, deadline, on_change, patience)
    if not settings.encrypt_key:
        return resilient
    return Sealed(resilient, Sealer(settings.encrypt_key), Layout(settings.cloud_prefix))


def open_journal(settings: Settings) -> Journal:
    """The journal of this state directory, rebuilt if it was corrupt."""
    with suppress(OSError):
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.state_dir / JOURNAL, store_identity(settings))
    if journal.put_aside:
        log.warning(
            "the journal was corrupt: kept as %s, rebuilding from the store", journal.put_aside
        )
    if journal.volatile:
        log.warning("the journal is kept in memory only: %s", journal.volatile)
    return journal
