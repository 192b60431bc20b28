"""``python -m syncd check``: the settings proven against the real store, step by step.

Each step does what the daemon will do, with small objects under the prefix that are deleted
again; no right is needed that the daemon does not need.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from syncd.clock import SystemClock
from syncd.commitlog import CommitLog, refuse_locked
from syncd.config import Settings
from syncd.errors import Corrupt, NeedsOperator, NotFound, Refused, StoreError, SyncdError
from syncd.opening import open_resilient
from syncd.packing import packer_for
from syncd.parting import HINT, parting
from syncd.probe import probe
from syncd.records import CommitRecord, Layout
from syncd.stores.base import ObjectStore

_PATIENCE = 15.0
"""Seconds for which a step is retried."""

_WIDTH = 16
"""Characters of a step's name."""

_SKEW = 300.0
"""Seconds that this machine's clock may be off before it is said."""


_LIST, _WRITE, _READ = "reach and list", "write", "read"
_CLOCK, _CONDITIONS, _HISTORY, _COPY = "clock", "conditional put", "one history", "copy"
_PARTS, _UNFINISHED, _DELETE = "upload in parts", "unfinished", "delete"

_BELOW = "arn:aws:s3:::{bucket}/{prefix}/*"
_RIGHTS = {
    "s3": {
        _LIST: "s3:ListBucket on arn:aws:s3:::{bucket} for the prefix {prefix}/*",
        _WRITE: f"s3:PutObject on {_BELOW}",
        _READ: f"s3:GetObject on {_BELOW}",
        _COPY: f"s3:GetObject and s3:PutObject on {_BELOW}",
        _PARTS: f"s3:PutObject and s3:AbortMultipartUpload on {_BELOW}",
        _UNFINISHED: "s3:ListBucketMultipartUploads on arn:aws:s3:::{bucket}",
        _DELETE: f"s3:DeleteObject on {_BELOW}",
    },
    "gcs": {
        _LIST: "storage.objects.list on {bucket}",
        _WRITE: "storage.objects.create on {bucket}, and storage.objects.delete to replace",
        _READ: "storage.objects.get on {bucket}",
        _COPY: "storage.objects.get and storage.objects.create on {bucket}",
        _PARTS: "storage.objects.create on {bucket}",
        _DELETE: "storage.objects.delete on {bucket}",
    },
    "azure": {
        _LIST: "list (l) on the container {bucket}",
        _WRITE: "create and write (cw) on the container {bucket}",
        _READ: "read (r) on the container {bucket}",
        _COPY: "read and write (rw) on the container {bucket}",
        _PARTS: "write (w) on the container {bucket}",
        _DELETE: "delete (d) on the container {bucket}",
    },
}
"""What a policy has to allow for each step, by the names that the provider gives it."""

_SAME_RIGHT = {_CLOCK: _READ, _CONDITIONS: _WRITE, _HISTORY: _READ}


@dataclass(frozen=True)
class Step:
    """One thing that has to work; ``needs`` names the step without which it proves nothing."""

    name: str
    work: Callable[[], str]
    needs: str = ""


