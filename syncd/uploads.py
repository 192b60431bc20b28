"""Uploads in parts that outlive their process: begun, taken up again, or thrown away.

What has arrived is kept when the store, the credentials, the time or this process fail, and goes
on as soon as the same revision of the file is sent again. What nobody will go on with is aborted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping

from syncd.clock import Clock
from syncd.errors import NotFound, Permanent, StoreError, Transient
from syncd.journal import Journal
from syncd.records import Layout
from syncd.retention import is_forgotten
from syncd.sealed import SealedUpload
from syncd.stores.base import Buffer, Condition, ObjectInfo, ObjectStore, PendingUpload, Upload
from syncd.uploadrows import Arrived, Begun

log = logging.getLogger(__name__)

LATE = 60.0
"""Seconds in which a store may still get a request of a process that is gone by now."""


class OtherBytes(Permanent):
    """The file is not the one whose parts have arrived, though it looks the same."""


class Flight:
    """One upload under way."""

    def __init__(
        self,
        upload: Upload,
        part: int,
        rows: Rows | None = None,
        known: Mapping[int, Arrived] | None = None,
    ) -> None:
        """``part`` is the length of each part but the last; ``known`` are those that arrived."""
        self.key = upload.key
        self.part = part
        self._upload = upload
        self._rows = rows
        self._known = known or {}
        if isinstance(upload, SealedUpload):
            upload.part = part

    def holds(self, number: int, sha256: str, data: Buffer) -> bool:
        """Whether a part is there. ``sha256`` is that of the file up to its end.

        OtherBytes if what arrived was not this: then nothing of the upload can be trusted.
        """
        known = self._known.get(number)
        if known is None:
            return False
        if known.sha256 != sha256:
            raise OtherBytes(f"{self.key}: the file is not the one that was being sent")
        self._tell(number, sha256)
        return self._upload.holds(number, data)

    def send(self, number: int, sha256: str, data: Buffer) -> None:
        """Send a part, and remember that it arrived."""
        self._tell(number, sha256)
        tag = self._upload.send(number, data)
        if self._rows:
            self._rows.add(Arrived(number, sha256, tag))

    def _tell(self, number: int, sha256: str) -> None:
        """What is encrypted by its content need not be hashed once more."""
        if isinstance(self._upload, SealedUpload):
            self._upload.digests[number] = sha256

    def finish(self, condition: Condition) -> ObjectInfo:
        """Make the object. The upload is remembered until somebody remembers the object."""
        info = self._upload.finish(condition)
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

    def __init__(self, journal: Journal, number: int, kept: bool, live: set[int]) -> None:
        """``kept``: it can be taken up again. ``live`` are the numbers of all under way."""
        self.kept = kept
        self._journal = journal
        self._number = number
        self._live = live
        self._arrived: deque[Arrived] = deque()
        self._lock = threading.Lock()

    def add(self, part: Arrived) -> None:
        """A part has arrived."""
        if not self.kept:
            return
        self._arrived.append(part)
        with self._lock:
            found = [self._arrived.popleft() for _ in range(len(self._arrived))]
            if found:
                self._journal.add_parts(self._number, found)

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
        try:
            upload = self._store.start_upload(key, size)
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
        return Flight(upload, part, Rows(self._journal, number, kept, self._live))

    def take_up(self, begun: Begun) -> Flight | None:
        """Go on with an upload; None, and it is forgotten, if it is gone."""
        known = self._journal.parts(begun.number)
        tags = {part.number: part.tag for part in known.values()}
        try:
            upload = self._store.resume_upload(begun.key, begun.id, begun.size, tags)
        except Permanent:
            self.abort(begun)
            return None
        log.info("%s goes on: %d parts are there", begun.path, len(known))
        self._live.add(begun.number)
        return Flight(
            upload, begun.part, Rows(self._journal, begun.number, True, self._live), known
        )

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
