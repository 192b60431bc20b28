"""How an agent sees the past of a series: the newest days one by one, then means over doubling
spans of days.

With `recent` 4 and `context` 20 the spans are 1, 1, 1, 1, 2, 4, 8 and the 2 that are left. A raw
window of 500 days has more numbers than a market has days, and a network that sees them all learns
them by heart; what mattered long ago is told more coarsely than what happened yesterday. The spans
have no parameters, so they are computed once for everybody and not once for each agent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TABLE_BYTES = {"cpu": 128 << 20, "cuda": 4 << 30}
"""The spans of all days are kept when they are smaller than this."""
BLOCK = 64  # days whose spans are computed by one product


def spans(context: int, recent: int) -> list[int]:
    """Lengths of the spans, the newest first; they add up to `context`."""
    result = [1] * min(recent, context)
    left, length = context - len(result), 2
    while left:
        result.append(min(length, left))
        left -= result[-1]
        length *= 2
    return result


@dataclass(frozen=True)
class View:
    """The inputs of a market's days as agents see them.

    `daily` is [D, S, F]: the numbers of each day; what is seen of a day is [S, K * F] for K spans.
    """

    daily: torch.Tensor
    context: int
    recent: int
    table: torch.Tensor | None
    """[D - context + 1, S, K * F], if it is small enough to be kept."""

    @staticmethod
    def of(daily: torch.Tensor, context: int, recent: int) -> View:
        """The view of a market, with its table when that is small."""
        bare = View(daily, context, recent, None)
        days = len(daily) - context + 1
        size = days * daily.shape[1] * bare.width * 4
        if days < 1 or size > TABLE_BYTES[daily.device.type]:
            return bare
        return View(daily, context, recent, bare.row(context - 1, days))

    @property
    def width(self) -> int:
        """How many numbers are seen of a series on a day, K * F."""
        return len(spans(self.context, self.recent)) * self.daily.shape[2]

    def row(self, first: int, count: int) -> torch.Tensor:
        """What is seen on `count` days from `first`: [count, S, K * F]."""
        if self.table is not None:
            start = first - self.context + 1
            return self.table[start : start + count]
        lengths = spans(self.context, self.recent)
        series, numbers = self.daily.shape[1:]
        parts = []
        for begin in range(first, first + count, BLOCK):
            days = min(BLOCK, first + count - begin)
            past = self.daily[begin - self.context + 1 : begin + days].flatten(1)
            means = self._weights(lengths, days) @ past
            parts.append(means.view(days, len(lengths), series, numbers).transpose(1, 2).flatten(2))
        return torch.cat(parts)

    def at(self, days: torch.Tensor) -> torch.Tensor:
        """What is seen on days of any shape: [..., S, K * F]."""
        if self.table is not None:
            return self.table[days - (self.context - 1)]
        seen = torch.cat([self.row(day, 1) for day in days.flatten().tolist()])
        return seen.view(*days.shape, *seen.shape[1:])

    def _weights(self, lengths: list[int], days: int) -> torch.Tensor:
        """[days * K, context + days - 1]: each row takes the mean of one span of one day."""
        weights = torch.zeros(days, len(lengths), self.context + days - 1)
        for day in range(days):
            end = self.context + day
            for index, length in enumerate(lengths):
                weights[day, index, end - length : end] = 1.0 / length
                end -= length
        return weights.flatten(0, 1).to(self.daily)
