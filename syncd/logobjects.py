"""The objects of the logs: made, continued, replaced, and never taken from another.

An object at a log's own name is continued by what its file has more, replaced by a file that began
anew, and put aside first, by a copy within the store, if somebody else has written it: a machine
that was lost, whose log has the same name. So a log that reached the store stays there.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections import Counter
from dataclasses import replace

from syncd.errors import Changed, Conflict, NotFound, Permanent
from syncd.journal import Journal, LogSent
from syncd.logbudget import Budget
from syncd.logfile import SIDE, LogFile, fingerprint
from syncd.logframes import Kind
from syncd.records import Layout
from syncd.stores.base import Condition, IfAbsent, IfVersion, ObjectInfo
from syncd.transfer import SINGLE_PUT, Transfer

log = logging.getLogger(__name__)

PIECE = SINGLE_PUT
"""Bytes that are appended at once, and held in memory."""

_BLINDLY = 64 * 1024
"""Bytes that are sent in the hope that no object is there yet; of more the store is asked first."""

_ROUNDS = 4
"""Requests on end that bring an object no further, after which it is left for the next look."""

_FAILURES = 2
"""Tails that could not be joined to an object, one after the other: then all of it always goes."""

_KEPT = 9
"""Objects of one log that are kept when it begins anew on this machine; others' are always kept."""