class _Checks:
    def __init__(self, store: ObjectStore, layout: Layout) -> None:
        self._store = store
        self._layout = layout
        self._key = f"{layout.prefix}/.syncd/check-{secrets.token_hex(6)}"
        self._content = os.urandom(4096)

    def steps(self) -> list[Step]:
        return [
            Step(_LIST, self._list),
            Step(_WRITE, self._write),
            Step(_READ, self._read, needs=_WRITE),
            Step(_CLOCK, self._clock, needs=_READ),
            Step(_CONDITIONS, self._conditional, needs=_LIST),
            Step(_HISTORY, self._one_history, needs=_LIST),
            Step(_COPY, self._copy, needs=_READ),
            Step(_PARTS, self._parts, needs=_WRITE),
            Step(_UNFINISHED, self._unfinished),
            Step(_DELETE, self._delete),
        ]

    def _list(self) -> str:
        count = sum(1 for _ in self._store.list(self._layout.commits))
        return f"{count} commits under {self._layout.prefix}/"

    def _write(self) -> str:
        self._store.put(self._key, self._content)
        return f"{len(self._content)} bytes"

    def _read(self) -> str:
        if b"".join(self._store.read(self._key)) != self._content:
            raise StoreError("what was read is not what was written", hint="do not use this store")
        return "the same bytes"

    def _clock(self) -> str:
        off = time.time() - self._store.head(self._key).modified
        if abs(off) > _SKEW:
            raise NeedsOperator(
                f"this machine's clock is {abs(off) / 60:.0f} minutes "
                f"{'ahead of' if off > 0 else 'behind'} the store's",
                hint="set the clock: signed requests are refused at 15 minutes",
            )
        return f"within {max(1.0, abs(off)):.0f} s of the store's"

    def _conditional(self) -> str:
        """Some stores take the header and ignore it: only a second put tells."""
        found = probe(self._store, self._layout)
        if not found.puts:
            raise NeedsOperator(
                "the store overwrites an object in spite of put-if-absent",
                hint="use it with one machine at a time only: a second writer cannot be fenced. "
                "Should there be two, each keeps its own line of checkpoints",
            )
        if not found.uploads:
            return "a second writer is refused (large files take a detour: they are not guarded)"
        return "a second writer is refused"

    def _one_history(self) -> str:
        log = CommitLog(self._store, self._layout)
        records = list(log.newest_first(claims=True))
        if all(isinstance(record, Corrupt) for record in records):
            refuse_locked(record for record in records if isinstance(record, Corrupt))
        parted = parting(record for record in records if isinstance(record, CommitRecord))
        if parted:
            raise NeedsOperator(parted.words(), hint=HINT)
        return "no machines have written side by side"

    def _copy(self) -> str:
        self._store.copy(self._key, f"{self._key}-copy")
        return "within the store"

    def _parts(self) -> str:
        size = self._store.capabilities.min_part_size
        part = -(-size // self._store.capabilities.part_multiple)
        part *= self._store.capabilities.part_multiple
        upload = self._store.start_upload(f"{self._key}-parts", part)
        try:
            upload.send(1, bytes(part))
        finally:
            upload.abort()
        with contextlib.suppress(NotFound, Refused):  # without the right to read this is not seen
            self._store.head(f"{self._key}-parts")
            raise StoreError("an aborted upload has left an object")
        return "started, sent and aborted"

    def _unfinished(self) -> str:
        """Uploads that were begun and left cost money: retention looks for them."""
        found = list(self._store.pending_uploads(f"{self._layout.prefix}/"))
        if any(upload.key == f"{self._key}-parts" for upload in found):
            raise StoreError(
                "an aborted upload is still there",
                hint="S3: allow s3:AbortMultipartUpload; its parts cost money until they go",
            )
        return f"{len(found)} uploads under {self._layout.prefix}/"

    def _delete(self) -> str:
        self._store.delete([self._key, f"{self._key}-copy"])
        with contextlib.suppress(NotFound, Refused):
            self._store.head(self._key)
            raise StoreError("a deleted object is still there")
        return "gone again"


def run(settings: Settings) -> int:
    """Print one line for each step; 0 if all of them work, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    if not settings.copies:
        console.print(
            "CLOUD_PROVIDER=local without CLOUD_BUCKET copies nothing: there is nothing to check"
        )
        return 0
    console.print(f"settings   ok: {settings.cloud_provider}, bucket {settings.cloud_bucket}")
    good = _run(settings, console)
    if settings.mirror:
        mirror = settings.mirror
        console.print(f"mirror     {mirror.cloud_provider}, bucket {mirror.cloud_bucket}")
        good &= _run(mirror, console)
    if good:
        console.print("everything works")
    return 0 if good else 1


def _run(settings: Settings, console: Console) -> bool:
    """Each step against one store; whether all of them work."""
    clock = SystemClock()
    until = clock.monotonic()
    try:
        store = open_resilient(settings, clock, threading.Event(), lambda: until + _PATIENCE)
        packer_for(settings.compress, settings.state_dir)  # is its package there?
    except SyncdError as error:
        console.print(f"{'open':<{_WIDTH}} [red]FAILED[/] {escape(error.message)}")
        console.print(f"{'':<{_WIDTH}} remedy: {error.hint}", markup=False)
        return False
    broken: set[str] = set()
    for step in _Checks(store, Layout(settings.cloud_prefix)).steps():
        if step.needs in broken:
            broken.add(step.name)
            console.print(f"{step.name:<{_WIDTH}} not tried: it needs {step.needs!r}")
            continue
        until = clock.monotonic()
        try:
            console.print(f"{step.name:<{_WIDTH}} ok: {step.work()}", markup=False)
        except SyncdError as error:
            broken.add(step.name)
            console.print(f"{step.name:<{_WIDTH}} [red]FAILED[/] {escape(error.message)}")
            hint = _remedy(settings, step.name, error)
            if hint:
                console.print(f"{'':<{_WIDTH}} remedy: {hint}", markup=False)
            if step.name == _LIST and not isinstance(error, Refused):
                break  # every other step would fail for the same reason
    store.close()
    return not broken


def _remedy(settings: Settings, step: str, error: SyncdError) -> str:
    """What to do: for a right that is missing, the very action that the policy lacks."""
    rights = _RIGHTS.get(settings.cloud_provider, {})
    words = rights.get(_SAME_RIGHT.get(step, step))
    if not isinstance(error, Refused) or not words:
        return error.hint
    needed = words.format(bucket=settings.cloud_bucket, prefix=settings.cloud_prefix)
    return f"allow {needed}; or correct CLOUD_PREFIX, if the policy is for another one"
