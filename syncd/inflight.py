"""How much is on its way at a time: as much as keeps a far line busy, and fits in memory.

To a store that is far away a connection carries only so much, however wide the line is: a wide one
wants many of them. Two fill a thin one, and more would be in the way there: what is under way is
lost with the machine, and nothing more urgent goes before it. Which it is shows in how fast each
of them is.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress

MIB = 1024 * 1024

WIDEST = 8
"""Requests with large bodies that are under way at a time on a wide line."""

NARROW = 4
"""The same as long as nothing is known of the line."""

_LEAST = 2
"""The same on a thin line; two larger ones are under way even if they are more than fits."""

_PIECE = 8 * MIB
"""Bytes of such a body, as a rule."""

_MOST = 7 * _PIECE
"""What may be held on a wide line: with all else that stays below 150 MiB."""

_QUICK, _SLOW = 8 * MIB, MIB
"""Bytes per second of one connection that make room for another, and that take it away."""


_ARENA_MAX = -8
"""M_ARENA_MAX of glibc's malloc.h."""


class Room:
    """Bytes that may be held in memory at a time, on their way; shared by all who send or fetch."""

    def __init__(self, concurrency: int | None = None) -> None:
        """``concurrency``: how many requests at a time; None: as many as the line wants."""
        self._pieces = concurrency + 2 if concurrency else _LEAST
        self._bytes = (self._pieces if concurrency else NARROW + 1) * _PIECE
        self._least = self._pieces * _PIECE
        self._most = self._bytes if concurrency else _MOST
        self._held = self._taken = 0
        self._changed = threading.Condition()
        self._passed = 0

    def take(self, count: int) -> None:
        """Wait until there is room for ``count`` bytes more; whoever waits holds nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_room(count))
            self._add(count)

    def take_at_once(self, count: int) -> bool:
        """Take it if it is there."""
        with self._changed:
            found = self._is_room(count)
            if found:
                self._add(count)
            return found

    def give(self, count: int) -> None:
        """What was taken is free again."""
        with self._changed:
            self._held -= 1
            self._taken -= count
            self._changed.notify_all()

    def went(self, count: int, seconds: float) -> None:
        """A body of ``count`` bytes took so long."""
        with self._changed:
            if count >= seconds * _QUICK:
                self._bytes = min(self._most, self._bytes + count)
            elif count < seconds * _SLOW:
                self._bytes = max(self._least, self._bytes - count)

    def rest(self) -> None:
        """Nothing is on its way: what was held for it is given back to the machine."""
        with self._changed:
            passed, self._passed = self._passed, 0
        if passed > _PIECE:
            _malloc("malloc_trim", 0)

    def _is_room(self, count: int) -> bool:
        # of very large files the parts are longer, and some have to be under way all the same
        return self._held < self._pieces or self._taken + count <= self._bytes

    def _add(self, count: int) -> None:
        self._held += 1
        self._taken += count
        self._passed += count


def share_heap() -> None:
    """Have all threads of this process use one heap; to be called before there are any.

    With one for each, what one of them has let go of is of no use to the others: twice the memory.
    """
    _malloc("mallopt", _ARENA_MAX, 1)


def _malloc(name: str, *arguments: int) -> None:
    """Call what glibc has; another C library goes without."""
    with suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), name)(*arguments)
