"""Restoring where there are two stores: the first one, and the mirror where that cannot help.

The mirror is taken where the first store is out of reach, holds nothing intact, or nothing at all;
and where it is ahead without any doubt: the first store was down when its machine was lost. In
every case of doubt the first store counts, and the doubt is said.

Of several machines that train together none takes the mirror by itself: each asks for itself, and
one that reaches the first store would go on from another checkpoint than one that does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol

from syncd.alongside import is_companion
from syncd.comeback import Comeback, Request
from syncd.commitlog import CommitLog
from syncd.config import Settings
from syncd.errors import Corrupt, StoreError
from syncd.ondisk import newest_local
from syncd.records import CommitRecord, Layout
from syncd.restore import Restorer
from syncd.restored import Damaged
from syncd.series import series, step_of
from syncd.transfer import Transfer

_OK, _UNREACHABLE, _NOT_INTACT = 0, 1, 3

_GLANCE = 10.0
"""Seconds for the question whether the mirror is ahead, where the first store works."""

_MOST = 50
"""Commits of the mirror that are looked at for that question."""

_ON_EVERY = (
    "not taking the mirror's by itself, as other machines may not: "
    "python -m syncd restore --mirror on every one of them does"
)

Commits = Sequence["CommitRecord | Corrupt"]


class Reading(Protocol):
    """Opens the store of some settings for reading."""

    def __call__(
        self, settings: Settings, words: str = ..., retry_for: float = ...
    ) -> AbstractContextManager[tuple[Restorer, Transfer]]:
        """Open it, with a progress bar where ``words`` are given."""


class Fallback:
    """One run of ``python -m syncd restore``."""

    def __init__(self, settings: Settings, reading: Reading, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._reading = reading
        self._say = say

    def run(self, request: Request, retry_for: float) -> int:
        """Restore from whichever store is the right one; the exit code of the command."""
        mirror = self._settings.mirror
        try:
            code, words = self._first(request, retry_for)
        except StoreError as error:
            if mirror is None:
                return self._without_store(request, error)
            if self._together:
                self._leave(mirror, error.explain(), retry_for)
                return self._without_store(request, error)
            return self._second(mirror, request, retry_for, error.explain(), error)
        if not words or mirror is None:
            return code
        if self._together:
            return (code or _UNREACHABLE) if self._leave(mirror, words, retry_for) else code
        return self._second(mirror, request, retry_for, words, code)

    @property
    def _together(self) -> bool:
        """Whether other machines have to go on from the same checkpoint as this one."""
        return self._settings.rank is not None

    def _leave(self, mirror: Settings, words: str, retry_for: float) -> bool:
        """Say that the mirror is not taken; whether it holds anything at all."""
        try:
            with self._reading(mirror, retry_for=retry_for) as (restorer, _):
                holds = bool(restorer.commits())
        except StoreError as error:
            self._say(f"syncd: the mirror cannot be used: {error.explain()}")
            return False
        if holds:
            self._say(f"syncd: WARNING: the first store cannot help: {words}; {_ON_EVERY}")
        return holds

    def _first(self, request: Request, retry_for: float) -> tuple[int, str]:
        """The exit code, and in words why the mirror is to be tried; "" where it is not."""
        with self._reading(self._settings, "restoring", retry_for) as (restorer, transfer):
            commits = restorer.commits()
            mirror = self._settings.mirror
            if mirror and request.is_plain:
                newer = self._ahead(mirror, commits, retry_for)
                may_take = newer and not self._together
                if may_take and self._take(mirror, request, retry_for, newer) == _OK:
                    return _OK, ""
            comeback = Comeback(self._settings, restorer, transfer, self._say)
            restorer.mirrored = bool(mirror) and request.is_plain and not self._together
            try:
                code = comeback.run(request, commits)
            except Damaged as damage:
                if mirror and self._mends(mirror, request, retry_for, damage):
                    return _OK, ""
                restorer.mirrored = False
                code = comeback.run(request, commits)
        if code == _NOT_INTACT:
            return code, "it holds nothing intact"
        return code, "it does not hold what was asked for" if comeback.found_nothing else ""

    def _mends(self, mirror: Settings, request: Request, retry_for: float, damage: Damaged) -> bool:
        """Whether the mirror has what is damaged in the first store, and it came from there."""
        self._say(f"syncd: WARNING: NOT INTACT in the first store: {damage}; trying the mirror")
        try:
            with self._reading(mirror, retry_for=retry_for) as (restorer, _):
                content = _content(damage.record)
                commits = restorer.commits()
        except StoreError as error:
            self._say(f"syncd: the mirror cannot be used: {error.explain()}")
            return False
        known = [(n, c) for n, c in enumerate(commits) if isinstance(c, CommitRecord)]
        first = next((n for n, c in known if _content(c) == content), None)
        if first is None:
            self._say("syncd: the mirror does not hold it")
            return False
        return self._take(mirror, request, retry_for, commits[first:]) == _OK

    def _second(
        self,
        mirror: Settings,
        request: Request,
        retry_for: float,
        words: str,
        outcome: StoreError | int,
    ) -> int:
        """Try the mirror; ``outcome`` is that of the first store."""
        self._say(f"syncd: WARNING: the first store cannot help: {words}; trying the mirror")
        try:
            with self._reading(mirror, "restoring", retry_for) as (restorer, transfer):
                comeback = Comeback(mirror, restorer, transfer, self._say)
                code = comeback.run(request)
        except StoreError as error:
            self._say(f"syncd: the mirror cannot be used: {error.explain()}")
            code = -1
        if code in (_OK, _NOT_INTACT) and not comeback.found_nothing:
            return code
        if isinstance(outcome, StoreError):  # it is not known what the first store holds
            return self._without_store(request, outcome)
        return outcome

    def _take(self, mirror: Settings, request: Request, retry_for: float, commits: Commits) -> int:
        try:
            with self._reading(mirror, "restoring", retry_for) as (restorer, transfer):
                return Comeback(mirror, restorer, transfer, self._say).run(request, commits)
        except StoreError as error:
            self._say(f"syncd: the mirror cannot be used: {error.explain()}")
            return _UNREACHABLE

    def _without_store(self, request: Request, error: StoreError) -> int:
        """What is left to do where no store can be asked."""
        settings = self._settings
        local = newest_local(settings, request.to or settings.checkpoint_dir)
        self._say(f"syncd: {settings.title} cannot be used: {error.explain()}")
        if local is None or request.to is not None or not request.is_plain:
            return _UNREACHABLE
        if settings.rank is not None:
            self._say(f"syncd: the local {local.path} is not gone on from: others may lack it")
            return _UNREACHABLE
        self._say(f"syncd: WARNING: going on from the local {local.path}, unseen by the store")
        return _OK

    # -- which of the two is ahead?

    def _ahead(self, mirror: Settings, commits: Commits, retry_for: float) -> Commits:
        """Commits of the mirror that are newer than all of the first store, beyond doubt."""
        newest = next((c for c in commits if _counts(c)), None)
        if not isinstance(newest, CommitRecord):
            return []
        patience = min(_GLANCE, retry_for)
        found: dict[str, Any] = {"error": f"no answer within {patience:g} s"}

        def look() -> None:
            try:
                with self._reading(mirror, retry_for=patience) as (_, transfer):
                    records = CommitLog(transfer.store, Layout(mirror.cloud_prefix)).newest_first()
                    found.update(newer=newer_in(records, newest, commits), error="")
            except StoreError as error:
                found.update(error=error.explain())

        thread = threading.Thread(target=look, name="mirror", daemon=True)
        thread.start()
        thread.join(patience + 1.0)
        if found["error"]:
            self._say(
                f"syncd: WARNING: it is not known whether the mirror is ahead: {found['error']}"
            )
            return []
        newer, doubt = found["newer"]
        if newer:
            self._say(
                f"syncd: WARNING: the MIRROR IS AHEAD: {newer[0].checkpoint} (commit "
                f"{newer[0].seq} of {newer[0].committed_at}) is not in the store: "
                + (_ON_EVERY if self._together else "taking it")
            )
        elif doubt:
            self._say(
                f"syncd: WARNING: the mirror holds {doubt.checkpoint} (commit {doubt.seq} of "
                f"{doubt.committed_at}), which the store does not, and which of the two is newer "
                "cannot be told: the store's is taken; python -m syncd restore --mirror takes that"
            )
        return list(newer)


def newer_in(
    second: Iterable[CommitRecord | Corrupt], newest: CommitRecord, first: Commits
) -> tuple[list[CommitRecord], CommitRecord | None]:
    """What a second log has beyond the newest commit of the first; and what is in doubt.

    Beyond doubt are those that the second log has above that very commit. Where retention has
    let that go there: what the same life of a daemon wrote later, and later steps of the same
    series that were written later too. Both logs come newest first.
    """
    known = {_content(c) for c in first if isinstance(c, CommitRecord)}
    above: list[CommitRecord] = []
    for record in islice((c for c in second if _counts(c)), _MOST):
        if not isinstance(record, CommitRecord):
            continue
        if _content(record) == _content(newest):
            return above, None
        if _content(record) in known:
            break
        above.append(record)
    sure = [record for record in above if _is_later(record, newest)]
    return (sure, None) if sure[:1] == above[:1] else ([], above[0])


def _is_later(record: CommitRecord, than: CommitRecord) -> bool:
    same_life = record.writer == than.writer
    further = series(record.checkpoint) == series(than.checkpoint) and (
        step_of(record.checkpoint) > step_of(than.checkpoint)
    )
    return (same_life or further) and _written(record) > _written(than)


def _written(record: CommitRecord) -> int:
    return max((entry.mtime_ns for entry in record.files), default=0)


def _counts(record: CommitRecord | Corrupt) -> bool:
    return isinstance(record, CommitRecord) and not is_companion(record)


def _content(record: CommitRecord) -> tuple[str, frozenset[tuple[str, int, str]]]:
    return record.checkpoint, frozenset((e.path, e.size, e.sha256) for e in record.files)
