"""What the daemon tells the world: one place that every part reports to, and nothing secret.

Red means that the user's work is at risk and why: each reason has words and a remedy.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

from syncd.clock import Clock
from syncd.errors import SyncdError
from syncd.records import CommitRecord

_WINDOW = 60.0
"""Seconds over which throughput is averaged."""


@dataclass(frozen=True)
class Reason:
    """Why health is red."""

    code: str
    message: str
    hint: str
    since: float


@dataclass(frozen=True)
class Waiting:
    """A checkpoint on disk that is not committed, and why not."""

    path: str
    size: int
    reason: str


class Health:
    """The state of one daemon; every method may be called from any thread."""

    def __init__(self, clock: Clock, writer: str = "") -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._reasons: dict[str, Reason] = {}
        self._recovery: CommitRecord | None = None
        self._recovered_at = 0.0
        self._pending: tuple[Waiting, ...] = ()
        self._incomplete: tuple[Waiting, ...] = ()
        self._active_total = 0
        self._active_done = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._counts: Counter[str] = Counter()
        self._started = clock.now()
        self._writer = writer
        self.store = ""
        self.watching = ""

    # -- what is wrong

    def red(self, code: str, error: SyncdError | str, hint: str = "") -> bool:
        """Turn red for one reason; say whether it is news."""
        message = error.message if isinstance(error, SyncdError) else error
        hint = error.hint if isinstance(error, SyncdError) else hint
        with self._lock:
            known = self._reasons.get(code)
            since = known.since if known else self._clock.now()
            self._reasons[code] = Reason(code, message, hint, since)
            self._counts["errors"] += 1
            return known is None or known.message != message

    def green(self, code: str) -> bool:
        """A reason is gone; say whether it was there."""
        with self._lock:
            return self._reasons.pop(code, None) is not None

    def reasons(self, prefix: str = "") -> list[Reason]:
        """Everything that is wrong, oldest first."""
        with self._lock:
            found = [r for r in self._reasons.values() if r.code.startswith(prefix)]
        return sorted(found, key=lambda reason: reason.since)

    # -- what is going on

    def committed(self, record: CommitRecord) -> None:
        """A checkpoint was committed just now; unless it is behind, it is the recovery point."""
        with self._lock:
            self._counts["commits"] += 1
            if not record.behind or self._recovery is None:
                self._recovery = record
                self._recovered_at = self._clock.now()

    def recovered(self, record: CommitRecord) -> None:
        """The recovery point that was found in the store."""
        with self._lock:
            self._recovery = record
            self._recovered_at = record.moment.timestamp()

    def waiting(self, pending: list[Waiting], incomplete: list[Waiting]) -> None:
        """What is on disk and not committed: complete, and not complete."""
        with self._lock:
            self._pending, self._incomplete = tuple(pending), tuple(incomplete)

    def begin(self, total: int) -> None:
        """So many bytes are about to be sent, at most."""
        with self._lock:
            self._active_done, self._active_total = 0, total

    def sent(self, _key: str, count: int) -> None:
        """The store has taken ``count`` more bytes of an object."""
        now = self._clock.monotonic()
        with self._lock:
            self._counts["bytes"] += count
            self._recent.append((now, count))
            while self._recent and self._recent[0][0] < now - _WINDOW:
                self._recent.popleft()
            self._active_done += count

    def last_progress(self) -> float:
        """When the store last took any bytes, on the monotonic clock; 0 for never."""
        with self._lock:
            return self._recent[-1][0] if self._recent else 0.0

    def snapshot(self) -> dict[str, Any]:
        """Everything, as the documented JSON of ``status --json``."""
        now, tick = self._clock.now(), self._clock.monotonic()
        with self._lock:
            recent = [(at, count) for at, count in self._recent if at >= tick - _WINDOW]
            span = max(1.0, tick - recent[0][0]) if recent else 1.0
            point = self._recovery
            return {
                "healthy": not self._reasons,
                "reasons": [asdict(reason) for reason in self._reasons.values()],
                "store": self.store,
                "writer": self._writer,
                "watching": self.watching,
                "uptime_seconds": round(now - self._started, 1),
                "recovery_point": point
                and {
                    "seq": point.seq,
                    "checkpoint": point.checkpoint,
                    "committed_at": point.committed_at,
                    "age_seconds": round(max(0.0, now - self._recovered_at), 1),
                    "bytes": point.size,
                    "files": len(point.files),
                    "profile": point.profile,
                },
                "backlog": [asdict(item) for item in self._pending],
                "backlog_bytes": sum(item.size for item in self._pending),
                "incomplete": [asdict(item) for item in self._incomplete],
                "active": {
                    "bytes": min(self._active_done, self._active_total),
                    "total": self._active_total,
                },
                "throughput_bytes_per_second": round(sum(c for _, c in recent) / span),
                "sent_bytes": self._counts["bytes"],
                "commits": self._counts["commits"],
                "errors": self._counts["errors"],
            }
