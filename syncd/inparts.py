"""A large file on its way: its parts are read once, in order, and go side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from functools import partial

from syncd.delta import Fresh, Same
from syncd.errors import Changed, Corrupt, GaveWay, NeedsOperator, Permanent
from syncd.inflight import WIDEST, Room
from syncd.pace import Pace, RateLimit
from syncd.reader import Reader
from syncd.spare import Spare
from syncd.stores.base import Condition, ObjectInfo
from syncd.uploads import Flight

_FLYING = 2 * WIDEST
"""Parts of one file that are sent and copied, or wait for their turn."""


class PartSender:
    """Sends files in parts; those of all files share workers, room and rate."""

    def __init__(
        self,
        workers: Executor,
        spare: Spare,
        side_by_side: bool,
        room: Room,
        limit: RateLimit,
        pace: Pace,
        on_bytes: Callable[[str, int], None],
    ) -> None:
        """``side_by_side``: the store takes the parts of a file in any order."""
        self._workers = workers
        self._spare = spare
        self._side_by_side = side_by_side
        self._room = room
        self._limit = limit
        self._pace = pace
        self._on_bytes = on_bytes

    def close(self) -> None:
        """Let the workers go; nothing new may be started."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def send(
        self,
        file: Reader,
        flight: Flight,
        size: int,
        condition: Condition,
        halt: threading.Event | None,
    ) -> tuple[str, ObjectInfo]:
        """Send what the store lacks of a file, and make the object; its SHA-256 and the object.

        If that fails, what has arrived is kept where it can be gone on with.
        """
        flying: list[Future[None]] = []
        finishing = False
        try:
            sha256 = self._send_missing(file, flight, size, halt, flying)
            finishing = True
            return sha256, flight.finish(condition)
        except BaseException as error:
            for job in flying:
                job.cancel()
            wait(flying)  # a part that is under way must not meet an upload that is gone
            # a part that was damaged on its way is sent again; an object is not mended
            lost = isinstance(error, Changed | Permanent) or (
                finishing and isinstance(error, Corrupt)
            )
            flight.abort() if lost else flight.leave()
            raise

    def _send_missing(
        self,
        file: Reader,
        flight: Flight,
        size: int,
        halt: threading.Event | None,
        flying: list[Future[None]],
    ) -> str:
        """Have all parts arrive; the SHA-256 of the file. What is under way is in ``flying``."""
        taken = 0  # bytes of the part that was read last, until it is clear what becomes of it

        def blocks() -> Iterator[bytes]:
            nonlocal taken
            for start in range(0, size, flight.part):
                count = min(flight.part, size - start)
                self._room.take(count)
                taken = count
                data = file.read_exactly(count)
                file.check()  # a revision that is gone is not worth another part
                self._go_on_unless(halt, flight)
                yield data
                del data  # nothing here holds a part while the next one is read
                if taken:  # it is there, or is copied
                    self._room.give(taken)
                    taken = 0

        try:
            for piece in flight.pieces(blocks()):
                if isinstance(piece, Same):
                    job = self._workers.submit(self._copy_parts, flight, piece, file, halt)
                else:
                    job = self._workers.submit(self._carry, flight, [piece], taken, halt)
                    job.add_done_callback(partial(self._is_over, taken))
                    taken = 0
                if len(flying) >= _FLYING:
                    wait(flying, return_when=FIRST_COMPLETED)
                # those that have landed are forgotten: of 64 GiB there are thousands to look at
                landed = {one for one in flying if one.done()}
                flying[:] = [one for one in flying if one not in landed or one.exception()]
                failed = not landed.isdisjoint(flying)
                flying.append(job)
                del piece
                if not self._side_by_side:
                    job.result()
                elif failed:
                    break
        finally:
            if taken:
                self._room.give(taken)
        for job in flying:
            job.result()
        file.check()
        return flight.sha256

    def _is_over(self, count: int, job: Future[None]) -> None:
        if job.cancelled():
            self._room.give(count)

    def _carry(
        self, flight: Flight, hand: list[Fresh], count: int, halt: threading.Event | None
    ) -> None:
        """Send the part in ``hand``, for which there is room; before that is given it is gone."""
        try:
            self._send_part(flight, hand.pop(), halt)
        finally:
            self._room.give(count)

    def _copy_parts(
        self, flight: Flight, same: Same, file: Reader, halt: threading.Event | None
    ) -> None:
        """Have parts copied; what the store does not copy is read again and sent."""
        self._go_on_unless(halt, flight)
        try:
            if not same.base.given_up:
                flight.copy(same)
                self._on_bytes(flight.key, 0)
                return
        except (Permanent, NeedsOperator) as error:
            same.base.refused(error)
        for fresh in same.read_again(file.sample):
            self._send_part(flight, fresh, halt)

    def _send_part(self, flight: Flight, fresh: Fresh, halt: threading.Event | None) -> None:
        count = len(fresh.data)
        self._go_on_unless(halt, flight)
        self._limit.take(count, halt)
        began = self._limit.clock.monotonic()
        with self._pace.sending(count):
            flight.send(fresh)
        self._room.went(count, self._limit.clock.monotonic() - began)
        self._on_bytes(flight.key, count)

    def _go_on_unless(self, halt: threading.Event | None, flight: Flight) -> None:
        """GaveWay where a checkpoint's part is not to be sent any more; a log's always is."""
        if halt is None:
            return
        self._spare.rest(halt)
        if halt.is_set():
            raise GaveWay(f"{flight.key} was stopped between two parts")
