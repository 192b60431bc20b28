"""Reading long-form market data with care: one row per day and series, refused by line and column.

The file is read in blocks with the standard csv module, which keeps true line numbers also where
quoted cells hold line breaks; numbers are converted a column at a time, and only a block that
fails is looked at cell by cell. A blank number means "no value that day". `arrow_reader` is ten
times quicker and is asked first; this reader says what it could not.
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.errors import BadData
from trainer.signals import STOP
from trainer.table import COLUMNS, NUMBERS, Rows, Table, assemble, check_prices

BLOCK = 50_000


def read_csv(path: Path) -> Table:
    """Read and check a long-form file; raises BadData naming line and column."""
    rows = Rows(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            header = next(reader, None)
            if header is None or not any(cell.strip() for cell in header):
                raise BadData(path, "the file is empty")
            order = column_order(path, header)
            for lines, block in _blocks(path, reader, len(header)):
                STOP.check()
                _take_block(rows, lines, [[row[i] for row in block] for i in order])
    except UnicodeDecodeError as error:
        raise BadData(path, f"not a text file in UTF-8 ({error.reason})") from None
    except csv.Error as error:
        raise BadData(path, f"not a CSV file: {error}", line=reader.line_num) from None
    except OSError as error:
        raise BadData(path, f"cannot be read: {error.strerror}") from None
    return assemble(rows)


def column_order(path: Path, header: list[str]) -> list[int]:
    """Where each of COLUMNS stands; raises BadData for one that is absent or there twice."""
    names = [cell.strip().lower() for cell in header]
    for name in COLUMNS:
        if name not in names:
            raise BadData(path, "the header has no such column", line=1, column=name)
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


def _take_block(rows: Rows, lines: list[int], columns: list[list[str]]) -> None:
    dates, tickers, *texts = columns
    numbers = np.empty((len(lines), len(NUMBERS)))
    for index, (name, cells) in enumerate(zip(NUMBERS, texts, strict=True)):
        numbers[:, index] = _numbers(rows.path, lines, name, cells)
    check_prices(rows.path, np.asarray(lines), numbers)
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


def _codes(
    path: Path, lines: list[int], name: str, cells: list[str], known: dict[str, int]
) -> NDArray[np.int64]:
    codes = np.empty(len(cells), dtype=np.int64)
    for index, cell in enumerate(cells):
        code = known.get(cell)
        if code is None:
            check_filled(path, lines[index], name, cell)
            if name == "date":
                check_date(path, lines[index], cell)
            code = known[cell] = len(known)
        codes[index] = code
    return codes


def check_filled(path: Path, line: int, name: str, cell: str) -> None:
    """Raise BadData where nothing stands and something must."""
    if not cell.strip():
        raise BadData(path, "the cell is blank", line=line, column=name)


def check_date(path: Path, line: int, cell: str) -> None:
    """Raise BadData unless the cell is a date as ISO 8601 has it."""
    try:
        plain = datetime.date.fromisoformat(cell).isoformat() == cell
    except ValueError:
        plain = False
    if not plain:
        raise BadData(path, f"{cell!r} is not a date like 2024-01-31", line=line, column="date")
