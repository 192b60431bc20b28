"""What is read from a data file, whatever its form: a cube of days, series and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.errors import BadData

NUMBERS = ("open", "high", "low", "close", "volume")
COLUMNS = ("date", "ticker", *NUMBERS)


@dataclass
class Table:
    """Days x series x (open, high, low, close, volume), NaN where there is no value."""

    dates: list[str]
    tickers: list[str]
    values: NDArray[np.float64]
    given: NDArray[np.float64] | None = None
    """Days x series x (RSI, MACD, MACD signal, TRIX, close less its 20-day mean), where the file
    brings its own indicators."""


@dataclass
class Rows:
    """Rows of the long form as codes and numbers, in the order of the file."""

    path: Path
    day_codes: dict[str, int] = field(default_factory=dict)
    ticker_codes: dict[str, int] = field(default_factory=dict)
    days: list[NDArray[np.int64]] = field(default_factory=list)
    tickers: list[NDArray[np.int64]] = field(default_factory=list)
    lines: list[NDArray[np.int64]] = field(default_factory=list)
    numbers: list[NDArray[np.float64]] = field(default_factory=list)


def check_prices(path: Path, lines: NDArray[np.int64], numbers: NDArray[np.float64]) -> None:
    """Prices above zero, volume not below it, and the day's low and high around open and close."""
    opens, high, low, close, volume = numbers.T
    faults = [
        (~(prices > 0) & ~np.isnan(prices), name, "a price must be above zero, and is {:g}", prices)
        for name, prices in zip(NUMBERS[:4], (opens, high, low, close), strict=True)
    ]
    faults += [
        (volume < 0, "volume", "a volume cannot be negative, and is {:g}", volume),
        (high < low, "high", "the high, {:g}, is below the low", high),
        ((opens > high) | (opens < low), "open", "{:g} is not between low and high", opens),
        ((close > high) | (close < low), "close", "{:g} is not between low and high", close),
    ]
    found = [(int(np.argmax(bad)), name, text, at) for bad, name, text, at in faults if bad.any()]
    if found:
        index, name, text, at = min(found, key=lambda item: item[0])
        raise BadData(path, text.format(at[index]), line=int(lines[index]), column=name)


def assemble(rows: Rows) -> Table:
    """Sort days and series, refuse a (date, ticker) that comes twice, spread into a cube."""
    if not rows.days:
        raise BadData(rows.path, "the file has a header and no rows")
    dates, day_rank = _ranked(rows.day_codes)
    tickers, ticker_rank = _ranked(rows.ticker_codes)
    cell = day_rank[np.concatenate(rows.days)] * len(tickers)
    cell += ticker_rank[np.concatenate(rows.tickers)]
    if int(np.bincount(cell).max()) > 1:
        raise _twice(rows, cell, dates, tickers)
    values = np.full((len(dates) * len(tickers), len(NUMBERS)), np.nan)
    values[cell] = np.concatenate(rows.numbers)
    return Table(dates, tickers, values.reshape(len(dates), len(tickers), len(NUMBERS)))


def _twice(rows: Rows, cell: NDArray[np.int64], dates: list[str], tickers: list[str]) -> BadData:
    order = np.argsort(cell, kind="stable")
    twice = np.flatnonzero(np.diff(cell[order]) == 0)
    lines = np.concatenate(rows.lines)
    at = min(twice, key=lambda index: lines[order[index + 1]])
    first, second = lines[order[at]], lines[order[at + 1]]
    day, ticker = divmod(int(cell[order[at]]), len(tickers))
    reason = f"{dates[day]} {tickers[ticker]} stands in line {first} already"
    return BadData(rows.path, reason, line=int(second), column="ticker")


def _ranked(codes: dict[str, int]) -> tuple[list[str], NDArray[np.int64]]:
    names = sorted(codes)
    rank = np.empty(len(names), dtype=np.int64)
    for position, name in enumerate(names):
        rank[codes[name]] = position
    return names, rank
