"""Logs follow their writer: what has grown is sent at an interval, its tail where that can be."""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from syncd.clock import Clock, SystemClock
from syncd.errors import Changed, Conflict, Corrupt, Permanent, StoreError
from syncd.filestat import Stat
from syncd.health import Health
from syncd.journal import Journal, LogSent
from syncd.logbudget import Budget, patience
from syncd.logfile import SIDE, LogFile
from syncd.logframes import Kind
from syncd.logobjects import LogObjects
from syncd.logsqlite import snapshot
from syncd.others import printable
from syncd.records import Layout
from syncd.scan import files_below
from syncd.sqlitefiles import SIDE_FILES
from syncd.transfer import Transfer

log = logging.getLogger(__name__)

_REST = 60.0
"""Seconds after which a line goes that is not ended, if nothing else could be sent."""

_SKIPPED = "skipped log "
"""How the codes of logs begin that cannot be copied."""

_CANDIDATES = 20
"""Objects that are looked at for what a new file began with under another name."""


@dataclass
class _Track:
    """Of a file with something to send: since when; when it was last sent; was it written again?

    Seconds on the monotonic clock.
    """

    since: float
    sent_at: float | None = None
    rewritten: bool = False


@dataclass(frozen=True)
class Pending:
    """A file that is not what was sent of it."""

    path: str
    stat: Stat
    seen: str
    sent: LogSent | None
    track: _Track

    @property
    def unsent(self) -> int:
        """Bytes, as a rule."""
        return self.stat.size - (self.sent.size if self.sent else 0)


