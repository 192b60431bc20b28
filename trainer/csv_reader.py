"""Reading long-form market data: one row per day and series, refused by line and column.

The file is read in blocks with the standard csv module, which keeps true line numbers also where
quoted cells hold line breaks; numbers are converted a column at a time, and only a block that
fails is looked at cell by cell. A blank number means "no value that day".
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.errors import BadData
from trainer.signals import STOP

NUMBERS = ("open", "high", "low", "close", "volume")
COLUMNS = ("date", "ticker", *NUMBERS)
BLOCK = 50_000


@dataclass
class Table:
    """Days x series x (open, high, low, close, volume), NaN where there is no value."""

    dates: list[str]
    tickers: list[str]
    values: NDArray[np.float64]


@dataclass
class _Rows:
    """What has been read so far, as codes and numbers."""

    path: Path
    day_codes: dict[str, int] = field(default_factory=dict)
    ticker_codes: dict[str, int] = field(default_factory=dict)
    days: list[NDArray[np.int64]] = field(default_factory=list)
    tickers: list[NDArray[np.int64]] = field(default_factory=list)
    lines: list[NDArray[np.int64]] = field(default_factory=list)
    numbers: list[NDArray[np.float64]] = field(default_factory=list)


def read_csv(path: Path) -> Table:
    """Read and check a long-form file; raises BadData naming line and column."""
    rows = _Rows(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            header = next(reader, None)
            if header is None or not any(cell.strip() for cell in header):
                raise BadData(path, "the file is empty")
            order = _column_order(path, header)
            for lines, block in _blocks(path, reader, len(header)):
                STOP.check()
                _take_block(rows, lines, [[row[i] for row in block] for i in order])
    except UnicodeDecodeError as error:
        raise BadData(path, f"not a text file in UTF-8 ({error.reason})") from None
    except csv.Error as error:
        raise BadData(path, f"not a CSV file: {error}", line=reader.line_num) from None
    except OSError as error:
        raise BadData(path, f"cannot be read: {error.strerror}") from None
    if not rows.days:
        raise BadData(path, "the file has a header and no rows")
    return _assemble(rows)


def _column_order(path: Path, header: list[str]) -> list[int]:
    names = [cell.strip().lower() for cell in header]
    for name in COLUMNS:
        if name not in names:
            hint = ""
            if name == "ticker" and "date" in names[:1]:
                hint = " (the wide form, one column per series, is not read yet: use the long form)"
            raise BadData(path, f"the header has no such column{hint}", line=1, column=name)
        if names.count(name) > 1:
            raise BadData(path, "the header has this column twice", line=1, column=name)
    return [names.index(name) for name in COLUMNS]


def _blocks(
    path: Path, reader: Iterator[list[str]], width: int
) -> Iterator[tuple[list[int], list[list[str]]]]:
    lines: list[int] = []
    block: list[list[str]] = []
    for row in reader:
        number = reader.line_num  # type: ignore[attr-defined]
        if not row:
            continue  # an empty line is nobody's fault
        if len(row) != width:
            raise BadData(path, f"{len(row)} cells where the header has {width}", line=number)
        lines.append(number)
        block.append(row)
        if len(block) == BLOCK:
            yield lines, block
            lines, block = [], []
    if block:
        yield lines, block


def _take_block(rows: _Rows, lines: list[int], columns: list[list[str]]) -> None:
    dates, tickers, *texts = columns
    numbers = np.empty((len(lines), len(NUMBERS)))
    for index, (name, cells) in enumerate(zip(NUMBERS, texts, strict=True)):
        numbers[:, index] = _numbers(rows.path, lines, name, cells)
    _check_prices(rows.path, lines, numbers)
    rows.days.append(_codes(rows.path, lines, "date", dates, rows.day_codes))
    rows.tickers.append(_codes(rows.path, lines, "ticker", tickers, rows.ticker_codes))
    rows.lines.append(np.asarray(lines))
    rows.numbers.append(numbers)


def _numbers(path: Path, lines: list[int], name: str, cells: list[str]) -> NDArray[np.float64]:
    try:
        numbers = np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        numbers = np.array([_number(path, *at, name) for at in zip(lines, cells, strict=True)])
    for index in np.flatnonzero(~np.isfinite(numbers)):
        _number(path, lines[index], cells[index], name)
    return numbers


def _number(path: Path, line: int, cell: str, name: str) -> float:
    text = cell.strip()
    if not text or text.lower() == "nan":
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise BadData(path, f"{cell!r} is not a number", line=line, column=name) from None
    if not math.isfinite(value):
        raise BadData(path, f"{cell!r} is not a finite number", line=line, column=name)
    return value


def _check_prices(path: Path, lines: list[int], numbers: NDArray[np.float64]) -> None:
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
        raise BadData(path, text.format(at[index]), line=lines[index], column=name)


def _codes(
    path: Path, lines: list[int], name: str, cells: list[str], known: dict[str, int]
) -> NDArray[np.int64]:
    codes = np.empty(len(cells), dtype=np.int64)
    for index, cell in enumerate(cells):
        code = known.get(cell)
        if code is None:
            if not cell.strip():
                raise BadData(path, "the cell is blank", line=lines[index], column=name)
            if name == "date":
                _check_date(path, lines[index], cell)
            code = known[cell] = len(known)
        codes[index] = code
    return codes


def _check_date(path: Path, line: int, cell: str) -> None:
    try:
        plain = datetime.date.fromisoformat(cell).isoformat() == cell
    except ValueError:
        plain = False
    if not plain:
        raise BadData(path, f"{cell!r} is not a date like 2024-01-31", line=line, column="date")


def _assemble(rows: _Rows) -> Table:
    """Sort days and series, refuse a (date, ticker) that comes twice, spread into a cube."""
    dates, day_rank = _ranked(rows.day_codes)
    tickers, ticker_rank = _ranked(rows.ticker_codes)
    cell = day_rank[np.concatenate(rows.days)] * len(tickers)
    cell += ticker_rank[np.concatenate(rows.tickers)]
    order = np.argsort(cell, kind="stable")
    twice = np.flatnonzero(np.diff(cell[order]) == 0)
    if twice.size:
        lines = np.concatenate(rows.lines)
        at = min(twice, key=lambda index: lines[order[index + 1]])
        first, second = lines[order[at]], lines[order[at + 1]]
        day, ticker = divmod(int(cell[order[at]]), len(tickers))
        reason = f"{dates[day]} {tickers[ticker]} stands in line {first} already"
        raise BadData(rows.path, reason, line=int(second), column="ticker")
    values = np.full((len(dates) * len(tickers), len(NUMBERS)), np.nan)
    values[cell] = np.concatenate(rows.numbers)
    return Table(dates, tickers, values.reshape(len(dates), len(tickers), len(NUMBERS)))


def _ranked(codes: dict[str, int]) -> tuple[list[str], NDArray[np.int64]]:
    names = sorted(codes)
    rank = np.empty(len(names), dtype=np.int64)
    for position, name in enumerate(names):
        rank[codes[name]] = position
    return names, rank
