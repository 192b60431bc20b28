"""When commits were begun, by the clock that never jumps: for one life of one daemon."""

from __future__ import annotations

import math


class Moments:
    """Outlives the connections to the store; of what was there before, when that was learnt."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._began: dict[int, float] = {}
        self._learnt: list[tuple[int, float]] = []

    def begun(self, seq: int, at: float) -> None:
        """This commit was begun ``at`` that moment, in seconds of the monotonic clock."""
        self._began[seq] = at

    def joined(self, head: int, at: float) -> None:
        """All commits up to ``head`` were there ``at`` that moment."""
        if not self._learnt or head > self._learnt[-1][0]:
            self._learnt.append((head, at))

    def of(self, seq: int) -> float:
        """Since when a commit has been there, at the latest; infinity where nothing tells."""
        learnt = (at for head, at in self._learnt if seq <= head)
        return self._began.get(seq, next(learnt, math.inf))
