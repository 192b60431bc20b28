"""The wide form: a column of dates, then one column per series, each cell a list in a text.

    date,SPX,AAPL
    2008-01-02,"[1467.9,1447.1,1471.7,1442.0,38.1,-5.2,-3.9,-0.03,-21.4]",

A cell holds open, close, high, low, RSI, MACD, MACD signal, TRIX and the close less its mean over
20 days; it is blank where the series is not listed. An indicator that is not known yet is `nan`.
Prices need not be above zero: a series that is only looked at may be an interest rate.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.csv_reader import check_date
from trainer.errors import BadData
from trainer.signals import STOP
from trainer.table import COLUMNS, Table

CELL = ("open", "close", "high", "low", "RSI", "MACD", "MACD signal", "TRIX", "diff20DMA")
ORDER = (0, 2, 3, 1)  # open, high, low, close among them

Cells = NDArray[np.float64]


def is_wide(header: list[str]) -> bool:
    """Whether a header is the wide form's: none of the long form's columns but the date."""
    names = {cell.strip().lower() for cell in header}
    return len(header) > 1 and not names & set(COLUMNS[1:])


def read_wide_csv(path: Path) -> Table:
    """Read and check a wide CSV file; raises BadData naming line and column."""
    from trainer import wide_cells

    header = _header(path)
    quick = wide_cells.of_csv(path, len(CELL))
    if quick is not None:
        dates, cells = quick
        with contextlib.suppress(BadData):  # the careful reader knows the line
            return _table(path, dates, header[1:], cells, range(2, len(dates) + 2), "line")
    dates, lines, rows = _careful(path, header)
    return _table(path, dates, header[1:], np.stack(rows), lines, "line")


def read_wide_parquet(path: Path, header: list[str]) -> Table:
    """Read and check a wide Parquet file; raises BadData naming row and column."""
    from trainer import arrow_reader, wide_cells

    dates, columns = arrow_reader.wide_parquet(path, header)
    names, numbers = header[1:], range(1, len(dates) + 1)
    _unique(path, names)
    cells = wide_cells.of_columns(columns, len(CELL))
    if cells is None:
        texts = [column.to_pylist() for column in columns]
        cells = np.array(
            [[_cell(path, row, name, text[row - 1], "row")
              for name, text in zip(names, texts, strict=True)] for row in numbers]
        )  # fmt: skip
    return _table(path, dates, names, cells, numbers, "row")


def _header(path: Path) -> list[str]:
    from trainer.arrow_reader import csv_header

    try:
        header = [cell.strip() for cell in csv_header(path)]
    except UnicodeDecodeError as error:
        raise BadData(path, f"not a text file in UTF-8 ({error.reason})") from None
    _unique(path, header[1:])
    return header


def _unique(path: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadData(path, "the header has this column twice", line=1, column=name)
        if not name:
            raise BadData(path, "a series has no name in the header", line=1)


def _careful(path: Path, header: list[str]) -> tuple[list[str | None], list[int], list[Cells]]:
    dates: list[str | None] = []
    lines, rows = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            next(reader)
            for row in reader:
                STOP.check()
                line = reader.line_num
                if not any(cell.strip() for cell in row):
                    continue  # an empty line is nobody's fault
                if len(row) != len(header):
                    raise BadData(
                        path, f"{len(row)} cells where the header has {len(header)}", line=line
                    )
                dates.append(row[0])
                lines.append(line)
                named = zip(header[1:], row[1:], strict=True)
                rows.append(np.array([_cell(path, line, *pair, "line") for pair in named]))
    except UnicodeDecodeError as error:
        raise BadData(path, f"not a text file in UTF-8 ({error.reason})") from None
    except csv.Error as error:
        raise BadData(path, f"not a CSV file: {error}", line=reader.line_num) from None
    if not rows:
        raise BadData(path, "the file has a header and no rows")
    return dates, lines, rows


def _cell(path: Path, line: int, name: str, text: str | None, unit: str) -> list[float]:
    text = (text or "").strip()
    if not text or text.lower() == "nan":
        return [math.nan] * len(CELL)
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    try:
        found: Any = json.loads(text.replace("None", "null").replace("nan", "NaN"))
        values = [math.nan if v is None else 0.0 + v for v in found]
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise BadData(path, f"{shown!r} is not a list of numbers", line=line, column=name,
                      unit=unit) from None  # fmt: skip
    if len(values) != len(CELL):
        reason = f"a cell has {len(CELL)} numbers ({', '.join(CELL)}), and this one {len(values)}"
        raise BadData(path, reason, line=line, column=name, unit=unit)
    return values


def _table(
    path: Path, dates: list[str | None], names: list[str], cells: Cells, lines: Any, unit: str
) -> Table:
    """Check the dates and numbers, sort the days."""
    clean: list[str] = []
    seen: dict[str, int] = {}
    for date, line in zip(dates, lines, strict=True):
        text = (date or "").strip().removesuffix(" 00:00:00")
        if not text:
            raise BadData(path, "the cell is blank", line=line, column="date", unit=unit)
        try:
            check_date(path, line, text)
        except BadData as fault:
            raise BadData(path, fault.reason, line=line, column="date", unit=unit) from None
        if text in seen:
            raise BadData(path, f"{text} stands in {unit} {seen[text]} already", line=line,
                          column="date", unit=unit)  # fmt: skip
        seen[text] = line
        clean.append(text)
    if np.isinf(cells).any():
        day, series, which = np.argwhere(np.isinf(cells))[0]
        raise BadData(path, f"the {CELL[which]} is not a finite number", line=lines[int(day)],
                      column=names[series], unit=unit)  # fmt: skip
    if clean != sorted(clean):
        order = np.argsort(clean)
        clean, cells = [clean[i] for i in order], cells[order]
    days, series, _ = cells.shape
    values = np.full((5, series, days), np.nan).T  # as `cells`: the days of a number lie together
    for number, given in enumerate(ORDER):
        values[:, :, number] = cells[:, :, given]
    return Table(clean, names, values, cells[:, :, 4:])