class LogShipper:
    """Sends the files of the log root. They have no commits: the newest bytes are what counts."""

    def __init__(
        self,
        root: Path,
        journal: Journal,
        layout: Layout,
        health: Health,
        exclude: tuple[str, ...] = (),
        clock: Clock | None = None,
        interval: float = 30.0,
        scratch: Path = Path(".syncd/logs"),
    ) -> None:
        """``scratch`` is the folder for copies of databases."""
        self._root = root
        self._journal = journal
        self._layout = layout
        self._health = health
        self._exclude = exclude
        self._clock = clock or SystemClock()
        self._interval = interval
        self._scratch = scratch
        self._tracks: dict[str, _Track] = {}
        self._lock = threading.Lock()
        self._flush = threading.Event()
        self._objects: tuple[Transfer, LogObjects] | None = None
        self.budget: Budget | None = None

    # -- what there is

    def waiting(self) -> list[Pending]:
        """Log files that have changed since they were sent."""
        unreadable: dict[str, str] = {}
        files = dict(files_below(self._root, self._exclude, unreadable))
        if not all(_nameable(path) for path in files):
            self._health.red("log name", "a log's name is not UTF-8: it is not copied", "rename it")
        elif not unreadable:
            self._health.green("log name")
        sent, now, found = self._journal.logs(), self._clock.monotonic(), []
        for path, stat in files.items():
            if not stat.size or not _nameable(path) or self._belongs_to_database(path, files):
                continue  # an empty file tells nothing, and takes no object's place
            wal = files.get(f"{path}-wal")
            # to open a database gives its -wal another ctime, where root does it
            seen = stat.text() + (f" {wal.size}:{wal.mtime_ns}" if wal else "")
            known = sent.get(path)
            if known and known.seen == seen:
                if path in self._tracks:
                    self._tracks[path].since = now
                continue
            track = self._tracks.setdefault(path, _Track(now))
            found.append(Pending(path, stat, seen, known, track))
        for path in self._tracks.keys() - files.keys():
            del self._tracks[path]
        self._tell_folders(unreadable)
        self._forgive({item.path for item in found}, unreadable)
        return found

    def _forgive(self, due: set[str], unreadable: dict[str, str]) -> None:
        """A log that was skipped is well again where nothing of it is to be sent, or it is gone."""
        for reason in self._health.reasons(_SKIPPED):
            path = reason.code.removeprefix(_SKIPPED)
            hidden = any(f"{path}/".startswith(f"{at}/" if at else "") for at in unreadable)
            if path not in due and not hidden:
                self._health.green(reason.code)

    def _tell_folders(self, unreadable: dict[str, str]) -> None:
        """Folders that cannot be looked into, each a reason for red, by itself too."""
        bad = {f"log folder {printable(path)}": words for path, words in unreadable.items()}
        for reason in self._health.reasons("log folder "):
            if reason.code not in bad:
                self._health.green(reason.code)
        for code, words in bad.items():
            hint = "give the user of syncd permission, or see whether its disk is there"
            self._health.red(code, f"logs cannot be looked at: {printable(words)}", hint)

    def _belongs_to_database(self, path: str, files: dict[str, Stat]) -> bool:
        for end in SIDE_FILES:
            base = path.removesuffix(end)
            if base != path and base in files:
                with contextlib.suppress(Changed, Permanent), LogFile(base, self._root / base) as f:
                    return f.kind is Kind.SQLITE
        return False

    def _moves(self, pending: list[Pending]) -> dict[str, LogSent]:
        """Files that begin with what was sent of another one: it was renamed, or copied and cut.

        By the path they have now. Both are in one folder, and the names begin in the same way.
        """
        begun, left = [], []
        names = {item.path: item for item in pending}
        for item in pending:
            if item.sent is None or self._holds(item.path, item.sent) is False:
                begun.append(item)
        fresh = {item.path for item in begun}
        for sent in self._journal.logs().values() if begun else ():
            if sent.path in fresh or not (sent.path in names or self._is_there(sent.path)):
                left.append(sent)
        moves: dict[str, LogSent] = {}
        for item in begun:
            near = [
                sent
                for sent in left
                if sent.path != item.path
                and _stem(sent.path) == _stem(item.path)
                and 0 < sent.size <= item.stat.size
            ]
            for sent in sorted(near, key=lambda sent: -sent.size)[:_CANDIDATES]:
                if self._holds(item.path, sent):
                    moves[item.path] = sent
                    left.remove(sent)
                    break
        return moves

    def _is_there(self, path: str) -> bool:
        return os.path.lexists(self._root / path)

    def _holds(self, path: str, sent: LogSent) -> bool | None:
        """Whether a file begins with what was sent; None if that cannot be asked."""
        with (
            contextlib.suppress(Changed, Permanent),
            LogFile(path, self._root / path) as file,
        ):
            return None if file.kind is Kind.SQLITE else file.holds(sent.size, sent.print)
        return None

    # -- sending

    def ship(
        self, transfer: Transfer, give_up: Callable[[], bool] = lambda: False, flush: bool = False
    ) -> int:
        """Send what is due; return how many files went. Errors of the store are raised.

        ``flush``: everything is due, whatever it costs.
        """
        with self._turn(give_up, flush) as ours:
            return self._ship(transfer, give_up, flush) if ours else 0

    @contextlib.contextmanager
    def _turn(self, give_up: Callable[[], bool], flush: bool) -> Iterator[bool]:
        """One at a time: a flush waits until what is under way is sent, the others come again."""
        if flush:
            self._flush.set()
        ours = self._lock.acquire(blocking=False)
        while flush and not ours and not give_up():
            ours = self._lock.acquire(timeout=0.1)
        try:
            yield ours
        finally:
            if flush:
                self._flush.clear()
            if ours:
                self._lock.release()

    def _ship(self, transfer: Transfer, give_up: Callable[[], bool], flush: bool) -> int:
        objects, budget = self._objects_for(transfer)
        pending = self.waiting()
        moves = self._moves(pending)
        names = {item.path: item for item in pending}
        follows = {sent.path: names[path] for path, sent in moves.items()}
        done: set[str] = set()
        shipped = 0

        def one(item: Pending) -> None:
            nonlocal shipped
            if item.path in done:
                return
            done.add(item.path)
            later = follows.get(item.path)
            if later:
                one(later)  # copies what this one's object holds before it is replaced
                item = replace(item, sent=self._journal.logs().get(item.path))
            shipped += self._guarded(objects, item, moves.get(item.path), flush)

        def urgent(item: Pending) -> tuple[float, ...]:
            if flush:
                return (item.unsent,)
            return (item.sent is not None, item.track.since, item.unsent)

        for item in sorted(pending, key=urgent):
            if give_up() or (self._flush.is_set() and not flush):
                break
            if not flush and item.sent and item.path not in done:
                if not self._due(item, transfer, objects):
                    continue
                if not budget.allows(objects.cost(item.sent)):
                    break
            one(item)
        return shipped

    def _objects_for(self, transfer: Transfer) -> tuple[LogObjects, Budget]:
        budget = self.budget = self.budget or Budget(
            self._clock, transfer.store.capabilities.metered
        )
        if self._objects is None or self._objects[0] is not transfer:
            objects = LogObjects(transfer, self._journal, self._layout, budget)
            self._objects = transfer, objects
        return self._objects[1], budget

    def _due(self, item: Pending, transfer: Transfer, objects: LogObjects) -> bool:
        sent, track = item.sent, item.track
        if sent is None or track.sent_at is None:
            return True
        appends = objects.appends(sent.key, sent.size) and not track.rewritten
        can = transfer.store.capabilities
        wait = patience(can, self._interval, item.stat.size, sent.size, appends)
        return self._clock.monotonic() - track.sent_at >= wait

    def _guarded(
        self, objects: LogObjects, item: Pending, source: LogSent | None, flush: bool
    ) -> int:
        """Send one file; what is wrong with it alone holds up no other. Whether anything went."""
        try:
            went = self._one(objects, item, source, flush)
        except (Changed, Conflict):
            return 0  # rotated, cut or overtaken just now: its new self is seen at the next look
        except (Permanent, Corrupt) as error:
            return self._skipped(item, error)
        except OSError as error:  # the disk of the log, or that of the copies
            words = f"{error.filename or item.path}: {error.strerror or error}"
            hint = "see whether its disk is there, and SYNCD_STATE_DIR full or not writable"
            return self._skipped(item, Permanent(words, hint=hint))
        self._health.green(f"{_SKIPPED}{item.path}")
        return went

    def _skipped(self, item: Pending, error: StoreError) -> int:
        if self._health.red(f"{_SKIPPED}{item.path}", error):
            log.error("log %s is not copied: %s", item.path, error.explain())
        return 0

    def _one(self, objects: LogObjects, item: Pending, source: LogSent | None, flush: bool) -> int:
        with LogFile(item.path, self._root / item.path) as file:
            if file.kind is not Kind.SQLITE:
                return self._stream(objects, item, file, source, flush)
        copy = self._scratch / "database.sqlite"
        try:
            snapshot(self._root / item.path, copy)
            with LogFile(item.path, copy) as file:
                made = objects.bring(file, item.sent, file.stat.size, fresh=True)
        finally:
            with contextlib.suppress(OSError):  # where none could be made, there may be no folder
                copy.unlink()
        self._went(item, made, item.seen, rewritten=True)
        return 1

    def _stream(
        self,
        objects: LogObjects,
        item: Pending,
        file: LogFile,
        source: LogSent | None,
        flush: bool,
    ) -> int:
        sent = item.sent
        goes_on = sent is not None and file.holds(sent.size, sent.print)
        if source and not goes_on:
            moved = objects.move(source, file, sent)
            sent, goes_on = (moved, True) if moved else (sent, False)
        known = sent.size if sent and goes_on else 0
        edge = sent.edge if sent and goes_on else 0
        end = file.end(edge, flush)
        rests = self._clock.monotonic() - item.track.since >= _REST
        if end <= known and rests:
            end = file.end(edge, True)
        seen = file.stat.text() + item.seen[len(item.stat.text()) :]
        same = known == file.stat.size
        # of a large one that is neither text nor records, the middle may be another
        large = file.kind is Kind.BYTES and known > 2 * SIDE
        fresh = same and large and bool(item.sent and item.sent.seen)
        if end <= known and not fresh:
            if same and sent:
                self._journal.mark_log(replace(sent, seen=seen))
            return int(sent is not item.sent)
        made = objects.bring(file, sent, end, fresh)
        rewritten = item.sent is not None and not goes_on
        self._went(item, made, seen if made.size == file.stat.size else "", rewritten)
        return 1

    def _went(self, item: Pending, made: LogSent, seen: str, rewritten: bool) -> None:
        self._journal.mark_log(replace(made, seen=seen))
        now = self._clock.monotonic()
        self._tracks[item.path] = _Track(now, now, rewritten)


def _nameable(path: str) -> bool:
    """Whether a name is UTF-8, as the names of objects must be."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stem(path: str) -> str:
    folder, name = posixpath.split(path)
    return f"{folder}/{name.partition('.')[0].partition('-')[0]}"
