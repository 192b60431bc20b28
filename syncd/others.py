"""What is sent and waits for the parts of other machines, and how a part differs from a whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from syncd.backlog import Backlog
from syncd.clock import Clock
from syncd.errors import Awaits
from syncd.health import Health
from syncd.profiles import COMPANION, LONE, SET
from syncd.units import Unit

log = logging.getLogger(__name__)

_TOLD = 300.0
"""Seconds after which it is said that the parts of other machines do not come."""

_HINT = "is syncd well on those machines, and the trainer?"


def as_part(unit: Unit, rank: int | None) -> Unit:
    """A checkpoint as one of several machines has it: only the first has the writer's mark.

    The others go by quiet time, and by what their last one had.
    """
    if not rank or unit.profile in (SET, LONE, COMPANION):
        return unit
    bare = replace(
        unit.profile, marker=None, tracker=None, needs=(), required_with=(), renamed=False
    )
    return replace(unit, profile=bare, tracker=None)


@dataclass(frozen=True)
class _Sent:
    signature: str
    since: float
    until: float
    reason: Awaits


class Others:
    """Remembers what waits for others, and since when."""

    def __init__(self, clock: Clock, health: Health, backlog: Backlog) -> None:
        self._clock = clock
        self._health = health
        self._backlog = backlog
        self._sent: dict[str, _Sent] = {}

    def paths(self) -> set[str]:
        """What waits."""
        return set(self._sent)

    def await_for(self, unit: Unit, reason: Awaits) -> None:
        """This one waits; after some minutes that is a reason for red."""
        now, known = self._clock.monotonic(), self._sent.get(unit.path)
        since = known.since if known and known.signature == unit.signature else now
        self._sent[unit.path] = _Sent(unit.signature, since, now + reason.pause, reason)
        code = f"parts {printable(unit.path)}"
        if not reason.fresh:
            self._health.green(code)
        elif now - since > _TOLD:
            words = f"{printable(unit.path)}: {reason.message}"
            if self._health.red(code, words, _HINT):
                log.error("%s (%s)", words, _HINT)
        self.wait(unit)

    def wait(self, unit: Unit) -> bool:
        """Whether this very revision is to be left alone for now; the backlog is told."""
        sent = self._sent.get(unit.path)
        if sent is None or sent.signature != unit.signature:
            return False
        if sent.until <= self._clock.monotonic():
            return False
        again, retry = (sent.until, None) if sent.reason.fresh else (None, sent.until)
        self._backlog.blocked(unit, sent.reason.message, retry, again)
        return True

    def forget(self, path: str) -> None:
        """It is committed, or gone."""
        self._sent.pop(path, None)
        self._health.green(f"parts {printable(path)}")

    def failures(self) -> dict[str, str]:
        """What a flush has to call not safe: of what newer ones have passed nobody speaks."""
        return {path: sent.reason.message for path, sent in self._sent.items() if sent.reason.fresh}


def printable(path: str) -> str:
    """A path as text that any stream takes."""
    return path.encode(errors="backslashreplace").decode()
