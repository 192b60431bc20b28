"""What has happened, for people: checkpoints, faults, and the course of lag and throughput.

All of it is bounded. Times are seconds since the epoch, for people and never for order.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from syncd.records import CommitRecord

EVERY = 10.0
"""Seconds between two samples."""

_SAMPLES = 6 * 360
"""Six hours of them."""

_MOST = 50
"""Checkpoints and faults that are remembered."""


@dataclass
class Passage:
    """The way of one commit: when each step was reached; None for one that was not seen."""

    seq: int
    checkpoint: str
    size: int
    written: float | None = None
    committed: float | None = None
    verified: float | None = None
    """When ``python -m syncd verify`` last read it back and found it intact."""

    broken: str = ""
    """What ``verify`` found wrong with it."""


@dataclass
class Fault:
    """A reason for red, from its beginning to its end."""

    code: str
    message: str
    hint: str
    since: float
    until: float | None = None


@dataclass(frozen=True)
class Sample:
    """One moment: seconds of lag, and bytes per second since the sample before it."""

    at: float
    lag: float
    throughput: float


@dataclass
class History:
    """Kept by Health, under its lock."""

    passages: OrderedDict[int, Passage] = field(default_factory=OrderedDict)
    faults: deque[Fault] = field(default_factory=lambda: deque(maxlen=_MOST))
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    _sampled: float = float("-inf")
    _sent: int = 0

    def committed(self, record: CommitRecord) -> None:
        """A commit that was made, or is found in the log."""
        times = [entry.mtime_ns / 1e9 for entry in record.files]
        try:
            moment = record.moment.timestamp()
        except ValueError:
            moment = None
        known = self.passages.get(record.seq)
        self.passages[record.seq] = known or Passage(
            record.seq, record.checkpoint, record.size, max(times, default=None), moment
        )
        while len(self.passages) > _MOST:
            self.passages.popitem(last=False)

    def found(self, records: Iterable[CommitRecord]) -> None:
        """What the log holds, newest first."""
        newest = [record for record, _ in zip(records, range(_MOST), strict=False)]
        for record in reversed(newest):
            self.committed(record)

    def proven(self, intact: Iterable[int], broken: dict[int, str], now: float) -> None:
        """What a verification found."""
        for seq in intact:
            if passage := self.passages.get(seq):
                passage.verified, passage.broken = now, ""
        for seq, words in broken.items():
            if passage := self.passages.get(seq):
                passage.broken = words

    def red(self, code: str, message: str, hint: str, now: float) -> None:
        """A fault begins, or its words change."""
        self.green(code, now)
        self.faults.append(Fault(code, message, hint, now))

    def green(self, code: str, now: float) -> None:
        """It is over."""
        for fault in self.faults:
            if fault.code == code and fault.until is None:
                fault.until = now

    def sample(self, tick: float, now: float, lag: float, sent: int) -> None:
        """A moment has passed; most are not kept. ``tick`` is the monotonic clock."""
        passed = tick - self._sampled
        if passed < EVERY:
            return
        if self.samples or self._sampled > float("-inf"):
            self.samples.append(Sample(now, lag, (sent - self._sent) / passed))
        self._sampled, self._sent = tick, sent

    def document(self) -> dict[str, Any]:
        """As JSON, oldest first."""
        return {
            "checkpoints": [asdict(passage) for passage in self.passages.values()],
            "faults": [asdict(fault) for fault in self.faults],
            "samples": [asdict(sample) for sample in self.samples],
        }
