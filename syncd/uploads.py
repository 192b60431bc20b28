"""Uploads in parts that outlive their process: begun, taken up again, or thrown away.

What has arrived is kept when the store, the credentials, the time or this process fail, and goes
on as soon as the same revision of the file is sent again. What nobody will go on with is aborted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from syncd.chain import Chain
from syncd.clock import Clock
from syncd.delta import Base, Fresh, Same, mark_of
from syncd.errors import Conflict, Corrupt, NotFound, Permanent, StoreError, Transient
from syncd.journal import Journal
from syncd.pathrules import encoding_of
from syncd.records import Layout
from syncd.retention import is_forgotten
from syncd.sealed import SealedUpload
from syncd.stores.base import Condition, ObjectInfo, ObjectStore, PendingUpload, Upload
from syncd.uploadrows import IN_RANGE, Arrived, Begun, Whole

log = logging.getLogger(__name__)

LATE = 60.0
"""Seconds in which a store may still get a request of a process that is gone by now."""

_PATIENCE = 3
"""Files of which no range was copied in time, after which this store is asked for none any more."""

_NONE, _ONE_BY_ONE, _AS_LONG_AS_MAY_BE = range(3)
"""How parts are copied within the store, as far as it is known to take them."""


class OtherBytes(Permanent):
    """The file is not the one whose parts have arrived, though it looks the same."""


class Misfit(Permanent):
    """The store has made no object, or another one, of what it had copied itself."""


class Flight:
    """One upload under way."""

    def __init__(
        self,
        upload: Upload,
        size: int,
        part: int,
        rows: Rows | None = None,
        known: Mapping[int, Arrived] | None = None,
        base: Base | None = None,
        on_misfit: Callable[[StoreError], None] = lambda _error: None,
    ) -> None:
        """``part`` is the length of each part but the last; ``known`` are those that arrived.

        What the file has in common with ``base`` can be copied; ``on_misfit`` hears of a store
        that makes no object of that.
        """
        self.key = upload.key
        self.part = part
        self.base = base
        self._size = size
        self._upload = upload
        self._rows = rows
        self._known = known or {}
        self._chain = Chain()
        self._held = False
        self._copied = any(part.tag == IN_RANGE for part in self._known.values())
        self._on_misfit = on_misfit
        if isinstance(upload, SealedUpload):
            upload.part = part

    @property
    def sha256(self) -> str:
        """That of all that was digested."""
        return self._chain.hexdigest()

    def digest(self, number: int, data: bytes) -> Arrived:
        """The next part of the file, as it will be known; asked in their order."""
        self._chain.update(data)
        if self._rows is None or not self._rows.by_blocks:
            return Arrived(number, self._chain.hexdigest())
        state = self._chain.state()
        return Arrived(number, self._chain.hexdigest(), "", state, mark_of(data))

    def holds(self, part: Arrived, data: bytes) -> bool:
        """Whether a part is there; asked in their order.

        OtherBytes if what arrived was not this: then nothing of the upload can be trusted.
        """
        known = self._known.get(part.number)
        if known is None:
            self._held = False
            return False
        if known.sha256 != part.sha256:
            raise OtherBytes(f"{self.key}: the file is not the one that was being sent")
        if known.tag == IN_RANGE:
            return self._held
        self._tell(part)
        last = part.number
        while (after := self._known.get(last + 1)) and after.tag == IN_RANGE:
            last += 1
        if last > part.number:
            self._held = self._upload.has(part.number, self._length(part.number, last))
        else:
            self._held = self._upload.holds(part.number, data)
        return self._held

    def _length(self, first: int, last: int) -> int:
        return min(last * self.part, self._size) - (first - 1) * self.part

    def pieces(self, blocks: Iterable[bytes]) -> Iterator[Fresh | Same]:
        """What is missing of the file, whose parts are ``blocks``: to be sent, or to be copied."""
        row: list[Arrived] = []
        number = 0
        for data in blocks:
            number += 1  # noqa: SIM113  (enumerate would hold a part while the next one is read)
            part, base = self.digest(number, data), self.base
            held = self.holds(part, data)
            same = not held and base is not None and base.has(part, data)
            shared = 0
            if row and base and (not same or len(row) >= base.most):
                if not held and not same:
                    shared = base.shared(number, data, number * self.part >= self._size)
                yield Same(base, row, shared)
                row = []
            if same:
                row.append(part)
            elif not held:
                yield Fresh(part, data[shared:] if shared else data)
            del data
        if row and self.base:
            yield Same(self.base, row)

    def send(self, fresh: Fresh) -> None:
        """Send a part, and remember that it arrived."""
        self._tell(fresh.part)
        tag = self._upload.send(fresh.part.number, fresh.data)
        if self._rows:
            self._rows.add(replace(fresh.part, tag=tag))

    def copy(self, same: Same) -> None:
        """Have the store copy parts in a row, and remember that they are there."""
        first, start, length = same.parts[0], *same.range
        self._copied = True
        tag = self._upload.copy(first.number, same.base.info, start, length)
        same.base.check()
        if self._rows:
            inner = (replace(part, tag=IN_RANGE) for part in same.parts[1:])
            self._rows.add(replace(first, tag=tag), *inner)

    def _tell(self, part: Arrived) -> None:
        """What is encrypted by its content need not be hashed once more."""
        if isinstance(self._upload, SealedUpload):
            self._upload.digests[part.number] = part.sha256

    def finish(self, condition: Condition) -> ObjectInfo:
        """Make the object. The upload is remembered until somebody remembers the object.

        Misfit where that is of no use for what was copied: then it is worth while to begin anew.
        """
        try:
            info = self._upload.finish(condition)
        except (Permanent, Corrupt) as error:
            if not self._copied or isinstance(error, NotFound | Conflict):
                raise
            self._on_misfit(error)
            raise Misfit(error.message, hint=error.hint) from error
        if self._rows:
            self._rows.close(finished=True)
        return info

    def leave(self) -> None:
        """Keep what has arrived for the next attempt, by whichever life of this daemon."""
        if self._rows is None or not self._rows.kept:
            self.abort()
            return
        self._upload.leave()
        self._rows.close()

    def abort(self) -> None:
        """Throw it away. Should that fail, it is aborted later."""
        if self._rows:
            self._rows.doom()
        self._upload.abort()
        if self._rows:
            self._rows.close()


class Rows:
    """What is written down of one upload; parts that arrive side by side go in one transaction."""

    def __init__(
        self, journal: Journal, number: int, kept: bool, live: set[int], by_blocks: bool
    ) -> None:
        """``kept``: it can be taken up again. ``live`` are the numbers of all under way.

        ``by_blocks``: what is written down can be compared with a newer version, block by block.
        """
        self.kept = kept
        self.by_blocks = kept and by_blocks
        self._journal = journal
        self._number = number
        self._live = live
        self._arrived: deque[Sequence[Arrived]] = deque()
        self._lock = threading.Lock()

    def add(self, *parts: Arrived) -> None:
        """Parts have arrived, all of them or none."""
        if not self.kept:
            return
        self._arrived.append(parts)
        with self._lock:
            found = [self._arrived.popleft() for _ in range(len(self._arrived))]
            if found:
                self._journal.add_parts(self._number, chain.from_iterable(found))

    def doom(self) -> None:
        """Nobody takes it up again."""
        self._journal.doom_upload(self._number)

    def close(self, finished: bool = False) -> None:
        """Nothing more is sent. A finished one is forgotten, unless its object is to be noted."""
        self._live.discard(self._number)
        if finished and not self.kept:
            self._journal.drop_upload(self._number)


class Uploads:
    """The uploads of one journal in one store."""

    def __init__(self, store: ObjectStore, journal: Journal, layout: Layout, clock: Clock) -> None:
        self._store = store
        self._journal = journal
        self._layout = layout
        self._clock = clock
        self._live: set[int] = set()
        self._refused: set[int] = set()
        self._met: dict[int, float] = {}
        """Uploads of which the store has not told the id, and when a sweep first met them."""
        self._copies = _AS_LONG_AS_MAY_BE if store.capabilities.copy_range else _NONE
        self._unanswered = 0
        self._lock = threading.Lock()

    def begin(self, key: str, size: int, part: int, path: str = "", stat: str = "") -> Flight:
        """Begin an upload of a file; without its ``path`` and ``stat`` it is never taken up."""
        kept = bool(path) and self._store.capabilities.resumable
        for other in self._journal.uploads() if path else ():
            if other.path == path and other.number not in self._live:
                self.abort(other)  # of another revision, or one that cannot be taken up
        with self._lock:
            number = self._journal.begin_upload(key, path if kept else "", stat, size, part)
            self._live.add(number)
        base = self._base(key, path, part)
        try:
            upload = self._store.start_upload(key, size, base is not None)
        except StoreError as error:
            told = any(u.key == key and not u.id for u in self._journal.uploads()[:-1])
            if told or not isinstance(error, Transient):  # else it may have begun all the same
                self._journal.drop_upload(number)
            self._live.discard(number)
            raise
        except BaseException:
            self._live.discard(number)
            raise
        self._journal.name_upload(number, upload.id)
        rows = Rows(self._journal, number, kept, self._live, bool(self._copies))
        return Flight(upload, size, part, rows, None, base, self._is_misfit)

    def take_up(self, begun: Begun) -> Flight | None:
        """Go on with an upload; None, and it is forgotten, if it is gone."""
        known = self._journal.parts(begun.number)
        tags = {part.number: part.tag for part in known.values() if part.tag != IN_RANGE}
        try:
            upload = self._store.resume_upload(begun.key, begun.id, begun.size, tags)
        except Permanent:
            self.abort(begun)
            return None
        log.info("%s goes on: %d parts are there", begun.path, len(known))
        self._live.add(begun.number)
        rows = Rows(self._journal, begun.number, True, self._live, bool(self._copies))
        base = self._base(begun.key, begun.path, begun.part)
        return Flight(upload, begun.size, begun.part, rows, known, base, self._is_misfit)

    def _base(self, key: str, path: str, part: int) -> Base | None:
        """The object that parts of a file may be copied from."""
        if not path or not self._copies or encoding_of(key, path):
            return None
        whole = self._journal.whole_like(path)
        if whole is None or whole.part != part:
            return None
        parts, uniform = self._journal.parts(whole.number), self._copies == _ONE_BY_ONE
        return Base(whole, parts, self._store, self._is_refused, uniform)

    def _is_refused(self, whole: Whole, error: StoreError) -> None:
        """A range was not copied: its object is gone, or this store copies none."""
        self._journal.drop_whole(whole.number)
        self._unanswered += (unanswered := isinstance(error.__cause__, Transient))
        if isinstance(error, NotFound | Conflict) or (unanswered and self._unanswered < _PATIENCE):
            return
        self._copies = _NONE

    def _is_misfit(self, error: StoreError) -> None:
        """There are stores that want all parts but the last to have one length."""
        with self._lock:
            self._copies = max(_NONE, self._copies - 1)
        log.info("parts that were copied made no object: %s", error.message)

    def abort(self, begun: Begun) -> None:
        """Throw an upload away; what the store refuses to do now is tried again at a sweep."""
        self._journal.doom_upload(begun.number)
        if not begun.id:
            return  # the store may have begun it, and only a listing tells
        try:
            with contextlib.suppress(NotFound):
                self._store.discard_upload(PendingUpload(begun.key, begun.id, 0.0))
        except StoreError as error:
            log.info("an upload of %s is aborted later: %s", begun.key, error.message)
            self._refused.add(begun.number)
        else:
            self._journal.drop_upload(begun.number)

    def tidy(self, wanted: Callable[[Begun], bool]) -> None:
        """Abort what nobody will go on with: the file is gone, or it is another one by now."""
        for begun in self.left(wanted):
            self.abort(begun)

    def left(self, wanted: Callable[[Begun], bool]) -> list[Begun]:
        """What is to be aborted; what the store refused to abort waits for the next sweep."""
        with self._lock:
            busy = self._live | self._refused
            begun = self._journal.uploads()
        idle = (one for one in begun if one.id and one.number not in busy)
        return [one for one in idle if not (one.path and wanted(one))]

    def sweep(self, lives: Collection[str]) -> int:
        """Abort what was left in the store by lives of this machine, and by machines long dead.

        One listing, where the store has one. How many were aborted.
        """
        self._refused.clear()
        found = list(self._store.pending_uploads(f"{self._layout.prefix}/"))
        with self._lock:
            begun = self._journal.uploads()  # read after the listing: each that is ours is here
            live = set(self._live)
        known = {upload.id for upload in begun}
        under_way = {upload.key for upload in begun if upload.number in live}
        unnamed = [mine for mine in begun if not mine.id and mine.number not in live]
        ours = {mine.key for mine in unnamed}
        swept = 0
        for upload in found:
            if upload.id in known or upload.key in under_way:
                continue
            left = upload.key in ours or self._layout.writer_of(upload.key) in lives
            if left or is_forgotten(upload, self._clock.now()):
                self._store.discard_upload(upload)
                swept += 1
        now = self._clock.monotonic()
        self._met = {mine.number: self._met.get(mine.number, now) for mine in unnamed}
        for number in [number for number, met in self._met.items() if now >= met + LATE]:
            self._journal.drop_upload(number)
            del self._met[number]
        return swept

    @property
    def may_come(self) -> bool:
        """Whether the store may still begin one that a process had asked for which is gone."""
        return bool(self._met)
