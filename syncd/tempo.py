"""How often to look: scanning takes at most about 1 % of a core on average.

Where events tell of every change it takes far less: the scans only prove that they do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from syncd.clock import Clock

_SHARE = 100
"""A scan of everything that takes t seconds of a core is repeated after 100 t at the earliest."""

_TRUSTED_SHARE = 3000
"""The same where all is watched: a daemon that has nothing to do costs next to nothing."""

_WALL_SHARE = 20
"""And after 20 times what it took by the clock: it must not keep a slow disk busy either."""

_LONGEST = 3600.0
"""Seconds after which everything is scanned in any case."""

_PARTIAL_SHARE = 0.005
"""Seconds of a core that looks at parts may take in each second, on average..."""

_SAVED = 5.0
"""...and how many such seconds may be saved up for when much happens at once."""


@dataclass
class Stopwatch:
    """What a scan has taken so far: seconds by the clock, without its pauses, and of a core."""

    clock: Clock
    wall: float = 0.0
    core: float = 0.0

    def __post_init__(self) -> None:
        self._wall, self._core = self.clock.monotonic(), time.thread_time()

    def pause(self) -> None:
        """Something else is done for a while; what it takes of a core counts all the same."""
        self.wall += self.clock.monotonic() - self._wall

    def go_on(self) -> None:
        """The pause is over."""
        self._wall = self.clock.monotonic()

    def stop(self) -> None:
        """The scan is over."""
        self.pause()
        self.core = time.thread_time() - self._core


class Tempo:
    """Says when to look at everything, and whether a part may be looked at now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: tuple[float, float] | None = None
        """When everything was scanned, and how long to rest from that."""

        self._early_at = float("-inf")
        self._saved = _SAVED
        self._since = clock.monotonic()

    def forget(self) -> None:
        """There is another folder to look at: nothing is known of what it takes."""
        self._last = None
        self._early_at = float("-inf")

    def full_in(self, shortest: float, early: bool) -> float:
        """Seconds until everything is to be scanned; ``early`` where events were lost."""
        if self._last is None:
            return 0.0
        ended, rest = self._last
        at = ended + max(shortest, rest)
        return max(0.0, (min(at, self._early_at) if early else at) - self._clock.monotonic())

    def full(self, took: Stopwatch, early: bool, trusted: bool = False) -> None:
        """Everything was scanned; ``early`` if that was because events were lost.

        ``trusted``: events tell of all that changes from now on.
        """
        now = self._clock.monotonic()
        rest = min(max(_SHARE * took.core, _WALL_SHARE * took.wall), _LONGEST)
        self._last = now, min(max(rest, _TRUSTED_SHARE * took.core if trusted else 0.0), _LONGEST)
        if early:
            self._early_at = now + rest

    def part_in(self) -> float:
        """Seconds until a part may be looked at."""
        now = self._clock.monotonic()
        self._saved = min(_SAVED, self._saved + (now - self._since) * _PARTIAL_SHARE)
        self._since = now
        return max(0.0, -self._saved / _PARTIAL_SHARE)

    def part(self, took: Stopwatch) -> None:
        """A part was looked at."""
        self._saved -= took.core
