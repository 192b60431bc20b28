"""What the commands do that a person types: flush, restore, list, verify, prune."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncd.clock import SystemClock
from syncd.comeback import Request
from syncd.config import Settings
from syncd.control import Client
from syncd.engine import Engine
from syncd.errors import Corrupt, StoreError
from syncd.fallback import Fallback
from syncd.health import Health
from syncd.line import as_document
from syncd.lock import AlreadyRunning, lock_state
from syncd.motion import Motion
from syncd.opening import JOURNAL, open_journal, open_resilient
from syncd.pace import RateLimit
from syncd.parting import HINT
from syncd.records import CommitRecord, Layout
from syncd.restore import Restorer
from syncd.retention import Retention
from syncd.telling import let_go, say
from syncd.transfer import Transfer
from syncd.uploadrows import ids_in

_OK, _NOT_SAFE, _NOT_INTACT = 0, 1, 3
_TICK = 0.1


_PATIENCE = 10.0
"""Seconds in which a daemon that is there, and may just be starting, should answer."""


_MIRROR_PATIENCE = 20.0
"""Seconds without progress after which a flush by hand gives up on the mirror, at most."""


class _NoBar:
    """In the place of a progress bar where nobody looks."""

    def update(self, *_: object, **__: object) -> None: ...

    def advance(self, *_: object) -> None: ...


def _console(stderr: bool = False) -> Any:
    from rich.console import Console  # as long to load as all of syncd: only where it is of use

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextmanager
def _bar(words: str) -> Iterator[tuple[Any, Any]]:
    """A progress bar of bytes, on a terminal only."""
    if not (words and sys.stderr.isatty()):
        yield _NoBar(), None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=_console(stderr=True),
        transient=True,
    )
    with progress:
        yield progress, progress.add_task(words, total=None)


# -- flush


def once(settings: Settings, timeout: float, as_json: bool) -> int:
    """Commit all that is complete: through the running daemon, or in its stead."""
    if not settings.copies:
        say("syncd: nothing to do: CLOUD_PROVIDER=local without CLOUD_BUCKET copies nothing")
        return _OK
    report = _once_by_daemon(settings, timeout)
    if report is None:
        try:
            with lock_state(settings.state_dir):
                report = _once_here(settings, timeout)
                if settings.mirror:
                    patience = min(timeout, _MIRROR_PATIENCE)
                    report["mirror"] = _once_here(settings.mirror, patience)
        except AlreadyRunning:
            report = _once_by_daemon(settings, timeout, patient=True)
            if report is None:
                report = {
                    "safe": False,
                    "failed": {"the daemon": "it is running but not answering"},
                }
        except OSError as error:
            say(f"syncd: SYNCD_STATE_DIR {settings.state_dir}: {error.strerror}")
            return 2
    if as_json:
        print(json.dumps(report))  # noqa: T201 - the answer itself
    _tell(report)
    # a transfer that hangs in a dead network must not hold the process at its end
    let_go(sys.stdout, sys.stderr)
    os._exit(_OK if report["safe"] else _NOT_SAFE)


def _tell(report: dict[str, Any]) -> None:
    left = {**report.get("incomplete", {}), **report.get("newer", {})}
    for path, reason in left.items():
        say(f"syncd: not complete, not sent: {path}: {reason}")
    for path, reason in report["failed"].items():
        say(f"syncd: NOT SAFE: {path}: {reason}")
    mirror = report.get("mirror") or {"failed": {}}
    for path, reason in mirror["failed"].items():
        say(f"syncd: WARNING: not in the mirror: {path}: {reason}")
    if report["safe"]:
        count, logs = report.get("committed", 0), report.get("logs", 0)
        what = "all that is complete is safe" if left else "all safe"
        say(f"syncd: {what}: {count} checkpoints committed now, {logs} logs sent")


def _once_by_daemon(
    settings: Settings, timeout: float, patient: bool = False
) -> dict[str, Any] | None:
    client = Client(settings.state_dir)
    until = time.monotonic() + _PATIENCE
    asked = client.ask("/flush", "POST")
    while asked is None and patient and time.monotonic() < until:
        time.sleep(_TICK)
        asked = client.ask("/flush", "POST")
    if asked is None:
        return None
    quiet_since = time.monotonic()
    seen: list[Any] = []
    with _bar("flushing") as (progress, task):
        while True:
            answer = client.ask(f"/flush/{asked['id']}")
            if answer is None:
                return {"safe": False, "failed": {"the daemon": "it ended during the flush"}}
            if answer["done"]:
                report: dict[str, Any] = answer["report"]
                return report
            state = client.ask("/status") or {}
            active = state.get("active", {"bytes": 0, "total": 0})
            progress.update(task, completed=active["bytes"], total=active["total"] or None)
            sent = [s.get("sent_bytes") for s in (state, state.get("mirror") or {})]
            if sent != seen:
                quiet_since, seen = time.monotonic(), sent
            if time.monotonic() - quiet_since > timeout:
                failed = {r["code"]: r["message"] for r in state.get("reasons", [])}
                failed = failed or {"the store": f"no progress for {timeout:g} s"}
                return {"safe": False, "failed": failed}
            time.sleep(_TICK)


def _once_here(settings: Settings, timeout: float) -> dict[str, Any]:
    clock = SystemClock()
    health = Health(clock)
    journal = open_journal(settings)
    began = clock.monotonic()

    def deadline() -> float:
        return max(began, health.last_progress()) + timeout

    engine = Engine(
        settings, journal, health, clock, threading.Event(), deadline, title=settings.title
    )
    result: dict[str, Any] = {}

    def flush() -> None:
        engine.connect(settings)
        report = engine.flush(lambda: clock.monotonic() > deadline())
        engine.retain()
        result.update(as_document(report))

    def work() -> None:
        try:
            try:
                flush()
            except sqlite3.Error as error:  # a full disk, mostly: it is kept in memory
                journal.recover(error)
                flush()
        except StoreError as error:
            result.update({"safe": False, "failed": {"the store": error.explain()}})

    name = "mirror flush" if settings.is_mirror else "flush"
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    moved_at, motion = began, Motion()
    with _bar("flushing") as (progress, task):
        while thread.is_alive():
            active = health.snapshot()["active"]
            progress.update(task, completed=active["bytes"], total=active["total"] or None)
            thread.join(_TICK)
            if motion.goes_on(health.last_progress()):
                moved_at = clock.monotonic()
            if clock.monotonic() > max(deadline(), moved_at + timeout) + _TICK:
                words = f"no progress for {timeout:g} s"  # a request hangs: nobody waits for it
                return {"safe": False, "failed": {"the store": words}}
    return result or {"safe": False, "failed": {"syncd": "failed; see the message above"}}


# -- commands that only read the store


@contextmanager
def _reading(
    settings: Settings, words: str = "", retry_for: float = 60.0
) -> Iterator[tuple[Restorer, Transfer]]:
    """A store to read from, with a progress bar for what is fetched."""
    clock, abort = SystemClock(), threading.Event()
    store = open_resilient(settings, clock, abort, patience=retry_for)
    transfer = Transfer(store, settings.concurrency, RateLimit(None, clock, abort))
    try:
        with _bar(words) as (progress, task):

            def begin(record: CommitRecord) -> None:
                progress.update(task, description=f"{words} {record.checkpoint}", completed=0)
                progress.update(task, total=record.size)

            def advance(_key: str, count: int) -> None:
                progress.advance(task, count)

            layout = Layout(settings.cloud_prefix)
            files, wanted = transfer.files, settings.concurrency
            yield Restorer(store, layout, files, advance, begin, wanted), transfer
    finally:
        transfer.close()
        store.close()


def list_commits(settings: Settings, as_json: bool) -> int:
    """Print every commit, newest first."""
    with _reading(settings) as (restorer, _):
        commits = restorer.commits()
        parted = restorer.parting
    if parted:
        say(f"syncd: WARNING: {parted.words()}\nremedy: {HINT}")
    if as_json:
        rows = [_as_row(commit) for commit in commits]
        print(json.dumps(rows))  # noqa: T201 - the answer itself
        return _OK
    if not commits:
        print(  # noqa: T201 - the answer itself
            f"no commits under {settings.cloud_prefix}/ in {settings.cloud_bucket}"
        )
        return _OK
    from rich.table import Table

    table = Table("seq", "checkpoint", "committed at", "files", "MB", "profile", box=None)
    for commit in commits:
        if isinstance(commit, Corrupt):
            table.add_row("?", commit.message, "", "", "", "broken")
            continue
        table.add_row(
            str(commit.seq),
            commit.checkpoint,
            commit.committed_at,
            str(len(commit.files)),
            f"{commit.size / 1e6:.1f}",
            commit.profile,
        )
    _console().print(table)
    return _OK


def _as_row(commit: CommitRecord | Corrupt) -> dict[str, Any]:
    if isinstance(commit, Corrupt):
        return {"broken": commit.message}
    return {
        "seq": commit.seq,
        "checkpoint": commit.checkpoint,
        "committed_at": commit.committed_at,
        "writer": commit.writer,
        "profile": commit.profile,
        "files": len(commit.files),
        "bytes": commit.size,
    }


def verify(settings: Settings, as_json: bool, newest: bool = False) -> int:
    """Prove every commit, or the newest alone, of which there has to be one."""
    good: list[str] = []
    bad: dict[str, str] = {}
    intact: list[int] = []
    broken: dict[str, str] = {}
    with _reading(settings, "verifying") as (restorer, _):
        commits = restorer.commits()
        if newest:
            commits = commits[:1] or [Corrupt("there is no commit")]
        sound = [commit for commit in commits if isinstance(commit, CommitRecord)]
        bad.update(
            {f"record {n}": c.message for n, c in enumerate(commits) if isinstance(c, Corrupt)}
        )
        for commit in sound:
            name = f"{commit.checkpoint} (commit {commit.seq})"
            try:
                restorer.verify(commit)
            except Corrupt as error:
                bad[name] = broken[str(commit.seq)] = error.message
            else:
                good.append(name)
                intact.append(commit.seq)
    if not settings.is_mirror:
        Client(settings.state_dir).ask("/verified", "POST", {"intact": intact, "broken": broken})
    if as_json:
        print(json.dumps({"intact": good, "broken": bad}))  # noqa: T201 - the answer itself
    else:
        out = _console()
        for name, reason in bad.items():
            out.print(f"BROKEN  {name}: {reason}", markup=False)
        out.print(f"{len(good)} commits intact, {len(bad)} broken")
    return _NOT_INTACT if bad else _OK


def prune(settings: Settings, dry_run: bool, keep: int | None, unnamed: bool) -> int:
    """Retention now."""
    clock, abort = SystemClock(), threading.Event()
    store = open_resilient(settings, clock, abort, patience=60.0)
    ours = ids_in(settings.state_dir / JOURNAL)
    retention = Retention(store, Layout(settings.cloud_prefix), clock, ours)
    pruned = retention.prune(
        keep or settings.keep_last, dry_run, every=settings.keep_every, unnamed=unnamed
    )
    out = _console()
    verb = "would delete" if dry_run else "deleted"
    for record in pruned.commits:
        out.print(f"{verb} commit {record.seq}: {record.checkpoint}", markup=False)
    if unnamed:
        for key in pruned.objects:
            out.print(f"{verb} {key}", markup=False)
    out.print(
        f"{verb} {len(pruned.commits)} commits, {len(pruned.objects)} objects, "
        f"{len(pruned.uploads)} unfinished uploads"
    )
    return _OK


# -- restore


def restore(
    settings: Settings,
    to: Path | None,
    at: str | None,
    everything: bool,
    force: bool,
    retry_for: float,
    own: bool = False,
) -> int:
    """Bring back what the table of the README says."""
    if not settings.copies:
        say("syncd: nothing to restore: CLOUD_PROVIDER=local without CLOUD_BUCKET")
        return _OK
    fallback = Fallback(settings, _reading, say)
    return fallback.run(Request(to, at, everything, force, own), retry_for)
