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

from syncd.clock import SystemClock
from syncd.commitlog import CommitLog
from syncd.config import Settings
from syncd.engine import open_resilient
from syncd.errors import NeedsOperator, NotFound, StoreError, SyncdError
from syncd.parting import HINT, parting
from syncd.probe import probe
from syncd.records import CommitRecord, Layout
from syncd.stores.base import ObjectStore

_PATIENCE = 15.0
"""Seconds for which a step is retried."""

_SKEW = 300.0
"""Seconds that this machine's clock may be off before it is said."""


@dataclass(frozen=True)
class Step:
    """One thing that has to work, and what to do when it does not."""

    name: str
    work: Callable[[], str]


class _Checks:
    def __init__(self, store: ObjectStore, layout: Layout) -> None:
        self._store = store
        self._layout = layout
        self._key = f"{layout.prefix}/.syncd/check-{secrets.token_hex(6)}"
        self._content = os.urandom(4096)

    def steps(self) -> list[Step]:
        return [
            Step("reach and list", self._list),
            Step("write", self._write),
            Step("read", self._read),
            Step("clock", self._clock),
            Step("conditional put", self._conditional),
            Step("one history", self._one_history),
            Step("copy", self._copy),
            Step("upload in parts", self._parts),
            Step("delete", self._delete),
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
        records = log.newest_first(claims=True)
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
        with contextlib.suppress(NotFound):
            self._store.head(f"{self._key}-parts")
            raise StoreError("an aborted upload has left an object")
        return "started, sent and aborted"

    def _delete(self) -> str:
        self._store.delete([self._key, f"{self._key}-copy"])
        with contextlib.suppress(NotFound):
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
    clock = SystemClock()
    until = clock.monotonic()
    failed = 0
    try:
        store = open_resilient(settings, clock, threading.Event(), lambda: until + _PATIENCE)
    except SyncdError as error:
        console.print(f"open       [red]FAILED[/] {error.message}\n           remedy: {error.hint}")
        return 1
    for step in _Checks(store, Layout(settings.cloud_prefix)).steps():
        until = clock.monotonic()
        try:
            console.print(f"{step.name:<16} ok: {step.work()}")
        except SyncdError as error:
            failed += 1
            console.print(f"{step.name:<16} [red]FAILED[/] {error.message}")
            if error.hint:
                console.print(f"{'':<16} remedy: {error.hint}")
            if step.name == "reach and list":
                break  # every other step would fail for the same reason
    store.close()
    if not failed:
        console.print("everything works")
    return 1 if failed else 0