class LogObjects:
    """Writes the objects of one store, and notes in the journal what they hold."""

    def __init__(
        self, transfer: Transfer, journal: Journal, layout: Layout, budget: Budget
    ) -> None:
        self._transfer = transfer
        self._store = transfer.store
        self._journal = journal
        self._layout = layout
        self._budget = budget
        self._whole: set[str] = set()
        self._failed: Counter[str] = Counter()
        self._vain: set[str] = set()

    def appends(self, key: str, size: int) -> bool:
        """Whether a tail can be joined to an object of ``size`` bytes."""
        smallest = self._store.capabilities.append_from
        return smallest is not None and size >= smallest and key not in self._whole

    def cost(self, sent: LogSent | None) -> int:
        """Requests that it takes to bring an object up to its file, as a rule."""
        if sent and self.appends(sent.key, sent.size):
            return self._store.capabilities.append_requests
        return 1

    # -- what may be asked

    def bring(self, file: LogFile, sent: LogSent | None, end: int, fresh: bool = False) -> LogSent:
        """Have the object hold the first ``end`` bytes of a file; ``sent`` is what it holds.

        ``fresh``: it is not to be continued, whatever it holds. Changed if the file is cut
        meanwhile; what the store raises.
        """
        if sent is None:
            sent = self._first(file, self._layout.logs + file.path, end)
        elif fresh or not file.holds(sent.size, sent.print):
            sent = self._anew(file, sent, end)
        rounds = 0
        while sent.size < end:
            before = sent.size
            sent = self._longer(file, sent, end)
            rounds = rounds + 1 if sent.size <= before else 0
            if rounds > _ROUNDS:
                raise self._in_vain(sent.key)
        return sent

    def move(self, source: LogSent, file: LogFile, sent: LogSent | None) -> LogSent | None:
        """Copy what was sent of a file to the name it has now; None if that cannot be."""
        key = sent.key if sent else self._layout.logs + file.path
        self._budget.spend(1)
        try:
            if self._store.head(source.key).version != source.version:
                return None
            if sent is None and self._head(key):
                return None
            self._budget.await_turn(key)
            self._budget.spend(2)
            info = self._store.copy(source.key, key, self._if_absent(sent is None))
        except (Conflict, NotFound):
            return None
        self._budget.wrote(key)
        self._journal.mark_log(replace(source, grew=False))  # what it holds is kept by now
        moved = LogSent(file.path, key, source.size, source.print, info.version, source.edge, True)
        self._journal.mark_log(moved)
        return moved

    # -- an object that is not known

    def _first(self, file: LogFile, key: str, end: int) -> LogSent:
        can = self._store.capabilities
        found = None
        if end > _BLINDLY or not can.put_if_absent:
            found = self._head(key)
        if found is None:
            try:
                absent = can.upload_if_absent if end > SINGLE_PUT else can.put_if_absent
                return self._make(file, key, end, IfAbsent() if absent else None)
            except Conflict:
                found = self._head(key)
        return self._met(file, key, end, found)

    def _met(self, file: LogFile, key: str, end: int, found: ObjectInfo | None) -> LogSent:
        """Something lies there: the beginning of this very file, or what somebody else wrote."""
        if found is None:
            return self._make(file, key, end, None)
        mark = self._continues(file, found)
        if mark is None:
            kept = self._keep(key)
            log.warning("%s was written by another machine: it is kept as %s", key, kept)
            return self._make(file, key, end, self._if_version(found.version))
        sent = LogSent(file.path, key, found.size, mark, found.version)
        self._journal.mark_log(sent)
        return sent

    def _continues(self, file: LogFile, found: ObjectInfo) -> str | None:
        """The fingerprint of an object that the file begins with; None if it is another one's."""
        if not found.size or found.size > file.stat.size:
            return None
        if file.kind is Kind.SQLITE and found.size > 2 * SIDE:
            return None  # it changes in its middle
        if found.size <= SINGLE_PUT:
            self._budget.spend(1)
            there = b"".join(self._store.read(found.key, 0, found.size, found.version))
            same = there == file.read(0, found.size)
            return file.print(found.size) if same else None
        mark = self._print(found)
        return mark if file.holds(found.size, mark) else None

    def _print(self, found: ObjectInfo) -> str:
        def read(start: int, count: int) -> bytes:
            self._budget.spend(1 if count else 0)
            pieces = self._store.read(found.key, start, count, found.version) if count else ()
            return b"".join(pieces)

        return fingerprint(read, found.size)

    # -- an object of ours

    def _longer(self, file: LogFile, sent: LogSent, end: int) -> LogSent:
        """Continue an object by one piece, which ends where a record does if one fits."""
        if not self.appends(sent.key, sent.size):
            return self._replace(file, sent, end, grew=True)
        until = min(end, sent.size + PIECE)
        if until < end:
            edge = file.edge(sent.edge, until)
            until = edge if edge > sent.size else until
        tail = file.read(sent.size, until - sent.size)
        mark = file.print(until)
        if not file.holds(sent.size, sent.print):  # asked last: then all of it is of one content
            raise Changed(f"{file.path} was written again while it was sent")
        base = ObjectInfo(sent.key, sent.size, sent.version, 0.0)
        self._budget.await_turn(sent.key)
        self._budget.spend(self._store.capabilities.append_requests)
        self._intend(sent, mark)
        try:
            info = self._transfer.append(sent.key, base, tail, self._aside(file.path))
        except Conflict:
            return self._taken(file, sent, end)
        except Permanent:
            self._whole.add(sent.key)  # this store cannot do it with this object
            self._failed[sent.key] += 1
            return sent
        self._failed.pop(sent.key, None)
        self._budget.wrote(sent.key)
        return self._made(file, sent.key, until, mark, info, grew=True, known=sent.edge)

    def _anew(self, file: LogFile, sent: LogSent, end: int) -> LogSent:
        """The file does not go on where the object ends: it was cut, or written again."""
        if sent.grew and file.stat.size < sent.size:
            kept = self._keep(sent.key, _KEPT)
            if kept:
                log.info("%s began anew: what was sent is kept as %s", file.path, kept)
        return self._replace(file, sent, end)

    def _replace(self, file: LogFile, sent: LogSent, end: int, grew: bool = False) -> LogSent:
        try:
            return self._make(file, sent.key, end, self._if_version(sent.version), sent, grew)
        except Conflict:
            return self._taken(file, sent, end)

    def _taken(self, file: LogFile, sent: LogSent, end: int) -> LogSent:
        """The object is another version: written by us and not noted, or by another machine.

        Then that one keeps the name: two that take it from each other in turn help nobody.
        """
        found = self._head(sent.key)
        if found is None:
            return self._first(file, sent.key, end)
        if found.version == sent.version:
            raise self._in_vain(sent.key)
        mark = self._continues(file, found)
        if mark is not None:
            taken = LogSent(file.path, sent.key, found.size, mark, found.version, 0, sent.grew)
            self._journal.mark_log(taken)
            return taken
        if sent.intent and self._print(found) in (sent.intent, sent.print):
            return self._make(file, sent.key, end, self._if_version(found.version), sent)
        key = f"{self._layout.logs}{file.path}.beside-{secrets.token_hex(3)}"
        log.warning("another machine writes %s: this one goes on as %s", sent.key, key)
        return self._make(file, key, end, None)

    def _in_vain(self, key: str) -> Permanent:
        """A condition that holds is refused: may be of a moment only, so it is tried once more."""
        words = f"the store refuses to write {key} on condition of the version that is there"
        if key not in self._vain:
            self._vain.add(key)
            return Conflict(words)
        return Permanent(words, hint="look for a proxy before it that changes ETags")

    # -- requests

    def _make(
        self,
        file: LogFile,
        key: str,
        end: int,
        condition: Condition,
        sent: LogSent | None = None,
        grew: bool = False,
    ) -> LogSent:
        """Send the first ``end`` bytes as a whole."""
        self._budget.await_turn(key)
        mark = file.print(end)
        if sent:
            self._intend(sent, mark)
        if end <= SINGLE_PUT:
            data = file.read(0, end)
            self._budget.spend(1)
            info = self._transfer.put(key, data, condition)
            mark = fingerprint(lambda start, count: data[start : start + count], end)
        else:
            self._budget.spend(2 + -(-end // self._transfer.part_size(end)))
            seen = file.stat._replace(size=end)
            _, info = self._transfer.send(file.place, key, seen, condition, growing=file.fd)
            if not file.holds(end, mark):  # written again under our hands: sent again next time
                mark = hashlib.sha256(mark.encode()).hexdigest()
        self._budget.wrote(key)
        if self._failed[key] < _FAILURES:  # else it is no matter of what this object was made of
            self._whole.discard(key)
        return self._made(file, key, end, mark, info, grew, sent.edge if sent and grew else 0)

    def _made(
        self,
        file: LogFile,
        key: str,
        size: int,
        mark: str,
        info: ObjectInfo,
        grew: bool = False,
        known: int = 0,
    ) -> LogSent:
        self._vain.discard(key)
        edge = file.edge(known, size)
        made = LogSent(file.path, key, size, mark, info.version, edge, grew)
        self._journal.mark_log(made)
        return made

    def _keep(self, key: str, most: int | None = None) -> str:
        """Copy an object aside within the store; its new key, "" if there are ``most`` already."""
        self._budget.spend(3)
        stem = f"{key}.kept-"
        taken = {info.key.removeprefix(stem) for info in self._store.list(stem)}
        number = 1
        while most is None or len(taken) < most:
            if str(number) not in taken:
                try:
                    self._store.copy(key, f"{stem}{number}", self._if_absent(True))
                    return f"{stem}{number}"
                except Conflict:
                    pass  # another one keeps something just now
                except NotFound:
                    return ""
            number += 1
        return ""

    def _head(self, key: str) -> ObjectInfo | None:
        self._budget.spend(1)
        try:
            return self._store.head(key)
        except NotFound:
            return None

    def _if_version(self, version: str) -> Condition:
        can = self._store.capabilities
        return IfVersion(version) if can.compare_and_swap and can.put_if_absent else None

    def _if_absent(self, wanted: bool) -> Condition:
        can = self._store.capabilities
        return IfAbsent() if wanted and can.conditional_copy else None

    def _intend(self, sent: LogSent, mark: str) -> None:
        self._journal.mark_log(replace(sent, seen="", intent=mark))

    def _aside(self, path: str) -> str:
        return self._layout.pieces + hashlib.sha256(path.encode()).hexdigest()[:16]
