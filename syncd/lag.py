"""How long what is complete has been waiting, and when that is too long.

The lag is the time since which something complete is newer than the recovery point: what was
superseded while it waited counts too, since it would be lost as well. Older checkpoints that
follow the newest do not count.

A slow link is no fault while it makes progress, so without a bound of the user's only these
count: the store takes nothing for a while, or it takes many times what there is to send and
still nothing is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PATIENCE = 300.0
"""Seconds without any progress after which waiting is too long, where the user set no bound."""

_PART = 16 * 2**20
"""Bytes of the largest usual part: progress is seen when the store has taken one."""

_TIMES = 4
"""A checkpoint may cost so many times its size (retries, one that was pushed aside before it)."""

_SLACK = 64 * 2**20


@dataclass(frozen=True)
class Overdue:
    """A checkpoint that has waited too long; ``words`` say in which way."""

    path: str
    seconds: float
    words: str
    hint: str


@dataclass
class _Wait:
    since: float
    size: int
    sent: int
    """Bytes that the store had taken in all when it was found complete."""


class Lag:
    """Knows since when each checkpoint waits, on the monotonic clock. Not for several threads."""

    def __init__(self, bound: float | None = None, bwlimit: int | None = None) -> None:
        """``bound``: seconds, None for what the module says above, infinity for never."""
        self._bound = bound
        self.bwlimit = bwlimit
        """Bytes per second that may go; None: all that can."""
        self._waits: dict[str, _Wait] = {}
        self._safe = float("-inf")
        """Since when the newest committed one had been waiting."""

    @property
    def _patience(self) -> float:
        return max(PATIENCE, 4 * _PART / self.bwlimit) if self.bwlimit else PATIENCE

    def look(
        self, pending: Mapping[str, int], unfinished: Iterable[str], now: float, sent: int
    ) -> None:
        """What is complete, with sizes, and what else is there and not committed.

        A checkpoint that waited and is being written again goes on waiting: the recovery point
        is as old as before.
        """
        kept = pending.keys() | (self._waits.keys() & set(unfinished))
        self._waits = {path: wait for path, wait in self._waits.items() if path in kept}
        for path, size in pending.items():
            self._waits.setdefault(path, _Wait(now, size, sent)).size = size

    def committed(self, path: str, newest: bool) -> None:
        """A checkpoint is safe; ``newest`` if it is the recovery point now."""
        wait = self._waits.pop(path, None)
        if wait and newest:
            self._safe = max(self._safe, wait.since)

    def _newer(self) -> dict[str, _Wait]:
        return {path: wait for path, wait in self._waits.items() if wait.since > self._safe}

    def seconds(self, now: float) -> float:
        """The lag; 0 while the recovery point is the newest there is."""
        return max((now - wait.since for wait in self._newer().values()), default=0.0)

    def waited(self, path: str, now: float) -> float:
        """Seconds since one checkpoint was found complete."""
        wait = self._waits.get(path)
        return now - wait.since if wait else 0.0

    def overdue(self, now: float, progress: float, sent: int) -> Overdue | None:
        """Whether it is too long; ``progress``: when the store last took any bytes."""
        waits = self._newer()
        if not waits:
            return None
        path, wait = min(waits.items(), key=lambda item: item[1].since)
        seconds = now - wait.since
        words = ""
        hint = "read the log; `python -m syncd check` tries each step against the store"
        if self._bound is not None:
            if seconds > self._bound:
                words = f"it has waited longer than SYNCD_MAX_LAG={self._bound:g} s"
                hint = "a faster link, smaller checkpoints, or fewer of them; or a longer bound"
        elif now - max(wait.since, progress) > self._patience:
            words = f"the store has taken nothing for {now - max(wait.since, progress):.0f} s"
        elif (
            seconds > self._patience
            and sent - wait.sent > _TIMES * max(w.size for w in waits.values()) + _SLACK
        ):
            words = f"{(sent - wait.sent) / 1e6:.0f} MB were sent and nothing was committed"
            hint = "it changes faster than it can be sent, or is sent again and again: see the log"
        return Overdue(path, seconds, words, hint) if words else None
