"""What the daemon tells the world: one place that every part reports to, and nothing secret.

Red means that the user's work is at risk and why: each reason has words and a remedy.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from syncd.clock import Clock
from syncd.errors import SyncdError
from syncd.history import History
from syncd.lag import Lag
from syncd.motion import bytes_read
from syncd.records import CommitRecord

_WINDOW = 60.0
"""Seconds over which throughput is averaged."""

_STUCK = 1800.0
"""Seconds without a look at the checkpoints, and without any progress, that no work explains."""

_READS = 2**20
"""Bytes that were read since the last beat, at least, where something is read on purpose."""

_OF_MIRROR = (
    "healthy", "reasons", "store", "recovery_point", "lag_seconds", "backlog_bytes", "sent_bytes",
    "commits",
)  # fmt: skip

Listener = Callable[[str, CommitRecord | None], None]
"""Hears ``committed`` with the record, ``red`` and ``green``; it must return at once."""


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

    def __init__(self, clock: Clock, writer: str = "", lag: Lag | None = None) -> None:
        self._clock = clock
        self._lag = lag or Lag()
        self._history = History()
        self._lock = threading.Lock()
        self._reasons: dict[str, Reason] = {}
        self._recovery: CommitRecord | None = None
        self._recovered_at = 0.0
        self._pending: tuple[Waiting, ...] = ()
        self._incomplete: tuple[Waiting, ...] = ()
        self._active_total = 0
        self._active_done = 0
        self._under_way: tuple[str, int, float] | None = None
        self._under_way_from = 0
        self._looked: float | None = None
        self._progress = 0.0
        self._read = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._counts: Counter[str] = Counter()
        self._started = clock.now()
        self._writer = writer
        self.store = ""
        self.watching = ""
        self.listener: Listener = lambda _event, _record: None
        self.mirror: Health | None = None
        """How the second store is, where there is one."""

    # -- what is wrong

    def red(self, code: str, error: SyncdError | str, hint: str = "") -> bool:
        """Turn red for one reason; say whether it is news."""
        message = error.message if isinstance(error, SyncdError) else error
        hint = error.hint if isinstance(error, SyncdError) else hint
        with self._lock:
            known, first = self._reasons.get(code), not self._reasons
            now = self._clock.now()
            self._reasons[code] = Reason(code, message, hint, known.since if known else now)
            self._counts["errors"] += 1
            news = known is None or known.message != message
            if known is None:
                self._history.red(code, message, hint, now)
        if first:
            self.listener("red", None)
        return news

    def green(self, code: str) -> bool:
        """A reason is gone; say whether it was there."""
        with self._lock:
            gone = self._reasons.pop(code, None) is not None
            last = gone and not self._reasons
            if gone:
                self._history.green(code, self._clock.now())
        if last:
            self.listener("green", None)
        return gone

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
            newest = not record.behind or self._recovery is None
            if newest:
                self._recovery = record
                self._recovered_at = self._clock.now()
            self._lag.committed(record.checkpoint, newest)
            self._history.committed(record)
        self.listener("committed", record)

    def recovered(self, record: CommitRecord, log: Iterable[CommitRecord] = ()) -> None:
        """The recovery point that was found in the store, and the whole log, newest first."""
        with self._lock:
            self._recovery = record
            self._recovered_at = record.moment.timestamp()
            self._history.found(log)

    def proven(self, intact: Iterable[int], broken: Mapping[int, str]) -> None:
        """What a verification of the store found, by numbers of commits."""
        with self._lock:
            self._history.proven(intact, dict(broken), self._clock.now())
        for seq, words in sorted(broken.items())[:1]:
            hint = "a restore passes it over; see who else writes to the bucket, then verify again"
            self.red("broken", f"commit {seq} is not intact in the store: {words}", hint)
        if not broken:
            self.green("broken")

    def waiting(self, pending: list[Waiting], incomplete: list[Waiting]) -> None:
        """What is on disk and not committed: complete, and not complete."""
        with self._lock:
            self._pending, self._incomplete = tuple(pending), tuple(incomplete)
            self._looked = self._clock.monotonic()
            sizes = {item.path: item.size for item in pending}
            unfinished = (item.path for item in incomplete)
            self._lag.look(sizes, unfinished, self._looked, self._counts["bytes"])

    def begin(self, total: int) -> None:
        """So many bytes are about to be sent, at most."""
        with self._lock:
            self._active_done, self._active_total = 0, total

    def sending(self, path: str, size: int) -> None:
        """One checkpoint is on its way; "": none is."""
        with self._lock:
            self._under_way = (path, size, self._clock.monotonic()) if path else None
            self._under_way_from = self._counts["bytes"]

    def sent(self, _key: str, count: int) -> None:
        """The store has taken ``count`` more bytes of an object."""
        now = self._clock.monotonic()
        with self._lock:
            self._counts["bytes"] += count
            self._progress = now
            self._recent.append((now, count))
            while self._recent and self._recent[0][0] < now - _WINDOW:
                self._recent.popleft()
            self._active_done += count

    def last_progress(self) -> float:
        """When the store last took any bytes, on the monotonic clock; 0 for never."""
        with self._lock:
            return self._recent[-1][0] if self._recent else 0.0

    def works(self, patience: float) -> bool:
        """Whether something waits or is sent, and the store took some of it ``patience`` s ago."""
        now = self._clock.monotonic()
        with self._lock:
            if not self._pending and self._under_way is None:
                return False
            began = self._under_way[2] if self._under_way else now
            last = self._recent[-1][0] if self._recent else began
        return now - max(began, last) < patience

    def waits_on_purpose(self) -> None:
        """Nothing is sent, and that is as it should be."""
        with self._lock:
            self._progress = self._clock.monotonic()

    def beat(self) -> None:
        """A while has passed: is all that waits, and whoever works on it, well?"""
        reads = bytes_read()
        with self._lock:
            now, sent = self._clock.monotonic(), self._counts["bytes"]
            if reads - self._read > _READS:  # a digest, or a copy: the work goes on
                self._progress = now
            self._read = reads
            overdue = self._lag.overdue(now, self._progress, sent)
            last = None if self._looked is None else max(self._looked, self._progress)
            stuck = last is not None and now - last > _STUCK
            explained = any(code not in ("waiting", "stuck") for code in self._reasons)
            self._history.sample(now, self._clock.now(), self._lag.seconds(now), sent)
        if overdue and not explained:
            self.red("waiting", f"{overdue.path} is complete and not safe: {overdue.words}",
                     overdue.hint)  # fmt: skip
        else:
            self.green("waiting")
        if stuck and not explained:
            words = f"nobody has looked for checkpoints for {_STUCK / 60:.0f} minutes"
            self.red("stuck", words, "a disk that hangs, mostly; else restart syncd and report it")
        else:
            self.green("stuck")

    def limited(self, rate: int | None) -> None:
        """So many bytes per second may go from now on; None: all that can."""
        with self._lock:
            self._lag.bwlimit = rate

    def history(self) -> dict[str, Any]:
        """Checkpoints, faults and samples, as JSON."""
        with self._lock:
            return self._history.document()

    def snapshot(self) -> dict[str, Any]:
        """Everything, as the documented JSON of ``status --json`` (docs/status.md)."""
        now, tick = self._clock.now(), self._clock.monotonic()
        with self._lock:
            recent = [(at, count) for at, count in self._recent if at >= tick - _WINDOW]
            span = max(1.0, tick - recent[0][0]) if recent else 1.0
            throughput = round(sum(count for _, count in recent) / span)
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
                "lag_seconds": round(self._lag.seconds(tick), 1),
                "under_way": self._passage(tick, throughput),
                "backlog": [
                    {**asdict(item), "waited_seconds": round(self._lag.waited(item.path, tick), 1)}
                    for item in self._pending
                ],
                "backlog_bytes": sum(item.size for item in self._pending),
                "incomplete": [asdict(item) for item in self._incomplete],
                "active": {
                    "bytes": min(self._active_done, self._active_total),
                    "total": self._active_total,
                },
                "throughput_bytes_per_second": throughput,
                "limit_bytes_per_second": self._lag.bwlimit,
                "sent_bytes": self._counts["bytes"],
                "commits": self._counts["commits"],
                "errors": self._counts["errors"],
                "mirror": self.mirror and self.mirror.summary(),
            }

    def summary(self) -> dict[str, Any]:
        """What the status of the first store says of this one."""
        state = self.snapshot()
        return {
            **{name: state[name] for name in _OF_MIRROR},
            "backlog_checkpoints": len(state["backlog"]),
        }

    def _passage(self, tick: float, throughput: int) -> dict[str, Any] | None:
        if self._under_way is None:
            return None
        path, size, since = self._under_way
        done = min(size, self._counts["bytes"] - self._under_way_from)
        return {
            "checkpoint": path,
            "bytes": done,
            "total": size,
            "seconds": round(tick - since, 1),
            "seconds_left": round((size - done) / throughput, 1) if throughput else None,
        }
