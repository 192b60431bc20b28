"""The way of the bytes: one pass over each file that digests and sends at once.

Memory is bounded by the number of parts in flight, whatever the size of a file. What has been
read is given back to the page cache, so that the trainer keeps its own.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from syncd.errors import GaveWay, NotFound, Permanent, SyncdError, Transient
from syncd.filestat import Stat
from syncd.inflight import MIB, NARROW, WIDEST, Room
from syncd.inparts import PartSender
from syncd.pace import Pace, RateLimit
from syncd.packing import Packer
from syncd.pathrules import SUFFIXES, ZSTD, encoding_of
from syncd.reader import Reader, open_again, open_seen
from syncd.spare import Spare
from syncd.stores.base import Body, Condition, ObjectInfo, ObjectStore
from syncd.uploadrows import Begun
from syncd.uploads import Flight, Misfit, OtherBytes, Uploads

SINGLE_PUT = 8 * MIB
"""Files up to this size go in one request."""

_VANISHES = 3
"""How often an upload may vanish in the store before that is called a failure."""
_GROUP = 256
"""Small files that are read before the answers of the first are waited for."""


class Transfer:
    """Sends files to a store, several at a time."""

    def __init__(
        self,
        store: ObjectStore,
        concurrency: int | None,
        limit: RateLimit,
        on_bytes: Callable[[str, int], None] = lambda _key, _count: None,
        halt: threading.Event | None = None,
        uploads: Uploads | None = None,
        packer: Packer | None = None,
        lenient: bool = False,
    ) -> None:
        """``on_bytes(key, count)`` hears of every body that the store has taken.

        ``concurrency`` is how many bodies are under way at a time, None: as the line wants it.
        While ``halt`` is set, what is under way stops at its next part, with GaveWay; logs go on.
        Without ``uploads`` each upload in parts begins anew; without ``packer`` nothing is
        compressed. ``lenient`` leaves the processor to whoever else wants it.
        """
        self.uploads = uploads
        self._packer = packer
        self.store = store
        self.halt = halt or threading.Event()
        self._limit = limit
        self.pace = Pace(limit)
        self._on_bytes = on_bytes
        self.spare = Spare(lenient)
        self.room = Room(concurrency)
        # where the parts of a file go one by one, the store's own code holds another one of each
        at_once = concurrency or (WIDEST if store.capabilities.parallel_parts else NARROW)
        self.files: Executor = ThreadPoolExecutor(at_once, "file")
        self._parts = PartSender(
            ThreadPoolExecutor(concurrency or WIDEST, "part"),
            self.spare,
            store.capabilities.parallel_parts,
            self.room,
            limit,
            self.pace,
            on_bytes,
        )

    def close(self) -> None:
        """Let the worker threads go; nothing new may be started."""
        self.files.shutdown(wait=False, cancel_futures=True)
        self._parts.close()

    def send(
        self,
        path: Path,
        key: str,
        seen: Stat,
        condition: Condition = None,
        growing: int | None = None,
        name: tuple[str, str] = ("", ""),
        pack: bool = False,
    ) -> tuple[str, ObjectInfo]:
        """Send one file as it was when ``seen``; return its SHA-256 and the object.

        Changed if the file is another one by now; Conflict if the condition fails; the object
        is made whole or not at all. Of a ``growing`` file, a log that is open by this descriptor,
        the bytes that were there when it was seen are sent, whatever has its name by now, and
        that more have come since is no fault. Under ``name``, a path
        and a stat, an upload that could not be finished is found by ``resume``.

        Where it is to be packed and gains by it, the object has the key with ``.zst`` at its end.
        """
        halt = self.halt if growing is None else None
        opened = open_seen(path, seen) if growing is None else open_again(growing, path, seen)
        with opened as file:
            if not self.in_parts(seen.size):
                return self._send_whole(file, key, seen.size, condition, halt, pack)
            if pack and self._packer and self._packer.gains(file.sample, seen.size):
                with self._packer.spooled(self._stoppable(file, key), seen.size) as spool:
                    if spool:
                        file.check()
                        key, seen = key + SUFFIXES[ZSTD], spool.stat
                        _, info = self.send(spool.path, key, seen, condition, name=name)
                        return spool.sha256, info
            for _ in range(_VANISHES):
                file.rewind()
                flight = self._begin(key, seen.size, name)
                with suppress(NotFound, Misfit):
                    return self._parts.send(file, flight, seen.size, condition, halt)
        raise Transient(
            f"uploads of {key} vanish before they are finished",
            hint="look for who aborts them: a rule of the bucket, or another machine",
        )

    def _send_whole(
        self,
        file: Reader,
        key: str,
        size: int,
        condition: Condition,
        halt: threading.Event | None,
        pack: bool,
    ) -> tuple[str, ObjectInfo]:
        self.room.take(size)
        try:
            data = file.read_exactly(size)
            sha256 = hashlib.sha256(data).hexdigest()
            file.check()
            if pack:
                key, data = self._packed(key, data)
            if halt:
                self.spare.rest(halt)
            self._limit.take(len(data), halt)
            with self.pace.sending(len(data)):
                info = self.store.put(key, data, condition)
        finally:
            self.room.give(size)
        self._on_bytes(key, len(data))
        return sha256, info

    def resume(
        self, path: Path, begun: Begun, seen: Stat, condition: Condition
    ) -> tuple[str, ObjectInfo] | None:
        """Go on with an upload of an earlier attempt, as ``send`` does; None: it has to begin anew.

        The file is read from its beginning: a part that arrived is left out only if what is
        read is, up to its end, what was read when it was sent.
        """
        with open_seen(path, seen) as file:
            if encoding_of(begun.key, begun.path):
                return self._resume_packed(file, begun, seen, condition)
            flight = self.uploads.take_up(begun) if self.uploads else None
            if flight:
                with suppress(NotFound, OtherBytes, Misfit):
                    return self._parts.send(file, flight, seen.size, condition, self.halt)
        return None

    def _resume_packed(
        self, file: Reader, begun: Begun, seen: Stat, condition: Condition
    ) -> tuple[str, ObjectInfo] | None:
        """The same, where it is compressed: to the same bytes, or what arrived is of no use."""
        if self._packer is None:
            return None
        with self._packer.spooled(self._stoppable(file, begun.key), seen.size) as spool:
            if spool is None or spool.stat.size != begun.size:
                return None
            file.check()
            as_it_is = replace(begun, path=begun.key)
            done = self.resume(spool.path, as_it_is, spool.stat, condition)
            return (spool.sha256, done[1]) if done else None

    def _stoppable(self, file: Reader, key: str) -> Callable[[int], bytes]:
        """Reads a file in order until something more urgent waits."""

        def read(count: int) -> bytes:
            self.spare.rest(self.halt)
            if self.halt.is_set():
                raise GaveWay(f"{key} was stopped while it was compressed")
            return file.read_exactly(count)

        return read

    def _packed(self, key: str, data: bytes) -> tuple[str, bytes]:
        """Key and content of a small object: compressed, where it gains by it."""
        packed = self._packer.pack(data) if self._packer else None
        return (key, data) if packed is None else (key + SUFFIXES[ZSTD], packed)

    def _begin(self, key: str, size: int, name: tuple[str, str]) -> Flight:
        part = self.part_size(size)
        if self.uploads:
            return self.uploads.begin(key, size, part, *name)
        return Flight(self.store.start_upload(key, size), size, part)

    def put(self, key: str, data: bytes, condition: Condition) -> ObjectInfo:
        """Send what a log holds."""
        self._limit.take(len(data))
        with self.pace.sending(len(data)):
            info = self.store.put(key, data, condition)
        self._on_bytes(key, len(data))
        return info

    def append(self, key: str, base: ObjectInfo, tail: bytes, aside: str) -> ObjectInfo:
        """Send what a log has more than its object."""
        self._limit.take(len(tail))
        with self.pace.sending(len(tail)):
            info = self.store.append(key, base, tail, aside)
        self._on_bytes(key, len(tail))
        return info

    def send_each(self, small: Iterable[Small]) -> Iterator[tuple[str, ObjectInfo] | SyncdError]:
        """Send small files, many under way at a time; what became of each, in their order.

        Everything is as in ``send``, but that the errors of single files are not raised. GaveWay
        is, and what the store refuses for every file alike.
        """
        for group in _groups(small):
            coming: Iterable[tuple[Body, str] | SyncdError] = map(self._read_small, group)
            total = sum(item.seen.size for item in group)
            if self._packer:  # only then is it known how much there is to send
                coming = [*coming]
                total = sum(len(one[0].data) for one in coming if not isinstance(one, SyncdError))
            self.spare.rest(self.halt)  # not amid them, which are under way together
            self._limit.take(total, self.halt)
            if self.halt.is_set():
                raise GaveWay("stopped between two files")
            read: list[tuple[Body, str] | SyncdError] = []
            with self.pace.sending(total):
                answers = iter([*self.store.put_each(_bodies(coming, read))])
            for found in read:
                answer = found if isinstance(found, SyncdError) else next(answers)
                if isinstance(answer, SyncdError):
                    yield answer
                elif not isinstance(found, SyncdError):
                    self._on_bytes(found[0].key, len(found[0].data))
                    yield found[1], answer

    def _read_small(self, item: Small) -> tuple[Body, str] | SyncdError:
        """What is to be put, and the SHA-256 of the file."""
        try:
            with open_seen(item.path, item.seen) as file:
                data = file.read_exactly(item.seen.size)
                file.check()
        except SyncdError as error:
            return error
        sha256 = hashlib.sha256(data).hexdigest()
        key, body = self._packed(item.key, data) if item.pack else (item.key, data)
        return Body(key, body, item.condition), sha256

    @staticmethod
    def in_parts(size: int) -> bool:
        """Whether a file of ``size`` bytes goes up in parts."""
        return size > SINGLE_PUT

    def part_size(self, size: int) -> int:
        """Bytes of each part of an upload of ``size`` bytes, within the store's limits."""
        can = self.store.capabilities
        usual = max(SINGLE_PUT, can.min_part_size, can.good_part_size)
        wanted = max(usual, -(-size // can.max_parts))
        step = can.part_multiple
        if wanted > usual:
            step *= -(-MIB // step)  # of a file that grows the parts mostly stay as long
        part = -(-wanted // step) * step
        if part > can.max_part_size:
            raise Permanent(f"{size} bytes are more than {self.store.name} can hold in one object")
        return part


@dataclass(frozen=True)
class Small:
    """A file that goes in one request, as it was when ``seen``."""

    path: Path
    key: str
    seen: Stat
    condition: Condition = None
    pack: bool = False


def _bodies(
    coming: Iterable[tuple[Body, str] | SyncdError], read: list[tuple[Body, str] | SyncdError]
) -> Iterator[Body]:
    """What is to be put, each read when its turn comes: meanwhile others are under way."""
    for found in coming:
        read.append(found)
        if not isinstance(found, SyncdError):
            yield found[0]


def _groups(small: Iterable[Small]) -> Iterator[list[Small]]:
    """Files that are held in memory together: several hundred, of a few MiB in all."""
    group: list[Small] = []
    size = 0
    for item in small:
        if group and (len(group) >= _GROUP or size + item.seen.size > SINGLE_PUT):
            yield group
            group, size = [], 0
        group.append(item)
        size += item.seen.size
    if group:
        yield group
