"""When the logs may go: so many requests an hour, so often one object, what is small more often.

Where requests cost money they are earned: 144 an hour, and 30 that are saved up. So no hour has
more than 180, but for what must not wait: a file that was never sent, a flush, and the further
pieces of a file that grew by more than one holds. Those are owed, and paid before others go.
"""

from __future__ import annotations

from collections import OrderedDict

from syncd.clock import Clock
from syncd.stores.base import Capabilities

MIB = 1024 * 1024

_SAVED = 30.0
"""Requests that may go at once after a pause."""

_EARNED = 144.0 / 3600.0
"""Requests per second."""

_SPACING = 1.1
"""Seconds between two writes to one object: Google refuses a second one within one second."""

_SMALL = 512 * 1024
"""Bytes that may be sent again as a whole at each interval; of twice as many, half as often."""

_COPIED = 64 * MIB
"""The same for a directory, where to append copies the file within the kernel."""

_LONGEST = 3600.0
"""Seconds after which the largest file is sent again."""

_WORTH = 8
"""A file that grew by a share of one in so many is worth to be sent as a whole at the interval."""

_REMEMBERED = 10_000


class Budget:
    """What is left to spend on the logs of one store; without limit where it is not ``metered``."""

    def __init__(self, clock: Clock, metered: bool) -> None:
        self._clock = clock
        self._metered = metered
        self._left = _SAVED
        self._at = clock.monotonic()
        self._written: OrderedDict[str, float] = OrderedDict()
        self.requests = 0

    def allows(self, count: int) -> bool:
        """Whether so many requests may be made now."""
        now = self._clock.monotonic()
        self._left = min(_SAVED, self._left + (now - self._at) * _EARNED)
        self._at = now
        return not self._metered or self._left >= count

    def spend(self, count: int) -> None:
        """So many requests are made now, whether they are allowed or must not wait."""
        self.allows(0)
        self.requests += count
        self._left = max(-_SAVED, self._left - count)

    def await_turn(self, key: str) -> None:
        """Wait until an object may be written again."""
        last = self._written.get(key)
        if last is not None and self._metered:
            self._clock.sleep(last + _SPACING - self._clock.monotonic())

    def wrote(self, key: str) -> None:
        """An object was written just now."""
        self._written[key] = self._clock.monotonic()
        self._written.move_to_end(key)
        if len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)


def patience(can: Capabilities, interval: float, size: int, sent: int, appends: bool) -> float:
    """Seconds between two sendings of a file of ``size`` bytes, ``sent`` of them sent.

    What goes as a whole goes the less often the larger it is: 17 KB per second at most, at an
    interval of 30 seconds, unless it grows quickly. A tail goes at the interval.
    """
    if appends:
        return interval if can.metered else min(interval * max(1.0, size / _COPIED), _LONGEST)
    if size - sent >= max(sent, size) / _WORTH:
        return interval
    return min(interval * max(1.0, size / _SMALL), max(interval, _LONGEST))
